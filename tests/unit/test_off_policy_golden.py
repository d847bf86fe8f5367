"""Estimators against the figures of another implementation: obp 0.5.7 on its own synthetic data, measured once.

The data are made again here from what defines them: contexts, behaviour and rewards are drawn by NumPy's RandomState
with the seed 12345, and actions are a normal distribution's quantiles of its uniform draws.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pytest

from model_export.evaluation.estimators import (
    estimate,
    weighted_doubly_robust,
    weighted_mean,
    weighted_self_normalised,
)
from model_export.evaluation.kernels import kernel_weights

SEED, ROUNDS, WIDTH = 12345, 5_000, 5
BANDWIDTH = 0.1
UNIT = NormalDist()


class Rounds(NamedTuple):
    contexts: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    log_densities: np.ndarray
    target: np.ndarray  # what the evaluated policy does


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    luck = np.random.RandomState(SEED)
    contexts = luck.normal(size=(ROUNDS, WIDTH))
    actions, log_densities = drawn_in(-10, 10, contexts)
    world = np.random.RandomState(SEED)
    slopes = world.normal(size=WIDTH)
    power, bias = world.uniform(size=2)
    rewards = np.abs(contexts @ slopes - actions) ** power + bias + luck.normal(size=ROUNDS)
    return Rounds(contexts, actions, rewards, log_densities, contexts.mean(axis=1))


def drawn_in(low: float, high: float, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal actions around a linear policy, truncated to [low, high]: their values and log densities."""
    policy = np.random.RandomState(SEED)
    means = contexts @ policy.normal(size=WIDTH) + policy.uniform(size=1)
    shares = np.random.RandomState(SEED).uniform(size=ROUNDS)
    begin, end = (np.array([UNIT.cdf(bound - m) for m in means]) for bound in (low, high))
    z = np.array([UNIT.inv_cdf(p) for p in begin + shares * (end - begin)])
    return means + z, -0.5 * z * z - 0.5 * np.log(2 * np.pi) - np.log(end - begin)


def fitted(rounds: Rounds) -> np.ndarray:
    """Least squares on context and action, at the target's actions."""
    ones = np.ones(ROUNDS)
    known = np.column_stack([ones, rounds.contexts, rounds.actions])
    weights = np.linalg.lstsq(known, rounds.rewards, rcond=None)[0]
    found: np.ndarray = np.column_stack([ones, rounds.contexts, rounds.target]) @ weights
    return found


def test_kernel_estimators_agree_with_obp(rounds: Rounds) -> None:
    weights = kernel_weights(rounds.target - rounds.actions, rounds.log_densities, BANDWIDTH)
    q = fitted(rounds)
    terms = (
        weighted_mean(weights, rounds.rewards),
        weighted_self_normalised(weights, rounds.rewards),
        weighted_doubly_robust(weights, rounds.rewards, q, q),
    )
    values = [estimate(each, replicates=2).value for each in terms]
    assert values == pytest.approx([1.5471037278941893, 1.9426615165269716, 1.406618921351471], rel=1e-9)
