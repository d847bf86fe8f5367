"""The back-fill's command, over a log that a live stream has read and an archiver has kept."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pageturn.__main__ import main
from pipeline.events import encode
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, OUTPUTS, SAMPLES, TRANSITIONS, Entry
from pipeline.records import DecidedBy, Decision, Impression, Item, State
from pipeline.streaming.outputs import read_all

CONFIG = Path(__file__).resolve().parents[2] / "feature_configs" / "ebnerd.yaml"
NOON_MS = 1_700_049_600_000  # 2023-11-15 12:00 UTC
MINUTE_MS = 60_000


@pytest.fixture(autouse=True)
def _the_signals_of_pytest() -> Iterator[None]:
    """Commands take SIGTERM and Ctrl-C for themselves."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(place: Path, line: str) -> Result:
    return CliRunner().invoke(main, [word.replace("@", str(place)) for word in line.split()])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two days of a visit an hour, each of six pages, ten minutes apart."""
    log = FileLog(tmp_path / "log")
    log.create(EVENTS, 2)
    decision = Decision(DecidedBy.BASELINE, "base", "control")
    for page in range(-24 * 6, 24 * 6):
        time_ms, visit = NOON_MS + page * 10 * MINUTE_MS, page // 6
        shown = Impression(1, f"r{page}", "u", f"s{visit}", time_ms, page % 6, (Item("i"),), State(), decision)
        log.append(EVENTS, [Entry(f"s{visit}", encode(shown), time_ms)])
    return tmp_path


def payloads(log: FileLog, topic: str) -> set[bytes]:
    return {record.payload for record in read_all(log, topic)}


@pytest.mark.parametrize("source", ["--log file://@/log", "--archive @/archive"])
def test_a_range_is_filled_from_the_log_or_the_archive(place: Path, source: str) -> None:
    live = run(place, f"stream --config {CONFIG} --log file://@/log --state @/state --until-idle")
    assert live.exit_code == 0, live.output
    assert run(place, "archive --log file://@/log --to @/archive --until-idle").exit_code == 0
    times = "--from 2023-11-15T12:30 --to 2023-11-15T15:30:00+01:00"
    done = run(place, f"stream --config {CONFIG} {source} {times} --output file://@/out")
    assert done.exit_code == 0, done.output
    assert re.findall(r"^(\w+) +(\d+)$", done.output, re.MULTILINE)[:3] == [
        (SAMPLES, "12"), (TRANSITIONS, "12"), (EPISODES, "2"),
    ]  # fmt: skip
    assert "not final" not in done.output
    out, whole = FileLog(place / "out"), FileLog(place / "log")
    requests = {f'"request_id":"r{page}"'.encode() for page in range(3, 15)}
    expected = {payload for payload in payloads(whole, TRANSITIONS) if any(name in payload for name in requests)}
    assert payloads(out, TRANSITIONS) == expected
    assert all(payloads(out, topic) <= payloads(whole, topic) for topic in OUTPUTS)


def test_a_range_that_goes_on_is_said_not_to_be_final(place: Path) -> None:
    run(place, f"stream --config {CONFIG} --log file://@/log --state @/state --until-idle")
    run(place, "archive --log file://@/log --to @/archive --until-idle")
    line = f"stream --config {CONFIG} --archive @/archive --from 2023-11-16 --to 2024-01-01 --output file://@/out"
    done = run(place, line)
    assert (done.exit_code, "The range is not final yet" in done.output) == (0, True)
    closed = run(place, f"{line} --closed")
    assert (closed.exit_code, "not final" in closed.output) == (0, False)


GOOD = f"stream --config {CONFIG} --output file://@/out --from 2023-11-15 --to 2023-11-16"
MISTAKES = {
    "no range": (f"stream --config {CONFIG} --log file://@/log --from 2023-11-15", "takes --from, --to and --output"),
    "no source": (GOOD, "reads from --log or from --archive"),
    "two sources": (f"{GOOD} --log file://@/log --archive @/archive", "reads from --log or from --archive"),
    "a closed log": (f"{GOOD} --log file://@/log --closed", "--closed says something about --archive"),
    "a state": (f"{GOOD} --log file://@/log --state @/state", "leave out --state and --until-idle"),
    "a range that ends before it begins": (f"{GOOD} --log file://@/log --to 2023-11-14", "--from to be before --to"),
    "no time": (f"{GOOD} --to yesterday", r"a time such as 2026-11-22, .* found 'yesterday'"),
    "no archive": (f"{GOOD} --archive @/none", r"none/events: expected the events that `pageturn archive` keeps"),
    "among the events": (GOOD.replace("/out", "/log") + " --log file://@/log", "a log of their own"),
    "nothing at all": (f"stream --config {CONFIG}", "expected --log and --state; or, for a range of the past"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(place: Path, mistake: str) -> None:
    line, message = MISTAKES[mistake]
    result = run(place, line)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert re.search(message, re.sub(r"\s+", " ", result.output)), result.output
