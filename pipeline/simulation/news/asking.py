"""What a caller of the agent knows of a request of the simulated news: raw features of user, moment and candidates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.config.schema import FeatureConfig
from pipeline.records import Features, Item, State
from pipeline.simulation.draws import Array
from pipeline.simulation.news.feed import Requests
from pipeline.simulation.news.params import Params
from pipeline.simulation.params import SimulationError

_DIGITS = 4
_VISITS_PER_DAY = 2.3  # of a user who is neither pleased nor displeased: one in nine hours, and the visit itself


class Known:
    """The names of the columns of `Requests`, in the units in which a feed would log them."""

    def __init__(self, params: Params) -> None:
        self._params = params
        topics = range(params.topics)
        self._user = (*(f"likes_{t}" for t in topics), "activeness")
        self._about = tuple(f"about_{t}" for t in topics)

    def state(self, requests: Requests, page: int) -> State:
        columns = requests.user_features[page].tolist()
        depth, pause_days, requested, sin, cos = columns[-5:]
        user: Features = {name: _rounded(x) for name, x in zip(self._user, columns, strict=False)}
        user |= {"requests": round(50 * requested), "pause_h": _rounded(24 * pause_days)}
        return State(user, {"hour_sin": _rounded(sin), "hour_cos": _rounded(cos)}, {"depth": round(10 * depth)})

    def items(self, requests: Requests, page: int) -> tuple[Item, ...]:
        there = requests.exists[page]
        return tuple(
            Item(f"n{number}", features=self._features(columns))
            for number, columns in zip(requests.items[page][there], requests.item_features[page][there], strict=True)
        )

    def _features(self, columns: Array) -> Features:
        about, provider, rest = np.split(columns, [self._params.topics, self._params.topics + self._params.providers])
        age, rate, views, match, worn, seen = rest.tolist()
        return {
            **{name: _rounded(x) for name, x in zip(self._about, about.tolist(), strict=True)},
            "provider": f"p{int(provider.argmax())}",
            "age_h": _rounded(12 * age),
            "click_rate": _rounded(rate / 5),
            "views": round(float(np.expm1(5 * views)), 1),
            "match": _rounded(match),
            "worn": _rounded(worn),
            "seen": int(seen),
        }

    def sources(self) -> frozenset[str]:
        """Everything that a feature of a config can be."""
        of_user = {f"user.{name}" for name in (*self._user, "requests", "pause_h")}
        of_page = {"page.depth", "context.hour_sin", "context.hour_cos"}
        return frozenset(of_user | of_page | {f"item.{name}" for name in self._features(self._neutral())})

    def _neutral(self) -> Array:
        return np.zeros(self._params.topics + self._params.providers + 6)


def check(config: FeatureConfig, params: Params) -> None:
    """Raises SimulationError for a config whose features the simulated news do not have."""
    known = Known(params).sources()
    if unknown := sorted(_unknown(config, known)):
        msg = f"features: expected sources that the simulated news have, found {', '.join(unknown)}"
        raise SimulationError(msg)
    if config.ranking is None or config.ranking.page_size != params.page_size:
        found = None if config.ranking is None else config.ranking.page_size
        msg = f"ranking.page_size: expected {params.page_size}, that of the simulated news, found {found}"
        raise SimulationError(msg)


def users_for(visits_per_s: float, day_s: float) -> int:
    """So many that about so many visits begin in a second."""
    return max(1, round(visits_per_s * day_s / _VISITS_PER_DAY))


def _unknown(config: FeatureConfig, known: frozenset[str]) -> Iterator[str]:
    return (feature.source for feature in config.features if feature.source not in known and feature.missing is None)


def _rounded(x: float) -> float:
    return round(float(x), _DIGITS)
