"""Features that come and go: the policy acts as before on those that stay, and learns about the others from nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pipeline.config import schema
from pipeline.config.schema import Dense, FeatureConfig, HashedId, Missing, Publish, ZScore
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.errors import CheckpointError
from pipeline.learning.networks import tower_columns
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry
from pipeline.records import State

X = Dense("x", "user.x", zscore=ZScore(min_count=20))
CITY = HashedId("city", "user.city", buckets=5, dim=3)
GONE = Dense("gone", "user.gone", zscore=ZScore(min_count=20))
NEW = Dense("new", "user.new", zscore=ZScore(min_count=20), missing=Missing(fill=0.0, indicator=True))
NEW_ID = HashedId("shop", "user.shop", buckets=4, dim=2)
BEFORE, AFTER = (GONE, X, CITY), (X, NEW, NEW_ID, CITY)
SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "separate": {"towers": "separate", "target": "polyak", "critic": "plain", "advantage": "network"},
    "dqn": {"kind": schema.DuelingDqn},
    "a2c": {"kind": schema.A2c, "rollout": 16},
}


@pytest.fixture(params=SWITCHES)
def config_of(make_config, request) -> Callable[[tuple[Any, ...]], FeatureConfig]:
    switches = SWITCHES[request.param]
    small = {"actor_after": 20}
    if request.param != "a2c":
        small |= {"replay": 100, "updates_per_transition": 0.125}

    def config_of(features: tuple[Any, ...]) -> FeatureConfig:
        return make_config({"features": features, "publish": Publish(every=10**9)}, **small, **switches)

    return config_of


def user(i: int, now: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    known = {"x": float(rng.normal(3, 2)), "city": f"c{i % 7}", "gone": float(rng.normal(-1, 4))}
    return {**known, "new": float(rng.normal()), "shop": f"s{i % 3}"} if now else known


@pytest.fixture
def url(tmp_path: Path, make_transition) -> Callable[[range], str]:
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 1)
    log.close()

    def append(numbers: range, now: bool = False) -> str:
        log = FileLog(tmp_path / "log")
        for i in numbers:
            following = None if i % 4 == 3 else State(user=user(i + 1, now))
            changed = make_transition(i, state=State(user=user(i, now)), next_state=following)
            log.append(TRANSITIONS, [Entry(f"s{i // 4}", encode(changed), 1_000 + i)])
        log.close()
        return f"file://{tmp_path / 'log'}"

    return append


def learned(config: FeatureConfig, url: str, work_dir: Path) -> Training:
    seen: list[Training] = []
    train(config, url, work_dir, until_idle=True, export=lambda training, _: seen.append(training))
    return seen[-1]


def judged(training: Training, config: FeatureConfig, users: list[dict[str, Any]]) -> np.ndarray:
    """V, A and mu of each user's state."""
    encoder = Encoder(config)
    rows = encoder.stack([encoder.prepare(State(user=each)) for each in users])
    value, advantage, action = training.learner.evaluate(encoder.finish(rows, training.snapshot))
    return np.concatenate([value.numpy()[..., None], advantage.numpy()[..., None], action.numpy()], axis=-1)


def test_the_policy_acts_as_before_on_what_stays(config_of, url, tmp_path: Path, caplog) -> None:
    before, after = config_of(BEFORE), config_of(AFTER)
    former = learned(before, url(range(260)), tmp_path / "work")
    at_mean = former.snapshot.moments["gone"].mean  # is 0 once it is scaled: neutral
    with caplog.at_level(logging.INFO):
        now = learned(after, url(range(260, 261), now=True), tmp_path / "work")  # one more, and no round
    assert now.progress.updates == former.progress.updates > 0
    users = [user(i) for i in range(1000, 1050)]
    expected = judged(former, before, [{**each, "gone": at_mean} for each in users])
    assert expected.std(axis=2).max() > 1e-3  # what is learned depends on the state
    np.testing.assert_allclose(judged(now, after, users), expected, atol=1e-6)
    assert now.snapshot.moments["x"] == former.snapshot.moments["x"]
    assert now.snapshot.moments["new"].count == 0
    assert "carried over: city, x; added, without effect yet: new, shop; dropped: gone" in caplog.text


def test_optimisers_go_on_and_what_is_new_is_learned(config_of, url, tmp_path: Path) -> None:
    before, after = config_of(BEFORE), config_of(AFTER)
    former = learned(before, url(range(260)), tmp_path / "work")
    now = learned(after, url(range(260, 261), now=True), tmp_path / "work")
    place, new_rows = tower_columns(before).index(("x", 0)), [tower_columns(after).index(("new", 0))]
    compared = 0
    for mine in now.learner.variables:
        theirs = [v for v in former.learner.variables if v.name == mine.name and "tower_0_kernel" in v.name]
        if theirs:
            assert (mine.numpy()[:, new_rows] == 0).all(), mine.name
            assert any(np.array_equal(mine.numpy()[:, 0], v.numpy()[:, place]) for v in theirs), mine.name
            compared += 1
    assert compared >= 3  # the kernel and its moments
    later = learned(after, url(range(261, 420), now=True), tmp_path / "work")
    kernel = next(v for v in later.learner.variables if v.name == "tower_0_kernel:0")
    assert (kernel.numpy()[:, new_rows] != 0).any()


def test_what_actions_mean_must_stay(config_of, url, tmp_path: Path) -> None:
    learned(config_of(BEFORE), url(range(70)), tmp_path / "work")
    other = structs.replace(config_of(AFTER), fusion=schema.PayPlusAPhi(2.0))
    with pytest.raises(CheckpointError, match="checkpoint of another config"):
        learned(other, url(range(0)), tmp_path / "work")
