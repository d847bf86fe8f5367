"""What is to happen when, in one thread; and questions that wait in others, so that a slow answer holds up nobody.

agenda = Agenda(clock, threads=8)
agenda.at(due_ms, lambda due_ms: ...)
agenda.ask(question, then)           # `then` hears the answer, in the thread of the agenda
while not agenda.empty:
    agenda.step()
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, TypeVar

_LOOK_MS = 100  # the longest that a step waits
_T = TypeVar("_T")


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def wait_until(self, time_ms: int) -> None:
        """Returns then, or earlier."""


class VirtualClock:
    """Is at once where it is asked to be."""

    def __init__(self, start_ms: int = 0) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        return self._now_ms

    def wait_until(self, time_ms: int) -> None:
        self._now_ms = max(self._now_ms, time_ms)


class WallClock:
    """Real time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def wait_until(self, time_ms: int) -> None:
        time.sleep(min(max(0, time_ms - self.now_ms()), _LOOK_MS) / 1000)


class _Entry(NamedTuple):
    due_ms: int
    number: int  # of equal times the first that was entered comes first
    happen: Callable[[int], None]  # is told when it was due


class Agenda:
    """`threads`: how many questions may be out at once; 0: each is answered on the spot."""

    def __init__(self, clock: Clock, threads: int = 0) -> None:
        self._clock = clock
        self._entries: list[_Entry] = []
        self._entered = 0
        self._pool = ThreadPoolExecutor(threads, "asking") if threads else None
        self._out = 0  # questions
        self._answers: SimpleQueue[Callable[[], None]] = SimpleQueue()

    @property
    def empty(self) -> bool:
        return not self._entries and not self._out

    def at(self, due_ms: int, happen: Callable[[int], None]) -> None:
        heapq.heappush(self._entries, _Entry(due_ms, self._entered, happen))
        self._entered += 1

    def ask(self, question: Callable[[], _T], then: Callable[[_T], None]) -> None:
        """What the question raises, `step` raises."""
        if self._pool is None:
            then(question())
            return
        self._out += 1
        self._pool.submit(question).add_done_callback(lambda done: self._answers.put(partial(_hear, done, then)))

    def step(self) -> None:
        """Let the next thing happen, or wait a while for it. The clock stands still for answers, if it is virtual."""
        due_ms = self._entries[0].due_ms if self._entries else None
        now_ms = self._clock.now_ms()
        late = due_ms is not None and due_ms <= now_ms
        if self._out and self._answered(0 if late else min(_LOOK_MS, (due_ms or now_ms + _LOOK_MS) - now_ms)):
            return
        if late:
            happening = heapq.heappop(self._entries)
            happening.happen(happening.due_ms)
        elif due_ms is not None and not self._out:
            self._clock.wait_until(due_ms)

    def close(self) -> None:
        """Returns when the questions that are out have been answered; what nobody has asked yet is not asked."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _answered(self, wait_ms: int) -> bool:
        try:
            hear = self._answers.get(timeout=wait_ms / 1000)
        except Empty:
            return False
        self._out -= 1
        hear()
        return True


def _hear(done: Future[_T], then: Callable[[_T], None]) -> None:
    then(done.result())
