"""From what the model says to what is done: exploration around the mean, per action dimension. Pure.

Everything here depends on the config, the session and the page only, so any replica does the same, and a decision
can be made again from its log.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.agent.fusion import fuse
from pipeline.config.schema import ActionDimension, FeatureConfig
from pipeline.exploration import default_sigma, draw, explore, noise_before
from pipeline.records import Action, Impression


def exploration_salt(config: FeatureConfig, policy: str) -> str:
    """Policies explore independently of each other, and of how users were put into buckets."""
    return f"{config.buckets.salt}/{policy}"


def sigma_of(dimension: ActionDimension) -> float:
    """In units of the action; the config gives a fraction of half the range."""
    low, high = dimension.range
    if dimension.noise.sigma is None:
        return default_sigma(dimension.baseline, low, high, dimension.noise.theta)
    return dimension.noise.sigma * (high - low) / 2


def baseline_actions(config: FeatureConfig) -> tuple[Action, ...]:
    return tuple(Action(dimension.name, dimension.baseline) for dimension in config.action)


class Explorer:
    """The exploration of a config, its sigmas worked out once."""

    def __init__(self, config: FeatureConfig) -> None:
        self._salts = {policy: exploration_salt(config, policy) for policy in config.learned_policies()}
        self._dimensions = tuple((dimension, sigma_of(dimension)) for dimension in config.action)

    def act(self, policy: str, session_id: str, page_index: int, means: Sequence[float]) -> tuple[Action, ...]:
        salt = self._salts[policy]
        return tuple(
            _act(dimension, sigma, mean, salt, session_id, page_index)
            for (dimension, sigma), mean in zip(self._dimensions, means, strict=True)
        )


def _act(dimension: ActionDimension, sigma: float, mean: float, salt: str, session_id: str, page_index: int) -> Action:
    low, high = dimension.range
    theta = dimension.noise.theta
    return explore(
        dimension.name,
        mean,
        low=low,
        high=high,
        theta=theta,
        sigma=sigma,
        previous_noise=noise_before(
            page_index, theta=theta, sigma=sigma, salt=salt, session_id=session_id, dimension=dimension.name
        ),
        epsilon=draw(salt, session_id, page_index, dimension.name),
    )


def recompute(config: FeatureConfig, impression: Impression) -> tuple[tuple[Action, ...], tuple[str, ...]]:
    """The actions and the order of a page that a policy decided, made again from its log and the means in it.

    Differs from what is logged only if the log or the config was changed since. Without noise (sigma 0) the log holds
    no mean, and the executed value stands in for it.
    """
    decision = impression.decision
    means = [action.propensity.mean if action.propensity else action.value for action in decision.actions]
    actions = Explorer(config).act(decision.policy, impression.session_id, impression.page_index, means)
    order = fuse(config.fusion, [action.value for action in actions], impression.items)
    return actions, tuple(impression.items[position].item_id for position in order)
