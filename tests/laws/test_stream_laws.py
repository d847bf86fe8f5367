"""The stream's core under every disorder: same log, same outputs; nothing lost; equal to a plain reference."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings

from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.records import (
    Ending,
    Episode,
    Page,
    SetAside,
    Stamp,
    Transition,
)
from pipeline.transitions.session import (
    Output,
    Rules,
    SessionState,
    Stamped,
    StateError,
    Turn,
    decode_state,
    encode_state,
    on_events,
    on_watermark,
    open_events,
    output_id,
    topic_of,
)


def _load(name: str) -> ModuleType:
    """A module beside this file: under import-mode=importlib it is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, stream_logs = _load("reference_stream"), _load("stream_logs")
Case = tuple[FeatureConfig, list[Stamped], random.Random]
moderate = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
thorough = settings(moderate, max_examples=1500)

ENDLESS = 10**9  # a watermark after everything


# How it is read ----------------------------------------------------------------------------------------------------


class Reader:
    """Reads a log in a random order that keeps each partition's own, with random batches and watermark steps.

    Every state goes through its encoding, and every call is checked for what holds at any time.
    """

    def __init__(self, rules: Rules, log: list[Stamped], rng: random.Random) -> None:
        self.rules, self.rng = rules, rng
        self.unread = [[r for r in log if r.stamp.partition == p] for p in range(3)]
        self.state: SessionState | None = None
        self.watermark_ms = -100
        self.wake_ms: int | None = None
        self.read: list[Stamped] = []
        self.outputs: list[Output] = []

    def run(self) -> list[Output]:
        haste = self.rng.choice([0.0, 0.3, 1.0])  # how closely the watermark follows
        while any(self.unread):
            self._read_some()
            if self.rng.random() < haste:
                promised_ms = self._promised_ms()
                self._advance(self.rng.choice([promised_ms, self.rng.randint(self.watermark_ms, promised_ms)]))
        self._advance(ENDLESS)
        assert self.state is None
        return self.outputs

    def _promised_ms(self) -> int:
        """The highest watermark of which it is true that all records stamped before it + lateness have been read."""
        heads = [queue[0].stamp.appended_at_ms for queue in self.unread if queue]
        return max(min(heads, default=200) - self.rules.lateness_ms, self.watermark_ms)

    def _read_some(self) -> None:
        batch: list[Stamped] = []
        for _ in range(self.rng.randint(1, 4)):
            queue = self.rng.choice(self.unread)
            if queue:
                batch.append(queue.pop(0))
        if batch:
            self.read += batch
            self._take(on_events(self.rules, self.state, batch))

    def _advance(self, watermark_ms: int) -> None:
        """In one step, or as an engine with timers would: at every wake-up."""
        self.watermark_ms = watermark_ms
        by_timers = self.rng.random() < 0.5
        while by_timers and self.state is not None and self.wake_ms is not None and self.wake_ms <= watermark_ms:
            self._step(self.wake_ms)
        if self.state is not None:
            self._step(watermark_ms)

    def _step(self, watermark_ms: int) -> None:
        assert self.state is not None
        turn = on_watermark(self.rules, self.state, watermark_ms)
        assert turn.wake_at_ms is None or turn.wake_at_ms > watermark_ms, "no progress"
        self._take(turn)
        if self.state is not None:
            again = on_watermark(self.rules, self.state, watermark_ms)
            assert again.outputs == []
            assert again.state == self.state

    def _take(self, turn: Turn) -> None:
        assert (turn.state is None) == (turn.wake_at_ms is None)
        self.state = None if turn.state is None else decode_state(encode_state(turn.state))
        assert self.state == turn.state
        self.wake_ms = turn.wake_at_ms
        self.outputs += turn.outputs
        assert len(self.read) == accounted(self.outputs) + len(open_events(self.state))


def accounted(outputs: list[Output]) -> int:
    pages = [o for o in outputs if isinstance(o, Page)]
    return sum(isinstance(o, SetAside) for o in outputs) + sum(1 + len(page.feedback) for page in pages)


def payloads(outputs: list[Output]) -> list[tuple[str, str, bytes]]:
    return sorted((topic_of(o), output_id(o), encode(o)) for o in outputs)


def at_once(rules: Rules, log: list[Stamped]) -> Iterator[Output]:
    """Everything read, then one step to the end."""
    turn = on_events(rules, None, log)
    yield from turn.outputs
    if turn.state is not None:
        yield from on_watermark(rules, turn.state, ENDLESS).outputs


# The laws ----------------------------------------------------------------------------------------------------------


@thorough
@given(stream_logs.cases())
def test_any_order_of_reading_gives_what_the_reference_gives(case: Case) -> None:
    config, log, rng = case
    rules = Rules.of(config)
    expected = payloads(reference.outputs(config, [(r.stamp, r.event) for r in log]))
    assert payloads(list(at_once(rules, log))) == expected
    for _ in range(3):
        assert payloads(Reader(rules, log, rng).run()) == expected


@moderate
@given(stream_logs.cases())
def test_every_event_is_joined_or_set_aside_once(case: Case) -> None:
    config, log, _ = case
    outputs = list(at_once(Rules.of(config), log))
    aside = {o.id: o.event for o in outputs if isinstance(o, SetAside)}
    by_id = {f"{r.stamp.partition}:{r.stamp.offset}": r.event for r in log}
    assert aside.items() <= by_id.items()
    joined = [e for o in outputs if isinstance(o, Page) for e in (o.impression, *o.feedback)]
    rest = [event for record_id, event in by_id.items() if record_id not in aside]
    assert sorted(map(encode, joined)) == sorted(map(encode, rest))


@moderate
@given(stream_logs.cases())
def test_transitions_and_episodes_say_the_same(case: Case) -> None:
    config, log, _ = case
    outputs = list(at_once(Rules.of(config), log))
    shown = [o for o in outputs if isinstance(o, Page) and o.shown]
    transitions = [o for o in outputs if isinstance(o, Transition)]
    episodes = [o for o in outputs if isinstance(o, Episode)]
    assert sorted(t.request_id for t in transitions) == sorted(page.id for page in shown)
    steps = [(s.request_id, s.time_ms, s.reward) for e in episodes for s in e.steps]
    assert steps == [(t.request_id, t.time_ms, t.reward) for t in transitions]
    for each in transitions:
        assert each.discount == (0.0 if each.ending in (Ending.LEAVE, Ending.INFERRED_LEAVE) else 1.0)
        assert (each.next_state is None) == (each.ending is not None) == (each.discount == 0)
    for episode in episodes:
        cut = episode.ending is Ending.TRUNCATED
        assert (episode.bootstrap_state is not None) == cut == (episode.discount == 1)
        assert len(episode.steps) == config.stream.max_pages or not cut


@moderate
@given(stream_logs.cases())
def test_a_reward_is_what_a_recount_of_its_page_gives(case: Case) -> None:
    config, log, _ = case
    outputs = list(at_once(Rules.of(config), log))
    pages = [o for o in outputs if isinstance(o, Page)]
    for transition in (o for o in outputs if isinstance(o, Transition)):
        at = [p for p in pages if p.id == transition.request_id and p.impression.time_ms == transition.time_ms]
        recounts = [reference.reward(config.reward, page, transition.ending) for page in at]
        assert transition.reward in recounts


@moderate
@given(stream_logs.cases())
def test_inputs_are_never_changed(case: Case) -> None:
    config, log, rng = case
    rules = Rules.of(config)
    events_before = [encode(r.event) for r in log]
    states: list[tuple[SessionState, bytes]] = []
    turn: Turn = Turn(None, [], None)
    for record in log:
        turn = on_events(rules, turn.state, [record])
        if turn.state is not None and rng.random() < 0.5:
            states.append((turn.state, encode_state(turn.state)))
            turn = on_watermark(rules, turn.state, record.stamp.appended_at_ms - rules.lateness_ms)
        if turn.state is not None:
            states.append((turn.state, encode_state(turn.state)))
    for state, before in states:
        on_watermark(rules, state, ENDLESS)
        assert encode_state(state) == before
    assert [encode(r.event) for r in log] == events_before


@moderate
@given(stream_logs.cases())
def test_what_was_put_out_stays_when_more_of_the_log_is_read(case: Case) -> None:
    """Final: an output for a part of the log is an output for all of it, up to what the watermark has promised."""
    config, log, _ = case
    rules = Rules.of(config)
    everything = payloads(list(at_once(rules, log)))
    for cut in range(len(log)):
        turn = on_events(rules, None, log[:cut])
        promised_ms = log[cut].stamp.appended_at_ms - rules.lateness_ms
        early = turn.outputs + (on_watermark(rules, turn.state, promised_ms).outputs if turn.state else [])
        assert set(payloads(early)) <= set(everything)


def test_a_long_session_leaves_a_small_state() -> None:
    stream = {
        "attribution": {"click": 100, "order": 200},
        "lateness": 20,
        "clock_skew": 10,
        "session_gap": 500,
        "max_pages": 20,
        "remember_closed": 300,
    }
    rules = Rules.of(stream_logs.make_config({"weights": {"click": 1.0}}, stream))
    turn = Turn(None, [], None)
    sizes = []
    for page in range(2_000):
        time_ms = page * 10
        turn = on_events(
            rules, turn.state, [Stamped(Stamp(time_ms, 0, page), stream_logs.impression(page, time_ms, page, "u"))]
        )
        assert turn.state is not None
        turn = on_watermark(rules, turn.state, time_ms - rules.lateness_ms)
        assert turn.state is not None
        sizes.append(len(encode_state(turn.state)))
    assert max(sizes[1000:]) <= 1.1 * max(sizes[:500])  # the numbers in it have more digits


def test_a_session_that_takes_in_everything_stays_within_its_bound() -> None:
    """A producer that knows no session ids: pages and feedback of all users under one, faster than it may hold."""
    stream = {
        "attribution": {"click": 100, "order": 200},
        "lateness": 20,
        "session_gap": 500,
        "max_pages": 20,
        "remember_closed": 300,
        "max_session_events": 50,
    }
    rules = Rules.of(stream_logs.make_config({"weights": {"click": 1.0}}, stream))
    turn, held, full = Turn(None, [], None), [], 0
    for number in range(8_000):
        stamp = Stamp(number, 0, number)
        turn = on_events(rules, turn.state, [Stamped(stamp, stream_logs.impression(number, number, number, "u"))])
        full += sum(isinstance(o, SetAside) and o.reason == "session_full" for o in turn.outputs)
        assert turn.state is not None
        turn = on_watermark(rules, turn.state, number - rules.lateness_ms)
        assert turn.state is not None
        held.append(len(open_events(turn.state)))
    assert full == 8_000 - 50 * 8_000 / 200
    assert max(held) <= 2 * 50  # a page is open for little more than a slot


@pytest.mark.parametrize("payload", [b"\x92\x01\x90", b"\x93\x63", b"", b"nonsense"])
def test_a_state_of_another_build_is_refused(payload: bytes) -> None:
    with pytest.raises(StateError, match="expected a session state of version 2, found"):
        decode_state(payload)
