"""The long run's traffic is steady and always new; what is seen of a stream from outside is what there is."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from benchmarks.rounds import Round, endless, produce, round_of
from benchmarks.soak import Interval, Trend, _trend
from benchmarks.watching import Fresh, delete_old, load
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, SAMPLES, Entry

START_MS = 1_800_000_000_000


class Ids(msgspec.Struct):
    session_id: str
    request_id: str
    time_ms: int
    event_id: str = ""


@pytest.fixture(scope="module")
def told() -> Round:
    return round_of(200.0, 2.0)


def spans(told: Round, count: int) -> list[list[tuple[int, Entry]]]:
    """What is told in each of the first spans of a round's length."""
    found: list[list[tuple[int, Entry]]] = [[] for _ in range(count)]
    for when_ms, entry in endless(told, START_MS):
        number = (when_ms - START_MS) // told.length_ms
        if number == count:
            return found
        found[number].append((when_ms, entry))
    return found


def readable(span: list[tuple[int, Entry]]) -> list[tuple[int, Ids]]:
    """Some are malformed on purpose."""
    found = []
    for when_ms, entry in span:
        try:
            found.append((when_ms, msgspec.json.decode(entry.payload, type=Ids)))
        except msgspec.DecodeError:
            continue
    return found


def test_once_the_first_visits_are_over_every_round_tells_as_much(told: Round) -> None:
    steady = 1 + max(event.earlier for event in told.events)
    sizes = [len(span) for span in spans(told, steady + 3)]
    assert sizes[steady:] == [len(told.events)] * 3
    assert sizes[0] < len(told.events)
    assert abs(len(told.events) / told.length_ms * 1_000 - 200) < 40


def test_events_come_by_time_and_soon_after_they_happened(told: Round) -> None:
    flat = [each for span in spans(told, 4) for each in readable(span)]
    assert [when_ms for when_ms, _ in flat] == sorted(when_ms for when_ms, _ in flat)
    lags = sorted(when_ms - ids.time_ms for when_ms, ids in flat)
    assert lags[0] >= 0
    assert lags[len(lags) // 2] < 100


def test_each_round_has_ids_of_its_own_and_they_belong_together(told: Round) -> None:
    flat = [ids for span in spans(told, 4) for _, ids in readable(span)]
    assert {ids.session_id.split("-")[0] for ids in flat} == {"r0", "r1", "r2", "r3"}
    assert all(ids.request_id.startswith(f"{ids.session_id}-") for ids in flat)
    assert all(ids.event_id.startswith(f"{ids.request_id}-") for ids in flat if ids.event_id)
    sent = Counter((ids.request_id, ids.event_id) for ids in flat)
    assert max(sent.values()) <= 2  # those that arrive twice
    keys = {entry.key for span in spans(told, 4) for _, entry in span}
    assert keys >= {ids.session_id for ids in flat}


def test_events_are_appended_as_their_times_come(told: Round, tmp_path: Path) -> None:
    stop, before_ms = threading.Event(), time.time_ns() // 1_000_000

    class Watched(FileLog):
        def append(self, topic: str, entries: list[Entry]) -> None:
            super().append(topic, entries)
            if self.end_offset(EVENTS, 0) > 30:
                stop.set()

    with closing(Watched(tmp_path)) as log:
        log.create(EVENTS, 1)
        produce(log, told, stop)
        records = log.read(EVENTS, 0, 0, 10**6)
    due = [when_ms - START_MS for when_ms, _ in itertools.islice(endless(told, START_MS), len(records))]
    assert all(record.appended_at_ms >= before_ms + after for record, after in zip(records, due, strict=True))


def test_freshness_is_from_when_a_page_could_be_decided(tmp_path: Path) -> None:
    with closing(FileLog(tmp_path)) as log:
        log.create(SAMPLES, 2)
        fresh = Fresh(log, lateness_ms=100)
        log.append(SAMPLES, [Entry(key, b'{"closed_ms": 1000}', 1_000 + lag) for key, lag in (("a", 150), ("b", 400))])
        assert sorted(fresh.lags_ms()) == [50, 300]
        log.append(SAMPLES, [Entry("a", b'{"closed_ms": 2000}', 2_107)])
        assert list(fresh.lags_ms()) == [7]
        assert list(fresh.lags_ms()) == []


def test_old_segments_are_deleted_but_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "events" / "partition-0000"
    folder.mkdir(parents=True)
    for number, age_s in enumerate((300, 200, 10, 400)):
        path = folder / f"{number:020d}.jsonl"
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    delete_old(tmp_path, 100.0)
    assert [path.name[-7:] for path in sorted(folder.iterdir())] == ["2.jsonl", "3.jsonl"]


def test_load_is_of_all_processes() -> None:
    one, two = load([os.getpid()]), load([os.getpid(), os.getpid()])
    assert one.rss_mb > 10
    assert two.rss_mb > 1.5 * one.rss_mb
    assert one.cpu_s > 0
    assert one.starved_s > 0


def test_the_trend_leaves_out_the_first_minutes_and_intervals_without_a_page() -> None:
    def interval(at_s: float, mb: float, ms: float | None) -> Interval:
        return Interval(at_s, 1, mb, 0.1, 0.0, 1, ms, ms and 2 * ms)

    early = [interval(at, 1.0, 1_000.0) for at in (100.0, 300.0)]
    late = [interval(310.0 + n, 100.0 + n, None if n == 6 else 10.0 * n) for n in range(8)]
    assert _trend(early) is None
    assert _trend([*early, *late]) == Trend((100.5, 106.5), (5.0, 70.0), (10.0, 140.0))
