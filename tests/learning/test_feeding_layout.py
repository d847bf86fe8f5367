"""Rows keep their layout on the way to a learner: with sequences it has gaps, which NumPy closes where it may."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.algorithms import A2c
from pipeline.config.reading import load_config
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.feeding import ReplayFeeding
from pipeline.learning.ingestion import Example
from pipeline.learning.rollouts import Drawn, RolloutFeeding, _Row

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml")


def config(algorithm: Any) -> Any:
    return msgspec.structs.replace(CONFIG, algorithm=algorithm)


def example(encoder: Encoder, number: int) -> Example:
    rows = np.zeros(2, encoder.prepared_dtype)
    rows["recent_clicks__vectors"] = number
    rows["lengths"] = 1
    transition: Any = SimpleNamespace(reward=1.0, discount=1.0, session_id="s", page_index=number)
    return Example(transition, rows, np.zeros(1, np.float32), False)


def test_of_a_replay() -> None:
    of = config(msgspec.structs.replace(CONFIG.algorithm, batch_size=8, updates_per_transition=1.0))
    encoder = Encoder(of)
    feeding, found = ReplayFeeding(of, encoder, 2), []
    for number in range(8):
        feeding.add(example(encoder, number), 0, number)
    learner: Any = SimpleNamespace(steps=lambda batches, active: found.append(batches) or {})
    progress: Any = SimpleNamespace(owed=0.0, updates=0)
    feeding.learn(learner, Snapshot.initial(of), progress, np.ones(2, bool))
    (batches,) = found
    assert batches.state["recent_clicks"].shape == (2, 1, 8, 8, 4)
    assert batches.reward.shape == (2, 1, 8)
    assert set(np.unique(batches.state["recent_clicks"])) <= set(range(8))


def test_of_a_rollout() -> None:
    of = config(A2c(gamma=0.95))
    encoder = Encoder(of)
    assert np.stack([np.zeros(1, encoder.prepared_dtype)]).dtype != encoder.prepared_dtype  # or nothing is tested
    nothing = np.zeros(1)
    rows = [_Row(n, example(encoder, n), Drawn(nothing, nothing, nothing, nothing, 0.0)) for n in range(3)]
    pages = RolloutFeeding(of, encoder)._pages(rows, Snapshot.initial(of))
    assert pages.state["recent_clicks"][:, 0, 0].tolist() == pytest.approx([0.0, 1.0, 2.0])
