"""The step that is keyed by groups of sessions, wherever it goes on from: with or without what it remembers.

That the whole graph gives the same on all engines is in test_engines.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from apache_beam.transforms import userstate
from apache_beam.utils.timestamp import Timestamp

from pipeline.config.schema import FeatureConfig
from pipeline.events import Refusal, encode, parse
from pipeline.logs.log import LATE, SAMPLES, TRANSITIONS, Entry
from pipeline.records import Stamp
from pipeline.streaming import grouped
from pipeline.streaming.grouped import Groups
from pipeline.streaming.groups import Piece, group_of
from pipeline.streaming.keyed import KeyedState
from pipeline.streaming.progress import SavedStep
from pipeline.streaming.sinks import Encoded
from pipeline.transitions.session import Rules, Stamped

GROUPS = 3
T = 1_700_000_000_000
FAR_MS = 10**13
Bundle = tuple[list[Entry], int]  # what is read, and the watermark behind it
Traffic = Callable[..., list[Entry]]


def sessions_of_a_group(count: int) -> list[str]:
    names = (name for name in map(str, itertools.count()) if group_of(name, GROUPS) == "0")
    return list(itertools.islice(names, count))


class Engine:
    """State and timers, which go back to a checkpoint; and, elsewhere, workers with a memory of their own."""

    def __init__(self, config: FeatureConfig) -> None:
        self._rules = Rules.of(config)
        self._state, self.outputs = self._empty(), set[Encoded]()

    def worker(self) -> Groups:
        worker = Groups(self._rules)
        worker.setup()
        return worker

    def bundle(self, worker: Groups, number: int, bundle: Bundle) -> None:
        entries, watermark_ms = bundle
        groups: dict[str, list[Stamped]] = defaultdict(list)
        for offset, entry in enumerate(entries):
            event = parse(entry.payload, 10**6)
            if not isinstance(event, Refusal):
                stamped = Stamped(Stamp(entry.appended_at_ms or 0, number, offset), event)
                groups[group_of(event.session_id, GROUPS)].append(stamped)
        for key, events in groups.items():
            self.outputs.update(worker.process((key, events), *self._cells(key)))
        while timer := self._state.timers.pop(watermark_ms):
            due_ms, _, key, _ = timer
            self.outputs.update(worker.on_wake(key, Timestamp(micros=due_ms * 1_000), *self._cells(key)))

    def checkpoint(self) -> SavedStep:
        return self._state.saved(map(str, range(GROUPS)))

    def go_back(self, checkpoint: SavedStep) -> None:
        self._state = self._empty()
        self._state.restore(checkpoint)

    def pieces(self, key: str = "0") -> list[Piece]:
        return list(self._cells(key)[0].read())

    @property
    def is_empty(self) -> bool:
        return not any(self.checkpoint().keys.values())

    def _cells(self, key: str) -> tuple[object, object]:
        return self._state.get_state(Groups.STATE, key, None), self._state.get_timer(Groups.WAKE, key)

    def _empty(self) -> KeyedState:
        return KeyedState(*userstate.get_dofn_specs(Groups(self._rules)))


@pytest.fixture
def bundles(config: FeatureConfig, traffic: Traffic) -> list[Bundle]:
    entries = traffic(7, 40)
    cuts = [entries[i : i + 25] for i in range(0, len(entries), 25)]
    ends = [(cut[-1].appended_at_ms or 0) - config.stream.lateness for cut in cuts]
    return [*zip(cuts, ends, strict=True), ([], FAR_MS)]


@pytest.fixture
def expected(config: FeatureConfig, bundles: list[Bundle]) -> set[Encoded]:
    engine = Engine(config)
    worker = engine.worker()
    for number, bundle in enumerate(bundles):
        engine.bundle(worker, number, bundle)
    assert engine.is_empty
    assert {output.topic for output in engine.outputs} >= {SAMPLES, TRANSITIONS, LATE}
    assert len({(output.topic, output.id) for output in engine.outputs}) == len(engine.outputs)
    return engine.outputs


def test_a_new_worker_for_each_bundle_goes_on_from_the_state(
    config: FeatureConfig, bundles: list[Bundle], expected: set[Encoded]
) -> None:
    engine = Engine(config)
    for number, bundle in enumerate(bundles):
        engine.go_back(engine.checkpoint())
        engine.bundle(engine.worker(), number, bundle)
    assert engine.outputs == expected
    assert engine.is_empty


def test_a_worker_does_not_trust_its_memory_where_another_one_was_at_work(
    config: FeatureConfig, bundles: list[Bundle], expected: set[Encoded]
) -> None:
    engine, rng = Engine(config), random.Random(1)
    workers = [engine.worker(), engine.worker()]
    for number, bundle in enumerate(bundles):
        engine.bundle(rng.choice(workers), number, bundle)
    assert engine.outputs == expected
    assert engine.is_empty


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_does_not_trust_its_memory_where_the_state_has_gone_back(
    config: FeatureConfig, bundles: list[Bundle], expected: set[Encoded], seed: int
) -> None:
    """What it had done since is done again, to the same outputs: cut differently, too."""
    engine, rng = Engine(config), random.Random(seed)
    worker, number, checkpoint = engine.worker(), 0, (engine.checkpoint(), 0)
    while number < len(bundles):
        engine.bundle(worker, number, bundles[number])
        number += 1
        if rng.random() < 0.3:
            checkpoint = engine.checkpoint(), number
        elif rng.random() < 0.3:
            saved, number = checkpoint
            engine.go_back(saved)
    assert engine.outputs == expected
    assert engine.is_empty


def test_what_is_kept_of_a_group_does_not_grow_with_sessions_that_are_over(
    config: FeatureConfig, make: SimpleNamespace
) -> None:
    engine, most = Engine(config), 0
    worker, names = engine.worker(), sessions_of_a_group(1_000)
    for number, name in enumerate(names):
        time_ms = T + number * 1_000
        entry = Entry("k", encode(make.impression(name, 0, time_ms)), time_ms)
        engine.bundle(worker, number, ([entry], time_ms))
        most = max(most, sum(len(s.state) for piece in engine.pieces() for s in piece.sessions.values() if s))
    assert most < 16_000 + 4 * 40 * 1_500  # some forty sessions are open at a time
    assert len(worker._groups["0"].sessions) <= 40
    engine.bundle(worker, len(names), ([], time_ms + 60_000))  # long before the last of the timers that were set
    assert engine.is_empty


def test_a_group_is_woken_for_what_is_due_first_though_it_came_last(
    config: FeatureConfig, make: SimpleNamespace
) -> None:
    engine = Engine(config)
    worker, (one, other) = engine.worker(), sessions_of_a_group(2)
    for number, (name, time_ms, stamp) in enumerate([(one, T + 2_000, T + 2_000), (other, T, T + 2_100)]):
        entry = Entry("k", encode(make.impression(name, 0, time_ms)), stamp)
        engine.bundle(worker, number, ([entry], T))
    engine.bundle(worker, 2, ([], T + 3_998))
    assert not engine.outputs
    engine.bundle(worker, 3, ([], T + 3_999))  # the end of the second in which the page of the other is over
    assert [(output.topic, output.key) for output in engine.outputs] == [(SAMPLES, other)]


def test_a_bundle_that_failed_halfway_leaves_nothing_that_is_believed(
    config: FeatureConfig, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, decide = Engine(config), grouped.on_watermark
    worker, names = engine.worker(), sessions_of_a_group(2)
    entries = [Entry("k", encode(make.impression(name, 0, T)), T) for name in names]
    engine.bundle(worker, 0, (entries, T))
    before = engine.checkpoint()
    answers = iter([decide])  # to the first of the two; the second is a fault
    monkeypatch.setattr(grouped, "on_watermark", lambda *given: next(answers)(*given))
    with pytest.raises(StopIteration):
        engine.bundle(worker, 1, ([], FAR_MS))
    monkeypatch.undo()
    engine.go_back(before)
    engine.bundle(worker, 1, ([], FAR_MS))
    assert {output.key for output in engine.outputs if output.topic == SAMPLES} == set(names)
    assert engine.is_empty
