"""Inverse-propensity estimates of a real log with known propensities, against the figures that obp publishes for it.

The Open Bandit Dataset's small sample comes with the package obp (Apache-2.0): its source archive on PyPI has a folder
`obp/`, which PAGETURN_OBP names. The figures are those of its examples/obd/README.md: Bernoulli Thompson sampling from
what the uniformly random policy logged, campaign "all", 30 resamples.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ruamel.yaml import YAML

from model_export.evaluation.estimators import Terms, weighted_mean, weighted_self_normalised
from tests.conftest import missing

CAMPAIGN, POSITIONS = "all", 3
SEED, DRAWS, AT_ONCE = 12345, 1_000_000, 20_000  # of the target's choices, as the example draws them
RESAMPLES = 30


class Log(NamedTuple):
    items: np.ndarray
    positions: np.ndarray
    clicks: np.ndarray
    propensities: np.ndarray


@pytest.fixture(scope="module")
def package() -> Path:
    folder = os.environ.get("PAGETURN_OBP")
    if folder is None:
        missing("obp", "PAGETURN_OBP does not name the folder obp/ of the package's source archive")
    return Path(str(folder))


def read(package: Path, policy: str) -> Log:
    with (package / "dataset" / "obd" / policy / CAMPAIGN / f"{CAMPAIGN}.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["timestamp"])
    return Log(
        np.array([int(row["item_id"]) for row in rows]),
        np.array([int(row["position"]) - 1 for row in rows]),
        np.array([float(row["click"]) for row in rows]),
        np.array([float(row["propensity_score"]) for row in rows]),
    )


def chosen_by_thompson_sampling(package: Path) -> np.ndarray:
    """The chance of each item at each position, [items, positions]: the ranks of draws from the campaign's priors."""
    prior = YAML(typ="safe").load(package / "policy" / "conf" / "prior_bts.yaml")[CAMPAIGN]
    alpha, beta = np.array(prior["alpha"]), np.array(prior["beta"])
    luck, counts = np.random.RandomState(SEED), np.zeros((len(alpha), POSITIONS))
    for _ in range(DRAWS // AT_ONCE):
        best = luck.beta(alpha, beta, size=(AT_ONCE, len(alpha))).argsort(axis=1)[:, ::-1]
        for position in range(POSITIONS):
            counts[:, position] += np.bincount(best[:, position], minlength=len(alpha))
    return counts / DRAWS


def errors(terms: Terms, truth: float) -> list[float]:
    """Relative error on each of the example's resamples of the rounds."""
    found = []
    for seed in range(RESAMPLES):
        rows = np.random.RandomState(seed).choice(len(terms.sums), size=len(terms.sums), replace=True)
        found.append(abs(float(terms.value(terms.sums[rows].sum(axis=0))) - truth) / truth)
    return found


@pytest.mark.timeout(1_200)  # 80 million beta draws: 15 seconds of a core
def test_the_published_inverse_propensity_figures_are_reproduced(package: Path) -> None:
    log, truth = read(package, "random"), float(read(package, "bts").clicks.mean())
    weights = chosen_by_thompson_sampling(package)[log.items, log.positions] / log.propensities
    plain = errors(weighted_mean(weights, log.clicks), truth)
    normalised = errors(weighted_self_normalised(weights, log.clicks), truth)
    assert (np.mean(plain), np.std(plain, ddof=1)) == pytest.approx((0.311082, 0.311170), abs=1e-6)
    assert (np.mean(normalised), np.std(normalised, ddof=1)) == pytest.approx((0.311795, 0.334736), abs=1e-6)
