"""The benchmark's harness: what its shares mean, whom it refuses, and that it learns and reports end to end."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs

from benchmarks import feeding, learning
from benchmarks.feeding import Apprenticeship, Feeds, Memory, Page, feed_config
from benchmarks.shares import (
    YARDSTICK,
    BenchmarkError,
    discounted_ratio,
    over_seeds,
    read_yardstick,
    share_of_gap,
)
from pipeline.simulation import observing
from pipeline.simulation.outcomes import estimate
from pipeline.simulation.params import World
from pipeline.simulation.rollout import constant
from pipeline.simulation.yardstick import Row, Yardstick

WORLD = World()
USERS = 300


@pytest.fixture
def yardstick() -> Yardstick:
    """The committed one, with a stand-in as the best policy: that of a = 0 on few users."""
    committed = read_yardstick(YARDSTICK, WORLD)
    found = discounted_ratio(WORLD, constant(0.0), committed, USERS)
    rest = (estimate([1.0]), estimate([1.0]), found, estimate([1.0]), 1.0, 1.0, 1.0)
    return structs.replace(committed, rows=(Row("best", "a = 0", *rest),))


def test_the_share_of_the_baseline_is_0_and_that_of_the_best_is_1(yardstick: Yardstick) -> None:
    for action, share in ((1.0, 0.0), (0.0, 1.0)):
        assert share_of_gap(discounted_ratio(WORLD, constant(action), yardstick, USERS).mean, yardstick) == share


def test_the_committed_yardstick_is_of_this_world() -> None:
    assert read_yardstick(YARDSTICK, WORLD).row("best").discounted_ratio.low > 1.2


def test_figures_of_another_world_are_refused(tmp_path: Path) -> None:
    other = structs.replace(WORLD, objective=structs.replace(WORLD.objective, phi=0.1))
    with pytest.raises(BenchmarkError, match=r"expected figures of simulated feed v1 .* found those of v1"):
        read_yardstick(YARDSTICK, other)
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(BenchmarkError, match="expected figures of"):
        read_yardstick(tmp_path / "y.json", WORLD)


def test_the_interval_over_seeds_is_students() -> None:
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.303."""
    found = over_seeds([1.0, 2.0, 3.0])
    np.testing.assert_allclose([found.mean, found.high - 2, 2 - found.low], [2, 4.303 / 3**0.5, 4.303 / 3**0.5])
    assert over_seeds([1.0]).high == np.inf
    with pytest.raises(BenchmarkError, match="found 0"):
        over_seeds([])


def test_the_memory_forgets_the_oldest() -> None:
    memory = Memory(4, 1)
    for i in range(3):
        x = np.full((2, 1), i, np.float32)
        memory.add(Page(x, x, x, x[:, 0], x[:, 0], x[:, 0]))
    batch = memory.sample(np.random.default_rng(0), 100)
    assert set(batch.reward) == {1.0, 2.0}


def test_feeds_go_on_from_what_they_reached_and_leave_the_control_alone() -> None:
    config = feed_config(WORLD, learning.algorithm(WORLD), learning.NOISE)
    feeds = Feeds(WORLD, config, seed=1)
    first = feeds.page(np.full(len(feeds.control), 1.7))
    went_on = first.discount == 1
    np.testing.assert_array_equal(first.next_state[went_on], feeds.state[went_on])
    assert (feeds.state[~went_on, observing.names(WORLD.params).index("first_page")] == 1).all()
    assert (first.action[feeds.control] == 1).all()
    assert 1.3 < first.action[~feeds.control].mean() < 2


def test_it_learns_and_reports_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = structs.replace(learning.algorithm(WORLD), batch_size=32, actor_after=60)
    monkeypatch.setattr(learning, "algorithm", lambda *_: small)
    path = tmp_path / "r.json"
    asked = ["--seeds", "2", "--transitions", "250", "--users", "100", "--json", str(path)]
    learning.main(asked)
    printed = capsys.readouterr().out
    assert WORLD.sha256 in printed
    assert "over 2 seeds" in printed
    result = msgspec.json.decode(path.read_bytes(), type=learning.Result)
    assert [(s.seed, s.transitions, s.updates) for s in result.seeds] == [(1, 288, 72), (2, 288, 72)]
    assert result.simulator_sha256 == WORLD.sha256
    assert all(s.discounted_ratio.mean != 1 for s in result.seeds)  # the policies moved
    assert result.share == over_seeds([s.share for s in result.seeds])


def test_a_seed_decides_everything() -> None:
    small = structs.replace(learning.algorithm(WORLD), batch_size=32, actor_after=0)
    found = []
    for seed in (1, 1, 2):
        apprentice = Apprenticeship(WORLD, feed_config(WORLD, structs.replace(small, seed=seed), learning.NOISE))
        apprentice.learn(feeding._FEEDS * 3)
        found.append([v.numpy() for v in apprentice.learner.variables])
    assert all((a == b).all() for a, b in zip(found[0], found[1], strict=True))
    assert any((a != b).any() for a, b in zip(found[0], found[2], strict=True))
