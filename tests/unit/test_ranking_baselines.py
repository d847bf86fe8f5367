"""FTRL and LinUCB: hand numbers, and that they learn what is there to learn."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ranking.ftrl import Ftrl, Settings
from pipeline.ranking.linucb import LinUcb


def test_the_vector_of_ftrl() -> None:
    model, found = Ftrl(1, Settings(alpha=0.1, beta=1.0, l1=0.1, l2=1.0)), []
    for gradient in (1.0, -0.5, 2.0):
        model.apply(np.array([gradient]))
        found.append((model.weights[0], model.z[0], model.n[0]))
    expected = [(-0.04285714, 1, 1), (-0.02031466, 0.550586, 1.25), (-0.0792893, 2.788928, 5.25)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_l1_keeps_weights_of_weak_features_at_exactly_zero() -> None:
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(4_000), rng.choice([-1.0, 1.0], (4_000, 6))])
    clicked = (rng.random(4_000) < 1 / (1 + np.exp(1.0 - 1.5 * x[:, 1]))).astype(float)
    model = Ftrl(7, Settings(l1=60.0))
    model.learn(x, clicked, chunk=10)
    assert model.weights[1] > 0.5
    assert (model.weights[2:] == 0).all()


def test_ftrl_learns_probabilities() -> None:
    rng = np.random.default_rng(2)
    x = np.column_stack([np.ones(6_000), rng.normal(size=(6_000, 2))])
    logit = x @ [-1.0, 0.8, -0.4]
    model = Ftrl(3)
    model.learn(x, (rng.random(6_000) < 1 / (1 + np.exp(-logit))).astype(float))
    assert np.abs(model.predict(x) - 1 / (1 + np.exp(-logit))).mean() < 0.03


def test_linucb_by_hand() -> None:
    """A = I + x x^T for x = (1, 0), twice: diag(3, 1); b = (1, 0); theta = (1/3, 0)."""
    model = LinUcb(2, alpha=0.5)
    model.learn(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(model.theta, [1 / 3, 0])
    expected = [1 / 3 + 0.5 * (1 / 3) ** 0.5, 0.5, 2 / 3 + 0.5 * (4 / 3 + 1) ** 0.5]
    np.testing.assert_allclose(model.scores(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])), expected)


def test_linucb_does_not_care_how_examples_are_batched() -> None:
    rng = np.random.default_rng(3)
    x, reward = rng.normal(size=(50, 4)), rng.random(50)
    whole, parts = LinUcb(4), LinUcb(4)
    whole.learn(x, reward)
    for i in range(0, 50, 7):
        parts.learn(x[i : i + 7], reward[i : i + 7])
    np.testing.assert_allclose(parts.scores(x), whole.scores(x), rtol=1e-9)


@pytest.mark.parametrize(("alpha", "at_least", "at_most"), [(1.0, 0.75, 1.0), (0.0, 0.0, 0.55)])
def test_linucb_finds_the_better_arm_that_greed_overlooks(alpha: float, at_least: float, at_most: float) -> None:
    """Two arms, .4 and .6; greed stays with the first that ever paid. Of 60 runs the share that ends on the better."""
    arms, ends = np.eye(2), []
    for seed in range(60):
        rng, model = np.random.default_rng(seed), LinUcb(2, alpha=alpha)
        for _ in range(300):
            arm = int(np.argmax(model.scores(arms)))
            model.learn(arms[[arm]], np.array([float(rng.random() < (0.4, 0.6)[arm])]))
        ends.append(arm)
    assert at_least <= np.mean(ends) <= at_most
