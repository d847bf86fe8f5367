"""Users who come back: where a new driver of the traffic goes on after the ones before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from pipeline.simulation.outcomes import Outcome
from pipeline.simulation.params import Params
from pipeline.simulation.people import next_loyalty
from pipeline.simulation.reactions import user_number


class Past(NamedTuple):
    """What the users of a seed have behind them."""

    first: int = 0  # the number of the first visit to come: visit, user = divmod(number, users)
    loyalty: Mapping[int, float] = MappingProxyType({})  # by user, of those who have seen the feed


class Claim(Struct, frozen=True):
    """Visits below `upto` were begun, or may have been, when so many users took turns."""

    users: int
    upto: int

    def first_of(self, users: int) -> int:
        """The same if so many others take turns: whole rounds."""
        return self.upto if users == self.users else -(-self.upto // self.users) * users


def past_of(params: Params, users: int, claim: Claim | None, outcomes: Iterable[Outcome]) -> Past:
    """`outcomes` are of visits that ended, in any order; one that was under way at a kill has used its number, too."""
    done = sorted(outcomes, key=lambda outcome: (outcome.user_id, outcome.visit))
    loyalty: dict[int, float] = {}
    first = claim.first_of(users) if claim else 0
    for outcome in done:
        user = user_number(outcome.user_id)
        if user < users:
            first = max(first, outcome.visit * users + user + 1)
        if outcome.exposed:
            loyalty[user] = after(params, loyalty.get(user, params.loyalty_start), outcome)
    return Past(first, loyalty)


def after(params: Params, loyalty: float, outcome: Outcome) -> float:
    """The loyalty after a visit that saw the feed."""
    buyer, converted = np.array([outcome.buyer]), np.array([float(outcome.clicks > 0)])
    return float(next_loyalty(params, np.array([loyalty]), buyer, converted)[0])
