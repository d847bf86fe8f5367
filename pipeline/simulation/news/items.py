"""All items that a run will see, from its seed alone: nobody's doings change what is published."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.simulation import draws
from pipeline.simulation.draws import Array
from pipeline.simulation.news.params import Params


class Items(NamedTuple):
    """[n], by the time of their publication."""

    topics: Array  # [n, topics], of length 1
    provider: Array  # int
    hook: Array
    quality: Array
    born_min: Array
    gone_min: Array

    def alive(self, now_min: float) -> Array:
        """Which of them can be shown."""
        return np.flatnonzero((self.born_min <= now_min) & (now_min < self.gone_min))


def published(params: Params, seed: int, days: float) -> Items:
    """From so long before the start that the feed is full when it begins."""
    before_min = 12 * 60 * params.life_h
    n = math.ceil((days * 1440 + before_min) / 60 * params.items_per_h)
    keys = draws.key(draws.key(draws.root(seed), 1), np.arange(n))
    providers = draws.key(draws.key(draws.root(seed), 2), np.arange(params.providers))
    leaning, noise = params.hook_spread * draws.two_bells(providers)[0], draws.two_bells(draws.key(keys, 3))
    provider = _choice(draws.key(keys, 0), params.providers)
    born_min = -before_min + 60 / params.items_per_h * (np.arange(n) + draws.uniform(draws.key(keys, 1)))
    life_min = -60 * params.life_h * np.log1p(-draws.uniform(draws.key(keys, 2)))
    return Items(
        topics=_topics(params, keys),
        provider=provider,
        hook=leaning[provider] + params.hook_noise * noise[0],
        quality=params.quality_spread * noise[1],
        born_min=born_min,
        gone_min=born_min + life_min,
    )


def _topics(params: Params, keys: Array) -> Array:
    """One topic each, and some of another one."""
    n = len(keys)
    vectors = np.zeros((n, params.topics))
    second = params.second_topic * draws.uniform(draws.key(keys, 6))
    vectors[np.arange(n), _choice(draws.key(keys, 5), params.topics)] += second
    vectors[np.arange(n), _choice(draws.key(keys, 4), params.topics)] += 1.0
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _choice(keys: Array, n: int) -> Array:
    return np.asarray(draws.uniform(keys) * n).astype(int)
