"""The Experience Collector: closed pages of a session, in order, become TD transitions and MC episodes.

A page *settles* at its close + clock skew + 1, when every page that a clock within the skew could place before it has
closed too. Then it and all closed pages before it in (page index, time, request id) are consumed in that order: the
index decides between pages closer in time than the skew, time between others (so an index that starts again within a
session is just the next page). Consuming a page ends, or continues, the step before it.

The last page consumed is the tail. Without a successor it becomes an inferred leave one session gap after it, at the
time when a successor at the very end of the gap would have settled (and settling goes first).
"""

from __future__ import annotations

from msgspec import Struct, structs

from pipeline.records import Ending, Episode, FeedbackKind, Page, State, Step, Transition
from pipeline.transitions.rewards import page_reward
from pipeline.transitions.rules import Rules


class ClosedPage(Struct, frozen=True, gc=False, array_like=True):
    """What a closed page leaves for learning."""

    step: Step  # with the reward it has if the session goes on
    user_id: str
    session_id: str
    left: bool  # the user said so
    parting_reward: float  # the reward it has if the user leaves here


class Chain(Struct, frozen=True, gc=False, array_like=True):
    """The open episode."""

    user_id: str  # of its first page
    steps: tuple[Step, ...]  # without the tail
    tail: ClosedPage


class Collector(Struct, frozen=True, gc=False, array_like=True):
    waiting: tuple[ClosedPage, ...] = ()  # closed, not yet consumed
    chain: Chain | None = None
    due_ms: int | None = None  # when `advance` has something to do: a function of the other two


Made = list[Transition | Episode]


def add(rules: Rules, collector: Collector, page: Page) -> Collector:
    """Take in a page that has closed. One that was never shown is no step."""
    if not page.shown:
        return collector
    return _collector(rules, (*collector.waiting, _closed_page(rules, page)), collector.chain)


def advance(rules: Rules, collector: Collector, now_ms: int) -> tuple[Collector, Made]:
    """Settle pages and infer leaves, as far as they are due at or before `now_ms`, in time order."""
    made: Made = []
    while collector.due_ms is not None and collector.due_ms <= now_ms:
        if _settle_due_ms(rules, collector.waiting) == collector.due_ms:
            collector = _settle(rules, collector, made)
        else:
            assert collector.chain is not None
            _end(rules, collector.chain, Ending.INFERRED_LEAVE, made)
            collector = _collector(rules, collector.waiting, None)
    return collector, made


def _collector(rules: Rules, waiting: tuple[ClosedPage, ...], chain: Chain | None) -> Collector:
    due_ms = _settle_due_ms(rules, waiting)
    if chain is not None:
        left_ms = _settle_ms(rules, chain.tail) + rules.gap_ms
        due_ms = left_ms if due_ms is None else min(due_ms, left_ms)
    return Collector(waiting, chain, due_ms)


def _closed_page(rules: Rules, page: Page) -> ClosedPage:
    impression = page.impression
    left = any(f.kind is FeedbackKind.LEAVE for f in page.feedback)
    step = Step(
        request_id=impression.request_id,
        time_ms=impression.time_ms,
        page_index=impression.page_index,
        state=impression.state,
        decision=impression.decision,
        reward=page_reward(rules.reward, page.feedback, left=False),
    )
    parting = page_reward(rules.reward, page.feedback, left=True)
    return ClosedPage(step, impression.user_id, impression.session_id, left, parting)


def _order(page: ClosedPage) -> tuple[int, int, str]:
    return page.step.page_index, page.step.time_ms, page.step.request_id


def _settle_ms(rules: Rules, page: ClosedPage) -> int:
    return page.step.time_ms + rules.longest_window_ms + rules.skew_ms + 1


def _settle_due_ms(rules: Rules, waiting: tuple[ClosedPage, ...]) -> int | None:
    """When the next of the waiting pages settles."""
    return min(_settle_ms(rules, page) for page in waiting) if waiting else None


def _settle(rules: Rules, collector: Collector, made: Made) -> Collector:
    """Consume the earliest of the waiting pages and those before it."""
    last = _order(min(collector.waiting, key=lambda page: page.step.time_ms))  # of equal ones any: they settle together
    chain = collector.chain
    for page in sorted(collector.waiting, key=_order):
        if _order(page) <= last:
            chain = _consume(rules, chain, page, made)
    return _collector(rules, tuple(page for page in collector.waiting if _order(page) > last), chain)


def _consume(rules: Rules, chain: Chain | None, page: ClosedPage, made: Made) -> Chain | None:
    if chain is not None and page.step.time_ms - chain.tail.step.time_ms > rules.gap_ms:
        _end(rules, chain, Ending.INFERRED_LEAVE, made)
        chain = None
    chain = Chain(page.user_id, (), page) if chain is None else _turn(rules, chain, page, made)
    if page.left:
        _end(rules, chain, Ending.LEAVE, made)
        return None
    return chain


def _turn(rules: Rules, chain: Chain, page: ClosedPage, made: Made) -> Chain:
    """The user turned from the tail to `page`. An episode of maximal length is cut there; its value goes on."""
    state = page.step.state
    made.append(_transition(rules, chain.tail, state, None))
    steps = (*chain.steps, chain.tail.step)
    if len(steps) < rules.max_pages:
        return Chain(chain.user_id, steps, page)
    made.append(_episode(rules, chain, steps, Ending.TRUNCATED, state))
    return Chain(page.user_id, (), page)


def _end(rules: Rules, chain: Chain, ending: Ending, made: Made) -> None:
    """The user left on the tail."""
    last = structs.replace(chain.tail.step, reward=chain.tail.parting_reward)
    made.append(_transition(rules, structs.replace(chain.tail, step=last), None, ending))
    made.append(_episode(rules, chain, (*chain.steps, last), ending, None))


def _transition(rules: Rules, page: ClosedPage, next_state: State | None, ending: Ending | None) -> Transition:
    step = page.step
    return Transition(
        id=f"{step.request_id}@{rules.reward_version}",
        request_id=step.request_id,
        user_id=page.user_id,
        session_id=page.session_id,
        time_ms=step.time_ms,
        page_index=step.page_index,
        state=step.state,
        decision=step.decision,
        reward=step.reward,
        reward_version=rules.reward_version,
        discount=1.0 if ending is None else 0.0,
        next_state=next_state,
        ending=ending,
    )


def _episode(rules: Rules, chain: Chain, steps: tuple[Step, ...], ending: Ending, bootstrap: State | None) -> Episode:
    return Episode(
        id=f"{steps[0].request_id}@{rules.reward_version}",
        user_id=chain.user_id,
        session_id=chain.tail.session_id,
        steps=steps,
        reward_version=rules.reward_version,
        ending=ending,
        discount=1.0 if ending is Ending.TRUNCATED else 0.0,
        bootstrap_state=bootstrap,
    )
