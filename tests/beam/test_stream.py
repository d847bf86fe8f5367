"""The stream on a file log: where it starts again, in whatever order it reads, each output is there once."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import msgspec
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.durable import BusyError, StorageError, exclusive
from pipeline.events import encode
from pipeline.logs.files import FileLog, _Writer
from pipeline.logs.log import DEAD_LETTERS, EVENTS, LATE, OUTPUTS, SAMPLES, Entry, LogError, Record
from pipeline.monitoring.catalogue import STREAM
from pipeline.monitoring.metrics import Metrics
from pipeline.records import DeadLetter, FeedbackKind
from pipeline.streaming import run as run_module
from pipeline.streaming.counts import Counts, count
from pipeline.streaming.embedded import EmbeddedRunner, Limits
from pipeline.streaming.errors import SnapshotError, TwoContentsError
from pipeline.streaming.job import build
from pipeline.streaming.outputs import identity, read_all
from pipeline.streaming.run import run_stream
from pipeline.streaming.sinks import Outbox, WriteToOutbox
from pipeline.streaming.snapshot import Snapshot, SnapshotStore
from pipeline.streaming.sources import Batch, Poll

PARTITIONS = 3
FAR_MS = 10**13

Outputs = Callable[[FileLog], dict[str, list[bytes]]]


class Run:
    """A log with traffic in it, and the stream's state."""

    def __init__(self, folder: Path, config: FeatureConfig, entries: list[Entry]) -> None:
        self.config, self.state, self.entries = config, folder / "state", entries
        self.folder, self.url = folder / "log", f"file://{folder}/log"
        self.log = FileLog(self.folder)
        self.log.create(EVENTS, PARTITIONS)
        self.log.append(EVENTS, entries)

    def stream(self, **options: object) -> Counts | None:
        defaults = {"until_idle": True, "partitions": PARTITIONS, "stop": threading.Event()}
        return run_stream(self.config, self.url, self.state, **{**defaults, **options})

    def forget_outputs(self) -> None:
        self.log.close()
        for topic in OUTPUTS:
            shutil.rmtree(self.folder / topic)


@pytest.fixture
def run(tmp_path: Path, config: FeatureConfig, traffic: Callable[..., list[Entry]]) -> Run:
    return Run(tmp_path, config, traffic(5, 40))


class StopAfter(threading.Event):
    """Set once it has been asked a number of times: a stop at any point of the loop."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def is_set(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self.set()
        return super().is_set()


def balanced(counts: Counts) -> bool:
    parts = counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    return counts.read == parts


def no_duplicates(log: FileLog) -> bool:
    names = [(t, identity(t, r.payload)) for t in OUTPUTS for r in read_all(log, t)]
    return len(names) == len(set(names))


# Once through ------------------------------------------------------------------------------------------------------


def test_an_imported_log_is_processed_to_its_end(run: Run) -> None:
    counts = run.stream()
    assert counts is not None
    assert counts.read == len(run.entries)
    assert balanced(counts)
    assert counts.open == 0
    assert min(counts.joined, counts.duplicate, counts.late, counts.orphan, counts.dead) > 0
    assert counts.transitions == counts.pages > counts.terminal
    assert no_duplicates(run.log)
    assert [name for name, _ in counts.rows()][:2] == ["read", "joined"]


def test_outputs_are_keyed_by_session(run: Run) -> None:
    run.stream()
    for record in read_all(run.log, SAMPLES):
        assert msgspec.json.decode(record.payload)["impression"]["session_id"] == record.key


def test_dead_letters_keep_the_bytes(run: Run) -> None:
    damaged = b'{"at":12,"key'
    (segment,) = (run.folder / EVENTS / "partition-0001").glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(damaged + b"\n")
    counts = run.stream()
    letters = [msgspec.json.decode(r.payload, type=DeadLetter) for r in read_all(run.log, DEAD_LETTERS)]
    assert sorted(letter.payload for letter in letters) == sorted([damaged, *[b'{"not": "an event"'] * 3])
    assert counts is not None
    assert balanced(counts)


def test_read_live_in_two_halves_it_gives_the_same_as_at_once(
    run: Run, outputs: Outputs, config: FeatureConfig, tmp_path: Path
) -> None:
    """Until idle means as far as the clock allows: what is not decided by then stays open, in the snapshot."""
    expected = run.stream()
    stamps = [entry.appended_at_ms or 0 for entry in run.entries]
    half = next(i for i in range(len(stamps) // 2, len(stamps)) if stamps[i] > stamps[i - 1] + 1)
    live = Run(tmp_path / "live", config, run.entries[:half])
    now_ms = stamps[half - 1] + 1 + config.stream.clock_skew  # the other partitions are known to be behind it
    first = live.stream(clock_ms=lambda: now_ms)
    assert first is not None
    assert first.read == half
    assert first.open > 0
    assert balanced(first)
    assert first == count(live.log, live.state)
    live.log.append(EVENTS, run.entries[half:])
    assert live.stream() == expected
    assert outputs(live.log) == outputs(run.log)


def test_a_page_waits_for_the_last_stamp_that_its_feedback_may_have(
    tmp_path: Path, config: FeatureConfig, make: SimpleNamespace
) -> None:
    """Read up to just before that stamp, it must still be open."""
    shown_ms = 1_700_000_000_000
    last_ms = shown_ms + config.stream.attribution.click + config.stream.lateness
    run = Run(tmp_path, config, [Entry("a", encode(make.impression("s", 0, shown_ms)), shown_ms)])
    first = run.stream(clock_ms=lambda: last_ms + config.stream.clock_skew)
    assert first is not None
    assert first.open == 1
    click = make.feedback("c", "s", 0, shown_ms + 5, FeedbackKind.CLICK, "i1")
    run.log.append(EVENTS, [Entry("b", encode(click), last_ms)])
    second = run.stream()
    assert second is not None
    assert (second.joined, second.late) == (2, 0)


def test_a_page_from_the_future_does_not_keep_its_session_open(
    tmp_path: Path, config: FeatureConfig, make: SimpleNamespace
) -> None:
    shown_ms, ahead_ms = 1_700_000_000_000, 5_000
    config = changed(config, max_ahead=ahead_ms)
    pages = [make.impression("s", page, shown_ms + after) for page, after in enumerate((0, ahead_ms, ahead_ms + 1))]
    run = Run(tmp_path, config, [Entry("a", encode(page), shown_ms) for page in pages])
    counts = run.stream()
    assert counts is not None
    assert (counts.joined, counts.dead, counts.open, counts.terminal) == (2, 1, 0, 1)
    (letter,) = [msgspec.json.decode(r.payload, type=DeadLetter) for r in read_all(run.log, DEAD_LETTERS)]
    assert (letter.reason, letter.payload) == ("future_time", encode(pages[2]))


def test_a_second_run_finds_nothing_to_do(run: Run, outputs: Outputs) -> None:
    first = run.stream()
    before = outputs(run.log)
    assert run.stream() == first
    assert outputs(run.log) == before


def test_new_events_are_taken_up(run: Run) -> None:
    first = run.stream()
    run.log.append(EVENTS, [Entry("k", b"late in coming")])
    second = run.stream()
    assert first is not None
    assert second == msgspec.structs.replace(first, read=first.read + 1, dead=first.dead + 1)


def test_topics_that_are_there_keep_their_partitions(run: Run) -> None:
    run.log.create(SAMPLES, 2)
    run.stream(partitions=1)
    assert [run.log.partitions(topic) for topic in (EVENTS, SAMPLES, LATE)] == [PARTITIONS, 2, 1]


# Again and again ---------------------------------------------------------------------------------------------------

SMALL = Limits(records_per_bundle=60, timers_per_bundle=40, idle_wait_s=0)


def test_stopped_anywhere_it_goes_on_with_the_same_outputs(run: Run, outputs: Outputs) -> None:
    expected = run.stream()
    whole = outputs(run.log)
    run.forget_outputs()
    shutil.rmtree(run.state)
    stops = 0
    while (counts := run.stream(stop=StopAfter(5), limits=SMALL)) is None:
        stops += 1
    assert stops > 3
    assert outputs(FileLog(run.folder)) == whole
    assert counts == expected


@pytest.mark.parametrize("snapshots", [0, 1, 3])
def test_outputs_behind_the_last_snapshot_are_not_written_again(
    run: Run, outputs: Outputs, monkeypatch: pytest.MonkeyPatch, snapshots: int
) -> None:
    """The process dies at a snapshot: its outputs are in the log, but where it was is forgotten."""
    run.stream()
    whole = outputs(run.log)
    run.forget_outputs()
    shutil.rmtree(run.state)
    left, save = snapshots, SnapshotStore.save

    def dying(store: SnapshotStore, snapshot: Snapshot) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        save(store, snapshot)

    limits = SMALL._replace(snapshot_after_records=150)
    with monkeypatch.context() as patch:
        patch.setattr(SnapshotStore, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run.stream(limits=limits)
    partly = outputs(FileLog(run.folder))
    assert sum(map(len, partly.values())) > 0
    run.stream(limits=limits)
    assert outputs(FileLog(run.folder)) == whole


class Death(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("seed", range(5))
def test_dead_within_any_write_it_goes_on_with_the_same_outputs(
    run: Run, outputs: Outputs, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Before, in the middle of, or after the append to one partition; some topics have the bundle, others not."""
    expected = run.stream()
    whole = outputs(run.log)
    run.forget_outputs()
    shutil.rmtree(run.state)
    rng, append, deaths = random.Random(seed), _Writer.append, 0
    writes_left = 0

    def dying(writer: _Writer, entries: list[Entry]) -> None:
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            append(writer, entries[: rng.randint(0, len(entries))])
            raise Death
        append(writer, entries)

    counts = None
    while counts is None:
        writes_left = rng.randrange(80)
        with monkeypatch.context() as patch, contextlib.suppress(Death):
            patch.setattr(_Writer, "append", dying)
            counts = run.stream(limits=SMALL._replace(snapshot_after_records=200))
        deaths += counts is None
    assert deaths > 2
    assert counts == expected
    assert outputs(FileLog(run.folder)) == whole


def test_an_id_with_two_contents_is_an_error(run: Run) -> None:
    run.stream()
    shutil.rmtree(run.state)
    (segment, *_) = sorted((run.folder / SAMPLES).rglob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"user_id":"user', b'"user_id":"USER', 1))
    with pytest.raises(TwoContentsError, match=r"samples record 's\d+/\d' was written before with other bytes"):
        run.stream()


# In any order ------------------------------------------------------------------------------------------------------


class DisorderlySource:
    """Partitions in any order, any number of records at a time: only what the watermark promises is kept."""

    def __init__(self, log: FileLog, lateness_ms: int, rng: random.Random) -> None:
        self._log, self._lateness_ms, self._rng = log, lateness_ms, rng
        self.positions = dict.fromkeys(range(PARTITIONS), 0)
        self._last_ms = dict.fromkeys(range(PARTITIONS), 0)

    def poll(self, limit: int) -> Batch:
        records: list[Record] = []
        for _ in range(self._rng.randrange(1, 4)):
            partition = self._rng.randrange(PARTITIONS)
            some = self._log.read(EVENTS, partition, self.positions[partition], self._rng.randrange(1, 120))
            if some:
                self._last_ms[partition] = some[-1].appended_at_ms
                self.positions[partition] += len(some)
            records += some
        self._rng.shuffle(records)
        done = all(self.positions[p] == self._log.end_offset(EVENTS, p) for p in range(PARTITIONS))
        return Batch(records, FAR_MS if done else min(self._last_ms.values()) - self._lateness_ms, done)


def test_twenty_orders_of_reading_give_the_same_bytes(run: Run, outputs: Outputs, tmp_path: Path) -> None:
    run.stream()
    expected = outputs(run.log)
    assert len(expected[LATE]) > 10
    for seed in range(20):
        out = FileLog(tmp_path / f"out{seed}")
        for topic in OUTPUTS:
            out.create(topic, 1)
        source = DisorderlySource(run.log, run.config.stream.lateness, random.Random(seed))
        pipeline = beam.Pipeline(runner=EmbeddedRunner(lambda _: None, until_idle=True), options=PipelineOptions([]))
        build(pipeline, Poll(source), beam.ParDo(WriteToOutbox(Outbox(out, OUTPUTS))), run.config)
        pipeline.run().wait_until_finish()
        assert outputs(out) == expected, f"seed {seed}"
        out.close()


# In its way --------------------------------------------------------------------------------------------------------


def changed(config: FeatureConfig, **stream: object) -> FeatureConfig:
    return msgspec.structs.replace(config, stream=msgspec.structs.replace(config.stream, **stream))


def test_a_snapshot_of_another_config_is_refused_naming_each_difference(run: Run) -> None:
    run.stream()
    run.config = changed(run.config, session_gap=9_000, max_pages=5)
    with pytest.raises(SnapshotError) as caught:
        run.stream()
    assert "stream.max_pages was 4, is 5" in str(caught.value)
    assert "stream.session_gap was 10000, is 9000" in str(caught.value)


def test_settings_of_other_parts_may_change(run: Run) -> None:
    run.stream()
    algorithm = msgspec.structs.replace(run.config.algorithm, gamma=0.5)
    run.config = msgspec.structs.replace(run.config, algorithm=algorithm)
    assert run.stream() is not None


def test_a_snapshot_of_an_earlier_format_is_an_error(run: Run) -> None:
    run.state.mkdir()
    (run.state / "stream.snapshot").write_bytes(b"pageturn stream snapshot 2\n...")
    with pytest.raises(SnapshotError, match=r"stream\.snapshot is a snapshot of another format, of an earlier program"):
        run.stream()


def test_a_log_that_lost_records_is_an_error(run: Run) -> None:
    run.stream()
    for segment in (run.folder / EVENTS / "partition-0000").glob("*.jsonl"):
        segment.write_bytes(b"")
    run.log.close()
    with pytest.raises(LogError, match="is past the end"):
        run.stream()


def test_outputs_that_were_lost_are_an_error(run: Run) -> None:
    run.stream()
    for segment in (run.folder / SAMPLES).rglob("*.jsonl"):
        segment.write_bytes(b"")
    with pytest.raises(LogError, match="is past the end"):
        run.stream()


def test_outputs_are_on_the_disk_before_the_snapshot(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(FileLog, "sync", lambda _: order.append("sync"))
    monkeypatch.setattr(SnapshotStore, "save", lambda *_: order.append("save"))
    run.stream()
    assert order == ["sync", "save"]


def test_no_events_topic(run: Run) -> None:
    shutil.rmtree(run.folder / EVENTS)
    with pytest.raises(LogError, match="no topic 'events'"):
        run.stream()


def test_one_stream_at_a_time(run: Run) -> None:
    with exclusive(run.state), pytest.raises(BusyError, match="in use by another process"):
        run.stream()


def test_a_file_where_the_state_should_be(run: Run) -> None:
    run.state.write_text("")
    with pytest.raises(StorageError, match="cannot use the folder"):
        run.stream()


def test_a_disk_that_is_full_is_told_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is done before the failure is not done twice after it."""

    def full(self: object, topic: str, entries: object) -> None:
        message = "the disk is full"
        raise LogError(message)

    with monkeypatch.context() as patch:
        patch.setattr(FileLog, "append", full)
        with pytest.raises(LogError, match="the disk is full") as caught:
            run.stream()
    assert str(caught.value) == "the disk is full"
    assert run.stream() is not None
    assert no_duplicates(run.log)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("pipeline.streaming.run", "tensorflow keras"),
        ("pipeline.streaming.archiver", "tensorflow apache_beam"),
        ("pipeline.streaming.counts", "tensorflow apache_beam"),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_it_needs(module: str, never: str) -> None:
    code = f"import sys, {module}; print(sorted(set('{never}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_job_of_a_config_is_what_its_state_depends_on(config: FeatureConfig) -> None:
    job = run_module.job_of(config)
    assert job["stream.attribution.click"] == 3_000
    assert job["reward.weights.order"] == 1.0
    assert not any(name.startswith(("algorithm", "choosing")) for name in job)
    news = run_module.job_of(load_config(Path("feature_configs/news_drn.yaml")))
    assert news["choosing.remember_ms"] == 600_000


def test_prometheus_sees_what_was_read_and_written(run: Run) -> None:
    metrics = Metrics(STREAM)
    counts = run.stream(metrics=metrics)
    assert metrics.total("records_read") == counts.read == len(run.entries)
    assert metrics.total("records_written", topic=SAMPLES) == counts.pages
    assert metrics.total("watermark_timestamp_seconds") * 1000 >= max(e.appended_at_ms for e in run.entries)
