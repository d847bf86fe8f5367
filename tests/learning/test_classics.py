"""The benchmark of CartPole and Pendulum: that it runs, that it resumes, and what games are to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.classics.__main__ import Run, main, read
from benchmarks.classics.players import ReplayPlayer, RolloutPlayer, own_rows
from benchmarks.classics.rows import ROWS
from benchmarks.classics.tasks import CART_POLE, PENDULUM, Games, returns
from benchmarks.shares import BenchmarkError
from pipeline.features.inputs import DENSE


def test_a_pole_that_is_always_pushed_to_one_side_falls() -> None:
    assert returns(CART_POLE, lambda states: np.ones(len(states)), [1, 2]).max() < 15


def test_a_lost_game_has_no_future_and_one_that_is_cut_has() -> None:
    pole, pendulum = Games(CART_POLE, [1]), Games(PENDULUM, [1])
    falls = [pole.move(np.ones(1)) for _ in range(12)]
    (at,) = [i for i, moved in enumerate(falls) if moved.over[0]]
    assert falls[at].discount[0] == 0
    assert abs(falls[at].next_state[0, 2]) > 0.2  # the last of the game, and not the first of the next
    assert abs(falls[at + 1].state[0, 2]) < 0.1
    cut = [pendulum.move(np.zeros(1)) for _ in range(200)][-1]
    assert (cut.over[0], cut.discount[0]) == (True, 1.0)


def test_each_seed_says_what_to_do_in_its_own_games() -> None:
    every = np.arange(2 * 6).reshape(2, 6)  # [seed that says it, seed whose state it is and game]
    np.testing.assert_array_equal(own_rows(every, 2), [[0, 1, 2], [9, 10, 11]])


def test_a_seed_learns_from_its_own_games() -> None:
    player = ReplayPlayer(ROWS["dqn"], range(1, 3))
    for _ in player.play(300):
        pass
    batch = player._drawn(3)
    assert batch.reward.shape == (3, 2, 64)
    for seed in range(2):
        own = {state.tobytes() for state in player._memory["state"][: player._done, seed]}
        assert {state.tobytes() for state in batch.state[DENSE][:, seed].reshape(-1, 4)} <= own


def test_a_rollout_is_linked_within_its_games_only() -> None:
    player = RolloutPlayer(ROWS["ppo"], range(1, 2))
    pages = player._rollout()
    assert len(pages.reward) == 8 * 32
    assert not pages.linked[31::32].any()
    follows = np.flatnonzero(pages.linked)
    np.testing.assert_array_equal(pages.state[DENSE][follows + 1], pages.next_state[DENSE][follows])
    assert not pages.linked[pages.discount == 0].any()


def test_the_smallest_size_runs_and_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "classics.json"
    wanted = ["--quick", "--steps", "400", "--rows", "dqn", "a2c", "ddpg", "--json", str(path)]
    main(wanted)
    first, said = path.read_bytes(), capsys.readouterr().out
    assert said.count("| `ddpg` | Pendulum-v1 |") == 2  # as it came, and in the table
    assert "| `a2c` | CartPole-v1 |" in said
    main(wanted)
    assert path.read_bytes() == first
    runs = read(path)
    assert {run.row for run in runs} == {"dqn", "a2c", "ddpg"}
    assert all(run.steps[-1] >= 400 for run in runs)
    main([*wanted[:-4], "dqn", "--json", str(path), "--seeds", "2"])  # one more seed of one row
    assert set(read(path)) - set(runs) == {run for run in read(path) if run.seed == 2}


def test_other_settings_are_run_anew(tmp_path: Path) -> None:
    path = tmp_path / "classics.json"
    old = Run("dqn", "others", 1, (400,), (9.0,))
    path.write_bytes(msgspec.json.encode((old,)))
    main(["--quick", "--steps", "300", "--rows", "dqn", "--json", str(path)])
    assert [run.settings == "others" for run in read(path)] == [False]
    path.write_text("{}")
    with pytest.raises(BenchmarkError, match="expected what"):
        read(path)
