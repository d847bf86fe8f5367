"""The stream on Flink with Kafka for a long time at a steady rate: memory, state and freshness.

    make cluster && python -m benchmarks.soak_on_flink [--minutes 30] [--rate 300] [--task-managers 1] [--json FILE]

As `benchmarks.soak`, with servers as the cluster tests start them, all on this machine: a broker, a job manager, task
managers of one slot each. Once a minute also what is alive on the task managers' heaps (this takes a full collection),
how much of it are tables of state, empty ones, too, and how large the last checkpoint was, in all and of the step with
sessions.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct

from benchmarks.on_flink import JARS
from benchmarks.rounds import produce, round_of
from benchmarks.shares import BenchmarkError
from benchmarks.soak import CONFIG
from benchmarks.telling import parser, say, tell
from benchmarks.watching import Fresh, Load, load
from pageturn.processes import Process, pageturn
from pipeline.config.reading import load_config
from pipeline.logs.log import EVENTS, OUTPUTS, EventLog
from pipeline.logs.opening import open_log
from pipeline.serving.launch import free_ports
from tests.cluster.broker import Broker
from tests.cluster.flink import Cluster, job_server

PARTITIONS = 4
_ROUND_S, _START_S, _END_S = 30.0, 300.0, 120.0
_EVERY_S = 60.0
_HEAP = "org.apache.flink.runtime.state.heap.CopyOnWriteState"
_TABLE = (f"{_HEAP}Table", f"{_HEAP}Map", f"[L{_HEAP}Map$StateMapEntry;")  # and its parts, one for each group of keys


class Interval(Struct, frozen=True):
    at_s: float  # its end, since traffic began
    events: int  # written in it
    python_mb: float  # resident, of all workers
    java_mb: float  # resident, of Flink's processes
    heap_mb: float  # alive on the task managers' heaps
    tables: int  # of state on them
    tables_mb: float  # which these take before anything is in them
    checkpoint_kb: float
    sessions_kb: float  # of it, of the step with sessions
    cores: float  # busy, of Flink and the workers, on average
    broker_cores: float
    pages: int
    fresh_p50_ms: float | None  # None: no page
    fresh_p99_ms: float | None


class Result(Struct, frozen=True):
    measured_on: str  # date
    rate: float  # events per second that were written
    task_managers: int
    intervals: tuple[Interval, ...]


def soak(minutes: float, rate: float, task_managers: int, say: Callable[[str], None]) -> Result:
    """Raises ProcessError where the stream ends before it is told to."""
    told, stop = round_of(rate, _ROUND_S), threading.Event()
    with _servers(task_managers) as (broker, cluster, folder), ThreadPoolExecutor(1) as pool:
        url = broker.url("soak")
        with closing(open_log(url)) as log:
            for topic in (EVENTS, *OUTPUTS):
                log.create(topic, PARTITIONS)
            stream = _start(url, cluster, folder)
            try:
                producing = pool.submit(produce, log, told, stop)
                watch = _Watch(log, cluster, broker, stream)
                intervals = watch.intervals(round(60 * minutes / _EVERY_S), producing, say)
            finally:
                stop.set()
                stream.stop(_END_S)
    events = sum(interval.events for interval in intervals)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Result(today, round(events / intervals[-1].at_s, 1), task_managers, intervals)


@contextmanager
def _servers(task_managers: int) -> Iterator[tuple[Broker, Cluster, Path]]:
    if not JARS.is_dir():
        message = f"no Flink in {JARS}: `make cluster` puts it there"
        raise BenchmarkError(message)
    with TemporaryDirectory(prefix="pageturn-soak-flink-") as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        broker = Broker(JARS.parent / "kafka", folder / "kafka")
        cluster = Cluster(JARS, folder / "flink", free_ports(3), task_managers, jvm=())
        try:
            broker.start()
            cluster.start()
            yield broker, cluster, folder
        finally:
            cluster.stop()
            broker.kill()


def _start(url: str, cluster: Cluster, folder: Path) -> Process:
    """The stream, and wait until it runs."""
    arguments = ["--config", CONFIG, "--log", url, "--state", folder / "state", "--runner", "flink"]
    arguments += ["--flink-master", cluster.address, "--parallelism", len(cluster.task_managers)]
    arguments += ["--flink-job-server", job_server(JARS, folder)]
    stream = Process("stream", pageturn("stream", *map(str, arguments)), folder / "logs")
    deadline_s = time.monotonic() + _START_S
    while not cluster.is_running():
        stream.check()
        if time.monotonic() > deadline_s:
            stream.stop(_END_S)
            raise BenchmarkError(stream.report(f"did not run on Flink after {_START_S:.0f} s"))
        time.sleep(0.5)
    return stream


class _Watch:
    def __init__(self, log: EventLog, cluster: Cluster, broker: Broker, stream: Process) -> None:
        self._log, self._cluster, self._broker, self._stream = log, cluster, broker, stream
        self._fresh, self._written = Fresh(log, load_config(CONFIG).stream.lateness), 0

    def intervals(self, count: int, producing: Future[None], say: Callable[[str], None]) -> tuple[Interval, ...]:
        found: list[Interval] = []
        before, began_s = self._loads(), time.monotonic()
        for number in range(1, count + 1):
            wait([producing], timeout=began_s + number * _EVERY_S - time.monotonic())
            if producing.done():
                producing.result()
            self._stream.check()
            now = self._loads()
            found.append(self._interval(before, now, time.monotonic() - began_s))
            say(msgspec.json.encode(found[-1]).decode())
            before = now
        return tuple(found)

    def _loads(self) -> tuple[Load, Load, Load]:
        """Of the Python workers, of Flink, of the broker."""
        pids = self._cluster.pids()
        java = sorted(self._cluster.groups)
        return load([pid for pid in pids if pid not in java]), load(java), load([self._broker.pid])

    def _interval(self, before: Sequence[Load], now: Sequence[Load], at_s: float) -> Interval:
        written = sum(self._log.end_offsets(EVENTS).values())
        events, self._written = written - self._written, written
        lags = sorted(self._fresh.lags_ms())
        p50, p99 = (lags[len(lags) * share // 100] for share in (50, 99)) if lags else (None, None)
        python, java, broker = (b.cpu_s - a.cpu_s for a, b in zip(before, now, strict=True))
        checkpoint, sessions = self._cluster.checkpoint_bytes(), self._cluster.state_of_sessions()
        return Interval(
            round(at_s, 1), events, round(now[0].rss_mb, 1), round(now[1].rss_mb, 1), *self._heap(),
            round(checkpoint / 1024, 1), round(sessions / 1024, 1), round((python + java) / _EVERY_S, 3),
            round(broker / _EVERY_S, 3), len(lags), p50, p99,
        )  # fmt: skip

    def _heap(self) -> tuple[float, int, float]:
        heap, tables, tables_bytes = 0, 0, 0
        for server in self._cluster.task_managers:
            command = ["jcmd", str(server.pid), "GC.class_histogram"]
            alive = classes(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            heap += sum(size for _, size in alive.values())
            tables += alive.get(_TABLE[0], (0, 0))[0]
            tables_bytes += sum(alive.get(name, (0, 0))[1] for name in _TABLE)
        return round(heap / 2**20, 1), tables, round(tables_bytes / 2**20, 1)


def classes(histogram: str) -> dict[str, tuple[int, int]]:
    """Of a heap as `jcmd` tells it: class -> instances and their bytes, without what they refer to."""
    rows = re.findall(r"^ *\d+: +(\d+) +(\d+) +(\S+)", histogram, re.MULTILINE)
    return {name: (int(count), int(size)) for count, size, name in rows}


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("soak_on_flink", __doc__)
    known.add_argument("--minutes", type=float, default=30.0)
    known.add_argument("--rate", type=float, default=300.0, help="events per second, about")
    known.add_argument("--task-managers", type=int, default=1)
    options = known.parse_args(arguments)
    return tell(
        lambda: soak(options.minutes, options.rate, options.task_managers, say),
        lambda result: f"{result.rate:.0f} events per second for {result.intervals[-1].at_s / 60:.0f} minutes",
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
