"""A loop on one machine as its user handles it: up, users, status, down, up again; and nothing is left running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageturn.run import open_run
from pageturn.supervisor import PartEvent, read_journal
from pageturn.traffic_log import read_drives, read_visits

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "feature_configs" / "simulated.yaml"
PARTS = {"stream", "trainer", "model-server", "agent", "controller"}
ROWS = ("events in", "joined", "lost", "missing", "pages", "updates", "versions of rl_a", "versions of rl_b")
PATIENCE_S = 300.0  # nothing rests on it
pytestmark = pytest.mark.timeout(1_800)  # each of these starts a loop, or several commands


def pageturn(*words: str) -> str:
    """What it says."""
    done = subprocess.run(
        [sys.executable, "-m", "pageturn", *words], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(folder: Path) -> list[PartEvent]:
    """Of every part its newest start."""
    newest = {event.part: event for event in read_journal(folder / "logs" / "parts.jsonl") if event.event == "started"}
    return list(newest.values())


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def await_gone(folder: Path, parts: list[PartEvent]) -> None:
    """A part that is there for too long says where it stands, in its log."""
    deadline = time.monotonic() + PATIENCE_S
    while left := [part for part in parts if alive(part.pid)]:
        if time.monotonic() > deadline:
            for part in left:
                os.kill(part.pid, signal.SIGUSR1)
            time.sleep(1)
            pytest.fail("\n".join((folder / "logs" / f"{part.part}.log").read_text()[-4000:] for part in left))
        time.sleep(0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that is up, on SQLite."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    said = pageturn("up", "-d", "--run", str(folder), "--config", str(CONFIG), "--store", "sqlite")
    assert said.startswith(f"up: {folder}; deciding pages on 127.0.0.1:")
    yield folder
    pageturn("down", "--run", str(folder))


def test_a_run_that_is_up_takes_users_and_says_how_it_is(folder: Path) -> None:
    said = pageturn("simulate", "--run", str(folder), "--visits", "40")
    assert said.startswith("40 visits, ")
    status = pageturn("status", "--run", str(folder))
    assert {event.part for event in started(folder)} == PARTS
    for event in started(folder):
        assert re.search(rf"^ *{event.part} +pid {event.pid} +started 1 times", status, re.MULTILINE), status
    assert "rl_a (simulated_rl_a)" in status
    assert "serves           version 1" in status


def test_a_run_cannot_be_up_twice(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pageturn", "up", "--run", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{folder} is in use by another process ({open_run(folder).holder})" in done.stderr


def test_a_run_keeps_what_it_began_with(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pageturn", "up", "--run", str(folder), "--seed", "9"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is a run already, and goes on with its own config, seed and store" in done.stderr


def test_a_run_goes_on_where_it_was_stopped(folder: Path) -> None:
    pids = [event.pid for event in started(folder)]
    assert pageturn("down", "--run", str(folder)) == f"{folder}: down\n"
    assert not any(alive(pid) for pid in pids)
    assert pageturn("down", "--run", str(folder)) == f"{folder}: is not up\n"
    ends = [event for event in read_journal(folder / "logs" / "parts.jsonl") if event.event == "ended"]
    assert [event.status for event in ends] == [0] * len(PARTS)
    pageturn("up", "-d", "--run", str(folder))
    assert pageturn("simulate", "--run", str(folder), "--visits", "20").startswith("20 visits, ")
    assert len(list(read_visits(folder / "traffic"))) == 60


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the kernel is told by setpriv, which is of Linux")
def test_the_parts_do_not_outlive_their_supervisor(folder: Path) -> None:
    pid = open_run(folder).holder
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await_gone(folder, started(folder))
    assert "down" in pageturn("status", "--run", str(folder))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="as above")
def test_after_that_a_run_goes_on(folder: Path) -> None:
    pageturn("up", "-d", "--run", str(folder))
    assert pageturn("simulate", "--run", str(folder), "--visits", "20").startswith("20 visits, ")
    visits = [(visit.outcome.user_id, visit.outcome.visit) for visit in read_visits(folder / "traffic")]
    assert len(set(visits)) == len(visits) == 80


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_a_demo_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    words = ["demo", "--no-replay", "--store", "sqlite", "--run", str(tmp_path / "run"), "--config", str(CONFIG)]
    with (tmp_path / "output").open("wb") as output:
        demo = subprocess.Popen([sys.executable, "-um", "pageturn", *words], stdout=output, stderr=output)
    deadline = time.monotonic() + PATIENCE_S
    while len(started(tmp_path / "run")) < len(PARTS) + 1:  # users, too
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.1)
    pids = [event.pid for event in started(tmp_path / "run")]
    demo.send_signal(number)
    assert demo.wait(PATIENCE_S) == 1
    assert f"`pageturn report --run {tmp_path / 'run'}` reports on what there is" in (tmp_path / "output").read_text()
    assert not any(alive(pid) for pid in pids)


def test_a_demo_ends_with_a_table_and_a_report(tmp_path: Path) -> None:
    words = ["--no-replay", "--store", "sqlite", "--minutes", "1", "--visits-per-s", "20", "--seed", "2"]
    said = pageturn("demo", *words, "--run", str(tmp_path / "run"), "--config", str(CONFIG))
    cells = {row: re.search(rf"^ *{re.escape(row)}  +(\S+)", said, re.MULTILINE) for row in ROWS}
    assert all(cells.values()), said
    numbers = {row: int(cell[1]) for row, cell in cells.items() if cell}
    assert (numbers["lost"], numbers["missing"]) == (0, 0)
    assert numbers["joined"] > numbers["pages"] > 300
    assert numbers["updates"] > 0
    assert min(numbers["versions of rl_a"], numbers["versions of rl_b"]) >= 1
    assert re.search(r"^ *sessions without an end, not counted +0 +0 +0 *$", said, re.MULTILINE), said
    assert [drive.unfinished for drive in read_drives(tmp_path / "run" / "traffic")] == [0]
    assert said.endswith(f"Report: {tmp_path / 'run' / 'report' / 'index.html'}\n")
    assert (tmp_path / "run" / "report" / "index.html").stat().st_size > 10_000
    assert open_run(tmp_path / "run").holder is None
