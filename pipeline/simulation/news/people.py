"""The users of a run: what they like, which nobody sees, and what becomes of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.ranking.activeness import EXACT
from pipeline.simulation import draws
from pipeline.simulation.draws import Array
from pipeline.simulation.news.params import Params


class People(NamedTuple):
    """Arrays that a run writes to, [n] or [n, ...]."""

    next_min: Array  # when the next request comes
    last_min: Array  # when the last one came
    requests: Array
    depth: Array  # pages of the visit before this one
    pause_min: Array  # between the last two requests
    goodwill: Array  # hidden
    activeness: Array  # right after the last request
    worn: Array  # [n, topics] what the visit has shown of late
    profile: Array  # [n, topics] what was clicked of late
    seen: Array  # [n, items] bool
    clicked: Array  # [n, items] bool


def arriving(params: Params, seed: int, users: int, items: int) -> People:
    """Their first visits are spread over half a day."""
    keys = draws.key(draws.key(draws.root(seed), 5), np.arange(users))
    return People(
        next_min=720 * draws.uniform(keys),
        last_min=np.zeros(users),
        requests=np.zeros(users, int),
        depth=np.zeros(users, int),
        pause_min=np.zeros(users),
        goodwill=np.full(users, params.goodwill_start),
        activeness=np.full(users, EXACT.initial),
        worn=np.zeros((users, params.topics)),
        profile=np.full((users, params.topics), 1 / params.topics),
        seen=np.zeros((users, items), bool),
        clicked=np.zeros((users, items), bool),
    )


def interests(params: Params, seed: int, users: int) -> Array:
    """[users, topics]: a floor for every topic, some favourites near 1."""
    keys = draws.key(draws.key(draws.root(seed), 6), np.arange(users))
    order = np.argsort(draws.uniform(draws.key(keys[:, None], np.arange(params.topics)[None])), axis=1)
    strength = draws.uniform(draws.key(keys[:, None], params.topics + np.arange(params.topics)[None]))
    favourite = order.argsort(axis=1) < params.favourites
    return np.asarray(np.where(favourite, 0.6 + 0.4 * strength, params.interest_floor * (0.5 + strength)))
