"""Who comes to the feed: users with habits, visits with a hidden intent, and which visits look at the feed at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.simulation import draws
from pipeline.simulation.draws import Array
from pipeline.simulation.params import Params

CITIES = ("north", "south", "east", "west", "old_town", "harbour")
ENTRANCES = ("search", "home", "push")
_SEARCH, _PUSH = 0, 2
_ENTRANCE_SHARES = (0.3, 0.75)  # cumulative, without the last
_BUYING_HOURS = np.isin(np.arange(24), (11, 12, 13, 17, 18, 19, 20))
ACTIVE_BITS = 16

_HABITS, _VISITS = range(2)  # what the keys of a user are used for
_MOMENT, _INTENT, _RECENTS, _ACTIVE, _PAGES, _EXPOSURE = range(6)  # and those of a visit


class Visitors(NamedTuple):
    """[n] each."""

    key: Array  # of the visit's pages
    user: Array
    visit: Array
    buyer: Array  # hidden
    patience: Array  # hidden
    city: Array  # of CITIES
    orders_30d: Array
    ctr_7d: Array
    hour: Array
    entrance: Array  # of ENTRANCES


def meet(params: Params, seed: int, users: Array, visits: Array) -> tuple[Visitors, Array, Array]:
    """The visitors, the items each clicked last [recents, n], and on which of the last pages (bits)."""
    user_keys, visit_keys = _keys(seed, users, visits)
    taste, city, orders_30d, ctr_7d = _habits(params, user_keys)
    hour, entrance, leaning = _moment(params, draws.key(visit_keys, _MOMENT))
    luck, patience = draws.two_uniforms(draws.key(visit_keys, _INTENT))
    buyer = luck < draws.squash(params.buyer_level + taste + leaning)
    visitors = Visitors(
        key=draws.key(visit_keys, _PAGES),
        user=np.asarray(users, np.int64),
        visit=np.asarray(visits, np.int64),
        buyer=buyer,
        patience=params.patience_spread * 12**0.5 * (patience - 0.5),
        city=city,
        orders_30d=orders_30d,
        ctr_7d=ctr_7d,
        hour=hour,
        entrance=entrance,
    )
    recents = _recents(params, draws.key(visit_keys, _RECENTS), buyer)
    return visitors, recents, _active(params, draws.key(visit_keys, _ACTIVE), buyer)


def exposed(params: Params, seed: int, users: Array, visits: Array, loyalty: Array) -> Array:
    """Whether a visit gets to see the feed: those whose earlier visits were in vain stop scrolling down to it."""
    _, visit_keys = _keys(seed, users, visits)
    luck = draws.uniform(draws.key(visit_keys, _EXPOSURE))
    return np.asarray(luck < params.exposure_level + params.exposure_loyalty * loyalty)


def next_loyalty(params: Params, loyalty: Array, buyer: Array, converted: Array) -> Array:
    """Loyalty after an exposed visit that had a click, or none."""
    rate = np.where(buyer, params.loyalty_rate_buyer, params.loyalty_rate_browser)
    return np.asarray(loyalty + rate * (converted - loyalty))


def _keys(seed: int, users: Array, visits: Array) -> tuple[Array, Array]:
    user_keys = draws.key(draws.root(seed), users)
    return user_keys, draws.key(draws.key(user_keys, _VISITS), visits)


def _habits(params: Params, user_keys: Array) -> tuple[Array, Array, Array, Array]:
    keys = draws.key(user_keys, _HABITS)
    own, orders_noise = draws.two_bells(draws.key(keys, 0))
    place, _ = draws.two_uniforms(draws.key(keys, 1))
    ctr_noise, _ = draws.two_bells(draws.key(keys, 2))
    city = (place * len(CITIES)).astype(np.int64)
    taste = params.buyer_taste * own + 0.15 * (city - (len(CITIES) - 1) / 2)
    orders = 9.0 * draws.squash(taste - 0.5 + params.habit_noise * orders_noise)
    ctr = draws.squash(-2.0 - 0.4 * taste + params.habit_noise * ctr_noise)
    return taste, city, orders.astype(np.int64), ctr


def _moment(params: Params, keys: Array) -> tuple[Array, Array, Array]:
    when, door = draws.two_uniforms(keys)
    hour = (when * 24).astype(np.int64)
    entrance = np.searchsorted(_ENTRANCE_SHARES, door, side="right")
    leaning = np.where(_BUYING_HOURS[hour], params.buyer_hour, -0.4 * params.buyer_hour)
    towards = np.where(entrance == _SEARCH, 1.0, np.where(entrance == _PUSH, -1.0, 0.0))
    return hour, entrance, leaning + params.buyer_entrance * towards


def _recents(params: Params, keys: Array, buyer: Array) -> Array:
    number = np.arange(params.recents)[:, None]
    kind, which = draws.two_uniforms(draws.key(keys, number))
    show = kind >= np.where(buyer, params.history_buyer, params.history_browser)
    return np.asarray(2 * (which * (params.catalogue // 2)).astype(np.int64) + show)


def _active(params: Params, keys: Array, buyer: Array) -> Array:
    number = np.arange(ACTIVE_BITS)[:, None]
    rate = np.where(buyer, params.active_buyer, params.active_browser)
    bits = (draws.uniform(draws.key(keys, number)) < rate).astype(np.uint64) << number.astype(np.uint64)
    return np.asarray(np.bitwise_or.reduce(bits, axis=0))
