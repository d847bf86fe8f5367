"""Updates in one call are the same updates as with a call for each, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.learning.learners import learner_of

KINDS: dict[str, dict[str, Any]] = {
    "ddpg": {"kind": schema.Ddpg},
    "ddpg with a target": {"kind": schema.Ddpg, "target": "periodic", "target_period": 2, "towers": "separate"},
    "dqn": {"kind": schema.DoubleDqn, "target_period": 2},
    "q_learning": {"kind": schema.QLearning, "cells": (schema.Cell("x", (0.0,)),)},
}
ACTIVE = np.array([True, False])


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_for_several_updates_is_as_many_calls(make_config, make_batch, kind: str) -> None:
    config = make_config(**KINDS[kind])
    rng = np.random.default_rng(0)
    batches = [
        make_batch(seed=i, reward=rng.normal(size=16).astype("f4"), discount=np.ones(16, "f4")) for i in range(5)
    ]
    apart, together = learner_of(config), learner_of(config)
    expected = [apart.step(batch, ACTIVE) for batch in batches]
    found = together.steps(tf.nest.map_structure(lambda *x: np.stack(x), *batches), ACTIVE)
    for mine, theirs in zip(together.variables, apart.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.name)
    pairs = zip(together.variables, learner_of(config).variables, strict=True)
    assert any((mine.numpy() != fresh.numpy()).any() for mine, fresh in pairs)
    for name, column in found.items():
        np.testing.assert_array_equal(column.numpy(), [each[name].numpy() for each in expected], err_msg=name)
