"""A small config, and transitions of a world that is easy to reason about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.config.schema import ActionDimension, Bucket, Buckets, Dense, FeatureConfig, PayPlusAPhi, Policy, Reward
from pipeline.learning.learner import Batch
from pipeline.records import Action, DecidedBy, Decision, Ending, State, Transition

Make = Callable[..., Any]


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    tf.config.experimental.enable_op_determinism()


@pytest.fixture(scope="session")
def make_config() -> Make:
    """A config of one dense feature and small nets; keywords go to the algorithm, `config` overrides the rest."""

    def make(
        config: dict[str, Any] | None = None, policies: int = 2, kind: type = schema.Ddpg, **algorithm: Any
    ) -> FeatureConfig:
        small = {"gamma": 0.5, "tower": (8,), "head": (8,), "batch_size": 16, "replay": 1_000, "actor_after": 0}
        small = {name: value for name, value in small.items() if name in kind.__struct_fields__}
        learned = tuple(Policy(f"p{i + 1}", "learned") for i in range(policies))
        parts = {
            "schema_version": 1,
            "name": "feed",
            "kv_prefix": "t",
            "features": (Dense("x", "user.x"),),
            "fusion": PayPlusAPhi(1.0),
            "action": (ActionDimension("a", baseline=1.0, range=(0.0, 2.0)),),
            "reward": Reward({"click": 1.0}),
            "algorithm": kind(**{**small, **algorithm}),
            "policies": (Policy("base", "baseline"), *learned),
            "buckets": Buckets("salt", (Bucket("all", "base", (0, 99)),)),
        }
        return FeatureConfig(**{**parts, **(config or {})})

    return make


def for_one_seed(column: Any) -> Any:
    return {name: x[None] for name, x in column.items()} if isinstance(column, dict) else column[None]


@pytest.fixture(scope="session")
def make_batch() -> Make:
    """n transitions with seeded states, for one seed; what is not given is 0 (reward, discount) or the baseline's.

    Columns are given without the axis of seeds.
    """

    def make(n: int = 16, seed: int = 0, width: int = 1, dimensions: int = 1, **columns: Any) -> Batch:
        rng = np.random.default_rng(seed)
        state, following = rng.normal(size=(2, n, width)).astype("f4")
        full = {
            "state": {"dense": state},
            "next_state": {"dense": following},
            "action": np.ones((n, dimensions), "f4"),
            "reward": np.zeros(n, "f4"),
            "discount": np.zeros(n, "f4"),
            "by_baseline": np.ones(n, "f4"),
        }
        return Batch(*(for_one_seed(x) for x in Batch(**{**full, **columns})))

    return make


@pytest.fixture(scope="session")
def make_transition() -> Make:
    """Number i of a feed whose sessions have four pages; every third page is the baseline's."""

    def make(i: int, **changes: Any) -> Transition:
        rng = np.random.default_rng(i)
        policy = ("base", "p1", "p2")[i % 3]
        by = DecidedBy.BASELINE if policy == "base" else DecidedBy.POLICY
        action = 1.0 if policy == "base" else float(rng.uniform(0, 2))
        last = i % 4 == 3
        parts = {
            "id": f"r{i}@1",
            "request_id": f"r{i}",
            "user_id": "u",
            "session_id": f"s{i // 4}",
            "time_ms": i,
            "page_index": i % 4,
            "state": State(user={"x": float(rng.normal())}),
            "decision": Decision(by, policy, "bucket", (Action("a", action),)),
            "reward": -((action - 1.3) ** 2),
            "reward_version": "1",
            "discount": 0.0 if last else 1.0,
            "next_state": None if last else State(user={"x": float(rng.normal())}),
            "ending": Ending.LEAVE if last else None,
        }
        return Transition(**{**parts, **changes})

    return make
