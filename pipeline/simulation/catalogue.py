"""The items of the world: the same in every run. Even ids are deals, odd ones shows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.simulation import draws
from pipeline.simulation.draws import Array
from pipeline.simulation.params import Params, SimulationError

_WORLD_SEED = 20180830


class Catalogue(NamedTuple):
    lean: Array  # [items] in (-1, 1)
    click: Array  # [items] leaning of the average user of the ranker's traffic to click
    pay: Array  # [items] leaning to order after a click
    vectors: Array  # [items, dim] float32: lean, click and pay with noise, the rest noise


@lru_cache(maxsize=4)
def catalogue(params: Params) -> Catalogue:
    items = np.arange(params.catalogue)
    keys = draws.key(draws.root(_WORLD_SEED), items)
    lean = (0.1 + 0.9 * draws.uniform(keys)) * np.where(is_deal(items), -1.0, 1.0)
    click_own, pay_own = draws.two_bells(draws.key(keys, 0))
    click = params.click_level + params.click_lean * lean + params.item_spread * click_own
    pay = params.pay_level + params.pay_lean * lean + params.item_spread * pay_own
    return Catalogue(lean, click, pay, _vectors(params, keys, np.stack([lean, click_own, pay_own])))


def is_deal(items: Array) -> Array:
    return np.asarray(items % 2 == 0)


def item_id(index: int) -> str:
    return f"item-{index}"


def item_index(params: Params, name: str) -> int:
    head, _, number = name.partition("-")
    if head != "item" or not number.isdigit() or int(number) >= params.catalogue:
        msg = f"expected an item of the simulated feed, item-0 to item-{params.catalogue - 1}, found {name!r}"
        raise SimulationError(msg)
    return int(number)


def _vectors(params: Params, keys: Array, meaning: Array) -> Array:
    noise = np.stack([draws.two_bells(draws.key(keys, 1 + d))[0] for d in range(params.vector_dim)])
    vectors = 0.1 * noise
    known = min(len(meaning), params.vector_dim)
    vectors[:known] += meaning[:known]
    return np.ascontiguousarray(vectors.T, np.float32)
