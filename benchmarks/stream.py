"""Events per CPU-second of the stream: a plain loop over its logic, the embedded runner, and a naive graph.

    python -m benchmarks.stream [--visits 3000] [--repeats 5] [--only NAME ...] [--json FILE]

All read the same log of simulated traffic (twice, disordered, late, malformed) from files and write their outputs to
files, and must write the same. They take turns, so that what else the machine does meets all alike. Another engine is
another row of CONTENDERS.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import xxhash
from apache_beam.options.pipeline_options import PipelineOptions
from msgspec import Struct

from benchmarks.events import MINUTES, simulated
from benchmarks.naive import NaiveRecords
from benchmarks.plain import plain_loop
from benchmarks.shares import BenchmarkError
from benchmarks.telling import parser, say, tell
from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog, wall_clock_ms
from pipeline.logs.log import EVENTS, OUTPUTS
from pipeline.logs.ordered import OrderedReader
from pipeline.streaming.embedded import EmbeddedRunner
from pipeline.streaming.outputs import read_all
from pipeline.streaming.run import follow
from pipeline.streaming.sinks import Outbox, WriteToOutbox
from pipeline.streaming.sources import LogSource, Poll

PARTITIONS = 4
YARDSTICK = "plain loop"  # what the others' ratios are to


class Task(NamedTuple):
    """A log with events, to be made into outputs in the same log."""

    config: FeatureConfig
    folder: Path
    state: Path

    @property
    def url(self) -> str:
        return f"file://{self.folder}"


Contender = Callable[[Task], float]  # does the task, returns the CPU-seconds that it took, of all processes in it


def in_this_process(work: Callable[[Task], object]) -> Contender:
    def measured(task: Task) -> float:
        gc.collect()
        began_s = time.process_time()
        work(task)
        return time.process_time() - began_s

    return measured


def _plain(task: Task) -> None:
    with closing(FileLog(task.folder)) as log:
        plain_loop(task.config, log)


def _embedded(task: Task) -> None:
    """As `pageturn stream` runs it, snapshots included."""
    with closing(FileLog(task.folder)) as log:
        follow(task.config, log, task.state, until_idle=True, stop=threading.Event())


def _naive(task: Task) -> None:
    """No snapshots."""
    with closing(FileLog(task.folder)) as log:
        stream = task.config.stream
        source = LogSource(OrderedReader(log, EVENTS, None, wall_clock_ms, stream.clock_skew), stream.lateness)
        pipeline = beam.Pipeline(runner=EmbeddedRunner(None, until_idle=True), options=PipelineOptions([]))
        outputs = pipeline | Poll(source) | NaiveRecords(task.config)
        _ = outputs | beam.ParDo(WriteToOutbox(Outbox(log, OUTPUTS)))
        pipeline.run().wait_until_finish()


CONTENDERS: dict[str, Contender] = {
    YARDSTICK: in_this_process(_plain),
    "embedded runner": in_this_process(_embedded),
    "naive graph, embedded": in_this_process(_naive),
}


# Measuring ---------------------------------------------------------------------------------------------------------


class Row(Struct, frozen=True):
    name: str
    events_per_cpu_s: tuple[float, ...]  # by repeat
    ratios: tuple[float, ...]  # to the yardstick's of the same repeat; empty without one


class Result(Struct, frozen=True):
    measured_on: str  # date
    beam: str  # version
    events: int
    bytes_per_event: float
    outputs: dict[str, int]  # by topic
    rows: tuple[Row, ...]


def measure(
    visits: int, repeats: int, contenders: dict[str, Contender], say: Callable[[str], None] = lambda _: None
) -> Result:
    """Raises BenchmarkError where a contender's outputs differ from the first one's."""
    with _folder() as root:
        events, size = _events_log(root / "events", visits)
        say(f"{events} events of {size:.0f} bytes on average, {len(contenders)} contenders, {repeats} repeats")
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        expected: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for repeat in range(repeats):
            for name, contender in contenders.items():
                with _task(root) as task:
                    cpu_s = contender(task)
                    found, sizes = _outputs(task.folder)
                speeds[name].append(events / cpu_s)
                say(f"  {repeat + 1}/{repeats} {name}: {events / cpu_s:,.0f} events per CPU-second")
                _check_same(name, expected, found)
    today, rows = time.strftime("%Y-%m-%d", time.gmtime()), tuple(_row(name, speeds) for name in contenders)
    return Result(today, beam.__version__, events, round(size, 1), sizes, rows)


def _row(name: str, speeds: dict[str, list[float]]) -> Row:
    pairs = zip(speeds[name], speeds.get(YARDSTICK, ()), strict=False)
    ratios = tuple(round(own / plain, 4) for own, plain in pairs)
    return Row(name, tuple(round(speed, 1) for speed in speeds[name]), ratios)


def _check_same(name: str, expected: dict[str, str], found: dict[str, str]) -> None:
    for topic, digest in found.items():
        if expected.setdefault(topic, digest) != digest:
            message = f"{name}: its {topic} differ from those of the contender before it"
            raise BenchmarkError(message)


def _outputs(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """By topic: a digest of the payloads, whatever their order; and how many there are."""
    digests, sizes = {}, {}
    with closing(FileLog(folder)) as log:
        for topic in OUTPUTS:
            payloads = sorted(xxhash.xxh3_128_digest(record.payload) for record in read_all(log, topic))
            digests[topic], sizes[topic] = xxhash.xxh3_128_hexdigest(b"".join(payloads)), len(payloads)
    return digests, sizes


@contextmanager
def lone_task(visits: int) -> Iterator[Task]:
    """To be done once."""
    with _folder() as root:
        _events_log(root / "events", visits)
        with _task(root) as task:
            yield task


@contextmanager
def _folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="pageturn-bench-"))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _events_log(folder: Path, visits: int) -> tuple[int, float]:
    """How many events there are, and their mean size."""
    entries = simulated(visits)
    with closing(FileLog(folder)) as log:
        log.create(EVENTS, PARTITIONS)
        log.append(EVENTS, entries)
    return len(entries), statistics.fmean(len(entry.payload) for entry in entries)


@contextmanager
def _task(root: Path) -> Iterator[Task]:
    """The same events again, without outputs."""
    with _folder() as folder:
        (folder / "log").mkdir()
        (folder / "log" / EVENTS).symlink_to(root / "events" / EVENTS, target_is_directory=True)
        with closing(FileLog(folder / "log")) as log:
            for topic in OUTPUTS:
                log.create(topic, PARTITIONS)
        (folder / "state").mkdir()
        yield Task(MINUTES, folder / "log", folder / "state")


# Telling -----------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    lines = [f"{'':24} {'events per CPU-second':^28}  {'to the plain loop':^20}"]
    for row in result.rows:
        speed = f"{_median(row.events_per_cpu_s):>9,.0f}  {_spread(row.events_per_cpu_s, ',.0f'):<17}"
        ratio = f"{_median(row.ratios):.2f}  {_spread(row.ratios, '.2f')}" if row.ratios else ""
        lines.append(f"{row.name:24} {speed}  {ratio}")
    return "\n".join(lines)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float], form: str) -> str:
    return f"({min(values):{form}} to {max(values):{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("stream", __doc__)
    known.add_argument("--visits", type=int, default=3_000, help="of simulated users; each makes some ten events")
    known.add_argument("--repeats", type=int, default=5)
    known.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONTENDERS), help="some of the contenders")
    options = known.parse_args(arguments)
    contenders = {name: CONTENDERS[name] for name in options.only or CONTENDERS}
    return tell(lambda: measure(options.visits, options.repeats, contenders, say), table, options.json)


if __name__ == "__main__":
    sys.exit(main())
