"""The trainer on a log: the same weights however it is read, nothing lost, and one owner."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import FeatureConfig, Publish
from pipeline.durable import BusyError, exclusive
from pipeline.events import decode, encode
from pipeline.features.encoder import Encoder
from pipeline.learning.checkpoint import Checkpoints
from pipeline.learning.errors import CheckpointError
from pipeline.learning.progress import Progress, decode_saved
from pipeline.learning.replay import Replay
from pipeline.learning.trainer import Pace, train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import DEAD_LETTERS, TRANSITIONS, Entry, LogError, Record, has_topic
from pipeline.monitoring.catalogue import TRAINER
from pipeline.monitoring.metrics import Metrics
from pipeline.records import DeadLetter, DecidedBy, Decision

N = 300
Weights = dict[str, np.ndarray]
OFTEN = {"publish": Publish(every=0, min_transitions=1)}


@pytest.fixture
def config(make_config) -> FeatureConfig:
    return make_config(replay=100, updates_per_transition=0.125)


@pytest.fixture
def write(tmp_path: Path, make_transition) -> Callable[..., str]:
    """A closed log of `numbers` of the feed, plus extra payloads at the end; its URL."""

    def write(numbers: Iterable[int] = range(N), extra: tuple[bytes, ...] = (), name: str = "log") -> str:
        log = FileLog(tmp_path / name)
        log.create(TRANSITIONS, 3)
        entries = [Entry(f"s{i // 4}", encode(make_transition(i)), 1_000 + at) for at, i in enumerate(numbers)]
        entries += [Entry("odd", payload, 10_000) for payload in extra]
        log.append(TRANSITIONS, entries)
        log.close()
        return f"file://{tmp_path / name}"

    return write


def weights(work_dir: Path) -> Weights:
    """Every variable and optimiser slot of the newest checkpoint."""
    newest = max((work_dir / "checkpoints").glob("0*"))
    reader = tf.train.load_checkpoint(str(newest / "model"))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    assert len(names) > 20
    return {name: reader.get_tensor(name) for name in names}


def assert_same(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def run(config: FeatureConfig, url: str, work_dir: Path, **options: Any) -> Progress:
    return train(config, url, work_dir, until_idle=True, **options)


def test_every_transition_is_learned_from_once(config, write, tmp_path: Path) -> None:
    url = write([*range(N), 7, 8, 9])
    progress = run(config, url, tmp_path / "work")
    assert (progress.ingested, progress.duplicates, progress.refused) == (N, 3, {})
    assert progress.updates == N // 64 * 8
    assert progress.explored == {"p1": 100, "p2": 100}
    again = run(config, url, tmp_path / "work")
    assert again == progress


def test_prometheus_sees_what_was_learned_from_and_what_came_of_it(config, write, tmp_path: Path) -> None:
    metrics = Metrics(TRAINER)
    progress = run(config, write([*range(N), 7]), tmp_path / "work", metrics=metrics)
    rounds = N // 64 * 64  # metrics are taken at the end of each
    assert metrics.total("transitions") == rounds
    assert metrics.total("updates") == progress.updates
    assert 0 < metrics.total("explored", policy="p1") <= progress.explored["p1"]
    assert metrics.total("learning", quantity="q_abs", policy="p2") > 0
    assert 0 < metrics.total("learning", quantity="action_mean", policy="p1", action="a") < 2
    assert metrics.total("checkpoint_timestamp_seconds") > 0


def test_neither_poll_sizes_nor_checkpoints_nor_candidates_reach_the_weights(
    config, make_config, write, tmp_path: Path
) -> None:
    url, taken = write(), []
    run(config, url, tmp_path / "a")
    often = make_config(OFTEN, replay=100, updates_per_transition=0.125)

    def take(training: Training, created_ms: int) -> None:
        taken.append(training.progress.ingested)

    run(often, url, tmp_path / "b", export=take, pace=Pace(poll=7, checkpoint_every=30))
    assert len(taken) > 30
    assert taken[-1] == N
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_clock_that_is_put_back_holds_up_no_candidate(make_config, write, tmp_path: Path) -> None:
    """The next one would come when the clock has caught up."""
    now_ms, taken = 10 * 86_400_000, []

    def clock() -> int:
        nonlocal now_ms
        now_ms += 10
        return now_ms

    def put_back(training: Training, created_ms: int) -> None:
        nonlocal now_ms
        if not taken:
            now_ms -= 86_400_000
        taken.append(training.progress.ingested)

    config = make_config({"publish": Publish(every=100, min_transitions=1)}, replay=100, updates_per_transition=0.125)
    run(config, write(), tmp_path / "a", export=put_back, pace=Pace(poll=7), clock_ms=clock)
    assert len(taken) > 3


def test_stopping_and_resuming_changes_nothing(config, make_config, write, tmp_path: Path) -> None:
    url = write()
    whole = run(config, url, tmp_path / "whole")
    often = make_config(OFTEN, replay=100, updates_per_transition=0.125)
    for stop_at in (50, 130, 200):  # within rounds
        stop = threading.Event()

        def halt(training: Training, _: int, stop: threading.Event = stop, stop_at: int = stop_at) -> None:
            if training.progress.ingested >= stop_at:
                stop.set()

        progress = run(often, url, tmp_path / "parts", export=halt, stop=stop, pace=Pace(poll=10))
        assert stop_at <= progress.ingested < stop_at + 20
    progress = run(config, url, tmp_path / "parts")
    assert (progress.ingested, progress.updates, progress.owed) == (whole.ingested, whole.updates, whole.owed)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_no_two_updates_draw_alike(config, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that began anew in each round would choose the same places of the replay for ever."""
    draws: list[bytes] = []
    draw = Replay.draw

    def spied(self: Replay, rng: np.random.Generator, n: int) -> np.ndarray:
        draws.append(copy.deepcopy(rng).bytes(16))
        return draw(self, rng, n)

    monkeypatch.setattr(Replay, "draw", spied)
    run(config, write(), tmp_path / "work")
    assert len(set(draws)) == len(draws) == 4


def test_other_transitions_give_other_weights(config, write, tmp_path: Path) -> None:
    """So that the comparisons above mean something."""
    run(config, write(), tmp_path / "a")
    run(config, write(range(1, N + 1), name="other"), tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any((a[name] != b[name]).any() for name in a)


def test_what_is_refused_becomes_a_dead_letter(config, write, make_transition, tmp_path: Path) -> None:
    wrong = encode(make_transition(1, id="wrong", discount=0.5))
    progress = run(config, write(range(70), extra=(b"{", wrong)), tmp_path / "work")
    assert progress.ingested == 70
    assert progress.refused == {"malformed": 1, "discount": 1}
    log = FileLog(tmp_path / "log")
    letters = [decode(r.payload, DeadLetter) for r in log.read(DEAD_LETTERS, 0, 0, 10)]
    assert [(x.reason, x.payload) for x in letters] == [("malformed", b"{"), ("discount", wrong)]
    partition, offset = letters[0].id.removeprefix("transitions/").split(":")
    assert log.read(TRANSITIONS, int(partition), int(offset), 1)[0].payload == b"{"


def test_dead_letters_are_in_the_log_before_a_checkpoint_is_past_them(
    config, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill in between would lose them."""
    url, written, write_checkpoint = write(range(5), extra=(b"{", b"[", b"}")), [], Checkpoints.write

    def spied(self: Checkpoints, number: int, module: tf.Module, state: bytes) -> Path:
        letters = FileLog(tmp_path / "log").read(DEAD_LETTERS, 0, 0, 10) if number > 5 else []
        written.append((sum(decode_saved(state, "").progress.refused.values()), len(letters)))
        return write_checkpoint(self, number, module, state)

    monkeypatch.setattr(Checkpoints, "write", spied)
    run(config, url, tmp_path / "work", pace=Pace(checkpoint_every=0))  # after each record
    assert written[5:] == [(1, 1), (2, 2), (3, 3), (3, 3)]  # the last is of the end


def test_no_candidate_is_ahead_of_what_survives_a_kill(make_config, write, tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []

    def take(training: Training, _: int) -> None:
        newest = Checkpoints(tmp_path / "work" / "checkpoints").newest()
        saved.append((training.progress.ingested, decode_saved(newest.state, "").progress.ingested))

    run(make_config(OFTEN), write(range(50)), tmp_path / "work", export=take, pace=Pace(poll=20))
    assert saved == [(20, 20), (40, 40), (50, 50)]


def test_a_page_served_as_it_came_is_counted_and_teaches_nothing(
    config, write, make_transition, tmp_path: Path
) -> None:
    """Its scores could not be fused, so its order is that of no action. That is no dead letter either."""
    pages: dict[str, int] = {}
    decision = Decision(DecidedBy.FALLBACK, "p1", "bucket", fallback_reason="scores")
    served = encode(make_transition(1, id="as received", decision=decision, reward=1e6))
    progress = run(
        config,
        write(range(70), extra=(served, served)),
        tmp_path / "work",
        export=lambda t, _: pages.update(t.progress.pages["p1"]),
    )
    assert (progress.ingested, progress.duplicates, progress.refused) == (70, 1, {"no_action": 1})
    assert pages == {"policy": 23, "fallback": 1}
    assert progress.reward_abs_max < 10
    assert not has_topic(FileLog(tmp_path / "log"), DEAD_LETTERS)


def test_metrics_have_a_line_per_round(config, write, tmp_path: Path) -> None:
    run(config, write(), tmp_path / "work")
    lines = [msgspec.json.decode(line) for line in (tmp_path / "work" / "metrics.jsonl").read_bytes().splitlines()]
    assert [line["transitions"] for line in lines] == [64, 128, 192, 256]
    assert [line["updates"] for line in lines] == [8, 16, 24, 32]
    assert lines[-1]["diverged"] == 0
    assert {"value_loss", "advantage_loss/p1", "q_abs/p2", "action_mean/p1/a"} <= lines[-1].keys()
    assert {"value_abs", "advantage_abs/p1", "advantage_abs/p2"} <= lines[-1].keys()


def test_values_beyond_what_rewards_add_up_to_raise_the_alarm(config, make_transition) -> None:
    training = Training(config, Encoder(config))
    alarms = []
    for i in range(192):
        if i == 128:
            training.progress.reward_abs_max = 1e-6  # as if the learned values had grown out of nothing
        transition = make_transition(i, **({"reward": 0.0} if i >= 128 else {}))
        training.ingest(Record(0, i, i, "k", encode(transition)))
        if i % 64 == 63:
            alarms.append(training.losses["diverged"])
    assert alarms == [0, 0, 1]


def test_actors_wait_until_their_policy_has_explored(make_config, write, tmp_path: Path) -> None:
    def final_actions(training: Training, _: int) -> None:
        state = {"dense": np.linspace(-2, 2, 50, dtype="f4")[:, None]}
        actions.append(training.learner.evaluate(state).action.numpy()[0])

    actions: list[np.ndarray] = []
    url = write()
    for after in (100, 80):  # each policy explored 100 pages in all, 85 of them by the end of the last round
        run(make_config(actor_after=after), url, tmp_path / str(after), export=final_actions)
    waiting, moving = actions
    np.testing.assert_array_equal(waiting, np.ones((2, 50, 1), "f4"))
    assert (moving != 1).any()


# The work directory ----------------------------------------------------------------------------------------------


def test_a_second_trainer_is_refused(config, write, tmp_path: Path) -> None:
    with exclusive(tmp_path / "work"), pytest.raises(BusyError, match=r"in use by another process \(\d+\)"):
        run(config, write(range(3)), tmp_path / "work")


def test_a_checkpoint_of_another_config_is_refused(config, make_config, write, tmp_path: Path) -> None:
    url = write(range(70))
    run(config, url, tmp_path / "work")
    with pytest.raises(CheckpointError, match=r'algorithm: expected .*"gamma":0\.7.*found .*"gamma":0\.5'):
        run(make_config(gamma=0.7, replay=100, updates_per_transition=0.125), url, tmp_path / "work")


def test_a_damaged_checkpoint_is_put_aside_with_a_warning(
    config, write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = write()
    run(config, url, tmp_path / "work", pace=Pace(checkpoint_every=100))
    expected = weights(tmp_path / "work")
    newest = max((tmp_path / "work" / "checkpoints").glob("0*"))
    data = newest / "model.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-8] + bytes(8))
    with caplog.at_level(logging.WARNING):
        progress = run(config, url, tmp_path / "work")
    assert "using the one before it" in caplog.text
    assert progress.ingested == N
    assert_same(weights(tmp_path / "work"), expected)


def test_a_log_that_forgot_is_survived_with_a_warning(
    config, make_transition, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 1)
    log.append(TRANSITIONS, [Entry("k", encode(make_transition(i)), i) for i in range(80)])
    url = f"file://{tmp_path / 'log'}"
    run(config, url, tmp_path / "work")
    log.append(TRANSITIONS, [Entry("k", encode(make_transition(i)), i) for i in range(80, 150)])
    read = FileLog.read
    monkeypatch.setattr(FileLog, "read", lambda self, t, p, offset, limit: read(self, t, p, max(offset, 30), limit))
    with caplog.at_level(logging.WARNING):
        progress = run(config, url, tmp_path / "work")
    assert "30 transitions of the replay are no longer in the log" in caplog.text
    assert progress.ingested == 150


def test_no_transitions_topic_is_an_error_of_a_bounded_run(config, tmp_path: Path) -> None:
    with pytest.raises(LogError):
        run(config, f"file://{tmp_path / 'nothing'}", tmp_path / "work")
