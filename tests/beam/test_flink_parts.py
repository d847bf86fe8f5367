"""What the stream on Flink is made of, without Flink: its source, its worker, where a job goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from apache_beam.coders import BytesCoder, StrUtf8Coder
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.portability.api import beam_fn_api_pb2 as fn_api
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.runners.worker import statecache
from apache_beam.runners.worker.bundle_processor import FnApiUserStateContext
from apache_beam.transforms.userstate import BagStateSpec
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog, partition_of
from pipeline.logs.log import EVENTS, Entry
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.flink import launch
from pipeline.streaming.flink.options import GROUPS, Settings, pipeline_options
from pipeline.streaming.flink.source import Pace, ReadLog, ReadPartitions
from pipeline.streaming.flink.worker import commit, environment, weight

LATENESS_MS, SKEW_MS = 100, 10
BEGINNING_MS = MIN_TIMESTAMP.micros // 1000 + 1


class Source:
    """Partitions being read, one call after another, each going on from what the one before deferred."""

    def __init__(self, log: FileLog, url: str, now_ms: int, partitions: int) -> None:
        self.log, self.now_ms = log, now_ms
        pace = Pace(records_per_element=2, records_per_call=4, call_s=0)
        self.read = ReadPartitions(url, [range(partitions)], LATENESS_MS, SKEW_MS, pace, lambda: self.now_ms)
        self.read.setup()
        self.rest, self.watermark = self.read.initial_restriction(0), ManualWatermarkEstimator(None)

    def call(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """(timestamp, partition and offset of the records) of each element."""
        tracker = ThreadsafeRestrictionTracker(self.read.create_tracker(self.rest))
        elements = list(self.read.process(0, RestrictionTrackerView(tracker), self.watermark))
        (deferred, _) = tracker.deferred_status()
        tracker.check_done()
        coder = self.read.restriction_coder()
        self.rest = coder.decode(coder.encode(deferred))
        return [(e.timestamp.micros // 1000, [(r.partition, r.offset) for r in e.value]) for e in elements]

    @property
    def reached(self) -> tuple[dict[int, int], int]:
        """The next offsets, and the watermark."""
        return self.rest, self.watermark.current_watermark().micros // 1000


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[[int], Source]:
    def make(partitions: int) -> Source:
        log = FileLog(tmp_path / "log")
        log.create(EVENTS, partitions)
        return Source(log, (tmp_path / "log").as_uri(), 5_000, partitions)

    return make


@pytest.fixture
def source(make_source: Callable[[int], Source]) -> Source:
    return make_source(1)


def append(log: FileLog, *stamps: int, key: str = "k") -> None:
    log.append(EVENTS, [Entry(key, b"{}", stamp) for stamp in stamps])


def test_an_empty_log_is_as_far_as_the_clock(source: Source) -> None:
    assert source.call() == []
    assert source.reached == ({0: 0}, 5_000 - SKEW_MS - LATENESS_MS)


def test_a_call_reads_a_bounded_share_and_the_watermark_trails_its_last_stamp(source: Source) -> None:
    append(source.log, 1_000, 2_000, 3_000, 3_001, 4_000)
    assert source.call() == [(BEGINNING_MS, [(0, 0), (0, 1)])]  # no time is left for more
    assert source.reached == ({0: 2}, 2_000 - LATENESS_MS)
    assert source.call() == [(2_000 - LATENESS_MS, [(0, 2), (0, 3)])]  # at the watermark before them
    assert source.reached == ({0: 4}, 3_001 - LATENESS_MS)
    assert source.call() == [(3_001 - LATENESS_MS, [(0, 4)])]
    assert source.reached == ({0: 5}, 5_000 - SKEW_MS - LATENESS_MS)


def test_a_call_goes_on_for_its_time_and_ends_when_it_has_its_share(source: Source) -> None:
    append(source.log, *range(1_000, 1_009))
    source.read._pace = source.read._pace._replace(call_s=3_600.0)
    assert [len(offsets) for _, offsets in source.call()] == [2, 2]
    assert source.reached[0] == {0: 4}


def test_a_call_that_has_caught_up_reads_at_its_end_what_has_come_since(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(source.log, 1_000)
    source.read._pace = source.read._pace._replace(call_s=1.0)
    slept_s: list[float] = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        append(source.log, 1_001, 1_002)
        monkeypatch.setattr(time, "monotonic", lambda: 1e18)

    monkeypatch.setattr(time, "sleep", sleep)
    assert [offsets for _, offsets in source.call()] == [[(0, 0)], [(0, 1), (0, 2)]]
    assert len(slept_s) == 1
    assert 0 < slept_s[0] <= 1


def test_the_watermark_is_that_of_the_partition_that_is_least_far(make_source: Callable[[int], Source]) -> None:
    source = make_source(2)
    keys = {partition_of(key, 2): key for key in "abcdefgh"}
    append(source.log, 1_000, 2_000, 3_000, key=keys[0])
    append(source.log, 1_500, 1_600, 1_700, key=keys[1])
    assert [offsets for _, offsets in source.call()] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert source.reached == ({0: 2, 1: 2}, 1_600 - LATENESS_MS)
    source.call()
    assert source.reached == ({0: 3, 1: 3}, 5_000 - SKEW_MS - LATENESS_MS)
    append(source.log, 6_000, 6_001, 6_002, key=keys[1])
    source.now_ms = 5_500
    source.call()
    assert source.reached == ({0: 3, 1: 5}, 5_500 - SKEW_MS - LATENESS_MS)  # one may be idle, the other not


def test_a_partition_with_stamps_ahead_of_the_clock_is_as_far_as_they_are(source: Source) -> None:
    append(source.log, 9_000)
    source.call()
    assert source.reached == ({0: 1}, 9_000 - LATENESS_MS)
    source.now_ms = 6_000
    source.call()
    assert source.reached == ({0: 1}, 9_000 - LATENESS_MS)  # never backwards


def test_an_idle_partition_goes_with_the_clock(source: Source) -> None:
    append(source.log, 1_000)
    source.call()
    source.now_ms = 60_000
    assert source.call() == []
    assert source.reached == ({0: 1}, 60_000 - SKEW_MS - LATENESS_MS)


def test_a_record_that_comes_behind_the_clock_is_read_and_warned_of(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    append(source.log, 1_000)
    source.call()
    source.now_ms = 60_000
    source.call()
    append(source.log, 60_000 - SKEW_MS - 3)
    assert [records for _, records in source.call()] == [[(0, 1)]]
    assert "1 records stamped up to 3 ms before a time that was taken to be over" in caplog.text
    caplog.clear()
    append(source.log, 60_000 - SKEW_MS)  # just in time
    assert [records for _, records in source.call()] == [[(0, 2)]]
    assert not caplog.records


@pytest.mark.parametrize("readers", [1, 2, 3, 9])
def test_each_partition_has_one_reader(tmp_path: Path, readers: int) -> None:
    shares = ReadLog((tmp_path / "log").as_uri(), 5, readers, 0, 0)._read._shares
    assert len(shares) == min(readers, 5)
    assert sorted(partition for share in shares for partition in share) == list(range(5))


def test_the_worker_gets_what_beams_main_program_reads() -> None:
    endpoint = endpoints_pb2.ApiServiceDescriptor(url="localhost:1")
    info = provision.ProvisionInfo(logging_endpoint=endpoint, control_endpoint=endpoint, runner_capabilities=["a", "b"])
    info.pipeline_options.update({"beam:option:streaming:v1": True})
    variables = environment("3-1", info)
    assert variables["WORKER_ID"] == "3-1"
    assert variables["CONTROL_API_SERVICE_DESCRIPTOR"].strip() == 'url: "localhost:1"'
    assert variables["RUNNER_CAPABILITIES"] == "a b"
    assert msgspec.json.decode(variables["PIPELINE_OPTIONS"]) == {"beam:option:streaming:v1": True}
    assert "STATUS_API_SERVICE_DESCRIPTOR" not in variables


def test_the_cache_of_state_keeps_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statecache, "get_deep_size", weight)
    cache = statecache.StateCache(1_000_000)
    for key in range(GROUPS):
        cache.put((key, b"token"), [bytes(1_000_000)])
    assert all(cache.peek((key, b"token")) for key in range(GROUPS))


class Store:
    """Of state, in the place of Flink's: notes how many writes had come when the answer to one was waited for."""

    def __init__(self, error: str = "", silent: bool = False) -> None:
        self.writes: list[tuple[str, bytes, list[object]]] = []
        self.waited_after: list[int] = []
        self._error, self._silent = error, silent

    def clear(self, key: fn_api.StateKey) -> Store:
        self.writes.append(("clear", key.bag_user_state.key, []))
        return self

    def extend(self, key: fn_api.StateKey, coder: object, elements: list[object]) -> Store:
        self.writes.append(("extend", key.bag_user_state.key, elements))
        return self

    def get(self, timeout: float | None = None) -> fn_api.StateResponse:
        self.waited_after.append(len(self.writes))
        if self._silent and timeout is not None:
            raise LookupError
        return fn_api.StateResponse(error=self._error)


def changed(store: Store) -> FnApiUserStateContext:
    """By a bundle: one group is written anew, one is over, one was only looked for."""
    context = FnApiUserStateContext(store, "Groups", StrUtf8Coder(), GlobalWindows().get_window_coder())
    anew, over, _ = (context.get_state(BagStateSpec("sessions", BytesCoder()), name, GlobalWindow()) for name in "abc")
    anew.clear()
    anew.add(b"x")
    over.clear()
    return context


def test_what_a_bundle_changed_is_sent_before_an_answer_is_waited_for() -> None:
    store, beams = Store(), Store()
    commit(changed(store))
    changed(beams).commit()
    assert (
        store.writes == beams.writes == [("clear", b"\x01a", []), ("extend", b"\x01a", [b"x"]), ("clear", b"\x01b", [])]
    )
    assert store.waited_after == [3, 3, 3]
    assert beams.waited_after == [2, 3]


def test_state_that_was_not_taken_fails_the_bundle() -> None:
    with pytest.raises(RuntimeError, match="did not take the state of sessions: no room"):
        commit(changed(Store("no room")))


def test_state_that_was_not_answered_to_fails_the_bundle() -> None:
    with pytest.raises(RuntimeError, match="not answered to state of sessions within 600 s"):
        commit(changed(Store(silent=True)))


def test_a_job_goes_on_from_the_newest_complete_state(tmp_path: Path) -> None:
    assert launch.resume_point(tmp_path) is None
    names = ["checkpoints/job1/chk-9", "savepoints/savepoint-1", "checkpoints/job2/chk-3", "checkpoints/job2/chk-4"]
    for age, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True)
        if age < 3:  # the last one was not finished
            (tmp_path / name / "_metadata").touch()
            os.utime(tmp_path / name / "_metadata", (age, age))
    assert launch.resume_point(tmp_path) == (tmp_path / "checkpoints/job2/chk-3").as_uri()


@pytest.mark.parametrize(("field", "value", "message"), [("log", "file:///other", "log was"), ("name", "x", None)])
def test_the_state_of_another_job_is_refused(
    config: FeatureConfig, tmp_path: Path, field: str, value: str, message: str | None
) -> None:
    was = launch.Submitted(launch.job_of(config), "file:///log", "n")
    now = msgspec.structs.replace(was, **{field: value})
    if message is None:
        launch._check(tmp_path, was, now)
    else:
        with pytest.raises(SnapshotError, match=message):
            launch._check(tmp_path, was, now)


def test_a_job_keeps_the_number_of_its_groups(config: FeatureConfig, tmp_path: Path) -> None:
    was, now = (launch.Submitted(launch._job(config, Settings(groups=n)), "file:///log", "n") for n in (8, 16))
    with pytest.raises(SnapshotError, match="groups of sessions was 8, is 16"):
        launch._check(tmp_path, was, now)


def test_a_job_that_is_too_wide_is_refused(config: FeatureConfig, tmp_path: Path) -> None:
    with pytest.raises(launch.FlinkError, match="expected at most 32, found 33"):
        launch.run_on_flink(config, "file:///log", tmp_path, Settings(parallelism=33), stop=threading.Event())


def test_a_damaged_note_of_the_job_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "flink.json").write_bytes(b"{")
    with pytest.raises(SnapshotError, match="damaged"):
        launch._submitted(tmp_path)


def test_options_of_a_cluster_and_of_this_machine() -> None:
    far = pipeline_options(Settings("h:1", 2, worker="w"), "n", "file:///c", "file:///s").get_all_options()
    assert (far["flink_master"], far["parallelism"], far["environment_type"]) == ("h:1", 2, "PROCESS")
    assert msgspec.json.decode(far["environment_config"]) == {"command": "w"}
    assert pipeline_options(Settings(), "n", "file:///c", None).get_all_options()["environment_type"] == "LOOPBACK"
