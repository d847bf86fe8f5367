"""What the stream says of pages whose items a policy chose, said from the user's side: what was shown, what could be
shown next, and how alive the user was then. Sessions and arrivals are those of `test_session_laws`."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.events import encode
from pipeline.ranking.activeness import Survival
from pipeline.records import Feedback, Impression, Item, Labels, Page, Ranked, Transition
from pipeline.transitions.rules import Choosing
from pipeline.transitions.session import (
    RANKING_STATE_VERSION,
    STATE_VERSION,
    Stamped,
    decode_state,
    encode_state,
    on_events,
)
from tests.laws.test_session_laws import (
    CLICK,
    GAP_MS,
    LEAVE,
    RULES,
    SHOWN,
    Session,
    Visited,
    arrivals,
    law,
    learnt,
    orders,
    sessions,
    stream,
    transitions,
)

SURVIVAL = Survival(0.5, 0.05)  # a mean life of 50 ms
REMEMBER_MS = 90
CHOOSING = msgspec.structs.replace(RULES, choosing=Choosing(2, SURVIVAL, REMEMBER_MS))


def items(number: int) -> tuple[Item, ...]:
    return Item("a"), *(Item(f"{number}-{i}") for i in range(3))


def chosen(log: list[Stamped]) -> list[Stamped]:
    """The same log of a feed that chose two items of four for every page."""

    def event(each: Impression | Feedback) -> Impression | Feedback:
        if isinstance(each, Feedback):
            return each
        decision = msgspec.structs.replace(each.decision, ranked=Ranked(shown=2))
        return msgspec.structs.replace(each, items=items(each.page_index), decision=decision)

    return [Stamped(stamp, event(each)) for stamp, each in log]


def alive_at(session: Session, time_ms: int) -> float:
    """S from the definition, over all requests up to then."""
    value, before = None, 0
    for page in session:
        if page.time_ms > time_ms:
            break
        pause = page.time_ms - before
        new = value is None or pause > REMEMBER_MS
        value = SURVIVAL.initial if new else min(1.0, value * SURVIVAL.kept(pause) + SURVIVAL.lift)
        before = page.time_ms
    assert value is not None
    return value * SURVIVAL.kept(time_ms - before)


@law
@given(sessions(), orders, orders, st.booleans())
def test_arrival_does_not_matter(session: Session, one: random.Random, other: random.Random, deferred: bool) -> None:
    rules = msgspec.structs.replace(CHOOSING, deferred=deferred)
    first, second = (stream(chosen(arrivals(session, rng)), rng, rules) for rng in (one, other))
    assert learnt(first) == learnt(second)


@law
@given(sessions(), orders, st.booleans())
def test_a_page_is_followed_by_the_users_next_request(session: Session, rng: random.Random, deferred: bool) -> None:
    outputs = stream(chosen(arrivals(session, rng)), rng, msgspec.structs.replace(CHOOSING, deferred=deferred))
    made, shown = transitions(outputs), [p for p in session if not deferred or SHOWN in p.kinds()]
    for page, after in zip(shown, [*shown[1:], None][: len(shown)], strict=True):
        transition = made[page.request]
        ended = after is None or LEAVE in page.kinds() or after.time_ms - page.time_ms > GAP_MS
        assert transition.items == items(page.number)[:2]
        assert transition.labels[0].clicks == sum(d.kind is CLICK and d.counts for d in page.deeds)
        assert transition.labels[1] == Labels()
        assert transition.next_items == (() if ended else items(after.number))
        moment = page.time_ms + GAP_MS if ended else after.time_ms
        known = [p for p in session if p.time_ms <= moment and _closed_by_then(page, p, ended)]
        assert transition.activeness == pytest.approx(alive_at(known, moment))


def _closed_by_then(page: Visited, other: Visited, ended: bool) -> bool:
    """A leave that was said is not waited for any longer: what comes in the gap behind it is not known yet."""
    return not (ended and LEAVE in page.kinds()) or other.time_ms <= page.time_ms


@law
@given(sessions(), orders)
def test_without_ranking_nothing_of_it_is_written(session: Session, rng: random.Random) -> None:
    log = arrivals(session, rng)
    for output in stream(log, rng):
        if isinstance(output, Transition | Page):
            assert not {b"next_items", b"activeness", b"ranked"} & set(encode(output).split(b'"'))
    state = on_events(RULES, None, log).state
    assert state is not None
    assert state.version == STATE_VERSION


def test_a_state_with_ranking_is_not_for_builds_without() -> None:
    log = chosen(arrivals([Visited(0, 20, ())], random.Random(0)))
    state = on_events(CHOOSING, None, log).state
    assert state is not None
    assert state.version == RANKING_STATE_VERSION
    assert decode_state(encode_state(state)) == state
