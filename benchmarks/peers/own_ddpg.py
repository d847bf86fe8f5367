"""DDPG of Pageturn as its trainer runs it: rows out of the replay, encoded, and learned from.

Kinds: `shared` tower; `equal` work to the peers' (separate towers, a polyak target); `default` heads and z-scores, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from answering import GAMMA, HIDDEN, LEARNING_RATE, OBSERVATION, REPLAY, TAU, Learner, Task, answer

_SEEDS = 8
KINDS: dict[str, dict[str, Any]] = {
    "shared": {},
    "equal": {"towers": "separate", "target": "polyak", "target_tau": TAU},
    "default": {"head": (32,)},
    "seeds": {"seeds": _SEEDS, "holdout": 0.0},
}


def make(task: Task) -> tuple[Learner, str]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import numpy as np
    import tensorflow as tf

    from pipeline.features.snapshot import Snapshot
    from pipeline.learning.learners import learner_of
    from pipeline.learning.progress import Progress

    tf.config.experimental.enable_op_determinism()
    config = _config(task)
    feeding, snapshot = _filled(config), Snapshot.initial(config)
    learner, progress = learner_of(config), Progress()

    def learn(updates: int) -> None:
        progress.owed = updates - _owed_by_a_round(config)
        feeding.learn(learner, snapshot, progress, np.ones(1, bool))

    return learn, f"pageturn, tensorflow {tf.__version__}"


def _config(task: Task) -> Any:
    from pipeline.config import schema
    from pipeline.config.schema import Dense, FeatureConfig, ZScore

    algorithm = schema.Ddpg(
        **{
            "gamma": GAMMA, "tower": HIDDEN, "head": (), "batch_size": task.batch, "replay": REPLAY, "actor_after": 0,
            "learning_rate": LEARNING_RATE, "actor_learning_rate": LEARNING_RATE, **KINDS[task.kind],
        }
    )  # fmt: skip
    scale = ZScore() if task.kind == "default" else None
    return FeatureConfig(
        schema_version=1,
        name="benchmark",
        kv_prefix="bench",
        features=tuple(Dense(f"x{i}", f"user.x{i}", zscore=scale) for i in range(OBSERVATION)),
        fusion=schema.PayPlusAPhi(1.0),
        action=(schema.ActionDimension("a", baseline=1.0, range=(0.0, 2.0)),),
        reward=schema.Reward({"click": 1.0}),
        algorithm=algorithm,
        policies=(schema.Policy("base", "baseline"), schema.Policy("learned", "learned")),
        buckets=schema.Buckets("benchmark", (schema.Bucket("all", "base", (0, 99)),)),
    )


_ROUND = 64


def _owed_by_a_round(config: Any) -> float:
    return float(_ROUND * config.algorithm.updates_per_transition)


def _filled(config: Any) -> Any:
    from types import SimpleNamespace

    import numpy as np

    from pipeline.features.encoder import Encoder
    from pipeline.learning.feeding import ReplayFeeding
    from pipeline.learning.ingestion import Example

    encoder, rng = Encoder(config), np.random.default_rng(0)
    feeding = ReplayFeeding(config, encoder, _ROUND)
    for i in range(REPLAY):
        rows = np.zeros(2, encoder.prepared_dtype)
        rows["dense"] = rng.normal(size=(2, OBSERVATION))
        outcome: Any = SimpleNamespace(reward=rng.normal(), discount=float(i % 5 != 4))
        feeding.add(Example(outcome, rows, rng.uniform(0, 2, 1).astype("f4"), i % 3 == 0), 0, i)
    return feeding


if __name__ == "__main__":
    answer(make)
