"""What the agent can see of a session: raw features as the feature config names them, and the same as a flat vector.

Both are functions of the same visible values. The vector holds each of them in a range of about [-1, 1]: numbers
transformed, ids one-hot, the recent items as the mean of their vectors.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from pipeline.records import Features, State
from pipeline.simulation.catalogue import catalogue, item_id
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.params import Params
from pipeline.simulation.people import ACTIVE_BITS, CITIES, ENTRANCES

_BITS = np.arange(ACTIVE_BITS, dtype=np.uint64)[:, None]


def state(sessions: Sessions, index: int = 0) -> State:
    """The raw features of one session."""
    return State(_user(sessions, index), _context(sessions, index), _page(sessions, index))


def _user(sessions: Sessions, i: int) -> Features:
    who = sessions.visitors
    return {
        "orders_30d": int(who.orders_30d[i]),
        "ctr_7d": float(who.ctr_7d[i]),
        "city": CITIES[who.city[i]],
        "active_pages": int(sessions.active[i]),
        "recent_clicks": tuple(item_id(int(item)) for item in sessions.recents[:, i]),
    }


def _context(sessions: Sessions, i: int) -> Features:
    return {"hour": int(sessions.visitors.hour[i]), "entrance": ENTRANCES[sessions.visitors.entrance[i]]}


def _page(sessions: Sessions, i: int) -> Features:
    dwell_s = float(sessions.last_dwell_s[i])
    return {
        "page_index": int(sessions.page[i]),
        "clicks": int(sessions.clicks[i]),
        "idle_pages": int(sessions.idle[i]),
        "last_clicks": int(sessions.last_clicks[i]),
        "last_dwell_s": None if np.isnan(dwell_s) else dwell_s,
        "shown_lean": float(sessions.shown_lean[i]),
    }


def names(params: Params) -> tuple[str, ...]:
    """Of the columns of `vector`."""
    return (
        *("orders_30d", "ctr_7d", "page_index", "clicks", "idle_pages", "last_clicks", "last_dwell_s", "shown_lean"),
        "first_page",
        *(f"recents_{d}" for d in range(params.vector_dim)),
        *(f"active_{k}" for k in range(ACTIVE_BITS)),
        *(f"city_{city}" for city in CITIES),
        *(f"entrance_{entrance}" for entrance in ENTRANCES),
        *(f"hour_{hour}" for hour in range(24)),
    )


def vector(params: Params, sessions: Sessions) -> Array:
    """float32 [n, columns]."""
    who = sessions.visitors
    first = np.isnan(sessions.last_dwell_s)
    dwell_s = np.where(first, 0.0, sessions.last_dwell_s)
    columns = [
        who.orders_30d / 8.0,
        4.0 * who.ctr_7d,
        _bent(sessions.page, 4.0),
        _bent(sessions.clicks, 4.0),
        _bent(sessions.idle, 2.0),
        _bent(sessions.last_clicks, 1.0),
        _bent(dwell_s, 20.0),
        2.0 * sessions.shown_lean,
        first,
        *_mean_vectors(params, sessions.recents),
        *((sessions.active >> _BITS) & np.uint64(1)),
        *_one_hot(who.city, len(CITIES)),
        *_one_hot(who.entrance, len(ENTRANCES)),
        *_one_hot(who.hour, 24),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _bent(x: Array, half: float) -> Array:
    """From 0 at 0 to 1, with 1/2 at `half`."""
    return np.asarray(x / (x + half))


def _one_hot(values: Array, size: int) -> Array:
    return np.asarray(values == np.arange(size)[:, None])


def _mean_vectors(params: Params, recents: Array) -> Array:
    """[dim, n], summed oldest first."""
    total = reduce(add, catalogue(params).vectors.astype(np.float64)[recents])
    return np.asarray(total.T / len(recents))
