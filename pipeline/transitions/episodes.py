"""The Experience Collector: closed pages of a session, in order, become TD transitions and MC episodes.

A page *settles* at its close + clock skew + 1, when every page that a clock within the skew could place before it has
closed too. Then it and all closed pages before it in (page index, time, request id) are consumed in that order: the
index decides between pages closer in time than the skew, time between others (so an index that starts again within a
session is just the next page). Consuming a page ends, or continues, the step before it.

Where policies choose the items, a transition also carries what was shown and clicked, the next page's candidates, and
the user's activeness after the next request: see `alive.py`.

The last page consumed is the tail. Without a successor it becomes an inferred leave one session gap after it, at the
time when a successor at the very end of the gap would have settled (and settling goes first).
"""

from __future__ import annotations

from msgspec import Struct, structs

from pipeline.ranking.activeness import Activeness
from pipeline.records import Ending, Episode, FeedbackKind, Item, Labels, Page, State, Step, Transition
from pipeline.transitions import alive
from pipeline.transitions.rewards import page_reward
from pipeline.transitions.rules import Rules


class ClosedPage(Struct, frozen=True, gc=False, array_like=True):
    """What a closed page leaves for learning."""

    step: Step  # with the reward it has if the session goes on
    user_id: str
    session_id: str
    left: bool  # the user said so
    parting_reward: float  # the reward it has if the user leaves here
    items: tuple[Item, ...] = ()  # all candidates, those that were shown first; where policies choose them
    labels: tuple[Labels, ...] = ()  # of those that were shown


class Chain(Struct, frozen=True, gc=False, array_like=True):
    """The open episode."""

    user_id: str  # of its first page
    steps: tuple[Step, ...]  # without the tail
    tail: ClosedPage


class Collector(Struct, frozen=True, gc=False, array_like=True):
    waiting: tuple[ClosedPage, ...] = ()  # closed, not yet consumed
    chain: Chain | None = None
    due_ms: int | None = None  # when `advance` has something to do: a function of the two before
    alive: Activeness | None = None  # the user's requests; where policies choose the items


Made = list[Transition | Episode]


def add(rules: Rules, collector: Collector, page: Page) -> Collector:
    """Take in a page that has closed. One that was never shown is no step."""
    requests = alive.observed(rules, collector.alive, page.impression.time_ms)
    if not page.shown:
        return structs.replace(collector, alive=requests)
    return _collector(rules, (*collector.waiting, _closed_page(rules, page)), collector.chain, requests)


def advance(rules: Rules, collector: Collector, now_ms: int) -> tuple[Collector, Made]:
    """Settle pages and infer leaves, as far as they are due at or before `now_ms`, in time order."""
    made: Made = []
    while collector.due_ms is not None and collector.due_ms <= now_ms:
        if _settle_due_ms(rules, collector.waiting) == collector.due_ms:
            collector = _settle(rules, collector, made)
        else:
            assert collector.chain is not None
            _end(rules, collector.chain, Ending.INFERRED_LEAVE, made, collector.alive)
            collector = _collector(rules, collector.waiting, None, collector.alive)
    return collector, made


def forget_due_ms(rules: Rules, collector: Collector) -> int | None:
    """When the user may be forgotten."""
    return alive.forget_due_ms(rules, collector.alive)


def forget(rules: Rules, collector: Collector, now_ms: int) -> Collector:
    due_ms = forget_due_ms(rules, collector)
    return collector if due_ms is None or now_ms < due_ms else structs.replace(collector, alive=None)


def _collector(
    rules: Rules, waiting: tuple[ClosedPage, ...], chain: Chain | None, requests: Activeness | None
) -> Collector:
    due_ms = _settle_due_ms(rules, waiting)
    if chain is not None:
        left_ms = _settle_ms(rules, chain.tail) + rules.gap_ms
        due_ms = left_ms if due_ms is None else min(due_ms, left_ms)
    return Collector(waiting, chain, due_ms, requests)


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
    closed = ClosedPage(step, impression.user_id, impression.session_id, left, parting)
    if rules.choosing is None:
        return closed
    ranked = impression.decision.ranked
    shown = rules.choosing.page_size if ranked is None else ranked.shown
    return structs.replace(closed, items=impression.items, labels=page.labels[:shown])


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
    chain, requests = collector.chain, collector.alive
    for page in sorted(collector.waiting, key=_order):
        if _order(page) <= last:
            chain = _consume(rules, chain, page, made, requests)
            requests = alive.settled(rules, requests, page.step.time_ms)
    return _collector(rules, tuple(page for page in collector.waiting if _order(page) > last), chain, requests)


def _consume(
    rules: Rules, chain: Chain | None, page: ClosedPage, made: Made, requests: Activeness | None
) -> Chain | None:
    if chain is not None and page.step.time_ms - chain.tail.step.time_ms > rules.gap_ms:
        _end(rules, chain, Ending.INFERRED_LEAVE, made, requests)
        chain = None
    chain = Chain(page.user_id, (), page) if chain is None else _turn(rules, chain, page, made, requests)
    if page.left:
        _end(rules, chain, Ending.LEAVE, made, requests)
        return None
    return chain


def _turn(rules: Rules, chain: Chain, page: ClosedPage, made: Made, requests: Activeness | None) -> Chain:
    """The user turned from the tail to `page`. An episode of maximal length is cut there; its value goes on."""
    state = page.step.state
    activeness = alive.after(rules, requests, page.step.time_ms)
    made.append(_transition(rules, chain.tail, state, None, page.items, activeness))
    steps = (*chain.steps, chain.tail.step)
    if len(steps) < rules.max_pages:
        return Chain(chain.user_id, steps, page)
    made.append(_episode(rules, chain, steps, Ending.TRUNCATED, state))
    return Chain(page.user_id, (), page)


def _end(rules: Rules, chain: Chain, ending: Ending, made: Made, requests: Activeness | None) -> None:
    """The user left on the tail."""
    last = structs.replace(chain.tail.step, reward=chain.tail.parting_reward)
    activeness = alive.after(rules, requests, last.time_ms + rules.gap_ms)
    made.append(_transition(rules, structs.replace(chain.tail, step=last), None, ending, (), activeness))
    made.append(_episode(rules, chain, (*chain.steps, last), ending, None))


def _transition(
    rules: Rules,
    page: ClosedPage,
    next_state: State | None,
    ending: Ending | None,
    next_items: tuple[Item, ...],
    activeness: float | None,
) -> Transition:
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
        items=page.items[: len(page.labels)],
        labels=page.labels,
        next_items=next_items,
        activeness=activeness,
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
