"""SIGTERM to each process of a deployment: it ends in order and in time, and the next start goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import pytest

from benchmarks.events import simulated
from pageturn.options import HEARTBEAT
from pageturn.processes import pageturn
from pipeline.config.reading import load_config
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, SAMPLES, TRANSITIONS
from pipeline.stores.opening import open_store
from pipeline.streaming.outputs import read_all
from pipeline.streaming.run import run_stream

CONFIG = Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml"
PATIENCE_S = 250
pytestmark = pytest.mark.timeout(900)  # several processes one after another, that load TensorFlow or Beam


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Events, and what the stream makes of them."""
    folder = tmp_path_factory.mktemp("log")
    with closing(FileLog(folder / "log")) as log:
        log.create(EVENTS, 2)
        log.append(EVENTS, simulated(40))
    url = f"file://{folder}/log"
    run_stream(load_config(CONFIG), url, folder / "state", until_idle=True, stop=threading.Event())
    return url


def count(url: str, *topics: str) -> int:
    with closing(FileLog(Path(url.removeprefix("file://")))) as log:
        return sum(len(list(read_all(log, topic))) for topic in topics)


@contextmanager
def at_work(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The process, once its loop turns."""
    heartbeat = folder / f"heartbeat-{words[0]}"
    env = {**os.environ, HEARTBEAT: str(heartbeat)}
    process = subprocess.Popen(pageturn(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not heartbeat.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """What it says at its end."""
    process.send_signal(signal.SIGTERM)
    said, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints
    return said


def run(*words: str) -> str:
    done = subprocess.run(pageturn(*words), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stream_goes_on_from_its_snapshot(log: str, tmp_path: Path) -> None:
    with closing(FileLog(tmp_path / "log")) as copy, closing(FileLog(Path(log.removeprefix("file://")))) as events:
        copy.create(EVENTS, 2)
        copy.append(EVENTS, simulated(40))
        assert copy.end_offsets(EVENTS) == events.end_offsets(EVENTS)
    here = f"file://{tmp_path}/log"
    words = ["stream", "--config", str(CONFIG), "--log", here, "--state", str(tmp_path / "state")]
    with at_work(tmp_path, *words) as process:
        ended(process)
    run(*words, "--until-idle")
    for topic in (SAMPLES, TRANSITIONS, EPISODES):
        assert payloads(here, topic) == payloads(log, topic)


def payloads(url: str, topic: str) -> list[bytes]:
    with closing(FileLog(Path(url.removeprefix("file://")))) as log:
        return sorted(record.payload for record in read_all(log, topic))


def test_the_archiver_writes_what_it_has_read(log: str, tmp_path: Path) -> None:
    words = ["archive", "--log", log, "--to", str(tmp_path / "archive")]
    with at_work(tmp_path, *words) as process:
        ended(process)
    run(*words, "--until-idle")
    [rows] = duckdb.sql(f"select count(*) from '{tmp_path}/archive/events/*/*/*.parquet'").fetchall()
    assert rows == (count(log, EVENTS),)


def test_the_trainer_goes_on_from_its_checkpoint(log: str, tmp_path: Path) -> None:
    words = ["train", "--config", str(CONFIG), "--log", log, "--store", f"sqlite://{tmp_path}/store.db"]
    words += ["--state", str(tmp_path / "state"), "--staging", str(tmp_path / "staging")]
    with at_work(tmp_path, *words) as process:
        ended(process)
    assert run(*words, "--until-idle").startswith(f"{count(log, TRANSITIONS)} transitions ")


def test_the_controller_leaves_its_lease_to_the_next(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store.db"
    words = ["control", "--config", str(CONFIG), "--store", url, "--server", "127.0.0.1:1"]
    words += ["--staging", str(tmp_path / "staging"), "--models", str(tmp_path / "models")]
    lease = f"{load_config(CONFIG).kv_prefix}:controller"
    with at_work(tmp_path, *words) as process, closing(open_store(url)) as store:
        assert store.acquire_lease(lease, "another", 1_000) is None
        assert ended(process).startswith("0 accepted")
        assert store.acquire_lease(lease, "another", 1_000) is not None


def test_the_monitor_ends(log: str, tmp_path: Path) -> None:
    with at_work(tmp_path, "monitor", "--log", log, "--metrics", "127.0.0.1:0") as process:
        assert ended(process).startswith("metrics on port ")


def test_baselines_can_be_left_to_the_controller(tmp_path: Path) -> None:
    words = ["bootstrap", "--config", str(CONFIG), "--staging", str(tmp_path / "staging")]
    learned = load_config(CONFIG).learned_policies()
    assert run(*words) == f"{tmp_path / 'staging'}: the baseline of {', '.join(learned)}\n"
    assert {path.name for path in (tmp_path / "staging").iterdir()} == set(learned)
    assert run(*words)  # harmless when they are there
    half = [*words, "--store", f"sqlite://{tmp_path}/store.db"]
    done = subprocess.run(pageturn(*half), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected --store and --models, to publish; or neither" in done.stderr
