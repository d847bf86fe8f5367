"""Trainers on several machines that are one: the same weights in all of them, each learning from sessions of its own.

All read the same log in the same order, so they come to the same rounds and owe the same updates by themselves. Within
an update gradients are averaged over the workers (`reducing.py`) by `tf.distribute`'s collectives, so every worker does
the same to weights that were the same before. Before each round they wait for one another, and make sure of that.
The first worker is the chief: it alone has checkpoints, and the others begin with its state.
A worker that is lost takes the others with it: collectives then fail, and all start again from the chief's checkpoint.

Source for the roles and TF_CONFIG: TensorFlow's guide "Multi-worker training with Keras", section "Multi-worker
configuration".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import tensorflow as tf
import xxhash
from msgspec import Struct, field

from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import vocabularies
from pipeline.learning.checkpoint import Loaded
from pipeline.learning.errors import TrainerError
from pipeline.learning.learner import Batch, Learner
from pipeline.learning.reducing import averaged, summed

KINDS = (schema.Ddpg, schema.Dqn, schema.DoubleDqn, schema.DuelingDqn)
_LARGE = 2**20  # entries of a variable: comparing larger ones before every round would take too long
_IS_HERE, _IS_IDLE = 1, 2
_FACTS = 8  # at most, that workers compare
_log = logging.getLogger(__name__)


class WorkerError(TrainerError):
    """Training together has ended: all workers are to be started again, and go on from the chief's checkpoint."""


class Place(NamedTuple):
    rank: int  # 0: the chief
    workers: int


class _Task(Struct):
    type: str
    index: int


class _Config(Struct):
    cluster: dict[str, list[str]] = field(default_factory=dict)
    task: _Task | None = None


def place_of(tf_config: str | None) -> Place | None:
    """What the environment variable TF_CONFIG says of this process; None where it is a trainer of its own.

    Raises: TrainerError.
    """
    if not tf_config:
        return None
    try:
        found = msgspec.json.decode(tf_config, type=_Config)
    except msgspec.MsgspecError as error:
        message = f'TF_CONFIG: expected {{"cluster": {{"worker": [...]}}, "task": {{"type", "index"}}}}: {error}'
        raise TrainerError(message) from error
    if extra := found.cluster.keys() - {"chief", "worker"}:
        message = f"TF_CONFIG: expected a cluster of worker and at most one chief, found {', '.join(sorted(extra))}"
        raise TrainerError(message)
    tasks = [(kind, i) for kind in ("chief", "worker") for i in range(len(found.cluster.get(kind, ())))]
    if len(tasks) < 2:
        return None
    mine = (found.task.type, found.task.index) if found.task else None
    if mine not in tasks:
        message = f"TF_CONFIG: expected a task that is in the cluster of {len(tasks)}, found {mine or 'none'}"
        raise TrainerError(message)
    return Place(tasks.index(mine), len(tasks))


def check_can_learn_together(config: FeatureConfig) -> None:
    """Raises: TrainerError."""
    if not isinstance(config.algorithm, KINDS):
        kind = msgspec.json.decode(msgspec.json.encode(config.algorithm))["kind"]
        message = f"several workers learn together by ddpg, dqn, double_dqn or dueling_dqn, found {kind}: run one alone"
        raise TrainerError(message)
    if any(vocabulary.remember for vocabulary in vocabularies(config).values()):
        message = "several workers share no folder for rows that are remembered: leave `remember` out, or run one alone"
        raise TrainerError(message)


def team_of(config: FeatureConfig, tf_config: str | None) -> Team | None:
    """Of this process, once all others are there; None where it is alone. Raises: TrainerError."""
    place = place_of(tf_config)
    if place is None:
        return None
    check_can_learn_together(config)
    return Team(place)


class Team:
    """Owns the strategy. Made before anything else of TensorFlow; returns once all workers are there."""

    def __init__(self, place: Place) -> None:
        self.rank, self.workers = place
        self.is_chief = place.rank == 0
        _log.info("worker %d of %d: waiting for the others", place.rank, place.workers)
        with _explained("waiting for the others"):
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        table = tf.TensorSpec([None], tf.int64)
        self._sum = tf.function(lambda x: summed([x])[0], input_signature=(table,), autograph=False)
        self._mean = tf.function(averaged, autograph=False, reduce_retracing=True)

    # Updates ---------------------------------------------------------------------------------------------------------

    def steps(self, learner: Learner, batches: Batch, active: np.ndarray) -> Mapping[str, tf.Tensor]:
        """The learner's, on batches that are this worker's part. What they return are means over all workers.

        A call for each update, and not one for several: where workers meet may not be in a loop of a compiled function.
        """
        before: list[Mapping[str, tf.Tensor]] = []
        with _explained("in an update"):
            for i in range(len(batches.reward)):
                one = tf.nest.map_structure(lambda column, i=i: tf.constant(column[i]), batches)
                before.append(self._strategy.run(learner.step, args=(one, tf.constant(active))))
            stacked = {name: tf.stack([each[name] for each in before]) for name in before[0]}
            return self._strategy.run(self._mean, args=(stacked,))

    # Agreement -------------------------------------------------------------------------------------------------------

    def arrive(self, facts: Mapping[str, int]) -> None:
        """Wait until all others have come to the same place. Raises: WorkerError where facts are not the same there."""
        table = self._told(_IS_HERE, [*facts.values()])
        while (table[:, 0] == _IS_IDLE).any():
            table = self._told(_IS_HERE, [*facts.values()])
        columns = table[:, 1 : 1 + len(facts)].T
        different = [name for name, column in zip(facts, columns, strict=True) if len(set(column)) > 1]
        if different:
            message = (
                f"workers differ in {', '.join(different)}: expected the same config, log, code and kind of machine"
            )
            raise WorkerError(message)

    def all_idle(self) -> bool:
        """Whether nobody has more to do, asked where this one has not. Else another waits at the next round: what leads
        there is in the log."""
        return bool((self._told(_IS_IDLE, [])[:, 0] == _IS_IDLE).all())

    def from_chief(self, content: bytes) -> bytes:
        """The chief's, by all."""
        size = int(self._summed(np.array([len(content) if self.is_chief else 0]))[0])
        words = np.zeros(-(-size // 8), np.int64)
        if self.is_chief:
            words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
        return self._summed(words).tobytes()[:size]

    def _told(self, state: int, facts: list[int]) -> np.ndarray:
        """[workers, 1 + _FACTS]: a row of each, known to all."""
        table = np.zeros((self.workers, 1 + _FACTS), np.int64)
        table[self.rank, : 1 + len(facts)] = [state, *facts]
        return self._summed(table.ravel()).reshape(table.shape)

    def _summed(self, numbers: np.ndarray) -> np.ndarray:
        if not len(numbers):
            return numbers
        with _explained("in an agreement"):
            return np.asarray(self._strategy.run(self._sum, args=(tf.constant(numbers),)))


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        text = str(getattr(error, "message", error)).splitlines()[0]
        message = f"a worker was lost {where}: start all of them again, they go on from the chief's checkpoint ({text})"
        raise WorkerError(message) from error


# What the others begin with ------------------------------------------------------------------------------------------


def of_chief(team: Team, config: FeatureConfig, loaded: Loaded | None) -> Loaded | None:
    """The checkpoint that the chief goes on from, for all; its weights are not in it for the others.

    Raises: WorkerError where another has another config.
    """
    team.arrive({"config": xxhash.xxh3_64_intdigest(msgspec.json.encode(config, order="sorted")) >> 1})
    state = team.from_chief(loaded.state if loaded else b"")
    if team.is_chief or not state:
        return loaded
    return Loaded(0, Path("what the chief goes on from"), state)


def packed(module: tf.Module) -> bytes:
    return b"".join(variable.numpy().tobytes() for variable in module.variables)


def unpack(module: tf.Module, content: bytes) -> None:
    at = 0
    for variable in module.variables:
        dtype = variable.dtype.as_numpy_dtype
        count = int(np.prod(variable.shape))
        variable.assign(np.frombuffer(content, dtype, count, at).reshape(variable.shape))
        at += count * np.dtype(dtype).itemsize


def digest(module: tf.Module) -> int:
    """Of the weights but for large tables."""
    hashed = xxhash.xxh3_64()
    for variable in module.variables:
        if np.prod(variable.shape) < _LARGE:
            hashed.update(np.ascontiguousarray(variable.numpy()))
    return hashed.intdigest() >> 2  # what fits in int64, and stays there when it is added to zeros
