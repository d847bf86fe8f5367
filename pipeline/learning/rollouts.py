"""Feeding for on-policy learners: pages wait until there is a rollout of their policy, are learned from, and are spent.

A stream is a policy, or the baseline, and a worker: sessions are dealt out to workers by a hash. Rollouts are learned
from in the order in which they fill up, which is that of the log.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from pipeline.config.schema import A3c, FeatureConfig, OnPolicy
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.actions import ActionSpace, Actor
from pipeline.learning.feeding import Held, Losses
from pipeline.learning.ingestion import Example
from pipeline.learning.learner import Evaluation
from pipeline.learning.networks import Inputs
from pipeline.learning.progress import Progress
from pipeline.learning.replay import Origins
from pipeline.records import Action, DecidedBy, Decision

_REMEMBERED = 4_096  # rows whose origins are held in any case: probes are chosen among their states


class Pages(NamedTuple):
    """Pages of one policy: those of a session together, in their order. n pages, N action dimensions."""

    state: Inputs  # [n, ...]
    next_state: Inputs  # anything that is finite where discount is 0
    raw: np.ndarray  # [n, N] before clipping
    mean: np.ndarray  # [n, N] of the policy that was served
    carried: np.ndarray  # [n, N] (1 - theta) * the noise before
    sigma: np.ndarray  # [n, N]
    log_density: np.ndarray  # [n] of raw, as logged
    reward: np.ndarray  # [n]
    discount: np.ndarray  # [n] 0 or 1, without gamma
    linked: np.ndarray  # [n] 1 where the next row is the page that followed


class Turn(NamedTuple):
    policy: int  # K: the baseline
    worker: int
    active: bool  # its actor may move
    number: int  # of updates before


class Lesson(NamedTuple):
    updates: int
    losses: dict[str, np.ndarray]  # [S] or [S, N], by the name they are logged under
    left_out: np.ndarray  # [S] pages that were too far from the present policy


class RolloutLearner(Protocol):
    space: ActionSpace
    actor: Actor

    def learn(self, pages: Pages, turn: Turn) -> Lesson:
        """From all pages of a rollout, once."""

    def evaluate(self, inputs: Inputs) -> Evaluation:
        """Of the same states, [B, ...], by every seed."""


class Drawn(NamedTuple):
    """How the raw action of a page came about, [N] each."""

    raw: np.ndarray
    mean: np.ndarray
    carried: np.ndarray
    sigma: np.ndarray
    log_density: float


class _Row(NamedTuple):
    number: int
    example: Example
    drawn: Drawn

    @property
    def place(self) -> tuple[str, int, int]:
        transition = self.example.transition
        return transition.session_id, transition.page_index, self.number


_Stream = tuple[int, int]  # policy, worker


class RolloutFeeding:
    def __init__(self, config: FeatureConfig, encoder: Encoder) -> None:
        algorithm: OnPolicy = config.algorithm
        self._encoder, self._rollout = encoder, algorithm.rollout
        self._workers = algorithm.workers if isinstance(algorithm, A3c) else 1
        self._names, self._dimensions = config.learned_policies(), tuple(d.name for d in config.action)
        self._waiting: dict[_Stream, deque[_Row]] = {}
        self._full: deque[_Stream] = deque()
        self._origins: dict[int, tuple[int, int]] = {}  # by number: partition, offset
        self._added = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._waiting.values())

    # Rows ------------------------------------------------------------------------------------------------------------

    def add(self, example: Example, partition: int, offset: int, spent: bool = False) -> str | None:
        number, self._added = self._added, self._added + 1
        self._origins[number] = partition, offset
        stream = self._stream(example)
        if isinstance(stream, str):
            return stream
        if not spent:
            rows = self._waiting.setdefault(stream, deque())
            rows.append(_Row(number, example, drawn(example, self._dimensions)))
            if len(rows) % self._rollout == 0:
                self._full.append(stream)
        return None

    def _stream(self, example: Example) -> _Stream | str:
        """Whose page it is, or why nobody learns from it."""
        decision = example.transition.decision
        worker = xxhash.xxh3_64_intdigest(example.transition.session_id.encode()) % self._workers
        if decision.decided_by is DecidedBy.BASELINE:
            return len(self._names), worker
        if decision.decided_by is DecidedBy.FALLBACK:
            return "fallback"
        if decision.policy not in self._names:
            return "other_policy"
        if not _was_drawn(decision):
            return "no_propensity"
        return self._names.index(decision.policy), worker

    def held(self) -> Held:
        """All rows that wait, and the newest of the others."""
        waiting = {row.number for rows in self._waiting.values() for row in rows}
        oldest = self._added - _REMEMBERED
        self._origins = {n: origin for n, origin in self._origins.items() if n >= oldest or n in waiting}
        partitions, offsets = np.array([*self._origins.values()], np.int64).reshape(-1, 2).T
        spent = np.array([number not in waiting for number in self._origins], bool)
        return Held(Origins(partitions.astype(np.int32), offsets), spent, len(spent))

    def start_at(self, rows: int) -> None:
        """Numbers serve to tell rows apart, and may start anew."""

    def keep_last(self, n: int) -> None:
        """What is gone was never put back."""

    # Learning --------------------------------------------------------------------------------------------------------

    def learn(
        self, learner: RolloutLearner, snapshot: Snapshot, progress: Progress, active: np.ndarray
    ) -> list[Losses]:
        history: list[Losses] = []
        while self._full:
            policy, worker = stream = self._full.popleft()
            waiting = self._waiting[stream]
            rows = [waiting.popleft() for _ in range(self._rollout)]
            moving = policy < len(self._names) and bool(active[policy])
            lesson = learner.learn(self._pages(rows, snapshot), Turn(policy, worker, moving, progress.updates))
            progress.updates += lesson.updates
            if left_out := int(lesson.left_out.min()):  # of the seed that they suit best
                progress.leave_out("off_policy", left_out)
            history.append(dict(self._named(policy, lesson.losses)))
        return history

    def _pages(self, rows: list[_Row], snapshot: Snapshot) -> Pages:
        rows = sorted(rows, key=lambda row: row.place)
        pairs = np.stack([row.example.rows for row in rows], axis=1, dtype=self._encoder.prepared_dtype)  # or it packs
        state, next_state = (self._encoder.finish(np.ascontiguousarray(x), snapshot) for x in pairs)
        columns = [np.stack(column).astype(np.float32) for column in zip(*(row.drawn for row in rows), strict=True)]
        transitions = [row.example.transition for row in rows]
        reward, discount = np.array([(t.reward, t.discount) for t in transitions], np.float32).T
        return Pages(state, next_state, *columns, reward, discount, linked(rows))

    def _named(self, policy: int, losses: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """[S] as name/policy, [S, N] as name/policy/action; of the baseline by their bare names."""
        if policy == len(self._names):
            return losses
        named: dict[str, np.ndarray] = {}
        for name, values in losses.items():
            full = f"{name}/{self._names[policy]}"
            if values.ndim == 1:
                named[full] = values
            else:
                named |= {f"{full}/{dimension}": values[:, i] for i, dimension in enumerate(self._dimensions)}
        return named


def linked(rows: list[_Row]) -> np.ndarray:
    """1 where the next of the ordered rows is the page that followed in the same session; 0 after a leave."""
    found = np.zeros(len(rows), np.float32)
    for i, (row, after) in enumerate(pairwise(rows)):
        mine, its = row.example.transition, after.example.transition
        follows = its.page_index == mine.page_index + 1 and its.session_id == mine.session_id
        found[i] = follows and mine.discount == 1
    return found


def drawn(example: Example, dimensions: tuple[str, ...]) -> Drawn:
    """Nothing was drawn on a page of the baseline: it is as if its action were its own mean."""
    actions = {a.name: a for a in example.transition.decision.actions}
    found = [_of_dimension(actions.get(name), float(x)) for name, x in zip(dimensions, example.action, strict=True)]
    raw, mean, carried, sigma, density = np.array(found).T
    return Drawn(raw, mean, carried, sigma, float(density.sum()))


def _of_dimension(action: Action | None, executed: float) -> tuple[float, float, float, float, float]:
    p = None if action is None else action.propensity
    if p is None:
        return executed, executed, 0.0, 1.0, 0.0
    return p.raw, p.mean, (1 - p.theta) * p.previous_noise, p.sigma, p.log_density_raw


def _was_drawn(decision: Decision) -> bool:
    return all(a.propensity is not None and a.propensity.sigma > 0 for a in decision.actions)
