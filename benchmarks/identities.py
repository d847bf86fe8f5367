"""What tens of millions of ids cost the trainer: in memory, on disk, beside a checkpoint, and when they come back.

    python -m benchmarks.identities [--ids 10000000] [--rounds 4] [--capacity 250000] [--quick] [--json FILE]

The file begins with `--ids` rows, written in its order. Then, in each round, twice `--capacity` new ids come, each of
them twice, gets a row of a table, and loses it to one that comes later; half as many others come once. They go through
the statistics as prepared rows do, and rows that are lost are put away as the trainer does it (one seed, one network,
dimension 16: weights and two moments). The trainer's checkpoints are at most 3,200 transitions apart; so at the end of
each round 20 writes of 3,200 rows are timed, where every transition has an id that took another's row, and as many of
100. Half of what is written is of ids that were put away before.
No TensorFlow: what a table takes there is rows x dimension x 12 bytes.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.shares import BenchmarkError
from benchmarks.telling import parser, say, tell
from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.features.layout import Layout
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.learning.shelf import FILE, Shelf, Spans

TABLE, DIM = "shops", 16
ROW_BYTES = 3 * 4 * DIM
AT_ONCE = 3_200  # transitions, and rows of a write: `checkpoint_every` of the trainer
PORTION = 50_000  # rows of a write that only fills the file
WRITES, TIMES = 20, 5
FEW = 100  # rows of a write where few ids come and go
QUICK_IDS, QUICK_CAPACITY, QUICK_ROUNDS = 200_000, 10_000, 2
_KNOWN_EVERY = 50  # of the rows that the file begins with
_RARE = 2**40  # numbers of ids that come once; from twice that on, those of the timed writes


class Round(Struct, frozen=True):
    rows: int  # in the file
    observed_per_s: float  # transitions of one id
    bytes_per_row: float  # of the file
    write_ms: float  # of 3,200 rows, median
    worst_ms: float
    few_ms: float  # of 100 rows
    worst_few_ms: float


class Result(Struct, frozen=True):
    ids: int
    capacity: int
    counted: int  # ids in memory: those with a row, and candidates
    bytes_per_counted: float
    snapshot_ms: float  # what a round of the trainer (64 transitions) takes of it: frozen, hashed, compared
    state_ms: float  # what is known of ids, as a checkpoint has it
    state_mb: float
    rounds: tuple[Round, ...]
    read_per_s: float  # rows, in calls of 3,200
    restart_ms: float  # until the file can be read on
    file_gb: float
    peak_gb: float  # of the process


def measure(ids: int, rounds: int, capacity: int, folder: Path) -> Result:
    if rounds < 1 or capacity < AT_ONCE or ids < 2 * AT_ONCE:
        message = f"expected --rounds, --ids and --capacity of {AT_ONCE} or more, found {rounds}, {ids} and {capacity}"
        raise BenchmarkError(message)
    path, feed = folder / FILE, Feed(config_of(capacity), min(PORTION, capacity // 4))
    feed.warm_up(2 * capacity)
    with closing(Shelf(path)) as shelf:
        feed.fill(shelf, ids)
        done = [feed.round(shelf, path, 2 * capacity) for _ in range(rounds)]
        spans, read = shelf.keep(), feed.reads(shelf)
        snapshot_ms = median(feed.snapshot_s() for _ in range(TIMES)) * 1000
        states = [feed.state() for _ in range(TIMES)]
    return Result(
        ids=ids,
        capacity=capacity,
        counted=feed.counted,
        bytes_per_counted=round(feed.bytes_per_counted, 1),
        snapshot_ms=round(snapshot_ms, 2),
        state_ms=round(median(seconds for seconds, _ in states) * 1000, 1),
        state_mb=round(states[0][1] / 1e6, 1),
        rounds=tuple(done),
        read_per_s=round(read),
        restart_ms=round(_restart_s(path, spans) * 1000, 1),
        file_gb=round(path.stat().st_size / 1e9, 3),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    )


class Feed:
    """Owns what is known of ids, and says what is put away."""

    def __init__(self, config: FeatureConfig, portion: int) -> None:
        self._portion = portion  # ids between two looks at who has a row
        self._dtype, self._rng = Layout.of(config).dtype(), np.random.default_rng(7)
        self._statistics = Statistics(config)
        self._snapshot = self._statistics.freeze()
        self._known = np.empty(0, "<u8")  # ids of rows that are in the file
        self._came = self._rows = self.counted = 0
        self._spent = self.bytes_per_counted = 0.0

    def warm_up(self, ids: int) -> None:
        """Until all rows of the table are taken; and what that takes."""
        before = _resident()
        while self._came < ids:
            self._observe(None)
        held = msgspec.msgpack.decode(self._statistics.to_bytes())["decaying"][TABLE]
        self.counted = (len(held[1]) + len(held[3])) // 8
        self.bytes_per_counted = (_resident() - before) / self.counted

    def fill(self, shelf: Shelf, ids: int) -> None:
        """In the order of the file, which is that of signed numbers."""
        known, parts = [], -(-ids // PORTION)
        bounds = [-(2**63) + part * 2**64 // parts for part in range(parts + 1)]
        began = time.perf_counter()
        for low, high in pairwise(bounds):
            some = np.unique(self._rng.integers(low, high, PORTION, np.int64)).view("<u8")
            shelf.put(TABLE, some.tolist(), contents(some))
            shelf.keep()
            self._rows += len(some)
            known.append(some[::_KNOWN_EVERY])
        self._known = np.concatenate(known)
        say(f"{self._rows:,} rows in {time.perf_counter() - began:.0f} s")

    def round(self, shelf: Shelf, path: Path, ids: int) -> Round:
        began, seen, self._spent = time.perf_counter(), 0, 0.0
        end = self._came + ids
        while self._came < end:
            seen += self._observe(shelf)
        many, few = (self._writes(shelf, count) for count in (AT_ONCE, FEW))
        size = round(path.stat().st_size / self._rows, 1)
        done = Round(self._rows, round(seen / self._spent), size, *_milliseconds(many), *_milliseconds(few))
        say(f"{time.perf_counter() - began:.0f} s: {done}")
        return done

    def _observe(self, shelf: Shelf | None) -> int:
        """Some ids, twice each, and half as many once. Returns how many transitions that were.

        Without a shelf nothing is put away.
        """
        often = _ids(self._came, self._portion)
        rare = _ids(_RARE + self._came, len(often) // 2)
        sights = self._rng.permutation(np.concatenate([often, often, rare]))
        rows = np.zeros(len(sights), self._dtype)
        rows["hashes"][:, 0] = sights
        began = time.perf_counter()
        self._statistics.update(rows)
        self._spent += time.perf_counter() - began
        self._came += len(often)
        before, self._snapshot = self._snapshot, self._statistics.freeze()
        if shelf is not None:
            gone = lost(before, self._snapshot)
            shelf.put(TABLE, gone.tolist(), contents(gone))
            shelf.keep()
            self._rows += len(gone)
            self._known = np.concatenate([self._known, gone[::_KNOWN_EVERY]])
        return len(sights)

    def _writes(self, shelf: Shelf, count: int) -> list[float]:
        """Seconds of each write as it is beside a checkpoint."""
        times = []
        for _ in range(WRITES):
            before = np.unique(self._rng.choice(self._known, count // 2))
            chosen = np.concatenate([before, _ids(2 * _RARE + self._rows, count - len(before))])
            shelf.put(TABLE, chosen.tolist(), contents(chosen))
            began = time.perf_counter()
            shelf.keep()
            times.append(time.perf_counter() - began)
            self._rows += len(chosen)
        return times

    def reads(self, shelf: Shelf) -> float:
        """Rows per second, of ids drawn from all; what is read is compared."""
        times = []
        for _ in range(WRITES):
            chosen = self._rng.choice(self._known, AT_ONCE)
            began = time.perf_counter()
            found = shelf.get(TABLE, chosen.tolist())
            times.append(time.perf_counter() - began)
            if found != contents(chosen):
                message = "expected every row as it was put away, found others"
                raise BenchmarkError(message)
        return AT_ONCE / median(times)

    def snapshot_s(self) -> float:
        began = time.perf_counter()
        now = self._statistics.freeze()
        _ = now.sha256, lost(self._snapshot, now)
        return time.perf_counter() - began

    def state(self) -> tuple[float, int]:
        """Seconds, and bytes."""
        began = time.perf_counter()
        size = len(self._statistics.to_bytes())
        return time.perf_counter() - began, size


def config_of(capacity: int) -> FeatureConfig:
    return parse_config(f"""
schema_version: 1
name: feed
kv_prefix: fd
embeddings:
  {TABLE}:
    lookup: graph
    dim: {DIM}
    vocabulary: {{kind: dynamic, capacity: {capacity}, min_count: 2, half_life: {capacity}, remember: true}}
features: [{{name: shop, kind: id, source: user.shop, embedding: {TABLE}}}]
fusion: {{kind: pay_plus_a_phi, phi: 0.1}}
action: [{{name: a, baseline: 1.0, range: [0.0, 4.0]}}]
reward: {{weights: {{click: 1.0}}}}
algorithm: {{kind: ddpg, gamma: 0.9}}
policies: [{{name: baseline, kind: baseline}}, {{name: rl, kind: learned}}]
buckets: {{salt: s, assign: [{{name: a, policy: baseline, slots: [0, 49]}}, {{name: b, policy: rl, slots: [50, 99]}}]}}
""")


def lost(before: Snapshot, now: Snapshot) -> np.ndarray:
    """Ids whose row is another's."""
    former, ids = before.vocabularies[TABLE], now.vocabularies[TABLE]
    gone: np.ndarray = former[former != ids[: len(former)]]
    return gone


def contents(ids: np.ndarray) -> list[bytes]:
    """A row of each, that tells whose it is."""
    whole = np.repeat(ids, ROW_BYTES // 8).tobytes()
    return [whole[start : start + ROW_BYTES] for start in range(0, len(whole), ROW_BYTES)]


def _ids(first: int, count: int) -> np.ndarray:
    return _mixed(np.arange(first, first + count))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """As spread over 64 bits as hashes are, each number to another (the finaliser of splitmix64); none to 0."""
    x = numbers.astype("<u8") + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _restart_s(path: Path, spans: Spans) -> float:
    began = time.perf_counter()
    with closing(Shelf(path)) as shelf:
        shelf.go_on(spans)
        shelf.get(TABLE, [1])
        return time.perf_counter() - began


def _milliseconds(times: list[float]) -> tuple[float, float]:
    return round(median(times) * 1000, 1), round(max(times) * 1000, 1)


def table(result: Result) -> str:
    head = "       rows   observed per s   bytes per row     3,200 written: median, worst     100: median, worst"
    each = [
        f"{r.rows:11,} {r.observed_per_s:16,} {r.bytes_per_row:15.1f} {r.write_ms:18.1f} ms {r.worst_ms:9.1f} ms"
        f" {r.few_ms:11.1f} ms {r.worst_few_ms:7.1f} ms"
        for r in result.rounds
    ]
    rest = [
        ("in memory", f"{result.bytes_per_counted} bytes per id, {result.counted:,} of them"),
        ("a round's snapshot", f"{result.snapshot_ms} ms, {result.capacity:,} rows"),
        ("ids in a checkpoint", f"{result.state_ms} ms, {result.state_mb} MB"),
        ("rows read back", f"{result.read_per_s:,} per s"),
        ("restart", f"{result.restart_ms} ms, {result.file_gb} GB"),
        ("peak memory", f"{result.peak_gb} GB"),
    ]
    return "\n".join([head, *each, "", *(f"{name:20} {value}" for name, value in rest)])


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("identities", __doc__)
    known.add_argument("--ids", type=int, default=10_000_000, help="in the file, before others come")
    known.add_argument("--rounds", type=int, default=4)
    known.add_argument(
        "--capacity", type=int, default=250_000, help="rows of the table; up to 4 times as many are counted"
    )
    known.add_argument("--quick", action="store_true", help=f"{QUICK_IDS:,} ids: whether it runs")
    known.add_argument("--dir", type=Path, help="where the file is while it is measured")
    options = known.parse_args(arguments)
    sizes = options.ids, options.rounds, options.capacity
    if options.quick:
        sizes = QUICK_IDS, QUICK_ROUNDS, QUICK_CAPACITY
    with tempfile.TemporaryDirectory(prefix="pageturn-bench-", dir=options.dir) as folder:
        return tell(lambda: measure(*sizes, Path(folder)), table, options.json)


if __name__ == "__main__":
    sys.exit(main())
