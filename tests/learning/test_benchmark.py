"""The benchmark's harness: what its shares and areas mean, that its feed is the environment, that it resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs

from benchmarks import learning, outside
from benchmarks.comparing import paired, table
from benchmarks.courses import Plan, Point, Pupil, Run, area
from benchmarks.feeding import CONTROL, Feeds, Page, Scaling, SideBySide, feed_config
from benchmarks.record import Record, read_record, write_record
from benchmarks.rows import CATS, CLIMBING, DDPG, NOISE, ROWS, Outsider, Row
from benchmarks.schools import Memory, ReplaySchool, school_of
from benchmarks.shares import YARDSTICK, BenchmarkError, Judge, over_seeds, read_yardstick, share_of_gap
from pipeline.config import schema
from pipeline.simulation import observing
from pipeline.simulation.env import FeedEnv
from pipeline.simulation.outcomes import estimate
from pipeline.simulation.params import World
from pipeline.simulation.rollout import constant
from pipeline.simulation.yardstick import Row as Figures
from pipeline.simulation.yardstick import Yardstick

WORLD = World()
USERS = 300
# Its actor is slow enough to be inside the range at the end, where seeds differ.
SMALL = structs.replace(
    DDPG,
    **CLIMBING
    | {"batch_size": 32, "actor_after": 60, "replay": 2_000, "updates_per_transition": 0.05}
    | {"actor_learning_rate": 1e-4, "target": "none", "target_tau": None},
)


@pytest.fixture
def yardstick() -> Yardstick:
    """The committed one, with a stand-in as the best policy: that of a = 0 on few users."""
    committed = read_yardstick(YARDSTICK, WORLD)
    found = Judge(WORLD, committed, USERS).ratio(constant(0.0))
    rest = (estimate([1.0]), estimate([1.0]), found, estimate([1.0]), 1.0, 1.0, 1.0)
    return structs.replace(committed, rows=(Figures("best", "a = 0", *rest),))


def test_the_share_of_the_baseline_is_0_and_that_of_the_best_is_1(yardstick: Yardstick) -> None:
    judge = Judge(WORLD, yardstick, USERS)
    assert [judge.share(constant(action)) for action in (1.0, 0.0)] == [0.0, 1.0]
    assert judge.ratio(constant(0.0), 100) == Judge(WORLD, yardstick, 100).ratio(constant(0.0))


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


def test_the_area_is_the_mean_share_over_transitions() -> None:
    """Trapezia: 0 to 1 over 10 transitions, then 1 over 30: (5 + 30) / 40."""
    assert area([Point(0, 0.0), Point(10, 1.0), Point(40, 1.0)]) == 35 / 40


# The feed ------------------------------------------------------------------------------------------------------------


def test_sessions_side_by_side_are_what_the_environment_shows_those_users() -> None:
    env, random = FeedEnv(WORLD, max_pages=WORLD.params.max_pages), np.random.default_rng(1)
    env.reset(seed=3)
    feed = SideBySide(WORLD, env.population, 3)
    told: dict[int, list[tuple[object, ...]]] = {}
    for _ in range(25):
        users, before, actions = feed.user, feed.state, random.uniform(0, 2, 3)
        turned = feed.turn(actions)
        for i, user in enumerate(users):
            page = (before[i], actions[i], turned.reached[i], turned.reward[i], turned.left[i], turned.cut[i])
            told.setdefault(int(user), []).append(page)
    assert len(told) > 6
    observed, _ = env.reset(seed=3)
    for user in range(len(told)):
        assert env._user == user
        for before, action, reached, reward, left, cut in told[user]:
            np.testing.assert_array_equal(before, observed)
            observed, *rest = env.step(np.array([action]))
            np.testing.assert_array_equal(reached, observed)
            np.testing.assert_allclose(rest[0], reward, rtol=1e-12)
            assert (bool(left), bool(cut)) == tuple(rest[1:3])
        observed, _ = env.reset()


def test_a_session_is_cut_where_the_environment_truncates_it() -> None:
    world = structs.replace(WORLD, params=structs.replace(WORLD.params, max_pages=2))
    feed = SideBySide(world, 1, 50)
    first, second = feed.turn(np.ones(50)), feed.turn(np.ones(50))
    assert not first.cut.any()
    np.testing.assert_array_equal(second.cut, ~first.left & ~second.left)
    assert second.cut.any()


def test_feeds_go_on_from_what_they_reached_and_leave_the_control_alone() -> None:
    feeds = Feeds(WORLD, feed_config(WORLD, DDPG, NOISE), seed=1)
    first, seen = feeds.logged_page(np.full(len(feeds.control), 1.7))
    went_on = first.discount == 1
    np.testing.assert_array_equal(first.next_state[went_on], feeds.state[went_on])
    column = observing.names(WORLD.params).index("first_page")
    assert (feeds.state[~went_on, column] == 1).all()
    assert (first.action[feeds.control] == 1).all()
    assert feeds.control.mean() == 1 / CONTROL
    assert 1.3 < first.action[~feeds.control].mean() < 2
    np.testing.assert_allclose(np.clip(seen.raw, 0, 2)[~feeds.control], first.action[~feeds.control, 0])
    z = (seen.raw - seen.mean) / 0.6
    np.testing.assert_allclose(seen.log_density, -0.5 * z**2 - np.log(0.6 * np.sqrt(2 * np.pi)))


def test_numbers_are_scaled_and_flags_are_not() -> None:
    scaling, names = Scaling.of(WORLD), observing.names(WORLD.params)
    assert scaling.mean[names.index("city_north")] == 0
    assert scaling.std[names.index("city_north")] == 1
    state = scaling(SideBySide(WORLD, 5, 3_000).state)
    assert abs(state[:, names.index("orders_30d")].std() - 1) < 0.1


def test_the_memory_forgets_the_oldest() -> None:
    memory = Memory(4, 1)
    for i in range(3):
        x = np.full((2, 1), i, np.float32)
        memory.add(Page(x, x, x, x[:, 0], x[:, 0], x[:, 0]))
    batch = memory.sample(np.random.default_rng(0), 100)
    assert set(batch.reward) == {1.0, 2.0}


# Learners at school --------------------------------------------------------------------------------------------------


def test_a_seed_decides_everything_whoever_is_beside_it() -> None:
    found = {}
    for seed, seeds in ((1, 1), (1, 2), (2, 1)):
        school = ReplaySchool(WORLD, feed_config(WORLD, structs.replace(SMALL, seed=seed, seeds=seeds), NOISE))
        school.learn(768)
        found[seed, seeds] = school.decider(0)(np.random.default_rng(0).standard_normal((9, 62)))
    np.testing.assert_allclose(found[1, 1], found[1, 2], atol=1e-5)
    assert abs(found[1, 1] - found[2, 1]).max() > 1e-3


def test_a_learner_on_policy_learns_from_its_rollouts() -> None:
    algorithm = schema.A2c(gamma=0.95, tower=(8,), head=(), rollout=64, actor_after=0, seeds=2)
    school = school_of(WORLD, algorithm, NOISE)
    school.learn(512)
    assert school.transitions == 512
    assert school.updates == 512 * (CONTROL - 1) // CONTROL // 64 + 1  # and a rollout of the baseline's pages
    state = np.random.default_rng(0).standard_normal((9, 62)).astype("f4")
    first, second = (school.decider(i)(state) for i in (0, 1))
    assert (first != 1).any()
    assert (first != second).any()


# The command ---------------------------------------------------------------------------------------------------------

ROW = Row("small", SMALL, NOISE)
ARGUMENTS = ["--rows", "small", "--transitions", "768", "--users", "100"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "small", ROW)


@pytest.mark.usefixtures("small")
def test_it_learns_reports_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, asked = tmp_path / "sub" / "r.json", []
    taught = learning.Benchmark._taught

    def counted(self: learning.Benchmark, row: Row, pupils: list[Pupil]) -> list[Run]:
        asked.append([pupil.seed for pupil in pupils])
        return taught(self, row, pupils)

    monkeypatch.setattr(learning.Benchmark, "_taught", counted)
    learning.main([*ARGUMENTS, "--seeds", "1", "--json", str(path)])
    learning.main([*ARGUMENTS, "--seeds", "3", "--json", str(path)])
    assert asked == [[1], [2, 3]]
    printed = capsys.readouterr().out
    assert WORLD.sha256 in printed
    assert "best myopic" in printed
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    assert [(run.seed, run.transitions, run.updates) for run in record.of("small")] == [(i, 768, 38) for i in (1, 2, 3)]
    assert all(run.curve[0].share == 0 and run.curve[-1].transitions == 768 for run in record.runs)
    gap = record.best - 1
    assert all(run.share == (run.discounted_ratio.mean - 1) / gap for run in record.runs)
    assert all(run.discounted_ratio.mean != 1 for run in record.runs)  # the policies moved


def _pupil(row: Row = ROW, seed: int = 1) -> Pupil:
    return Pupil(row, seed, Plan(768, 100, 100), WORLD.sha256)


def test_a_key_tells_settings_apart() -> None:
    pupils = (
        _pupil(),
        _pupil(seed=2),
        _pupil(structs.replace(ROW, penalties=False)),
        _pupil(structs.replace(ROW, learner=structs.replace(SMALL, gamma=0.9))),
        _pupil()._replace(plan=Plan(768, 200, 100)),
        _pupil()._replace(world="other"),
    )
    assert len({pupil.key for pupil in pupils}) == len(pupils)
    assert _pupil().key == _pupil().key


def _run(pupil: Pupil, area: float) -> Run:
    one = estimate([1.0])
    points = (Point(0, 0.0), Point(768, area))
    return Run(pupil.row.name, pupil.seed, pupil.key, "2026-01-01", 768, 9, 1.0, one, area, area, points)


def test_runs_of_other_settings_are_left_out(tmp_path: Path) -> None:
    empty = Record.empty(WORLD, read_yardstick(YARDSTICK, WORLD), Plan(768, 100, 100))
    changed = structs.replace(ROW, penalties=False)
    record = empty.kept([_pupil()]).with_runs([_run(_pupil(), 0.5)])
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json", empty) == record
    assert record.has(_pupil())
    assert record.kept([_pupil(changed)]).runs == ()
    other = structs.replace(empty, plan=Plan(999, 100, 100))
    assert read_record(tmp_path / "r.json", other) == other
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(BenchmarkError, match="expected what"):
        read_record(tmp_path / "r.json", empty)


def test_areas_are_compared_seed_by_seed() -> None:
    mine = [_run(_pupil(seed=seed), area) for seed, area in ((1, 0.5), (2, 0.7), (3, 0.9))]
    other = [_run(_pupil(seed=seed), area) for seed, area in ((2, 0.6), (3, 0.7))]
    found = paired(mine, other)
    assert found is not None
    np.testing.assert_allclose([found.mean, found.high - found.mean], [0.15, 12.706 * 0.05])
    assert paired(mine, []) is None


def test_the_table_says_what_is_missing() -> None:
    empty = Record.empty(WORLD, read_yardstick(YARDSTICK, WORLD), Plan(768, 100, 100))
    found = table(empty.with_runs([_run(_pupil(), 0.5)]), ["small", "ppo"], "small")
    assert "not run yet: ppo" in found
    assert "50.0 [-inf, inf]" in found


# Outside learners ----------------------------------------------------------------------------------------------------

OUTSIDE = Row("outside", Outsider("cats", CATS), NOISE)


def test_an_outside_learner_is_asked_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """A stand-in for its Python, that reads who is asked for and answers."""
    answer, python = _run(_pupil(OUTSIDE), 0.25), tmp_path / "python"
    said = msgspec.json.encode(answer).decode()
    lines = ("import sys", "assert b'cats' in sys.stdin.buffer.read()", "print('chatter')", f"print({said!r})")
    python.write_text("\n".join((f"#!{sys.executable}", *lines)))
    python.chmod(0o755)
    assert outside.taught_outside(_pupil(OUTSIDE), python) == answer
    python.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    with pytest.raises(BenchmarkError, match="outside, seed 1: the learner ended with status 3"):
        outside.taught_outside(_pupil(OUTSIDE), python)
    with pytest.raises(BenchmarkError, match="make bench-learning"):
        outside.taught_outside(_pupil(OUTSIDE), tmp_path / "none")


def test_the_share_of_the_gap_is_linear() -> None:
    yardstick = read_yardstick(YARDSTICK, WORLD)
    best = yardstick.row("best").discounted_ratio.mean
    np.testing.assert_allclose(share_of_gap((1 + best) / 2, yardstick), 0.5)
