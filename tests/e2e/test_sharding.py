"""`pageturn stream --shards N`: processes that together do what one does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.events import simulated
from pageturn.__main__ import main
from pageturn.processes import pageturn
from pageturn.table import event_rows, render
from pipeline.config.reading import load_config
from pipeline.durable import holder
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, OUTPUTS, SAMPLES, has_topic
from pipeline.streaming.outputs import read_all
from pipeline.streaming.run import run_stream
from pipeline.streaming.shards import Shard

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "feature_configs" / "simulated.yaml"
PATIENCE_S = 300  # nothing rests on it
pytestmark = pytest.mark.timeout(1_800)  # processes one after another, each with Beam to load


def make_log(folder: Path) -> FileLog:
    log = FileLog(folder)
    log.create(EVENTS, 2)
    log.append(EVENTS, simulated(40))
    return log


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def stream() -> Iterator[Start]:
    """Starts `pageturn stream`; what a test leaves running ends with it: a shard does not outlive who started it."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, state: Path, *more: str) -> subprocess.Popen[str]:
        command = pageturn("stream", "--config", str(CONFIG), "--log", f"file://{folder}", "--state", str(state), *more)
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def payloads(log: FileLog) -> dict[str, list[bytes]]:
    return {topic: sorted(record.payload for record in read_all(log, topic)) for topic in OUTPUTS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list[bytes]]]:
    """What one process says and writes."""
    folder = tmp_path_factory.mktemp("alone")
    with closing(make_log(folder / "log")) as log:
        counts = run_stream(
            load_config(CONFIG), f"file://{folder}/log", folder / "state", until_idle=True, stop=threading.Event()
        )
        assert counts is not None
        return f"{render(event_rows(counts))}\n", payloads(log)


def test_two_shards_say_and_write_what_one_does(
    tmp_path: Path, stream: Start, alone: tuple[str, dict[str, list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGETURN_STREAM_SHARDS", "2")
    log, state = make_log(tmp_path / "log"), tmp_path / "state"
    said, complaints = stream(tmp_path / "log", state, "--until-idle").communicate(timeout=PATIENCE_S)
    assert "Traceback" not in complaints
    assert (said, payloads(log)) == alone
    assert [path.name for path in sorted(state.glob("shard*"))] == ["shard-0-of-2", "shard-1-of-2"]
    log.close()


def written(log: FileLog) -> int:
    return sum(end for topic in OUTPUTS if has_topic(log, topic) for end in log.end_offsets(topic).values())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_one_that_is_killed_ends_all_and_the_next_start_goes_on(
    tmp_path: Path, stream: Start, alone: tuple[str, dict[str, list[bytes]]]
) -> None:
    log, state = make_log(tmp_path / "log"), tmp_path / "state"
    child = stream(tmp_path / "log", state, "--shards", "2")
    wait_for(lambda: written(log) > 0 and holder(state / "shard-1-of-2") is not None)
    victim = holder(state / "shard-1-of-2")
    assert victim is not None  # no number at all would mean all processes of the test's own group
    os.kill(victim, signal.SIGKILL)
    said, complaints = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, said) == (1, "")
    assert "shard-1-of-2 ended with status -9" in complaints
    assert [holder(state / f"shard-{n}-of-2") for n in range(2)] == [None, None]

    again = stream(tmp_path / "log", state, "--until-idle", "--shards", "2")
    assert (again.communicate(timeout=PATIENCE_S)[0], payloads(log)) == alone
    log.close()


def test_another_number_of_them_is_refused(tmp_path: Path, stream: Start) -> None:
    log = make_log(tmp_path / "log")
    state = tmp_path / "state"
    (state / "shard-0-of-3").mkdir(parents=True)
    child = stream(tmp_path / "log", state, "--shards", "2")
    _, complaints = child.communicate(timeout=PATIENCE_S)
    log.close()
    assert child.returncode == 1
    assert "holds the state of a stream of 3 shards, not 2" in complaints
    assert not (state / "logs").exists()


def test_one_that_fails_ends_all(tmp_path: Path, stream: Start) -> None:
    log = make_log(tmp_path / "log")
    state = tmp_path / "state"
    (state / "shard-1-of-2").mkdir(parents=True)
    (state / "shard-1-of-2" / "stream.snapshot").write_bytes(b"pageturn stream snapshot 2\n")
    child = stream(tmp_path / "log", state, "--shards", "2")
    _, complaints = child.communicate(timeout=PATIENCE_S)
    log.close()
    assert child.returncode == 1
    assert "shard-1-of-2 ended with status 1" in complaints
    assert "is a snapshot of another format" in complaints
    assert "Traceback" not in complaints


def test_sigterm_ends_all_with_their_snapshots(tmp_path: Path, stream: Start) -> None:
    log = make_log(tmp_path / "log")
    state = tmp_path / "state"
    child, first = stream(tmp_path / "log", state, "--shards", "2"), Shard(0, 2)
    wait_for(
        lambda: has_topic(log, SAMPLES) and {first.owns_session(r.key) for r in read_all(log, SAMPLES)} == {True, False}
    )
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=PATIENCE_S)[0] == ""
    log.close()
    assert child.returncode == 0
    assert all((state / f"shard-{n}-of-2" / "snapshot").is_dir() for n in range(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "2/2"], "I from 0 to N - 1"),
        (["--shard", "one"], "I from 0 to N - 1"),
        (["--shards", "0"], "not in the range"),
        (["--shards", "2", "--shard", "0/2"], "not both"),
        (["--shards", "2", "--runner", "flink"], "Flink has --parallelism"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    given = ["--config", str(CONFIG), "--log", "file:///nowhere", "--state", "/nowhere", *arguments]
    done = CliRunner().invoke(main, ["stream", *given])
    assert (done.exit_code, message in done.output) == (2, True), done.output
