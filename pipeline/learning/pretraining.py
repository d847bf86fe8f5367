"""The state tower and V from logs of the baseline, before any policy is let near a user: a checkpoint to start from.

Nothing else is learned: actors, A and all optimisers of the checkpoint are those of a fresh learner. Of the log only
the statistics of features stay, and rows of ids that lost their place, where these are remembered. So `train` starts
from it as from nothing, with any log, from where that begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec
import tensorflow as tf
from msgspec import structs

from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.events import EventError, decode, encode
from pipeline.features.encoder import Encoder, VectorSource
from pipeline.learning.checkpoint import Checkpoints
from pipeline.learning.errors import CheckpointError, TrainerError
from pipeline.learning.learner import Batch, batch_spec, in_turn
from pipeline.learning.learners import learner_of
from pipeline.learning.losses import Regression, masked_mean
from pipeline.learning.optimiser import Adam
from pipeline.learning.progress import Progress, Saved, described, identity
from pipeline.learning.shelf import Shelf, open_shelf
from pipeline.learning.trainer import wall_clock_ms
from pipeline.learning.training import Training
from pipeline.logs.log import EPISODES, TRANSITIONS, EventLog, Record
from pipeline.logs.opening import open_log
from pipeline.logs.ordered import OrderedReader
from pipeline.records import DecidedBy, Ending, Episode, Transition

Returns = Literal["td", "mc"]
_AT_ONCE = 256  # records
_KEEP_EVERY = 3_200  # records: rows that were put away wait in memory no longer than in training
_log = logging.getLogger(__name__)


class WithValue(Protocol):
    """A learner that has a V of the baseline."""

    value_parts: tuple[tf.Module, ...]  # the tower it reads, and its head; none where it has no V

    def value_fit(self, batch: Batch) -> Regression:
        """Of V alone, one by one [S, B], whoever decided the pages."""

    def adopt_value(self, other: WithValue) -> None:
        """The other's weights of `value_parts`, also in what looks ahead."""


class ValueLearner(tf.Module):
    """A learner whose steps regress V on the baseline's pages, and the tower with it."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="value_learner")
        self.whole = learner_of(config)
        if not getattr(self.whole, "value_parts", ()):
            kind = msgspec.json.decode(msgspec.json.encode(config.algorithm))["kind"]
            msg = f"pre-training is of V: expected ddpg with critic v_plus_a, found a {kind} without V"
            raise TrainerError(msg)
        self.space, self.actor, self.evaluate = self.whole.space, self.whole.actor, self.whole.evaluate
        self._learned = tuple(v for part in self.whole.value_parts for v in part.trainable_variables)
        self._by_name = {v.name: v for v in self._learned}
        self.adam = Adam(self._learned, config.algorithm.learning_rate)
        shape = [len(config.learned_policies())]
        signature = (batch_spec(config, len(config.algorithm.all_seeds)), tf.TensorSpec(shape, tf.bool))
        self.step = tf.function(self._step, input_signature=signature, autograph=False)
        self.steps = in_turn(self.step)

    def stands_for(self, variable: tf.Variable) -> tf.Variable:
        """Which one has learned what a variable of `whole` will begin with: see `adopt_value`, which gives what looks
        ahead the same. The optimisers of `whole` rest, so that those of rows that are put away are those of a fresh
        learner."""
        return self._by_name.get(variable.name, variable)

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            fit = self.whole.value_fit(batch)
            value_loss = masked_mean(fit.loss, batch.by_baseline)
            loss = tf.reduce_sum(value_loss)  # seeds share no weight
        self.adam.apply(tape.gradient(loss, self._learned))
        value = fit.target - fit.error
        return {
            "value_loss": value_loss,
            "value_covered": masked_mean(value, batch.by_baseline),
            "q_abs": tf.reduce_mean(tf.abs(value), axis=1),
        }


class Pretrained(NamedTuple):
    progress: Progress
    losses: dict[str, float]  # of the last round


def pretrain(
    config: FeatureConfig,
    log_url: str,
    work_dir: Path,
    *,
    returns: Returns = "td",
    updates_per_transition: float | None = None,
    vectors: VectorSource | None = None,
    stop: threading.Event | None = None,
    clock_ms: Callable[[], int] = wall_clock_ms,
) -> Pretrained:
    """Read the log to its end, and leave a checkpoint in an empty work directory.

    `td` regresses V(s) on r + gamma V(s') of the baseline's transitions, `mc` on the return of its episodes.
    Raises: TrainerError where there is a checkpoint already, nothing of the baseline, or no V; LogError.
    """
    tf.config.experimental.enable_op_determinism()
    with exclusive(work_dir), closing(open_log(log_url)) as log, open_shelf(config, work_dir) as shelf:
        checkpoints = Checkpoints(work_dir / "checkpoints")
        if checkpoints.newest() is not None:
            msg = f"{work_dir} has a checkpoint already, which goes on from there: pre-train into an empty directory"
            raise CheckpointError(msg)
        training = _training(config, vectors, updates_per_transition, shelf)
        training.tables.go_on(())  # without rows of a run that never came to its end
        for number, record in enumerate(_records(log, config, returns, stop or threading.Event(), clock_ms), 1):
            training.ingest(record)
            if number % _KEEP_EVERY == 0:
                training.tables.keep()
        _check_learned(training, log_url)
        fresh = learner_of(config)
        fresh.adopt_value(training.learner.whole)
        checkpoints.write(1, fresh, msgspec.msgpack.encode(_started(training, config)))
    return Pretrained(training.progress, training.losses)


def _training(
    config: FeatureConfig, vectors: VectorSource | None, updates: float | None, shelf: Shelf | None
) -> Training:
    algorithm = config.algorithm
    if updates is not None:
        algorithm = structs.replace(algorithm, updates_per_transition=updates)
    config = structs.replace(config, algorithm=algorithm)
    return Training(config, Encoder(config, vectors), learner=ValueLearner(config), shelf=shelf)


def _check_learned(training: Training, log_url: str) -> None:
    training.check_finite()
    progress = training.progress
    if not progress.updates:
        batch = training.config.algorithm.batch_size
        found = f"found {len(training.feeding)} ({progress.refused or 'none'} refused)"
        msg = f"{log_url}: expected at least {batch} pages to learn from, {found}"
        raise TrainerError(msg)
    if progress.refused:
        _log.warning("left out: %s", progress.refused)


def _started(training: Training, config: FeatureConfig) -> Saved:
    """Of a run that has read nothing yet, but for what its features look like."""
    progress = training.progress
    source = f"{progress.first_transition}, {progress.last_transition}, {progress.ingested}, {progress.updates}"
    nothing = dict.fromkeys(("recent", "partitions", "offsets", "spent"), b"")
    held_out = dict.fromkeys(("held_out_partitions", "held_out_offsets"), b"")
    return structs.replace(
        training.saved(),
        identity=identity(config, training.round_size),
        features=described(config),
        progress=Progress(pretrained=source),
        losses={},
        rows=0,
        **nothing,
        **held_out,
    )


# What is read ----------------------------------------------------------------------------------------------------


def _records(
    log: EventLog, config: FeatureConfig, returns: Returns, stop: threading.Event, clock_ms: Callable[[], int]
) -> Iterator[Record]:
    topic = TRANSITIONS if returns == "td" else EPISODES
    reader = OrderedReader(log, topic, None, clock_ms, config.stream.clock_skew)
    while not stop.is_set():
        records = reader.poll(_AT_ONCE)
        for record in records:
            yield from [record] if returns == "td" else _as_transitions(record, config.algorithm.gamma)
        if not records and reader.caught_up():
            return


def _as_transitions(record: Record, gamma: float) -> Iterator[Record]:
    try:
        episode = decode(record.payload, Episode)
    except EventError as error:
        _log.warning("episode %d:%d left out: %s", record.partition, record.offset, error)
        return
    yield from (record._replace(payload=encode(transition)) for transition in of_returns(episode, gamma))


def of_returns(episode: Episode, gamma: float) -> Iterator[Transition]:
    """The baseline's pages, last first, each with the return from there on as its reward, and nothing after it.

    A page with one of a policy behind it is left out, and so is an episode that was cut at its greatest length: what
    followed is not what the baseline brings, or not known.
    """
    if episode.ending is Ending.TRUNCATED:
        return
    total = 0.0
    for step in reversed(episode.steps):
        if step.decision.decided_by is DecidedBy.POLICY:
            return
        total = step.reward + gamma * total
        yield Transition(
            id=f"{step.request_id}@{episode.reward_version}",
            request_id=step.request_id,
            user_id=episode.user_id,
            session_id=episode.session_id,
            time_ms=step.time_ms,
            page_index=step.page_index,
            state=step.state,
            decision=step.decision,
            reward=total,
            reward_version=episode.reward_version,
            discount=0.0,
            ending=episode.ending,
        )
