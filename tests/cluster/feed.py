"""Feed traffic with all that goes wrong, what must become of it, and what became of it."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.schema import FeatureConfig
from pipeline.events import Refusal, encode, parse
from pipeline.logs.lines import encode_line
from pipeline.logs.log import EVENTS, OUTPUTS, Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.records import Stamp
from pipeline.streaming.counts import count
from pipeline.streaming.outputs import identity, read_all
from pipeline.streaming.run import run_stream
from pipeline.transitions.session import output_id, topic_of
from tests.beam.conftest import session_traffic
from tests.laws import reference_stream

# Windows short enough for pages to close and sessions to end within the traffic. The skew is longer than a busy broker
# takes to show what it has stamped.
CONFIG = """
schema_version: 1
name: feed
kv_prefix: t
features: [{kind: dense, name: hour, source: context.hour}]
fusion: {kind: pay_plus_a_phi, phi: 0.1}
action: [{name: a, baseline: 1.0, range: [0.0, 2.0]}]
reward: {weights: {click: 0.1, order: 1.0}}
algorithm: {kind: ddpg, gamma: 0.9}
policies: [{name: base, kind: baseline}]
buckets: {salt: salt, assign: [{name: all, policy: base, slots: [0, 99]}]}
stream:
  attribution: {click: 3s, order: 3s}
  lateness: 1s
  clock_skew: 5s
  session_gap: 10s
  max_pages: 4
  remember_closed: 20s
"""
Outputs = dict[str, dict[str, bytes]]  # topic -> id -> payload
EVENTS_PER_SESSION = 25  # about


def make(seed: int, events: int, start_ms: int, span_ms: int) -> list[Entry]:
    """Sessions that begin within the span: disorder, copies, late and orphaned feedback, lines that are no event."""
    rng = random.Random(seed)
    sent: list[tuple[int, bytes]] = []
    for number in range(events // EVENTS_PER_SESSION):
        sent += session_traffic(rng, f"s{number:06d}", start_ms + rng.randrange(span_ms))
    sent += [(start_ms + rng.randrange(span_ms), b'{"not": "an event %d"' % i) for i in range(events // 1_000 + 1)]
    sent.sort()
    return [Entry(f"agent-{rng.randrange(64)}", payload, stamp) for stamp, payload in sent]


@contextmanager
def live(log: EventLog, seed: int, events: int, span_ms: int) -> Iterator[Callable[[], None]]:
    """Events that happen from now on, appended as they do; gives what waits for the last one."""
    now_ms = time.time_ns() // 1_000_000
    entries = [e for e in make(seed, events, now_ms, span_ms) if e.appended_at_ms < now_ms + span_ms]
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        appending = thread.submit(_append_live, log, entries, stopped)
        try:
            yield appending.result
        finally:
            stopped.set()


def _append_live(log: EventLog, entries: Iterable[Entry], stopped: threading.Event) -> None:
    """Each when its stamp has come: the log stamps them anew."""
    waiting: list[Entry] = []
    for entry in entries:
        while entry.appended_at_ms > time.time() * 1000:
            if waiting:
                log.append(EVENTS, waiting)
                waiting = []
            if stopped.wait(0.05):
                return
        waiting.append(Entry(entry.key, entry.payload))
    log.append(EVENTS, waiting)


def copied(log: EventLog, folder: Path) -> str:
    """The events with their stamps, partitions and offsets, as a log in files."""
    for partition in range(log.partitions(EVENTS)):
        path = folder / EVENTS / f"partition-{partition:04d}"
        path.mkdir(parents=True)
        records = [r for r in read_all(log, EVENTS) if r.partition == partition]
        assert [record.offset for record in records] == list(range(len(records)))
        lines = [encode_line(record.appended_at_ms, record.key, record.payload) for record in records]
        (path / f"{0:020d}.jsonl").write_bytes(b"".join(lines))
    return folder.as_uri()


def by_embedded_runner(config: FeatureConfig, log: EventLog, folder: Path) -> Outputs:
    url = copied(log, folder / "embedded-log")
    run_stream(config, url, folder / "embedded", until_idle=True, partitions=1, stop=threading.Event())
    return found(open_log(url))


def by_reference(config: FeatureConfig, log: EventLog) -> Outputs:
    sessions: dict[str, list[tuple[Stamp, object]]] = defaultdict(list)
    for record in read_all(log, EVENTS):
        event = parse(record.payload, config.stream.max_event_bytes)
        if not isinstance(event, Refusal):
            sessions[event.session_id].append((Stamp(record.appended_at_ms, record.partition, record.offset), event))
    outputs: Outputs = {topic: {} for topic in OUTPUTS}
    for session in sessions.values():
        for output in reference_stream.outputs(config, session):
            outputs[topic_of(output)][output_id(output)] = encode(output)
    return outputs


def found(log: EventLog) -> Outputs:
    """What is in the output topics. An id may be there several times, with one content."""
    outputs: Outputs = {}
    for topic in OUTPUTS:
        contents: dict[str, set[bytes]] = defaultdict(set)
        for record in read_all(log, topic):
            contents[str(identity(topic, record.payload))].add(record.payload)
        twofold = [name for name, payloads in contents.items() if len(payloads) > 1]
        assert not twofold, f"{topic}: ids with two contents: {twofold[:5]}"
        outputs[topic] = {name: next(iter(payloads)) for name, payloads in contents.items()}
    return outputs


def await_all(log: EventLog, expected: Outputs, patience_s: float, check: Callable[[], None]) -> None:
    """Until the topics hold as many ids as they must; then whatever is wrong is for `found` to tell."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        check()
        ends = {topic: sum(log.end_offsets(topic).values()) for topic in OUTPUTS}
        if all(ends[topic] >= len(expected[topic]) for topic in OUTPUTS):
            here = found(log)
            if all(here[topic].keys() >= expected[topic].keys() for topic in OUTPUTS):
                return
        time.sleep(1)
    missing = {topic: len(expected[topic].keys() - names.keys()) for topic, names in found(log).items()}
    raise AssertionError(f"after {patience_s:.0f} s there are still outputs missing: {missing}")


def check_nothing_lost(log: EventLog, folder: Path) -> None:
    """Every event is in one output, by ids. None is open: the watermark has passed them all."""
    read = sum(1 for _ in read_all(log, EVENTS))
    made = count(log, folder / "no-snapshot")
    assert read == made.joined + made.duplicate + made.late + made.orphan + made.dead
    assert min(made.joined, made.duplicate, made.late, made.orphan, made.dead) > 0
