"""The world in numbers. Frozen: results name `VERSION` and the hash, and a change of either reruns every result.

"Leanings" are arguments of `draws.squash`, added up. Items lean from -1 (a deal: it converts) to 1 (a show: it
amuses). Users of a session are of one of two hidden intents: buyers want to leave soon with the right thing, browsers
enjoy depth.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from pipeline.config.schema import FeatureConfig, PayPlusAPhi, Penalties, Reward
from pipeline.errors import PageturnError

VERSION = 1


class SimulationError(PageturnError):
    """The simulator was asked for something it cannot do; says what was expected and what was found."""


class Params(Struct, frozen=True, forbid_unknown_fields=True):
    # the page
    catalogue: int = 601  # items; prime, so that any stride visits all of them
    candidates: int = 40
    page_size: int = 10
    attention_decay: float = 0.12  # the item at position k is looked at 1 / (1 + decay * k) of the time
    vector_dim: int = 4
    recents: int = 8  # clicked items that are remembered

    # items and the ranker
    click_level: float = -2.2
    click_lean: float = 1.2  # the ranker has learned from other traffic, that clicks on shows
    pay_level: float = -1.5
    pay_lean: float = -1.8
    item_spread: float = 0.3  # of an item's own level, standard deviation
    affinity: float = 0.3  # of a user's own taste for an item
    ranker_noise: float = 0.3

    # who comes
    buyer_level: float = -0.25
    buyer_taste: float = 1.1  # how much users differ
    buyer_hour: float = 0.35  # around noon and in the evening people buy
    buyer_entrance: float = 0.45  # those who come from a search rather buy, those who come from a push rather browse
    habit_noise: float = 0.8
    history_buyer: float = 0.62  # share of deals among the items clicked last
    history_browser: float = 0.42
    active_buyer: float = 0.3  # share of recent pages with a click
    active_browser: float = 0.42
    patience_spread: float = 0.3

    # clicks and orders
    buyer_click_lean: float = -2.2
    browser_click_lean: float = -1.7
    click_trust: float = 0.5
    click_goodwill: float = 1.0  # browsers in a good mood click more
    click_saturation: float = 0.5  # shows wear off
    buyer_order: float = 0.3
    browser_order: float = -0.8

    # moods, each in [0, 1]: a step towards what the page gave
    trust_rate: float = 0.3  # towards whether the page had a click
    trust_start: float = 0.5
    goodwill_rate: float = 0.3  # towards how amusing it was
    goodwill_start: float = 0.3
    goodwill_level: float = 0.25
    goodwill_lean: float = 1.4
    goodwill_saturation: float = 1.0
    saturation_rate: float = 0.4  # towards how much of a show it was
    saturation_lean: float = 2.0

    # leaving
    buyer_leave: float = -0.9
    buyer_leave_idle: float = 0.5  # per page in a row without a click
    buyer_leave_order: float = 3.0
    buyer_leave_lean: float = 0.3
    browser_leave: float = -1.3
    browser_leave_idle: float = 0.15
    browser_leave_lean: float = -0.6
    browser_leave_saturation: float = 0.6
    browser_leave_goodwill: float = -2.0
    leave_trust: float = -0.5
    max_pages: int = 40  # where a simulated session is cut

    # time, in seconds of the user's
    glance_s: float = 5.0
    amused_s: float = 10.0  # more, on a page of shows, for browsers
    click_s: float = 3.0
    order_delay_s: float = 10.0  # after the click, so that an order may come pages later
    order_delay_max_s: float = 40.0

    # coming back: which visits look at the feed at all
    exposure_level: float = 0.1
    exposure_loyalty: float = 0.9
    loyalty_start: float = 0.7
    loyalty_rate_buyer: float = 0.5  # towards whether the visit had a click; they came for something
    loyalty_rate_browser: float = 0.05


class Objective(Struct, frozen=True, forbid_unknown_fields=True):
    """What is maximised, and with which action: the parts of a feature config that a yardstick depends on."""

    phi: float = 0.07
    low: float = 0.0
    high: float = 2.0
    baseline: float = 1.0
    gamma: float = 0.95
    reward: Reward = Reward(
        weights={"click": 1.0, "order": 4.0},
        penalties=Penalties(page_without_conversion=0.45, leave_without_conversion=0.9),
    )

    @classmethod
    def of(cls, config: FeatureConfig) -> Objective:
        """Raises SimulationError for a config whose action or reward the simulated feed does not have."""
        if not isinstance(config.fusion, PayPlusAPhi):
            msg = "fusion: expected kind pay_plus_a_phi for the simulated feed, found another"
            raise SimulationError(msg)
        if extra := set(config.reward.weights) - {"click", "order"}:
            msg = f"reward.weights: expected click and order for the simulated feed, found also {sorted(extra)}"
            raise SimulationError(msg)
        if config.reward.clip is not None:
            msg = "reward.clip: expected none for the simulated feed, found one"
            raise SimulationError(msg)
        (low, high), baseline = config.action[0].range, config.action[0].baseline
        return cls(config.fusion.phi, low, high, baseline, config.algorithm.gamma, config.reward)

    def without_penalties(self) -> Objective:
        reward = msgspec.structs.replace(self.reward, penalties=Penalties())
        return msgspec.structs.replace(self, reward=reward)


class World(Struct, frozen=True):
    params: Params = Params()
    objective: Objective = Objective()

    @classmethod
    def of(cls, config: FeatureConfig) -> World:
        return cls(objective=Objective.of(config))

    @property
    def sha256(self) -> str:
        """Of both as canonical JSON: what a result depends on, besides the code that `VERSION` counts."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def __str__(self) -> str:
        return f"simulated feed v{VERSION} {self.sha256[:12]}"
