"""Weights of a checkpoint for a learner whose policies are others: the policies that stay keep theirs, with their
optimiser slots; whatever belongs to no policy is kept; a policy that is new starts at the baseline."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from msgspec import structs

from pipeline.config.schema import FeatureConfig, Policy
from pipeline.learning.checkpoint import Loaded, restore
from pipeline.learning.learners import learner_of

_log = logging.getLogger(__name__)


def carry_over(learner: tf.Module, loaded: Loaded, config: FeatureConfig, former: tuple[str, ...]) -> None:
    """`learner` is a fresh one of the config; `former` are the learned policies of the checkpoint, in its order."""
    now = config.learned_policies()
    if former == now:
        restore(learner, loaded)
        return
    trained = learner_of(_with(config, former))
    restore(trained, loaded)
    stay = [policy for policy in now if policy in former]
    to, source = ([names.index(policy) for policy in stay] for names in (now, former))
    axes = _policy_axes(trained, learner_of(_with(config, (*former, "one_more"))))
    for mine, theirs, axis in zip(learner.variables, trained.variables, axes, strict=True):
        mine.assign(theirs if axis is None else _replaced(mine.numpy(), to, theirs.numpy(), source, axis))
    came, went = sorted(set(now) - set(former)), sorted(set(former) - set(now))
    _log.info("learned policies: %s go on; new: %s; gone: %s", stay or "none", came or "none", went or "none")


def _with(config: FeatureConfig, learned: tuple[str, ...]) -> FeatureConfig:
    others = tuple(policy for policy in config.policies if policy.kind != "learned")
    return structs.replace(config, policies=(*others, *(Policy(name, "learned") for name in learned)))


def _policy_axes(learner: tf.Module, with_one_more: tf.Module) -> Iterator[int | None]:
    """Of each variable the axis that has a place per policy: the one that grows with their number."""
    for small, large in zip(learner.variables, with_one_more.variables, strict=True):
        lengths = zip(small.shape, large.shape, strict=True)
        yield next((axis for axis, (one, other) in enumerate(lengths) if one != other), None)


def _replaced(fresh: np.ndarray, to: list[int], trained: np.ndarray, source: list[int], axis: int) -> np.ndarray:
    result = np.moveaxis(fresh.copy(), axis, 0)
    result[to] = np.moveaxis(trained, axis, 0)[source]
    return np.moveaxis(result, 0, axis)
