"""Feeding for trainers that learn together: sessions are dealt out by a hash, and each worker learns from its own.

Every worker sees every transition of the log, so all know, without asking, when an update is due and whether each of
the others has enough to draw from. Only rows of a worker's own share take up its memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np
import tensorflow as tf
import xxhash

from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.feeding import Held, Losses, ReplayFeeding
from pipeline.learning.ingestion import Example
from pipeline.learning.learner import Batch, Learner
from pipeline.learning.progress import Progress, identity
from pipeline.learning.replay import Origins, Replay
from pipeline.learning.together import Team, digest


def share_of(session_id: str, shares: int) -> int:
    """Of its own hash: the held-out sessions, and the buckets, are spread evenly over the shares."""
    return xxhash.xxh3_64_intdigest(f"worker\x1f{session_id}".encode()) % shares


class DealtFeeding(ReplayFeeding):
    """`batch_size` and `replay` are those of each share; a worker that has several learns from as many batches at once.

    What is drawn depends on the order of a share's rows only, not on where they lie: rows may be put back by fewer or
    by more workers than there were.
    """

    def __init__(
        self,
        config: FeatureConfig,
        encoder: Encoder,
        round_size: int,
        shares: int,
        mine: Collection[int],
        team: Team | None = None,
    ) -> None:
        """`team`: who has the other shares; None where all of them are `mine`."""
        super().__init__(config, encoder, round_size)
        self.shares, self._team = shares, team
        self._identity = _number(json.dumps(identity(config, round_size), sort_keys=True))
        replay, dimensions = config.algorithm.replay, len(config.action)
        self._replays = {share: Replay(replay, encoder.prepared_dtype, dimensions) for share in mine}
        self._origins = [_Ring(replay) for _ in range(shares)]
        self._added = 0

    @classmethod
    def of_team(cls, config: FeatureConfig, encoder: Encoder, round_size: int, team: Team) -> DealtFeeding:
        return cls(config, encoder, round_size, team.workers, (team.rank,), team)

    def __len__(self) -> int:
        return sum(len(ring) for ring in self._origins)

    def add(self, example: Example, partition: int, offset: int, spent: bool = False) -> str | None:
        share = share_of(example.transition.session_id, self.shares)
        self._origins[share].add(self._added, partition, offset)
        self._added += 1
        if share in self._replays:
            self._replays[share].add(example, partition, offset)
        return None

    def learn(self, learner: Learner, snapshot: Snapshot, progress: Progress, active: np.ndarray) -> list[Losses]:
        if self._team is not None:
            self._team.arrive(
                {
                    "config": self._identity,
                    "transitions": progress.ingested,
                    "the last transition": _number(progress.last_transition or ""),
                    "updates": progress.updates,
                    "weights": digest(learner),
                    "statistics of features": _number(snapshot.sha256),
                }
            )
        return super().learn(learner, snapshot, progress, active)

    def _updated(self, learner: Learner, batches: Batch, active: np.ndarray) -> Mapping[str, tf.Tensor]:
        if self._team is None:
            return super()._updated(learner, batches, active)
        return self._team.steps(learner, batches, active)

    def _has_enough(self) -> bool:
        return min(len(ring) for ring in self._origins) >= self._algorithm.batch_size

    def _batches(self, count: int, snapshot: Snapshot, number: int) -> Batch:
        drawn = [self._drawn_from(replay, share, count, number) for share, replay in self._replays.items()]
        rows = [self._batch(replay, at, snapshot) for replay, at in drawn]
        if len(rows) == 1:
            return rows[0]
        states = [{name: _beside([each[i][name] for each in rows]) for name in rows[0][i]} for i in (0, 1)]
        return Batch(*states, *(_beside(column) for column in list(zip(*rows, strict=True))[2:]))

    def _drawn_from(self, replay: Replay, share: int, count: int, number: int) -> tuple[Replay, np.ndarray]:
        """Where the rows lie, [count, S, B]."""
        size = self._algorithm.batch_size
        rngs = [np.random.default_rng([seed % 2**64, number, share]) for seed in self._algorithm.all_seeds]
        aged = np.stack([replay.draw(rng, count * size).reshape(count, size) for rng in rngs], axis=1)
        return replay, (replay.added - len(replay) + aged) % replay.capacity  # the oldest is number 0

    def held(self) -> Held:
        """Of all shares, in the order of the log."""
        numbers, partitions, offsets = (
            np.concatenate(column) for column in zip(*map(_Ring.rows, self._origins), strict=True)
        )
        order = np.argsort(numbers)
        return Held(Origins(partitions[order], offsets[order]), np.zeros(len(order), bool), len(order))

    def start_at(self, rows: int) -> None:
        """Where rows lie does not matter."""

    def keep_last(self, n: int) -> None:
        """What is gone was never put back."""


class _Ring:
    """Where the rows of a share came from."""

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros(capacity, [("number", np.int64), ("partition", np.int32), ("offset", np.int64)])
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._rows))

    def add(self, number: int, partition: int, offset: int) -> None:
        self._rows[self._added % len(self._rows)] = number, partition, offset
        self._added += 1

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self._rows[: len(self)]
        return rows["number"], rows["partition"], rows["offset"]


def _number(text: str) -> int:
    """Of 62 bits: the largest that a sum with zeros leaves alone in int64."""
    return xxhash.xxh3_64_intdigest(text.encode()) >> 2


def _beside(parts: Collection[np.ndarray]) -> np.ndarray:
    """[n, S, B, ...] of several shares: one after another along the batch."""
    return np.concatenate(list(parts), axis=2)
