"""What a learner is fed with, and when: the strategy between ingestion and the learner's steps.

A feeding depends on the order of transitions only. What it holds is not checkpointed: rows are read again from the log,
from where `held` says they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.ingestion import Example
from pipeline.learning.learner import Batch, Learner
from pipeline.learning.progress import Progress
from pipeline.learning.replay import Origins, Replay

_UPDATES_AT_ONCE = 16  # whose rows are encoded together; and that are one call; a matter of memory and speed

Losses = Mapping[str, np.ndarray]  # [S], [S, K] or [S, K, N] by the name it is logged under


class Held(NamedTuple):
    origins: Origins
    spent: np.ndarray  # bool: held as a source of probes only, nothing more is learned from it
    rows: int  # taken in so far


class Feeding(Protocol):
    def __len__(self) -> int:
        """How many rows it has to learn from."""

    def add(self, example: Example, partition: int, offset: int, spent: bool = False) -> str | None:
        """Take a row in, for the first time or again after a restart. Returns why it will not be learned from."""

    def learn(self, learner: Learner, snapshot: Snapshot, progress: Progress, active: np.ndarray) -> list[Losses]:
        """What is due after a round of transitions; counts into `progress`. Returns the losses of each update."""

    def held(self) -> Held: ...

    def start_at(self, rows: int) -> None:
        """Before rows are put back: that many were taken in before the first of them."""

    def keep_last(self, n: int) -> None:
        """After rows were put back and only n were found: start over with these."""


class ReplayFeeding:
    """Updates are owed for each transition, on rows of any age drawn from a replay."""

    def __init__(self, config: FeatureConfig, encoder: Encoder, round_size: int) -> None:
        self._algorithm, self._encoder, self._round_size = config.algorithm, encoder, round_size
        self._replay = Replay(config.algorithm.replay, encoder.prepared_dtype, len(config.action))

    def __len__(self) -> int:
        return len(self._replay)

    def add(self, example: Example, partition: int, offset: int, spent: bool = False) -> str | None:
        self._replay.add(example, partition, offset)
        return None

    def learn(self, learner: Learner, snapshot: Snapshot, progress: Progress, active: np.ndarray) -> list[Losses]:
        if not self._has_enough():
            return []
        progress.owed += self._round_size * self._algorithm.updates_per_transition
        owed = int(progress.owed)
        progress.owed -= owed
        history: list[Losses] = []
        for batches in self._drawn(owed, snapshot, progress.updates):
            losses, count = self._updated(learner, batches, active), len(batches.reward)
            progress.updates += count
            columns = {name: x.numpy() for name, x in losses.items()}
            history += [{name: x[i] for name, x in columns.items()} for i in range(count)]
        return history

    def _has_enough(self) -> bool:
        return len(self._replay) >= self._algorithm.batch_size

    def _updated(self, learner: Learner, batches: Batch, active: np.ndarray) -> Mapping[str, tf.Tensor]:
        return learner.steps(batches, active)

    def _drawn(self, owed: int, snapshot: Snapshot, number: int) -> Iterator[Batch]:
        """For one call after another. The next one's are drawn and encoded beside the learner, on another core."""
        with ThreadPoolExecutor(1) as beside:
            coming: deque[Future[Batch]] = deque()
            for done in range(0, owed, _UPDATES_AT_ONCE):
                count = min(_UPDATES_AT_ONCE, owed - done)
                coming.append(beside.submit(self._batches, count, snapshot, number + done))
                if len(coming) > 1:
                    yield coming.popleft().result()
            yield from (call.result() for call in coming)

    def _batches(self, count: int, snapshot: Snapshot, number: int) -> Batch:
        """[count, S, B, ...]: for every seed rows of its own, those that it would learn from if it were alone."""
        seeds, size = self._algorithm.all_seeds, self._algorithm.batch_size
        rngs = [np.random.default_rng([seed % 2**64, number]) for seed in seeds]
        drawn = [self._replay.draw(rng, count * size).reshape(count, size) for rng in rngs]
        batch = self._batch(self._replay, np.stack(drawn, axis=1), snapshot)
        tensors: Batch = tf.nest.map_structure(tf.constant, batch)  # copied beside the learner, not when it is called
        return tensors

    def _batch(self, replay: Replay, at: np.ndarray, snapshot: Snapshot) -> Batch:
        """Of rows that lie `at` [count, S, B]."""
        state, next_state, *scalars = replay.take(at.ravel())
        inputs = [self._encoder.finish(rows, snapshot) for rows in (state, next_state)]

        def stacked(x: np.ndarray) -> np.ndarray:
            return x.reshape(*at.shape, *x.shape[1:])

        states = [{name: stacked(x) for name, x in each.items()} for each in inputs]
        return Batch(*states, *(stacked(x) for x in scalars))

    def held(self) -> Held:
        origins = self._replay.origins()
        return Held(origins, np.zeros(len(origins.offsets), bool), self._replay.added)

    def start_at(self, rows: int) -> None:
        self._replay.start_at(rows)

    def keep_last(self, n: int) -> None:
        self._replay.keep_last(n)
