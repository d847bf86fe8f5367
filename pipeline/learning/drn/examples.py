"""A record of the transitions topic -> a page to learn a ranking from, or the reason why it cannot be one. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.config.schema import Drn, FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.errors import FeatureError, MissingVector
from pipeline.learning.ingestion import Unusable
from pipeline.records import Labels, Transition


class Encoders(NamedTuple):
    state: Encoder
    item: Encoder


class PageExample(NamedTuple):
    """Prepared rows; those of the next request do not matter where the discount is 0."""

    time_ms: int  # by the log: when the page was complete
    user: np.ndarray  # [1]
    items: np.ndarray  # [K] what was shown
    reward: np.ndarray  # [K] float32
    discount: float
    next_user: np.ndarray  # [1]
    next_items: np.ndarray  # [N] candidates; none where the discount is 0


def to_page(transition: Transition, config: FeatureConfig, encoders: Encoders, time_ms: int) -> PageExample | Unusable:
    activeness = transition.activeness
    if activeness is None or len(transition.labels) != len(transition.items):
        found = f"{len(transition.labels)} labels of {len(transition.items)} items, activeness {activeness}"
        return Unusable("not_ranked", f"expected what was shown and the user's activeness, found {found}")
    if not transition.items:
        return Unusable("no_items", "expected a page with items, found none")
    try:
        user = encoders.state.prepare(transition.state).row
        following = user if transition.next_state is None else encoders.state.prepare(transition.next_state).row
        items, ahead = (encoders.item.prepare_items(each) for each in (transition.items, transition.next_items))
    except MissingVector as error:
        return Unusable("missing_vector", str(error))
    except FeatureError as error:
        return Unusable("feature", str(error))
    reward = rewards(config, transition.labels, activeness)
    return PageExample(time_ms, user, items, reward, transition.discount, following, ahead)


def rewards(config: FeatureConfig, labels: tuple[Labels, ...], activeness: float) -> np.ndarray:
    """Of each shown item what it earned, plus beta times how alive the user was afterwards. Zheng et al. 2018, (6)."""
    algorithm, weights = config.algorithm, config.reward.weights
    assert isinstance(algorithm, Drn)
    click, order, dwell = (weights.get(kind, 0.0) for kind in ("click", "order", "dwell"))
    earned = [click * each.clicks + order * each.order_value + dwell * each.dwell_s for each in labels]
    return np.array(earned, np.float32) + np.float32(algorithm.beta * activeness)
