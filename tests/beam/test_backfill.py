"""A back-fill of a range is what the live stream put out for it, byte for byte, and reads no more than it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, LATE, OUTPUTS, SAMPLES, TRANSITIONS, Entry, LogError
from pipeline.records import FeedbackKind
from pipeline.streaming.archiver import Limits as ArchiveLimits
from pipeline.streaming.archiver import archive
from pipeline.streaming.backfill import BackFill, backfill
from pipeline.streaming.bounded import ArchiveInput, Input, LogInput
from pipeline.streaming.embedded import Limits
from pipeline.streaming.reach import Range
from pipeline.streaming.run import run_stream

START_MS = 1_700_000_000_000
PARTITIONS = 3
Outputs = Callable[[FileLog], dict[str, list[bytes]]]


def short(config: FeatureConfig, **stream: object) -> FeatureConfig:
    """Such that a range needs a small part of the log, episodes are cut, and sessions overflow."""
    settings = {"session_gap": 6_000, "max_pages": 3, "remember_closed": 2_000, "max_ahead": 1_000}
    settings |= {"max_session_events": 9, **stream}
    return msgspec.structs.replace(config, stream=msgspec.structs.replace(config.stream, **settings))


class Live:
    """A log that a live stream has read to its end."""

    def __init__(self, folder: Path, config: FeatureConfig, entries: list[Entry]) -> None:
        self.config, self.folder, self.entries = config, folder, entries
        self.url = f"file://{folder}/log"
        self.log = FileLog(folder / "log")
        self.log.create(EVENTS, PARTITIONS)
        self.log.append(EVENTS, entries)
        run_stream(config, self.url, folder / "state", until_idle=True, partitions=2, stop=threading.Event())

    def input(self) -> LogInput:
        return LogInput(self.log, lambda: 2 * START_MS, self.config.stream.clock_skew)

    def fill(self, name: str, pages: Range, source: Input | None = None) -> tuple[FileLog, BackFill]:
        out = FileLog(self.folder / name)
        done = backfill(self.config, source or self.input(), out, pages, stop=threading.Event(), limits=SMALL)
        assert done is not None
        return out, done


SMALL = Limits(records_per_bundle=100, timers_per_bundle=100, idle_wait_s=0)


@pytest.fixture
def live(tmp_path: Path, config: FeatureConfig, traffic: Callable[..., list[Entry]]) -> Live:
    return Live(tmp_path, short(config), traffic(11, 400))


def filed(topic: str, payload: bytes) -> int:
    record = msgspec.json.decode(payload)
    match topic:
        case "samples":
            return record["impression"]["time_ms"]
        case "transitions":
            return record["time_ms"]
        case "episodes":
            return min(step["time_ms"] for step in record["steps"][:1])
    return record["appended_at_ms"]


def within(outputs: dict[str, list[bytes]], pages: Range) -> dict[str, list[bytes]]:
    return {t: [p for p in outputs[t] if pages.from_ms <= filed(t, p) < pages.to_ms] for t in OUTPUTS}


def straddling(outputs: dict[str, list[bytes]], at_ms: int) -> int:
    """Episodes that are under way at a time."""
    steps = [msgspec.json.decode(payload)["steps"] for payload in outputs[EPISODES]]
    return sum(each[0]["time_ms"] < at_ms <= each[-1]["time_ms"] for each in steps)


RANGES = [Range(START_MS + 40_000 + 7_000 * i, START_MS + 43_000 + 9_000 * i) for i in range(4)]


def test_ranges_of_a_log_are_what_the_live_stream_made_of_them(live: Live, outputs: Outputs) -> None:
    whole = outputs(live.log)
    for number, pages in enumerate(RANGES):
        out, done = live.fill(f"out{number}", pages)
        expected = within(whole, pages)
        assert outputs(out) == expected
        assert done.decided
        assert done.outputs == {topic: len(made) for topic, made in expected.items() if made}
        assert done.read < 0.75 * len(live.entries)
        assert min(straddling(whole, pages.from_ms), straddling(whole, pages.to_ms)) > 10
        assert all(expected[topic] for topic in (SAMPLES, TRANSITIONS, EPISODES, LATE))


def test_ranges_side_by_side_give_each_output_once(live: Live, outputs: Outputs) -> None:
    whole = outputs(live.log)
    times = sorted(filed(EPISODES, payload) for payload in whole[EPISODES])  # ranges begin and end exactly at pages
    one, other = times[len(times) // 3], times[2 * len(times) // 3]
    edges = [START_MS - 10_000, one, one + 1, other, START_MS + 10**9]
    parts = [outputs(live.fill(f"out{low}", Range(low, high))[0]) for low, high in pairwise(edges)]
    assert {topic: sorted(p for part in parts for p in part[topic]) for topic in OUTPUTS} == whole


def test_the_archive_gives_the_same(live: Live, outputs: Outputs) -> None:
    limits = ArchiveLimits(records_per_read=70, commit_bytes=200_000)  # many files
    archive(live.url, live.folder / "archive", until_idle=True, stop=threading.Event(), limits=limits)
    source = ArchiveInput(live.folder / "archive", closed=False)
    out, done = live.fill("out", RANGES[1], source)
    from_log, by_log = live.fill("log-out", RANGES[1])
    assert outputs(out) == outputs(from_log) == within(outputs(live.log), RANGES[1])
    assert done == by_log


def test_an_archive_decides_no_more_than_it_knows_unless_it_is_closed(live: Live, outputs: Outputs) -> None:
    archive(live.url, live.folder / "archive", until_idle=True, stop=threading.Event())
    rest, whole = Range(START_MS + 70_000, START_MS + 10**9), outputs(live.log)
    out, done = live.fill("open", rest, ArchiveInput(live.folder / "archive", closed=False))
    assert not done.decided
    made = outputs(out)
    assert all(set(made[topic]) <= set(within(whole, rest)[topic]) for topic in OUTPUTS)
    assert made != within(whole, rest)
    out, done = live.fill("closed", rest, ArchiveInput(live.folder / "archive", closed=True))
    assert done.decided
    assert outputs(out) == within(whole, rest)


def test_a_log_decides_no_more_than_the_live_stream_did(live: Live, outputs: Outputs) -> None:
    """By the clock: a session that goes on is not declared ended."""
    now_ms = max(entry.appended_at_ms or 0 for entry in live.entries[: len(live.entries) // 2])
    log = FileLog(live.folder / "half")
    log.create(EVENTS, PARTITIONS)
    log.append(EVENTS, [entry for entry in live.entries if (entry.appended_at_ms or 0) <= now_ms])
    source = LogInput(log, lambda: now_ms, live.config.stream.clock_skew)
    everything = Range(0, START_MS + 10**9)
    out, done = live.fill("out", everything, source)
    assert not done.decided
    whole, made = outputs(live.log), outputs(out)
    assert all(set(made[topic]) <= set(whole[topic]) for topic in OUTPUTS)
    assert len(made[TRANSITIONS]) > 100


def test_a_visit_from_long_before_is_read_from_its_beginning(
    tmp_path: Path, config: FeatureConfig, make: SimpleNamespace, outputs: Outputs
) -> None:
    """Where its episodes are cut depends on its first page; a page before that, and other users, do not matter."""
    times = [START_MS, *range(START_MS + 100_000, START_MS + 500_000, 5_000)]
    pages = [make.impression("long", number, time_ms) for number, time_ms in enumerate(times)]
    others = [make.impression(f"other{t}", 0, START_MS + t) for t in range(0, 600_000, 1_000)]
    entries = sorted((event.time_ms + 5, encode(event)) for event in [*pages, *others])
    live = Live(tmp_path, short(config), [Entry("a", payload, stamp) for stamp, payload in entries])
    for name, low in (("out", 401_000), ("next", 406_000), ("last", 411_000)):
        pages_ms = Range(START_MS + low, START_MS + low + 30_000)
        out, done = live.fill(name, pages_ms)
        assert outputs(out) == within(outputs(live.log), pages_ms)
        assert START_MS < done.stamps.from_ms < START_MS + 100_000


def test_a_request_that_was_closed_before_the_range_still_owns_its_id(
    tmp_path: Path, config: FeatureConfig, make: SimpleNamespace, outputs: Outputs
) -> None:
    config = short(config, remember_closed=30_000)
    first, again = make.impression("s", 0, START_MS), make.impression("s", 0, START_MS + 33_000)
    click = make.feedback("c", "s", 0, START_MS + 33_500, FeedbackKind.CLICK, "i1")
    entries = [Entry("a", encode(event), event.time_ms) for event in (first, again, click)]
    live = Live(tmp_path, config, entries)
    pages = Range(START_MS + 33_000, START_MS + 40_000)
    out, _ = live.fill("out", pages)
    made = outputs(out)
    assert made == within(outputs(live.log), pages)
    assert not made[SAMPLES]
    assert len(made["duplicates"]) == len(made[LATE]) == 1


class StopAfter(threading.Event):
    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def is_set(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self.set()
        return super().is_set()


def test_stopped_and_run_again_it_writes_nothing_twice(live: Live, outputs: Outputs) -> None:
    out, partly, questions = FileLog(live.folder / "out"), 0, 20
    while not partly:
        stop = StopAfter(questions)
        assert backfill(live.config, live.input(), out, RANGES[2], stop=stop, limits=SMALL) is None
        partly, questions = sum(map(len, outputs(out).values())), questions + 15
    out, _ = live.fill("out", RANGES[2])
    assert outputs(out) == within(outputs(live.log), RANGES[2])
    assert 0 < partly < sum(map(len, outputs(out).values()))


def test_the_outputs_do_not_go_among_those_of_a_live_stream(live: Live) -> None:
    with pytest.raises(LogError, match="a log of their own"):
        backfill(live.config, live.input(), live.log, RANGES[0], stop=threading.Event())
