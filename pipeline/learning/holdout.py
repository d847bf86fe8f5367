"""The sessions that nothing is learned from, and what is kept of them: the last pages that a policy explored.

Rows are not checkpointed: like those of a replay they are read again from the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.choosing import Choice, Pages, choose
from pipeline.learning.held_out import is_held_out, session_hash
from pipeline.learning.ingestion import Example
from pipeline.learning.learner import Learner
from pipeline.learning.replay import Origins
from pipeline.records import Decision, Transition

_CAPACITY = 4_096  # pages
_AT_ONCE = 1_024  # that a learner evaluates
HELD_OUT = "held_out"  # why such a page is not learned from


class _Drawn(NamedTuple):
    raw: np.ndarray  # [N]
    sigma: np.ndarray
    log_density: float


class _Held(NamedTuple):
    example: Example
    policy: int
    session: int
    drawn: _Drawn
    origin: tuple[int, int]


class Holdout:
    def __init__(self, config: FeatureConfig, encoder: Encoder) -> None:
        self._config, self._encoder = config, encoder
        self._share = config.algorithm.held_out
        self._policies = {policy: k for k, policy in enumerate(config.learned_policies())}
        self._pages: deque[_Held] = deque(maxlen=_CAPACITY)

    def __len__(self) -> int:
        return len(self._pages)

    def takes(self, transition: Transition) -> bool:
        """Whether its session is held out."""
        return is_held_out(transition.session_id, self._share)

    def add(self, example: Example, partition: int, offset: int) -> None:
        transition = example.transition
        policy = self._policies.get(transition.decision.policy)
        drawn = _drawn(transition.decision, self._config)
        if policy is None or drawn is None or example.by_baseline:
            return
        session = session_hash(transition.session_id)
        self._pages.append(_Held(example, policy, session, drawn, (partition, offset)))

    def origins(self) -> Origins:
        """Oldest first."""
        places = np.array([page.origin for page in self._pages], np.int64).reshape(-1, 2)
        return Origins(places[:, 0].astype(np.int32), places[:, 1])

    def choose(self, learner: Learner, snapshot: Snapshot, before: int) -> Choice:
        if not self._pages:
            return Choice(before, (), ())
        held = tuple(self._pages)
        policy = np.array([page.policy for page in held])
        value, means = self._evaluated(learner, snapshot, held, policy)
        return choose(
            Pages(
                policy=policy,
                session=np.array([page.session for page in held], np.uint64),
                raw=np.stack([page.drawn.raw for page in held]),
                sigma=np.stack([page.drawn.sigma for page in held]),
                log_density=np.array([page.drawn.log_density for page in held]),
                residual=self._residual(held, *value),
            ),
            means,
            before,
        )

    def _evaluated(
        self, learner: Learner, snapshot: Snapshot, held: tuple[_Held, ...], policy: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """V of state and next state, means over the seeds [n], and what each seed would do [S, n, N]."""
        # NumPy packs records that it puts together, unless it is told how they lie.
        rows = np.stack([page.example.rows for page in held], dtype=self._encoder.prepared_dtype)
        parts = [
            [learner.evaluate(self._encoder.finish(rows[i : i + _AT_ONCE, j], snapshot)) for j in (0, 1)]
            for i in range(0, len(rows), _AT_ONCE)
        ]
        values, every = [], np.arange(len(rows))
        for j in (0, 1):
            found = np.concatenate([part[j].value.numpy() for part in parts], axis=2)  # [S, K, n]
            values.append(found[:, policy, every].mean(axis=0, dtype=np.float64))
        actions = np.concatenate([part[0].action.numpy() for part in parts], axis=2)  # [S, K, n, N]
        return (values[0], values[1]), actions[:, policy, every].astype(np.float64)

    def _residual(self, held: tuple[_Held, ...], value: np.ndarray, next_value: np.ndarray) -> np.ndarray:
        reward = np.array([page.example.transition.reward for page in held])
        discount = np.array([page.example.transition.discount for page in held])
        return reward + self._config.algorithm.gamma * discount * next_value - value


def _drawn(decision: Decision, config: FeatureConfig) -> _Drawn | None:
    """None where nothing was drawn."""
    by_name = {action.name: action.propensity for action in decision.actions}
    found = [by_name.get(dimension.name) for dimension in config.action]
    if not any(found):
        return None
    return _Drawn(
        np.array([p.raw if p else 0.0 for p in found]),
        np.array([p.sigma if p else 0.0 for p in found]),
        sum(p.log_density_raw for p in found if p),
    )


def named(choice: Choice, seeds: Iterable[int]) -> dict[str, float]:
    """For the metrics, by seed."""
    numbers = list(seeds)
    scores = {f"seed_score/{seed}": x for seed, x in zip(numbers, choice.scores, strict=False)}
    return scores | {f"seed_effective/{seed}": x for seed, x in zip(numbers, choice.effective, strict=False)}
