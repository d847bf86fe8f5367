"""From a checkpoint to a trainer that goes on as if it had not been interrupted, or that is what it was once."""

from __future__ import annotations

import logging

import tensorflow as tf

from pipeline.learning.carrying import carry_over
from pipeline.learning.checkpoint import Loaded, restore
from pipeline.learning.drn.learners import Learners
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.learners import learner_of
from pipeline.learning.progress import Saved, check_identity, decode_saved, former_config, identity
from pipeline.learning.rereading import held_out_origins_of, origins_of, reread
from pipeline.learning.training import Training
from pipeline.logs.log import EventLog

AnyTraining = Training | RankingTraining
_log = logging.getLogger(__name__)


def go_on(training: AnyTraining, loaded: Loaded, log: EventLog, *, with_weights: bool = True) -> None:
    """`training` is a fresh one. Its rows are read again from the log. Without weights: they come from elsewhere.

    Raises: CheckpointError where it is one of another config; LogError.
    """
    saved = _checked(training, loaded)
    if with_weights:
        _fill(training, training.learner, loaded, saved)
    held_out = () if isinstance(training, RankingTraining) else (reread(log, held_out_origins_of(saved)),)
    lost = training.resume(saved, reread(log, origins_of(saved)), *held_out)
    if lost:
        _log.warning("%d transitions of the replay are no longer in the log, or not readable; going on without", lost)
    _log.info("resumed from %s: %d transitions", loaded.path, saved.progress.ingested)


def become(training: AnyTraining, loaded: Loaded | None, policies: tuple[str, ...]) -> None:
    """What was learned of these policies is what it was then, or (None) at first. Where it is in the log, and the rows
    that it learns from, stay.

    Raises: CheckpointError where it is one of another config.
    """
    config = training.config
    learner = learner_of(config) if config.ranking is None else Learners(config)
    saved = None
    if loaded is not None:
        saved = _checked(training, loaded)
        _fill(training, learner, loaded, saved)
    ours, theirs = _variables(training.learner, policies), _variables(learner, policies)
    for mine, its in zip(ours, theirs, strict=True):
        mine.assign(its)
    training.go_back(saved, policies)


def _checked(training: AnyTraining, loaded: Loaded) -> Saved:
    saved, where = decode_saved(loaded.state, str(loaded.path)), str(loaded.path)
    if isinstance(training, RankingTraining):
        check_identity(saved, training.identity, where)
    else:
        check_identity(saved, identity(former_config(saved, training.config), training.round_size), where)
    return saved


def _fill(training: AnyTraining, learner: tf.Module, loaded: Loaded, saved: Saved) -> None:
    if isinstance(training, RankingTraining):
        restore(learner, loaded)
    else:
        carry_over(learner, loaded, training.config, former_config(saved, training.config), saved.policies)


def _variables(learner: tf.Module, policies: tuple[str, ...]) -> list[tf.Variable]:
    """Weights and optimisers: of policies that have their own, of those; else all of them."""
    if isinstance(learner, Learners):
        return [variable for policy in policies for variable in learner.of(policy)]
    return list(learner.variables)
