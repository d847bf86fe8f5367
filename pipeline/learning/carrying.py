"""Weights of a checkpoint for a learner whose policies or features are others.

Policies that stay keep theirs, with their optimiser slots; whatever belongs to no policy is kept; a policy that is new
starts at the baseline. Features that stay keep their rows of the first layer and what is before these; the rows of a
feature that is new are 0: it has no effect until something was learned of it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from msgspec import structs

from pipeline.config.schema import FeatureConfig, Policy
from pipeline.features.changing import Change, change
from pipeline.learning.checkpoint import Loaded, restore
from pipeline.learning.learners import learner_of
from pipeline.learning.networks import tower_columns

_FIRST_LAYER = re.compile(r"(critic_)?tower_0_kernel(_first|_second)?:0")
_log = logging.getLogger(__name__)


def carry_over(
    learner: tf.Module, loaded: Loaded, config: FeatureConfig, former: FeatureConfig, policies: tuple[str, ...]
) -> None:
    """`learner` is a fresh one of the config; `former` is the config with the features of the checkpoint, `policies`
    are the learned policies of the checkpoint, in its order."""
    if (former.features, former.embeddings) == (config.features, config.embeddings):
        _carry_policies(learner, loaded, config, policies)
        return
    trained = learner_of(former)
    _carry_policies(trained, loaded, former, policies)
    _carry_features(learner, config, trained, former)


def _carry_policies(learner: tf.Module, loaded: Loaded, config: FeatureConfig, former: tuple[str, ...]) -> None:
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


def _carry_features(learner: tf.Module, config: FeatureConfig, trained: tf.Module, former: FeatureConfig) -> None:
    difference = change(former, config)
    to, source = _rows(config, former, difference)
    theirs = dict(_named(trained))
    for name, mine in _named(learner):
        found = theirs.get(name)
        if found is None:
            continue
        if _FIRST_LAYER.fullmatch(mine.name):
            mine.assign(_replaced(np.zeros(mine.shape, np.float32), to, found.numpy(), source, axis=-2))
        elif mine.shape == found.shape:
            mine.assign(found)
    _log.info("features changed; %s", difference)


def _rows(config: FeatureConfig, former: FeatureConfig, difference: Change) -> tuple[list[int], list[int]]:
    """Of the first layer's kernel: where rows go to, and where they come from."""
    place = {column: i for i, column in enumerate(tower_columns(former)) if column[0] in difference.stays}
    pairs = [(i, place[column]) for i, column in enumerate(tower_columns(config)) if column in place]
    return [to for to, _ in pairs], [source for _, source in pairs]


def _named(learner: tf.Module) -> Iterator[tuple[tuple[str, int], tf.Variable]]:
    """Under its name, and which of that name it is: a target is a copy that has the names of what it follows."""
    seen: Counter[str] = Counter()
    for variable in learner.variables:
        yield (variable.name, seen[variable.name]), variable
        seen[variable.name] += 1


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
