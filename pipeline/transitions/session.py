"""One session of a user, as a pure state machine: the Online Joiner, and the Experience Collector behind it.

`on_events` takes records in, in any order; `on_watermark` makes the decisions that have become due. The outputs
depend on the log alone: not on the order of reading, the batches, the steps of the watermark, or restarts. Shutdown
emits nothing; a session without open business has no state (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.logs import log
from pipeline.records import Episode, Fate, Page, SetAside, Transition
from pipeline.transitions import episodes, joining, waiting
from pipeline.transitions.episodes import Collector
from pipeline.transitions.rules import Rules
from pipeline.transitions.waiting import Joiner, Stamped

__all__ = [
    "Output",
    "Rules",
    "SessionState",
    "Stamped",
    "StateError",
    "Turn",
    "decode_state",
    "encode_state",
    "on_events",
    "on_watermark",
    "open_events",
    "output_id",
    "topic_of",
]

STATE_VERSION = 2
RANKING_STATE_VERSION = 3  # with items and activeness: a build that does not know these would lose them

Output = Page | Transition | Episode | SetAside


class StateError(PageturnError):
    """A stored session state is not one that this build reads."""


class SessionState(Struct, frozen=True, gc=False, array_like=True):
    """Everything known of a session. Immutable; `version` is the format of its encoding."""

    version: int = STATE_VERSION
    joiner: Joiner = Joiner()
    collector: Collector = Collector()


class Turn(NamedTuple):
    state: SessionState | None  # None: nothing is left
    outputs: list[Output]
    wake_at_ms: int | None  # call `on_watermark` when the watermark gets here


def on_events(rules: Rules, state: SessionState | None, events: Sequence[Stamped]) -> Turn:
    """Read records of one session."""
    state = state or SessionState()
    joiner, aside = joining.read(rules, state.joiner, events)
    return _turn(rules, joiner, state.collector, [*aside])


def on_watermark(rules: Rules, state: SessionState, watermark_ms: int) -> Turn:
    """Make every decision that is due at or before the watermark, each at its own time.

    The watermark W promises that every record stamped before W + lateness has been read.
    """
    wake_ms = _wake_ms(rules, state.joiner, state.collector)
    if wake_ms is not None and watermark_ms < wake_ms:
        return Turn(state, [], wake_ms)
    joiner, decided = joining.decide(rules, state.joiner, watermark_ms)
    collector = state.collector
    outputs: list[Output] = []
    for output in decided:
        if isinstance(output, Page):  # it closes at closed_ms + 1: what is due earlier must not see it
            collector, made = episodes.advance(rules, collector, output.closed_ms)
            collector = episodes.add(rules, collector, output)
            outputs += made
        outputs.append(output)
    collector, made = episodes.advance(rules, collector, watermark_ms)
    outputs += made
    return _turn(rules, joiner, episodes.forget(rules, collector, watermark_ms), outputs)


def output_id(output: Output) -> str:
    """Unique within the output's topic, and the same whenever the same log is read."""
    return output.id


def topic_of(output: Output) -> str:
    if isinstance(output, SetAside):
        return _SET_ASIDE_TOPICS[output.fate]
    return _TOPICS[type(output)]


def open_events(state: SessionState | None) -> list[str]:
    """`partition:offset` of the events that are neither in an output yet nor set aside."""
    if state is None:
        return []
    return waiting.undecided(state.joiner)


def encode_state(state: SessionState) -> bytes:
    return msgspec.msgpack.encode(state)


def decode_state(payload: bytes) -> SessionState:
    """Raises StateError where another build wrote the state; the log can then be replayed instead."""
    try:
        version = msgspec.msgpack.decode(payload, type=_Versioned).version
        if version in (STATE_VERSION, RANKING_STATE_VERSION):
            return msgspec.msgpack.decode(payload, type=SessionState)
    except ValueError as error:
        message = f"expected a session state of version {STATE_VERSION}, found bytes that are none: {error}"
        raise StateError(message) from error
    message = f"expected a session state of version {STATE_VERSION}, found version {version}"
    raise StateError(message)


class _Versioned(Struct, array_like=True):
    """The head of any SessionState."""

    version: int


_TOPICS: dict[type, str] = {Page: log.SAMPLES, Transition: log.TRANSITIONS, Episode: log.EPISODES}
_SET_ASIDE_TOPICS = {Fate.LATE: log.LATE, Fate.ORPHAN: log.ORPHANS, Fate.DUPLICATE: log.DUPLICATES}


def _turn(rules: Rules, joiner: Joiner, collector: Collector, outputs: list[Output]) -> Turn:
    wake_ms = _wake_ms(rules, joiner, collector)
    if wake_ms is None:
        return Turn(None, outputs, None)
    version = STATE_VERSION if rules.choosing is None else RANKING_STATE_VERSION
    return Turn(SessionState(version, joiner, collector), outputs, wake_ms)


def _wake_ms(rules: Rules, joiner: Joiner, collector: Collector) -> int | None:
    """When the next decision is due. Forgetting sways none, so it waits until it is all that is left to do."""
    joiner_ms, collector_ms = waiting.next_due_ms(joiner), collector.due_ms
    if joiner_ms is None and collector_ms is None:
        forgetting = waiting.forget_due_ms(rules, joiner), episodes.forget_due_ms(rules, collector)
        return min((ms for ms in forgetting if ms is not None), default=None)
    return min(ms for ms in (joiner_ms, collector_ms) if ms is not None)
