"""Simulated pages for learners on policy: each of them once, when there is a rollout of its policy and worker."""

from __future__ import annotations

import numpy as np

from benchmarks.feeding import Seen
from pipeline.config.schema import A3c, OnPolicy
from pipeline.features.inputs import DENSE
from pipeline.learning.rollouts import Pages, RolloutLearner, Turn

_LEARNED, _BASELINE = 0, 1  # the streams: the only learned policy, and the baseline


class RolloutLessons:
    def __init__(self, algorithm: OnPolicy) -> None:
        self._rollout = algorithm.rollout
        self._workers = algorithm.workers if isinstance(algorithm, A3c) else 1
        self._waiting: dict[tuple[int, int], list[Seen]] = {}
        self.added = 0

    def add(self, seen: Seen) -> None:
        control, worker = seen.control, np.arange(len(seen.control)) % self._workers  # a session stays with its feed
        for stream in {(int(c), int(w)) for c, w in zip(control, worker, strict=True)}:
            at = (control == stream[0]) & (worker == stream[1])
            self._waiting.setdefault(stream, []).append(Seen(*(column[at] for column in seen)))
        self.added += len(control)

    def teach(self, learner: RolloutLearner, active: bool, updates: int) -> int:
        """The number of updates after all rollouts that are full."""
        for (policy, worker), parts in sorted(self._waiting.items()):
            while sum(len(part.reward) for part in parts) >= self._rollout:
                rows = Seen(*(np.concatenate(column) for column in zip(*parts, strict=True)))
                parts[:] = [Seen(*(column[self._rollout :] for column in rows))]
                pages = pages_of(Seen(*(column[: self._rollout] for column in rows)))
                turn = Turn(policy, worker, active and policy == _LEARNED, updates)
                updates += learner.learn(pages, turn).updates
        return updates


def pages_of(seen: Seen) -> Pages:
    seen = Seen(*(column[np.lexsort((seen.index, seen.visit))] for column in seen))
    follows = (np.diff(seen.visit) == 0) & (np.diff(seen.index) == 1) & (seen.discount[:-1] == 1)
    wide = (column[:, None].astype("f4") for column in (seen.raw, seen.mean, seen.carried, seen.sigma))
    flat = (column.astype("f4") for column in (seen.log_density, seen.reward, seen.discount, np.append(follows, False)))
    return Pages({DENSE: seen.state}, {DENSE: seen.next_state}, *wide, *flat)
