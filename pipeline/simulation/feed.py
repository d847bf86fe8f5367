"""The simulated feed: pure, seeded, vectorised over sessions.

    sessions = begin(params, seed, users, visits)
    page = offer(params, sessions)                       # candidates with the ranker's scores
    shown = arrange(world, page, actions)                # the product's own fusion
    reaction = react(params, sessions, page, shown)
    sessions = advance(params, sessions, reaction)       # where not reaction.left

Arrays have the session last: [sessions], [candidates, sessions], [positions, sessions]. All randomness depends on
(seed, user, visit, page, item) alone, and all sums over positions run in order, so one session at a time and a batch
agree in every bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, NamedTuple, cast

import numpy as np

from pipeline.agent.fusion import Scores, pay_plus_a_phi
from pipeline.simulation import draws
from pipeline.simulation.catalogue import catalogue
from pipeline.simulation.draws import Array
from pipeline.simulation.params import Objective, Params, World
from pipeline.simulation.people import Visitors, meet

_AFFINITY, _NOISE, _REACTION, _LEAVE, _DWELL = range(5)  # what the keys of a page are used for


class Sessions(NamedTuple):
    """Sessions in progress. What the caller of the agent cannot see is hidden: it is in no feature."""

    visitors: Visitors  # who came, and what is known of them
    recents: Array  # [recents, n] items clicked last, oldest first
    active: Array  # uint64: bit k is whether the page k pages ago had a click; 16 of them
    page: Array
    clicks: Array
    idle: Array  # pages in a row without a click
    last_clicks: Array
    last_dwell_s: Array  # NaN before the first page
    shown_lean: Array  # moving average of how the shown pages leaned
    trust: Array  # hidden
    goodwill: Array  # hidden
    saturation: Array  # hidden

    @property
    def size(self) -> int:
        return len(self.page)


class Offer(NamedTuple):
    """Candidates of a page, [candidates, n] each."""

    items: Array
    click_score: Array
    pay_score: Array
    click_leaning: Array  # hidden: what the ranker's score would be without noise, before squashing
    pay_leaning: Array  # hidden
    keys: Array  # hidden: of each candidate's draws
    page_keys: Array  # [n]


class Reaction(NamedTuple):
    items: Array  # [positions, n]
    clicked: Array  # [positions, n]
    ordered: Array  # [positions, n]; at most one on a page, of a clicked item
    lean: Array  # [n] how the page leaned, weighted by attention
    dwell_s: Array
    left: Array

    @property
    def clicks(self) -> Array:
        return np.asarray(self.clicked.sum(axis=0))

    @property
    def orders(self) -> Array:
        return np.asarray(self.ordered.sum(axis=0))


def begin(params: Params, seed: int, users: Array, visits: Array) -> Sessions:
    """The state before the first page of each (user, visit)."""
    visitors, recents, active = meet(params, seed, users, visits)
    n = len(visitors.user)
    zero, none = np.zeros(n), np.zeros(n, np.int64)
    return Sessions(
        visitors=visitors,
        recents=recents,
        active=active,
        page=none,
        clicks=none,
        idle=none,
        last_clicks=none,
        last_dwell_s=np.full(n, np.nan),
        shown_lean=zero,
        trust=zero + params.trust_start,
        goodwill=zero + params.goodwill_start,
        saturation=zero,
    )


def select(sessions: Sessions, chosen: Array) -> Sessions:
    """The chosen sessions: a mask or indices."""
    visitors = Visitors(*(each[chosen] for each in sessions.visitors))
    return Sessions(visitors, *(each[..., chosen] for each in sessions[1:]))


def offer(params: Params, sessions: Sessions) -> Offer:
    """Distinct items, drawn by stepping through the catalogue, and noisy scores."""
    world = catalogue(params)
    page_keys = draws.key(sessions.visitors.key, sessions.page)
    start, stride = draws.two_uniforms(page_keys)
    number = np.arange(params.candidates)[:, None]
    first = (start * params.catalogue).astype(np.int64)
    step = 1 + (stride * (params.catalogue - 1)).astype(np.int64)
    items = (first + number * step) % params.catalogue
    keys = draws.key(draws.key(page_keys, _AFFINITY), number)
    likes, buys = draws.two_bells(keys)
    click_noise, pay_noise = draws.two_bells(draws.key(keys, _NOISE))
    click = world.click[items] + params.affinity * likes
    pay = world.pay[items] + params.affinity * buys
    return Offer(
        items=items,
        click_score=draws.squash(click + params.ranker_noise * click_noise),
        pay_score=draws.squash(pay + params.ranker_noise * pay_noise),
        click_leaning=click,
        pay_leaning=pay,
        keys=keys,
        page_keys=page_keys,
    )


def arrange(world: World, page: Offer, actions: Array) -> Array:
    """Candidates in the order in which the agent would show them, [page_size, n].

    The product's fusion, given columns in place of numbers; its order is by descending score, ties as received.
    """
    if len(actions) == 1:  # the same with numbers: a one-column array costs fifty times a float
        click, pay = page.click_score[:, 0].tolist(), page.pay_score[:, 0].tolist()
        fused = np.array(pay_plus_a_phi(Scores(click, pay), float(actions[0]), world.objective.phi))[:, None]
    else:
        columns = cast(Any, Scores([*page.click_score], [*page.pay_score]))
        fused = np.stack(cast(list[Array], pay_plus_a_phi(columns, cast(Any, actions), world.objective.phi)))
    return np.argsort(-fused, axis=0, kind="stable")[: world.params.page_size]


def react(params: Params, sessions: Sessions, page: Offer, shown: Array) -> Reaction:
    """What the users do on a page that shows these candidates, [positions, n]."""
    items = np.take_along_axis(page.items, shown, 0)
    lean = catalogue(params).lean[items]
    attention = 1.0 / (1.0 + params.attention_decay * np.arange(len(shown)))[:, None]
    clicked, ordered = _conversions(params, sessions, page, shown, lean, attention)
    page_lean = _total(lean * attention) / float(_total(attention)[0])
    clicks, orders = clicked.sum(axis=0), ordered.sum(axis=0)
    leaning = _leaving(params, sessions, page_lean, clicks, orders)
    left = draws.uniform(draws.key(page.page_keys, _LEAVE)) < draws.squash(leaning)
    return Reaction(items, clicked, ordered, page_lean, _dwell_s(params, sessions, page, page_lean, clicks), left)


def advance(params: Params, sessions: Sessions, reaction: Reaction) -> Sessions:
    """The state before the next page."""
    clicks = reaction.clicks
    converted = clicks > 0
    amused = params.goodwill_lean * reaction.lean * (1.0 - params.goodwill_saturation * sessions.saturation)
    return sessions._replace(
        recents=_remember(sessions.recents, reaction),
        active=((sessions.active << np.uint64(1)) | converted.astype(np.uint64)) & np.uint64(0xFFFF),
        page=sessions.page + 1,
        clicks=sessions.clicks + clicks,
        idle=np.where(converted, 0, sessions.idle + 1),
        last_clicks=clicks,
        last_dwell_s=reaction.dwell_s,
        shown_lean=_step(sessions.shown_lean, reaction.lean, params.saturation_rate),
        trust=_step(sessions.trust, converted.astype(np.float64), params.trust_rate),
        goodwill=_step(sessions.goodwill, _unit(params.goodwill_level + amused), params.goodwill_rate),
        saturation=_step(sessions.saturation, _unit(params.saturation_lean * reaction.lean), params.saturation_rate),
    )


def rewards(objective: Objective, reaction: Reaction) -> Array:
    """The shaped reward of each page, as `pipeline.transitions.rewards.page_reward` counts it."""
    rule = objective.reward
    earned = rule.weights.get("click", 0.0) * reaction.clicks + rule.weights.get("order", 0.0) * reaction.orders
    penalty = rule.penalties.page_without_conversion + np.where(
        reaction.left, rule.penalties.leave_without_conversion, 0.0
    )
    return earned - np.where(reaction.clicks > 0, 0.0, penalty)


def _conversions(
    params: Params, sessions: Sessions, page: Offer, shown: Array, lean: Array, attention: Array
) -> tuple[Array, Array]:
    buyer = sessions.visitors.buyer
    taste = np.where(buyer, params.buyer_click_lean, params.browser_click_lean) * lean
    mood = np.where(buyer, 0.0, params.click_goodwill * (sessions.goodwill - params.goodwill_start))
    mood = mood + params.click_trust * (sessions.trust - params.trust_start)
    weary = params.click_saturation * sessions.saturation * np.maximum(lean, 0.0)
    clicking = np.take_along_axis(page.click_leaning, shown, 0) + taste + mood - weary
    ordering = np.take_along_axis(page.pay_leaning, shown, 0) + np.where(
        buyer, params.buyer_order, params.browser_order
    )
    luck, fortune = draws.two_uniforms(draws.key(np.take_along_axis(page.keys, shown, 0), _REACTION))
    clicked = luck < attention * draws.squash(clicking)
    ordered = clicked & (fortune < draws.squash(ordering))
    return clicked, ordered & (np.cumsum(ordered, axis=0) == 1)


def _leaving(params: Params, sessions: Sessions, lean: Array, clicks: Array, orders: Array) -> Array:
    idle = np.where(clicks > 0, 0, sessions.idle + 1)
    buyer = (
        params.buyer_leave
        + params.buyer_leave_idle * idle
        + params.buyer_leave_order * orders
        + params.buyer_leave_lean * lean
    )
    wear = 1.0 - params.browser_leave_saturation * sessions.saturation
    browser = (
        params.browser_leave
        + params.browser_leave_idle * idle
        + params.browser_leave_lean * lean * wear
        + params.browser_leave_goodwill * (sessions.goodwill - params.goodwill_start)
    )
    own = params.leave_trust * (sessions.trust - params.trust_start) - sessions.visitors.patience
    return np.where(sessions.visitors.buyer, buyer, browser) + own


def _dwell_s(params: Params, sessions: Sessions, page: Offer, lean: Array, clicks: Array) -> Array:
    amused = np.where(sessions.visitors.buyer, 0.0, params.amused_s * np.maximum(lean, 0.0))
    pace = 0.5 + draws.uniform(draws.key(page.page_keys, _DWELL))
    return (params.glance_s + amused + params.click_s * clicks) * pace


def _remember(recents: Array, reaction: Reaction) -> Array:
    for items, clicked in zip(reaction.items, reaction.clicked, strict=True):
        if clicked.any():
            recents = np.where(clicked, np.concatenate([recents[1:], items[None]]), recents)
    return recents


def _step(mood: Array, target: Array, rate: float) -> Array:
    return mood + rate * (target - mood)


def _unit(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0.0), 1.0)


def _total(rows: Iterable[Array]) -> Array:
    """The sum over positions, from the first to the last: np.sum's order depends on the shape."""
    return reduce(add, rows)
