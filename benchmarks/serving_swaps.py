"""Versions that go out while pages are asked for: what becomes of the pages, and of their latency."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from benchmarks.serving_load import Callers, Decide, Times
from benchmarks.serving_place import Place, candidate, controller_process
from benchmarks.shares import BenchmarkError
from benchmarks.telling import say
from model_export.verdicts import read_verdicts
from pipeline.events import parse
from pipeline.logs.log import EVENTS
from pipeline.logs.opening import open_log
from pipeline.records import Impression
from pipeline.stores.opening import open_store
from pipeline.stores.published import Served, read_pointers
from pipeline.streaming.outputs import read_all

_CLIENTS = 8
_SWAP_S = 60.0
_FOLLOWED_S = 1.5  # agents follow a pointer within a second
_RESAMPLES = 2_000


class Swaps(Struct, frozen=True):
    versions: int
    decisions: int
    failed: int
    fallbacks: dict[str, int]
    mixed: int  # decisions whose parameters are not those of their version
    unlogged: int
    rest: Times
    swapping: Times
    p99_ratio: tuple[float, float, float]  # swapping to rest, paired windows: median, and 95 % interval


class Window(NamedTuple):
    rested_s: float
    began_s: float
    ended_s: float


def swaps(place: Place, decide: Decide, versions: int, rest_s: float) -> Swaps:
    """Before each version a window at rest; then one from its candidate's appearance until agents decide by it."""
    policy, windows = place.config.learned_policies()[0], []
    published = {_stable(place, policy)}
    callers = Callers(place, decide, _CLIENTS)
    with controller_process(place):
        for number in range(1, versions + 1):
            rested_s = time.perf_counter()
            time.sleep(rest_s)
            began_s = time.perf_counter()
            _await_verdict(place, candidate(place, policy, number))
            published.add(_stable(place, policy))
            time.sleep(max(_FOLLOWED_S, rest_s - (time.perf_counter() - began_s)))
            windows.append(Window(rested_s, began_s, time.perf_counter()))
            say(f"version {number} of {versions}")
    callers.stop()
    return _judged(place, policy, callers, windows, published)


def _stable(place: Place, policy: str) -> Served:
    with closing(open_store(place.store_url)) as store:
        stable = read_pointers(store, place.config.kv_prefix, (policy,))[policy].stable
    assert stable is not None
    return stable


def _await_verdict(place: Place, name: str) -> None:
    deadline = time.monotonic() + _SWAP_S
    while time.monotonic() < deadline:
        verdict = next((v for v in read_verdicts(place.models) if v.candidate == name), None)
        if verdict is not None:
            if verdict.outcome != "accepted":
                message = f"expected candidate {name} to go out, found {verdict.outcome}: {verdict.detail}"
                raise BenchmarkError(message)
            return
        time.sleep(0.1)
    message = f"expected a verdict on {name} within {_SWAP_S:.0f} s, found none; see {place.logs / 'controller.log'}"
    raise BenchmarkError(message)


def _judged(place: Place, policy: str, callers: Callers, windows: Sequence[Window], published: set[Served]) -> Swaps:
    ends = np.array([at_s for at_s, _ in callers.calls])
    took = np.array([seconds for _, seconds in callers.calls])
    rest = [took[(ends >= each.rested_s) & (ends < each.began_s)] for each in windows]
    swapping = [took[(ends >= each.began_s) & (ends < each.ended_s)] for each in windows]
    logged = [i for i in _impressions(place) if i.request_id in callers.answered]
    made = [i.decision for i in logged if i.decision.policy == policy and i.decision.model_version is not None]
    return Swaps(
        versions=len({decision.model_version for decision in made}),
        decisions=len(callers.calls),
        failed=callers.failed,
        fallbacks=dict(Counter(i.decision.fallback_reason for i in logged if i.decision.fallback_reason)),
        mixed=sum(Served(d.model_version, d.parameters) not in published for d in made),
        unlogged=len(callers.answered) - len(logged),
        rest=Times.of(np.concatenate(rest).tolist()),
        swapping=Times.of(np.concatenate(swapping).tolist()),
        p99_ratio=ratio_of([_p99(each) for each in swapping], [_p99(each) for each in rest]),
    )


def _impressions(place: Place) -> list[Impression]:
    with closing(open_log(f"file://{place.folder}/log")) as log:
        events = (parse(record.payload, place.config.stream.max_event_bytes) for record in read_all(log, EVENTS))
        return [event for event in events if isinstance(event, Impression)]


def _p99(seconds: np.ndarray) -> float:
    return float(np.quantile(seconds, 0.99))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median of the pairs' ratios, and its 95 % bootstrap interval over pairs."""
    ratios = np.array(above) / np.array(below)
    rng = np.random.default_rng(1)
    medians = np.median(rng.choice(ratios, (_RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975]).tolist()
    return round(float(np.median(ratios)), 3), round(low, 3), round(high, 3)
