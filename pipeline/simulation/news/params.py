"""The news world in numbers. Frozen: results name `VERSION` and the hash, and a change of either reruns every result.

"Leanings" are arguments of `draws.squash`, added up. Every item has a hook in about [-2.5, 2.5], mostly its
provider's: what hooks is clicked on, and disappoints.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

VERSION = 1


class Params(Struct, frozen=True, forbid_unknown_fields=True):
    tick_min: int = 2  # requests of one tick see the same world

    # items
    topics: int = 8
    providers: int = 6
    items_per_h: float = 24.0
    life_h: float = 4.1  # mean, Zheng et al. 2018, section 5.4.1
    second_topic: float = 0.35  # how much of an item may be about another topic
    hook_spread: float = 1.0  # of providers' hooks
    hook_noise: float = 0.4  # of an item around its provider
    quality_spread: float = 0.5

    # the page
    candidates: int = 30
    page_size: int = 10
    attention_decay: float = 0.15  # place k is looked at 1 / (1 + decay k) of the time

    # clicks on what is looked at
    click_level: float = -2.6
    click_match: float = 2.6  # of interest, 0 to about 1
    click_hook: float = 0.5
    click_quality: float = 0.5
    click_stale_per_h: float = -0.15
    click_stale_h: float = 12.0  # older than this it gets no staler
    click_worn: float = -1.2  # of how much the visit has shown of the item's topics

    # users
    favourites: int = 2
    interest_floor: float = 0.1
    profile_rate: float = 0.15  # of the observed profile, per click
    worn_keep: float = 0.6  # of a topic's wear, per page

    # goodwill in [0, 1], hidden: a step towards what the page gave
    goodwill_start: float = 0.5
    goodwill_rate: float = 0.15
    goodwill_level: float = -0.8
    goodwill_click: float = 0.8  # of each click
    goodwill_hook: float = -0.7  # times its hook
    goodwill_quality: float = 0.5  # times its quality

    # staying and returning
    stay_level: float = 0.2
    stay_goodwill: float = 1.6  # times 2 goodwill - 1
    pause_ticks: int = 3  # at most, between the pages of a visit
    absence_h: float = 9.0  # mean between visits at a goodwill of 1/2
    absence_goodwill: float = 4.0  # at 1 it is divided by this, at 0 multiplied
    visit_gap_min: int = 30  # a longer pause starts another visit

    # what is counted of items
    counted_h: float = 1.0  # time constant of the decaying counts of views and clicks


class World(Struct, frozen=True):
    params: Params = Params()

    @property
    def sha256(self) -> str:
        """Of the parameters as canonical JSON: what a result depends on, besides the code that `VERSION` counts."""
        return hashlib.sha256(msgspec.json.encode(self.params, order="sorted")).hexdigest()

    def __str__(self) -> str:
        return f"simulated news v{VERSION} {self.sha256[:12]}"
