"""What a session comes to, said from the user's side: what was shown, done and left, and when; not when or in which
order the log heard of it.

A session is drawn as its user lived it. The arrival of its events is drawn apart from it: stamps, partitions, copies,
the order of reading, the steps of the watermark. Sums are of binary fractions, so that any recount is exact.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.schema import Attribution, Penalties, Reward
from pipeline.events import encode
from pipeline.records import (
    DecidedBy,
    Decision,
    Ending,
    Episode,
    Event,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Page,
    SetAside,
    Stamp,
    State,
    Transition,
)
from pipeline.transitions.rewards import reward_version
from pipeline.transitions.rules import Rules
from pipeline.transitions.session import Output, SessionState, Stamped, Turn, on_events, on_watermark

CLICK, ORDER, DWELL, TURN, LEAVE, SHOWN = (
    FeedbackKind.CLICK,
    FeedbackKind.ORDER,
    FeedbackKind.DWELL,
    FeedbackKind.PAGE_TURN,
    FeedbackKind.LEAVE,
    FeedbackKind.SHOWN,
)
CLICK_MS, LONGEST_MS, SKEW_MS, GAP_MS, LATENESS_MS, MEMORY_MS, MAX_PAGES = 10, 30, 2, 40, 5, 20, 3
ENDLESS_MS = 10**6
REWARD = Reward({"click": 1.0, "order": 8.0, "dwell": 0.25}, Penalties(0.5, 2.0), clip=(-2.0, 16.0))
ATTRIBUTION = Attribution(CLICK_MS, LONGEST_MS)
RULES = Rules(
    windows_ms={**dict.fromkeys(FeedbackKind, ATTRIBUTION.order), CLICK: ATTRIBUTION.click},
    longest_window_ms=LONGEST_MS,
    lateness_ms=LATENESS_MS,
    skew_ms=SKEW_MS,
    gap_ms=GAP_MS,
    remember_ms=MEMORY_MS,
    max_events=1_000,
    intake_ms=LONGEST_MS,
    max_pages=MAX_PAGES,
    deferred=False,
    reward=REWARD,
    reward_version=reward_version(REWARD),
)


class Deed(NamedTuple):
    kind: FeedbackKind
    age_ms: int  # since its page
    value: float

    @property
    def counts(self) -> bool:
        return -SKEW_MS <= self.age_ms <= (CLICK_MS if self.kind is CLICK else LONGEST_MS)


class Visited(NamedTuple):
    """A page, and what its user did there."""

    number: int
    time_ms: int
    deeds: tuple[Deed, ...]

    @property
    def request(self) -> str:
        return f"r{self.number}"

    def kinds(self) -> list[FeedbackKind]:
        return [deed.kind for deed in self.deeds if deed.counts]


Session = list[Visited]

_ages = st.sampled_from([-3, -2, 0, 10, 11, 30, 31]) | st.integers(-4, 34)
_kinds = st.sampled_from([CLICK, CLICK, ORDER, DWELL, TURN, LEAVE, SHOWN, SHOWN])
_deeds = st.builds(Deed, _kinds, _ages, st.sampled_from([1.0, 0.5, 4.0]))
_pauses = st.sampled_from([3, GAP_MS - 1, GAP_MS, GAP_MS + 1]) | st.integers(SKEW_MS + 1, 100)


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    """Pages further apart than clocks may disagree, so that their times tell their order."""
    session, time_ms = [], draw(st.integers(10, 30))
    for number in range(draw(st.integers(1, 8))):
        session.append(Visited(number, time_ms, tuple(draw(st.lists(_deeds, max_size=4)))))
        time_ms += draw(_pauses)
    return session


# How the log hears of it -------------------------------------------------------------------------------------------


def events_of(page: Visited) -> list[Event]:
    decision = Decision(DecidedBy.BASELINE, "baseline", "all")
    state = State(user={"page": page.number})
    shown = Impression(1, page.request, "u", "s", page.time_ms, page.number, (Item("a"),), state, decision)
    heard = [
        Feedback(1, f"{page.request}-{i}", page.request, "u", "s", page.time_ms + d.age_ms, d.kind, "a", d.value)
        for i, d in enumerate(page.deeds)
    ]
    return [shown, *heard]


def asked_again(shown: Impression, rng: random.Random) -> Impression:
    """The request of a client that got no answer in time."""
    return msgspec.structs.replace(shown, time_ms=shown.time_ms + rng.randint(1, LONGEST_MS))


def arrivals(session: Session, rng: random.Random, copies: bool = False) -> list[Stamped]:
    """Every event in time; with `copies`, some again and again, in time or not, and some pages asked for once more. In
    the order of the stamps."""
    stamped: list[tuple[int, float, Event]] = []
    for page in session:
        last_ms = page.time_ms + LONGEST_MS + LATENESS_MS
        for event in events_of(page):
            soonest_ms = max(event.time_ms - 4, 0)
            stamps = [rng.choice([soonest_ms, last_ms, rng.randint(soonest_ms, last_ms)])]
            while copies and rng.random() < 0.4:
                stamps.append(rng.choice([last_ms, last_ms + 1, rng.randint(soonest_ms, last_ms + 200)]))
            stamped += [(stamp, rng.random(), event) for stamp in stamps]
            if copies and isinstance(event, Impression) and rng.random() < 0.4:
                stamped.append((rng.randint(min(stamps) + 1, last_ms + MEMORY_MS), 0.0, asked_again(event, rng)))
    ends, log = [0, 0, 0], []
    for stamp, _, event in sorted(stamped, key=lambda each: each[:2]):
        partition = rng.randrange(3)
        log.append(Stamped(Stamp(stamp, partition, ends[partition]), event))
        ends[partition] += 1
    return log


def stream(log: list[Stamped], rng: random.Random, rules: Rules = RULES) -> list[Output]:
    """Partitions in any order, each in its own, and the watermark as far behind as it likes."""
    unread = [[record for record in log if record.stamp.partition == p] for p in range(3)]
    outputs: list[Output] = []
    state: SessionState | None = None

    def take(turn: Turn) -> None:
        nonlocal state
        state = turn.state
        outputs.extend(turn.outputs)

    while any(unread):
        queue = rng.choice([queue for queue in unread if queue])
        batch = [queue.pop(0) for _ in range(min(rng.randint(1, 3), len(queue)))]
        take(on_events(rules, state, batch))
        if state is not None and rng.random() < 0.5:
            first_unread_ms = min((queue[0].stamp.appended_at_ms for queue in unread if queue), default=ENDLESS_MS)
            take(on_watermark(rules, state, first_unread_ms - rules.lateness_ms))
    if state is not None:
        take(on_watermark(rules, state, ENDLESS_MS))
    assert state is None
    return outputs


def learnt(outputs: list[Output]) -> Counter[bytes]:
    """Samples, transitions and episodes."""
    return Counter(encode(output) for output in outputs if not isinstance(output, SetAside))


def transitions(outputs: list[Output]) -> dict[str, Transition]:
    found = [output for output in outputs if isinstance(output, Transition)]
    by_request = {transition.request_id: transition for transition in found}
    assert len(by_request) == len(found), "a page with two transitions"
    return by_request


# The laws ----------------------------------------------------------------------------------------------------------

law = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
orders = st.integers(0, 2**32).map(random.Random)  # drawn as one number: an arrival is not shrunk, a session is


@law
@given(sessions(), orders, orders)
def test_when_and_in_which_order_events_arrive_does_not_matter(
    session: Session, one: random.Random, other: random.Random
) -> None:
    assert learnt(stream(arrivals(session, one), one)) == learnt(stream(arrivals(session, other), other))


@law
@given(sessions(), orders)
def test_copies_do_not_matter_and_are_counted(session: Session, rng: random.Random) -> None:
    plain, log = stream(arrivals(session, rng), rng), arrivals(session, rng, copies=True)
    outputs = stream(log, rng)
    assert learnt(outputs) == learnt(plain)
    events = sum(len(events_of(page)) for page in session)
    aside = [sum(isinstance(output, SetAside) for output in each) for each in (outputs, plain)]
    assert aside[0] - aside[1] == len(log) - events


@law
@given(sessions(), orders, st.booleans())
def test_every_shown_page_is_one_transition(session: Session, rng: random.Random, deferred: bool) -> None:
    outputs = stream(arrivals(session, rng), rng, msgspec.structs.replace(RULES, deferred=deferred))
    shown = [page for page in session if not deferred or SHOWN in page.kinds()]
    assert set(transitions(outputs)) == {page.request for page in shown}
    steps = [step.request_id for output in outputs if isinstance(output, Episode) for step in output.steps]
    assert steps == [page.request for page in shown]


@law
@given(sessions(), orders, st.integers(1, 12), st.integers(5, 60))
def test_of_a_session_that_overflows_every_page_is_a_transition_or_counted(
    session: Session, rng: random.Random, max_events: int, intake_ms: int
) -> None:
    rules = msgspec.structs.replace(RULES, max_events=max_events, intake_ms=intake_ms)
    log = arrivals(session, rng, copies=True)
    outputs = stream(log, rng, rules)
    aside = [o for o in outputs if isinstance(o, SetAside)]
    pages = [o for o in outputs if isinstance(o, Page)]
    copies = Counter(r.event.request_id for r in log if isinstance(r.event, Impression))
    refused = Counter(
        o.event.request_id
        for o in aside
        if isinstance(o.event, Impression) and o.reason in ("session_full", "transport")
    )
    lost = {request for request in copies if copies[request] == refused[request]}
    assert set(transitions(outputs)) == {page.id for page in pages} == set(copies) - lost
    assert len(log) == len(aside) + sum(1 + len(page.feedback) for page in pages)


@law
@given(sessions(), orders)
def test_the_discount_is_0_only_for_a_leave_given_or_inferred(session: Session, rng: random.Random) -> None:
    outputs = stream(arrivals(session, rng, copies=True), rng)
    made = transitions(outputs)
    for page, after in zip(session, [*session[1:], None], strict=True):
        transition = made[page.request]
        pause_ms = None if after is None else after.time_ms - page.time_ms
        given, inferred = LEAVE in page.kinds(), pause_ms is None or pause_ms > GAP_MS
        ending = Ending.LEAVE if given else Ending.INFERRED_LEAVE if inferred else None
        assert (transition.ending, transition.discount) == (ending, 0.0 if ending else 1.0)
        follows = None if ending or after is None else State(user={"page": after.number})
        assert transition.next_state == follows
    for episode in (output for output in outputs if isinstance(output, Episode)):
        assert (episode.discount == 1) == (episode.ending is Ending.TRUNCATED)
        assert len(episode.steps) == MAX_PAGES or episode.discount == 0
        assert len(episode.steps) <= MAX_PAGES


@law
@given(sessions(), orders)
def test_a_reward_is_what_a_recount_of_its_page_gives(session: Session, rng: random.Random) -> None:
    outputs = stream(arrivals(session, rng, copies=True), rng)
    made = transitions(outputs)
    earned = {}
    for page in session:
        kinds = page.kinds()
        worth = {CLICK: 1.0, ORDER: 8.0, DWELL: 0.25}
        reward = sum(worth[deed.kind] * deed.value for deed in page.deeds if deed.counts and deed.kind in worth)
        if CLICK not in kinds and ORDER not in kinds:
            reward -= 0.5 if made[page.request].discount else 2.5
        earned[page.request] = max(-2.0, min(16.0, reward))
    assert {request: transition.reward for request, transition in made.items()} == earned
    assert {step.request_id: step.reward for o in outputs if isinstance(o, Episode) for step in o.steps} == earned
