"""The queue of timers does what a dict of them does, in which one looks for the earliest each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.streaming import keyed
from pipeline.streaming.keyed import TimerQueue
from pipeline.streaming.progress import Timer


class Plain:
    """What is armed, and nothing else."""

    def __init__(self) -> None:
        self._armed: dict[tuple[str, str, str], int] = {}
        self.changed: set[str] = set()

    def set(self, name: str, key: str, tag: str, due_ms: int) -> None:
        if self._armed.get((name, key, tag)) != due_ms:
            self._armed[name, key, tag] = due_ms
            self.changed.add(key)

    def clear(self, name: str, key: str, tag: str) -> None:
        if self._armed.pop((name, key, tag), None) is not None:
            self.changed.add(key)

    def pop(self, watermark_ms: int) -> Timer | None:
        if not self.due(watermark_ms):
            return None
        due_ms, name, key, tag = min((due_ms, *who) for who, due_ms in self._armed.items())
        self.clear(name, key, tag)
        return due_ms, name, key, tag

    def due(self, watermark_ms: int) -> bool:
        return any(due_ms <= watermark_ms for due_ms in self._armed.values())

    def armed(self, key: str) -> list[tuple[str, str, int]]:
        return [(name, tag, due_ms) for (name, of, tag), due_ms in self._armed.items() if of == key]


_who = st.tuples(st.sampled_from("nm"), st.sampled_from("abc"), st.sampled_from(["", "t"]))
_times = st.integers(0, 6)
_step = st.one_of(
    st.tuples(st.just("set"), _who, _times),
    st.tuples(st.just("set"), _who, _times),
    st.tuples(st.just("clear"), _who, st.just(0)),
    st.tuples(st.just("pop"), st.just(()), _times),
    st.tuples(st.just("due"), st.just(()), _times),
    st.tuples(st.just("saved"), st.just(()), st.just(0)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_step, max_size=60), st.sampled_from([0, 1, 5, 1_000]))
def test_it_does_what_a_dict_does(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, tuple[str, ...], int]], stale_allowed: int
) -> None:
    monkeypatch.setattr(keyed, "_STALE_ALLOWED", stale_allowed)  # how soon replaced timers are swept out
    queue, plain = TimerQueue(), Plain()
    for what, who, time_ms in steps:
        told = [_do(each, what, who, time_ms) for each in (queue, plain)]
        assert told[0] == told[1]
        assert queue.changed == plain.changed
        assert all(sorted(queue.armed(key)) == sorted(plain.armed(key)) for key in "abc")
    while (timer := plain.pop(10)) is not None:
        assert queue.pop(10) == timer
    assert queue.pop(10) is None


def _do(queue: TimerQueue | Plain, what: str, who: tuple[str, ...], time_ms: int) -> object:
    doing: dict[str, Callable[[], object]] = {
        "set": lambda: queue.set(*who, time_ms),
        "clear": lambda: queue.clear(*who),
        "pop": lambda: queue.pop(time_ms),
        "due": lambda: queue.due(time_ms),
        "saved": lambda: queue.changed.clear(),
    }
    return doing[what]()


def test_timers_that_are_set_again_and_again_take_no_more_room() -> None:
    queue = TimerQueue()
    for due_ms in range(100_000):
        queue.set("n", "a", "", due_ms)
    assert len(queue._heap) < 5_000
