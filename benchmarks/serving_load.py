"""Many callers at once, and what became of their pages."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.serving_place import Place, pages
from benchmarks.telling import say
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.agent import PageRequest
from pipeline.records import DecidedBy

_PAGES = 2_000  # then they come again, as other requests
Decide = Callable[[PageRequest], object]


class Times(Struct, frozen=True):
    """Milliseconds."""

    calls: int
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        low, high = np.quantile(seconds, [0.5, 0.99]).tolist() if seconds else (float("nan"),) * 2
        return cls(len(seconds), round(1e3 * low, 3), round(1e3 * high, 3))


class Load(Struct, frozen=True):
    form: str
    clients: int
    decide: Times
    per_s: float
    per_core_s: float  # decisions per CPU-second of the deciding process
    not_by_policy: int


class Callers:
    """Threads that ask one page after another until they are told to stop. Their pages are there before the first of
    them asks: making them would keep the others from hearing their answers in time."""

    def __init__(self, place: Place, decide: Decide, clients: int) -> None:
        self.calls: list[tuple[float, float]] = []  # when it ended, how long it took
        self.answered: set[str] = set()
        self.not_by_policy = self.failed = 0
        self._decide, self._stop = decide, threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        seed = random.SystemRandom().randrange(2**31)
        asked = [page for page, _ in zip(pages(place.config, seed), range(_PAGES), strict=False)]
        each = _PAGES // clients
        self._running = [self._pool.submit(self._ask, asked, each * number) for number in range(clients)]

    def _ask(self, asked: Sequence[PageRequest], first: int) -> None:
        number = first
        while not self._stop.is_set():
            page = asked[number % len(asked)]
            number += 1
            page = msgspec.structs.replace(page, request_id=f"{page.request_id}-{first}-{number}")
            began = time.perf_counter()
            try:
                answer = self._decide(page)
            except Exception as error:
                say(f"a page failed: {error!r}")
                self.failed += 1
                continue
            self.answered.add(page.request_id)
            self.calls.append((time.perf_counter(), time.perf_counter() - began))
            self.not_by_policy += not _by_policy(answer)

    def stop(self) -> None:
        self._stop.set()
        for each in self._running:
            each.result()
        self._pool.shutdown()


def _by_policy(answer: Any) -> bool:
    if isinstance(answer, pb.DecideResponse):
        return bool(answer.decided_by == pb.DECIDED_BY_POLICY)
    return bool(answer.decision.decided_by is DecidedBy.POLICY)


def load(place: Place, form: str, decide: Decide, clients: int, seconds: float, pid: int) -> Load:
    callers = Callers(place, decide, clients)
    time.sleep(seconds / 4)
    began_s, began_cpu_s = time.perf_counter(), _cpu_s(pid)
    time.sleep(seconds)
    ended_s, cpu_s = time.perf_counter(), _cpu_s(pid) - began_cpu_s
    callers.stop()
    took = [seconds for at_s, seconds in callers.calls if began_s <= at_s < ended_s]
    per_s = len(took) / (ended_s - began_s)
    return Load(
        form, clients, Times.of(took), round(per_s, 1), round(len(took) / cpu_s, 1),
        callers.not_by_policy + callers.failed,
    )  # fmt: skip


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
