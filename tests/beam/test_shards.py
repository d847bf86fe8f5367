"""A stream in several processes gives the outputs of one, each from exactly one of them."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config.schema import FeatureConfig
from pipeline.events import Refusal, encode, parse
from pipeline.logs.files import FileLog
from pipeline.logs.log import DEAD_LETTERS, DUPLICATES, EVENTS, LATE, ORPHANS, OUTPUTS, Entry, Record
from pipeline.records import FeedbackKind
from pipeline.streaming.counts import Counts, count
from pipeline.streaming.embedded import Limits
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.outputs import identity, read_all
from pipeline.streaming.run import run_stream
from pipeline.streaming.shards import Shard, load_snapshots

SHARDS = 3
Outputs = Callable[[FileLog], dict[str, list[bytes]]]
GARBAGE = [b"", b"{", b"[]", b"\xff\xfe", b'{"session_id": 7}', b'{"session_id": "s00001"}', b"[" * 100_000]


class Run:
    def __init__(self, folder: Path, config: FeatureConfig, entries: list[Entry]) -> None:
        self.config, self.state, self.url = config, folder / "state", f"file://{folder}/log"
        self.log = FileLog(folder / "log")
        self.log.create(EVENTS, 3)
        self.log.append(EVENTS, entries)

    def stream(self, shard: Shard, **options: object) -> Counts | None:
        defaults = {"until_idle": True, "stop": threading.Event(), "shard": shard}
        return run_stream(self.config, self.url, self.state, **{**defaults, **options})


@pytest.fixture
def entries(traffic: Callable[..., list[Entry]]) -> list[Entry]:
    sent = traffic(11, 40)
    last_ms = sent[-1].appended_at_ms
    return sent + [Entry(f"agent-{n}", payload, last_ms) for n, payload in enumerate(GARBAGE)]


@pytest.fixture
def whole(tmp_path: Path, config: FeatureConfig, entries: list[Entry]) -> Run:
    """An unsharded run, done."""
    run = Run(tmp_path / "whole", config, entries)
    assert run.stream(Shard()) is not None
    return run


@pytest.fixture
def run(tmp_path: Path, config: FeatureConfig, entries: list[Entry]) -> Run:
    return Run(tmp_path / "sharded", config, entries)


def shards(count: int = SHARDS) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]


def test_together_they_put_out_what_one_does(run: Run, whole: Run, outputs: Outputs) -> None:
    for shard in shards():
        assert run.stream(shard) is None
    assert outputs(run.log) == outputs(whole.log)
    assert count(run.log, run.state) == count(whole.log, whole.state)
    assert min(len(found) for found in outputs(run.log).values()) > 0


def test_each_has_a_share_of_every_kind(run: Run, outputs: Outputs) -> None:
    """What is set aside, and what cannot be read, too."""
    shares = []
    for shard in shards():
        before = {topic: len(found) for topic, found in outputs(run.log).items()} if shares else Counter()
        run.stream(shard)
        shares.append({topic: len(found) - before[topic] for topic, found in outputs(run.log).items()})
    for topic in (DEAD_LETTERS, LATE, DUPLICATES, ORPHANS):
        assert sum(share[topic] > 0 for share in shares) > 1, topic


def test_side_by_side_and_stopped_now_and_then(run: Run, whole: Run, outputs: Outputs) -> None:
    """Each finds the others' outputs behind its last snapshot, and does not take them for its own."""
    limits = Limits(records_per_bundle=50, timers_per_bundle=50, snapshot_after_records=100, idle_wait_s=0)

    class StopAfter(threading.Event):
        left = 6

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    for _ in range(3):
        for shard in shards():
            run.stream(shard, stop=StopAfter(), limits=limits)
    stopped = [snapshot.progress.read for snapshot in load_snapshots(run.state)]
    for shard in shards():
        run.stream(shard, limits=limits)
    finished = [snapshot.progress.read for snapshot in load_snapshots(run.state)]
    assert all(early < late for early, late in zip(stopped, finished, strict=True))
    assert outputs(run.log) == outputs(whole.log)
    names = [(topic, identity(topic, record.payload)) for topic in OUTPUTS for record in read_all(run.log, topic)]
    assert len(names) == len(set(names))


def test_a_shard_without_its_state_writes_nothing_twice(run: Run, whole: Run, outputs: Outputs) -> None:
    for shard in shards():
        run.stream(shard)
    shutil.rmtree(shards()[1].folder(run.state))
    run.stream(shards()[1])
    assert outputs(run.log) == outputs(whole.log)
    assert count(run.log, run.state) == count(whole.log, whole.state)


def test_every_record_has_one_owner_an_event_that_of_its_session(make: SimpleNamespace, entries: list[Entry]) -> None:
    odd = make.feedback("e", "päge ☃", 0, 5, FeedbackKind.CLICK)
    payloads = [entry.payload for entry in entries] + [encode(odd), encode(odd).replace(b"{", b'{"session_id":"x",', 1)]
    parsed = 0
    for offset, payload in enumerate(payloads):
        record = Record(0, offset, 0, "k", payload)
        (owner,) = [shard for shard in shards(5) if shard.owns(record)]
        event = parse(payload, 10**6, 10**15)
        if not isinstance(event, Refusal):
            parsed += 1
            assert owner.owns_session(event.session_id)
    assert parsed > len(entries) - 20


def test_a_shard_that_owns_nothing_new_still_moves_on(run: Run) -> None:
    """Else it would read the log from ever further back."""
    for shard in shards():
        run.stream(shard)
    run.log.append(EVENTS, [Entry("k", b"no event")])
    ends = run.log.end_offsets(EVENTS)
    for shard in shards():
        run.stream(shard)
    assert [snapshot.progress.positions for snapshot in load_snapshots(run.state)] == [ends] * SHARDS


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("now", [1, 3])
def test_the_number_of_shards_cannot_change(run: Run, before: int, now: int) -> None:
    for shard in shards(before):
        run.stream(shard)
    if before == now:
        run.stream(Shard())
        return
    with pytest.raises(SnapshotError, match=f"state of a stream of {before} shards, not {now}"):
        run.stream(shards(now)[-1])
