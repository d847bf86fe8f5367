"""The archiver writes each record exactly once, wherever it is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import msgspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.durable import BusyError, StorageError, exclusive
from pipeline.events import encode
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, SAMPLES, TRANSITIONS, Entry, LogError
from pipeline.records import (
    Action,
    DecidedBy,
    Decision,
    Ending,
    Episode,
    Impression,
    Item,
    Labels,
    Page,
    State,
    Step,
    Transition,
)
from pipeline.streaming.archiver import Limits, archive
from pipeline.streaming.tables import TABLES
from tests.unit.killed_archiver import LIMITS

HOUR_MS = 3_600_000
T0 = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC

DECISION = Decision(DecidedBy.POLICY, "rl", "b1", (Action("a", 1.25),), model_version=7)
STATE = State(user={"age": 30, "likes": ("x", "y")}, context={"hour": 8})
TRANSITION = Transition("r1@v", "r1", "u", "s", T0, 0, STATE, DECISION, 0.5, "v", 0.0, None, Ending.LEAVE)
STEPS = tuple(Step(f"r{i}", T0 + i * HOUR_MS, i, STATE, DECISION, float(i)) for i in range(3))
EPISODE = Episode("r0@v", "u", "s", STEPS, "v", Ending.LEAVE, 0.0)


def page(number: int, time_ms: int) -> Page:
    items = (Item("i1", 0.1, 0.2, {"tag": "new"}), Item("i2"))
    impression = Impression(1, f"r{number}", "u", "s", time_ms, number, items, STATE, DECISION)
    return Page(impression, (Labels(clicks=1, orders=1, order_value=9.5), Labels()), (), time_ms + 1000)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A log of two partitions with a bit of everything, over three hours."""
    log = FileLog(tmp_path / "log")
    for topic in (EVENTS, SAMPLES, TRANSITIONS, EPISODES):
        log.create(topic, 2)
    log.append(EVENTS, [Entry(f"k{i}", b"\x00 event %d" % i, T0 + i * HOUR_MS // 8) for i in range(24)])
    log.append(SAMPLES, [Entry(f"k{i}", encode(page(i, T0 + i * HOUR_MS))) for i in range(3)])
    log.append(TRANSITIONS, [Entry("s", encode(TRANSITION))])
    log.append(EPISODES, [Entry("s", encode(EPISODE))])
    log.close()
    return f"file://{tmp_path}/log"


def run(url: str, directory: Path, **options: object) -> int:
    return archive(url, directory, until_idle=True, stop=threading.Event(), **options)


def table(directory: Path, topic: str) -> pd.DataFrame:
    return pd.read_parquet(directory / topic)


def test_raw_events_keep_bytes_and_stamps(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    events = table(tmp_path / "a", EVENTS).sort_values("appended_at_ms")
    assert events.payload.tolist() == [b"\x00 event %d" % i for i in range(24)]
    assert events.appended_at_ms.tolist() == [T0 + i * HOUR_MS // 8 for i in range(24)]
    assert sorted(set(zip(events.partition, events.offset, strict=True))) == sorted(
        zip(events.partition, events.offset, strict=True)
    )


def test_files_are_named_by_hour_partition_and_offsets(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    names = {str(p.relative_to(tmp_path / "a" / EPISODES)) for p in (tmp_path / "a" / EPISODES).rglob("*.parquet")}
    (name,) = names
    assert name.startswith("date=2023-11-14/hour=22/p000")
    assert name.endswith(f"-{0:020d}-{0:020d}.parquet")
    hours = {p.parent.name for p in (tmp_path / "a" / EVENTS).rglob("*.parquet")}
    assert hours == {"hour=22", "hour=23", "hour=00", "hour=01"}


def test_a_page_is_one_row_per_item_in_duckdb(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    query = f"""
        select item_id, sum(clicks), max(order_value), any_value(state_user->>'age'), any_value(action->>'a'),
               count(*), min(hour)
        from read_parquet('{tmp_path}/a/samples/**/*.parquet', hive_partitioning = true)
        group by item_id order by item_id"""
    assert duckdb.sql(query).fetchall() == [
        ("i1", 3, 9.5, "30", "1.25", 3, "00"),
        ("i2", 0, 0.0, "30", "1.25", 3, "00"),
    ]


def test_an_episode_is_one_row_per_step_in_pandas(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    steps = table(tmp_path / "a", EPISODES).sort_values("step")
    assert steps.reward.tolist() == [0.0, 1.0, 2.0]
    assert steps.request_id.tolist() == ["r0", "r1", "r2"]
    assert set(steps.ending) == {"leave"}
    assert str(steps.time.iloc[0]) == "2023-11-14 22:13:20+00:00"
    (transition,) = table(tmp_path / "a", TRANSITIONS).to_dict("records")
    assert (transition["id"], transition["discount"], transition["ending"]) == ("r1@v", 0.0, "leave")


def test_it_goes_on_where_it_was(url: str, tmp_path: Path) -> None:
    assert run(url, tmp_path / "a") == 29
    assert run(url, tmp_path / "a") == 0
    FileLog(tmp_path / "log").append(SAMPLES, [Entry("k", encode(page(9, T0)))])
    assert run(url, tmp_path / "a") == 1
    assert table(tmp_path / "a", SAMPLES).request_id.nunique() == 4


def test_small_commits_give_the_same_rows(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    run(url, tmp_path / "b", limits=Limits(records_per_read=2, commit_bytes=1))
    for topic in (EVENTS, SAMPLES, TRANSITIONS, EPISODES):
        assert rows(tmp_path / "a", topic) == rows(tmp_path / "b", topic)


def test_rows_are_written_as_they_come_and_committed_once(url: str, tmp_path: Path) -> None:
    """Files are as large as a commit, memory is not."""
    run(url, tmp_path / "a")
    run(url, tmp_path / "b", limits=Limits(records_per_read=2, buffer_bytes=20))
    files = {str(p.relative_to(tmp_path / "b")): p for p in (tmp_path / "b").rglob("*.parquet")}
    assert set(files) == {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.parquet")}
    assert max(pq.ParquetFile(path).num_row_groups for path in files.values()) > 3
    for topic in (EVENTS, SAMPLES, TRANSITIONS, EPISODES):
        assert rows(tmp_path / "a", topic) == rows(tmp_path / "b", topic)


def test_a_commit_has_so_many_files(url: str, tmp_path: Path) -> None:
    limits = Limits(records_per_read=1, commit_files=5)
    run(url, tmp_path / "a")
    run(url, tmp_path / "b", limits=limits)
    last = msgspec.json.decode((tmp_path / "b" / ".commit.json").read_bytes())
    assert last["number"] > 1
    assert len(last["files"]) < 5 + len(TABLES) * 2  # one round over the partitions may add some
    assert rows(tmp_path / "a", EVENTS) == rows(tmp_path / "b", EVENTS)


def test_by_default_an_hour_is_a_few_files(url: str) -> None:
    """Large enough for a reader: at 1 kB and 1,000 events/s a file of every partition holds some minutes."""
    assert Limits().commit_after_s >= 300
    assert Limits().commit_bytes >= 16 * Limits().buffer_bytes


def test_a_damaged_output_record_is_kept_as_it_is(url: str, tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.append(SAMPLES, [Entry("k", b"no page")])
    log.append(TRANSITIONS, [Entry("k", b"no transition")])
    run(url, tmp_path / "a")
    damaged = table(tmp_path / "a", "unreadable")
    assert dict(zip(damaged.topic, damaged.payload, strict=True)) == {
        SAMPLES: b"no page",
        TRANSITIONS: b"no transition",
    }


def test_a_stamp_out_of_any_calendar_is_kept(url: str, tmp_path: Path) -> None:
    FileLog(tmp_path / "log").append(EVENTS, [Entry("k", b"far", 2**60)])
    run(url, tmp_path / "a")
    events = table(tmp_path / "a", EVENTS)
    assert events[events.appended_at_ms == 2**60].payload.tolist() == [b"far"]


def test_files_are_not_seen_before_their_commit(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    assert not any((tmp_path / "a" / ".staging").glob("*"))
    for file in (tmp_path / "a").rglob("*.parquet"):
        pq.read_metadata(file)


# Killed at each step -----------------------------------------------------------------------------------------------


def rows(directory: Path, topic: str) -> list[str]:
    return sorted(map(str, table(directory, topic).astype(str).to_dict("records")))


@pytest.mark.timeout(900)  # a hundred short processes
def test_killed_at_any_step_it_archives_each_record_once(tmp_path: Path) -> None:
    log, url = FileLog(tmp_path / "log"), f"file://{tmp_path}/log"
    log.create(EVENTS, 2)
    log.append(EVENTS, [Entry(f"k{i}", b"event %d" % i, T0 + i * HOUR_MS // 6) for i in range(12)])
    log.close()
    run(url, tmp_path / "whole", topics=[EVENTS], limits=LIMITS)
    command = [sys.executable, Path(__file__).with_name("killed_archiver.py"), url, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert (done.returncode, done.stderr) == (0, "")
    steps, lives = map(int, done.stdout.split())
    assert steps > 20
    assert lives > 3
    expected = rows(tmp_path / "whole", EVENTS)
    assert len(expected) == 12
    for name in [*map(str, range(1, steps + 2)), "again"]:
        assert rows(tmp_path / name, EVENTS) == expected, name
        assert not any((tmp_path / name / ".staging").glob("*"))


# Errors ------------------------------------------------------------------------------------------------------------


def test_a_topic_that_is_not_there_is_an_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no topic 'nowhere'"):
        run(url, tmp_path / "a", topics=("nowhere",))


def test_one_archiver_at_a_time(url: str, tmp_path: Path) -> None:
    with exclusive(tmp_path / "a"), pytest.raises(BusyError, match="in use by another process"):
        run(url, tmp_path / "a")


def test_a_damaged_commit_record_is_an_error(url: str, tmp_path: Path) -> None:
    run(url, tmp_path / "a")
    (tmp_path / "a" / ".commit.json").write_bytes(b"{")
    with pytest.raises(StorageError, match="damaged"):
        run(url, tmp_path / "a")


def test_a_file_in_the_way_is_an_error(url: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match="cannot use the folder"):
        run(url, tmp_path / "a")
