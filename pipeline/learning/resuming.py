"""From a checkpoint to a trainer that goes on as if it had not been interrupted."""

from __future__ import annotations

import logging

from pipeline.learning.carrying import carry_over
from pipeline.learning.checkpoint import Loaded, restore
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.progress import Saved, check_identity, decode_saved, former_config, identity
from pipeline.learning.rereading import reread
from pipeline.learning.training import Training, held_out_origins_of, origins_of
from pipeline.logs.log import EventLog

_log = logging.getLogger(__name__)


def go_on(training: Training | RankingTraining, loaded: Loaded, log: EventLog, *, with_weights: bool = True) -> None:
    """`training` is a fresh one. Its rows are read again from the log. Without weights: they come from elsewhere.

    Raises: CheckpointError where it is one of another config; LogError.
    """
    saved = decode_saved(loaded.state, str(loaded.path))
    lost = _resumed(training, loaded, saved, log, with_weights)
    if lost:
        _log.warning("%d transitions of the replay are no longer in the log, or not readable; going on without", lost)
    _log.info("resumed from %s: %d transitions", loaded.path, saved.progress.ingested)


def _resumed(
    training: Training | RankingTraining, loaded: Loaded, saved: Saved, log: EventLog, with_weights: bool
) -> int:
    """Returns how many records of the replay are gone."""
    if isinstance(training, RankingTraining):
        check_identity(saved, training.identity, str(loaded.path))
        restore(training.learner, loaded)
        return training.resume(saved, reread(log, origins_of(saved)))
    config = training.config
    former = former_config(saved, config)
    check_identity(saved, identity(former, training.round_size), str(loaded.path))
    if with_weights:
        carry_over(training.learner, loaded, config, former, saved.policies)
    return training.resume(saved, reread(log, origins_of(saved)), reread(log, held_out_origins_of(saved)))
