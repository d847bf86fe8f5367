"""The trainer's benchmark: operations counted by hand, and processes that answer, or do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import trainer
from benchmarks.arithmetic import pageturn, products, textbook
from benchmarks.shares import BenchmarkError
from benchmarks.trainer import APART, LEARNERS, Contender, Process, Result, Row, Seeds, table

ANSWERING = """
from answering import Task, answer
def make(task: Task):
    done = []
    return done.append, f"batch {task.batch} of {task.kind}"
answer(make)
"""


def test_a_layer_counts_forward_weights_and_input_alike() -> None:
    assert products((3, 5), forward=1, weights=0, inputs=0) == 2 * 3 * 5
    assert products((3, 5, 2), forward=2, weights=1, inputs=1) == 2 * (3 * (15 + 10) + 10)
    assert products((3, 5), forward=0, weights=0, inputs=7, first_input=1) == 2 * 15


def test_what_peers_compute_is_what_their_frameworks_count() -> None:
    """1,869,824 per example is what `torch.utils.flop_counter` counts in an update of Stable-Baselines3 2.9.2."""
    assert textbook(91, (256, 256), for_nothing=True) == 1_869_824
    assert textbook(91, (256, 256), for_nothing=False) < 1_869_824


def test_a_shared_tower_saves_a_tower_and_the_way_from_the_actor_into_it() -> None:
    tower = products((91, 256, 256), forward=2, weights=1, inputs=1)
    into = 2 * 256 * 1
    assert pageturn(91, (256, 256), (), shared=False) - pageturn(91, (256, 256), (), shared=True) == tower + into


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "answering.py").write_text((trainer.PEERS / "answering.py").read_text())
    (tmp_path / "answers.py").write_text(ANSWERING)
    (tmp_path / "dies.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(trainer, "PEERS", tmp_path)
    return tmp_path


def test_a_learner_answers_with_the_seconds_that_its_updates_took(scripts: Path) -> None:
    process = Process(Contender("answers", None, "a kind"), 32, scripts)
    try:
        assert process.ready() == "batch 32 of a kind"
        took = process.run(5)
    finally:
        process.close()
    assert took.wall_s > 0
    assert took.cpu_s >= 0


def test_one_that_dies_is_named(scripts: Path) -> None:
    process = Process(Contender("dies", None), 32, scripts)
    try:
        with pytest.raises(BenchmarkError, match=r"found the end \(code 3\) of: .*dies\.py"):
            process.ready()
    finally:
        process.close()


def test_a_peer_without_its_environment_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="make bench-trainer"):
        Process(Contender("sb3_ddpg", "stable_baselines3"), 32, tmp_path)


def test_the_table_says_where_a_bar_does_not_hold() -> None:
    times = {trainer.STABLE_BASELINES: 2.1, trainer.TF_AGENTS: 1.6}
    rows = tuple(Row(256, name, (9.0,), (0.5,), 0.99, (times.get(name, 1.0),)) for name in LEARNERS)
    text = table(Result("2026-01-01", "cpu", {}, (1e9,), rows, Seeds((1.0,), (2.0,), (0.5,))))
    verdicts = {line.split("  ")[0]: line for line in text.splitlines()}
    assert ">= 2.0: holds" in verdicts[trainer.STABLE_BASELINES]
    assert ">= 1.7: DOES NOT HOLD" in verdicts[trainer.TF_AGENTS]
    assert "<= 0.65: holds" in text
    assert APART.threads == 1
