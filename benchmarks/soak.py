"""The stream for a long time at a steady rate: does its memory stay flat, do its outputs stay fresh?

    python -m benchmarks.soak [--minutes 30] [--rate 1000] [--shards 1] [--json FILE]

Simulated users come at a steady rate; their events go to a file log as they happen, and `pageturn stream` follows with
windows of seconds. Every ten seconds: the memory of the stream's processes, the cores they use and those they wait for,
and for each page whose sample came how long that took from when it could be decided: its close, and the allowed
lateness later. Segments of the log that are some minutes old are deleted, as retention does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from benchmarks.rounds import produce, round_of
from benchmarks.telling import parser, say, tell
from benchmarks.watching import Fresh, Load, delete_old, load
from pageturn.processes import Process, ProcessError, pageturn
from pipeline.config.reading import load_config
from pipeline.durable import holder
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, OUTPUTS
from pipeline.streaming.shards import Shard

CONFIG = Path(__file__).parents[1] / "feature_configs" / "simulated.yaml"
PARTITIONS = 4
SEGMENT_BYTES = 8 * 1024 * 1024
KEPT_S = 180.0  # segments, after they were last written
FILLED_S = 300.0  # what is allowed to grow until then
_ROUND_S, _START_S, _END_S = 30.0, 120.0, 30.0


class Interval(Struct, frozen=True):
    at_s: float  # its end, since traffic began
    events: int  # written in it
    rss_mb: float  # at its end
    cores: float  # busy, on average
    starved: float  # processes that could have run and had no core, on average: what the machine does besides
    pages: int
    fresh_p50_ms: float | None  # None: no page
    fresh_p99_ms: float | None


class Trend(Struct, frozen=True):
    """Medians of the first and of the last quarter of the time after the first five minutes."""

    rss_mb: tuple[float, float]
    fresh_p50_ms: tuple[float, float]
    fresh_p99_ms: tuple[float, float]


class Result(Struct, frozen=True):
    measured_on: str  # date
    rate: float  # events per second that were written
    shards: int
    trend: Trend | None  # None: too short
    intervals: tuple[Interval, ...]


def soak(minutes: float, rate: float, shards: int, every_s: float, say: Callable[[str], None]) -> Result:
    """Raises ProcessError where the stream ends before it is told to."""
    say("making a round of traffic")
    told, stop = round_of(rate, _ROUND_S), threading.Event()
    with tempfile.TemporaryDirectory(prefix="pageturn-soak-") as name, ThreadPoolExecutor(1) as pool:
        folder = Path(name)
        with closing(FileLog(folder / "log", segment_bytes=SEGMENT_BYTES)) as log:
            for topic in (EVENTS, *OUTPUTS):
                log.create(topic, PARTITIONS)
            stream = _start(folder, shards)
            try:
                producing = pool.submit(produce, log, told, stop)
                watch = _Watch(log, folder, stream, _pids(folder / "state", shards))
                intervals = watch.intervals(round(60 * minutes / every_s), every_s, producing, say)
            finally:
                stop.set()
                stream.stop(_END_S)
    if stream.status != 0:
        raise ProcessError(stream.report(f"ended with status {stream.status}"))
    return _result(intervals, shards)


def _start(folder: Path, shards: int) -> Process:
    """The stream, and wait until it has begun."""
    arguments = ["--config", CONFIG, "--log", f"file://{folder}/log", "--state", folder / "state", "--shards", shards]
    stream = Process("stream", pageturn("stream", *map(str, arguments)), folder / "logs")
    deadline_s = time.monotonic() + _START_S
    while None in _pids(folder / "state", shards):
        stream.check()
        if time.monotonic() > deadline_s:
            stream.stop()
            raise ProcessError(stream.report(f"was not there after {_START_S:.0f} s"))
        time.sleep(0.1)
    return stream


def _pids(state: Path, shards: int) -> list[int | None]:
    """Of the processes that do the work."""
    return [holder(Shard(index, shards).folder(state)) for index in range(shards)]


class _Watch:
    def __init__(self, log: FileLog, folder: Path, stream: Process, pids: Sequence[int | None]) -> None:
        self._log, self._folder, self._stream = log, folder, stream
        self._pids = [pid for pid in pids if pid is not None]
        self._fresh, self._written = Fresh(log, load_config(CONFIG).stream.lateness), 0

    def intervals(
        self, count: int, every_s: float, producing: Future[None], say: Callable[[str], None]
    ) -> tuple[Interval, ...]:
        found: list[Interval] = []
        before, began_s = load(self._pids), time.monotonic()
        for number in range(1, count + 1):
            wait([producing], timeout=began_s + number * every_s - time.monotonic())
            if producing.done():
                producing.result()
            self._stream.check()
            now = load(self._pids)
            found.append(self._interval(before, now, time.monotonic() - began_s, every_s))
            say(_line(found[-1]))
            before = now
            delete_old(self._folder / "log", KEPT_S)
        return tuple(found)

    def _interval(self, before: Load, now: Load, at_s: float, every_s: float) -> Interval:
        written = sum(self._log.end_offsets(EVENTS).values())
        events, self._written = written - self._written, written
        lags = sorted(self._fresh.lags_ms())
        p50, p99 = (lags[len(lags) * share // 100] for share in (50, 99)) if lags else (None, None)
        busy = round((now.cpu_s - before.cpu_s) / every_s, 3)
        starved = round((now.starved_s - before.starved_s) / every_s, 3)
        return Interval(round(at_s, 1), events, round(now.rss_mb, 1), busy, starved, len(lags), p50, p99)


def _line(interval: Interval) -> str:
    fresh = "-" if interval.fresh_p50_ms is None else f"{interval.fresh_p50_ms:.0f} / {interval.fresh_p99_ms:.0f} ms"
    return (
        f"{interval.at_s:7.0f} s  {interval.events:7} events  {interval.rss_mb:7.1f} MB  {interval.cores:5.2f} cores  "
        f"{interval.starved:5.2f} starved  {interval.pages:6} pages  fresh p50 / p99 {fresh}"
    )


def _result(intervals: tuple[Interval, ...], shards: int) -> Result:
    rate = sum(interval.events for interval in intervals) / intervals[-1].at_s
    return Result(time.strftime("%Y-%m-%d", time.gmtime()), round(rate, 1), shards, _trend(intervals), intervals)


def _trend(intervals: Sequence[Interval]) -> Trend | None:
    later = [interval for interval in intervals if interval.at_s > FILLED_S]
    quarter = len(later) // 4
    if quarter == 0:
        return None

    def both(name: str) -> tuple[float, float]:
        values = [getattr(interval, name) for interval in later]
        first, last = ([v for v in part if v is not None] for part in (values[:quarter], values[-quarter:]))
        return statistics.median(first), statistics.median(last)

    return Trend(both("rss_mb"), both("fresh_p50_ms"), both("fresh_p99_ms"))


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("soak", __doc__)
    known.add_argument("--minutes", type=float, default=30.0)
    known.add_argument("--rate", type=float, default=1_000.0, help="events per second, about")
    known.add_argument("--shards", type=int, default=1, help="processes of the stream")
    known.add_argument("--every-s", type=float, default=10.0, help="length of an interval")
    options = known.parse_args(arguments)
    return tell(
        lambda: soak(options.minutes, options.rate, options.shards, options.every_s, say),
        lambda result: f"{result.rate:.0f} events per second; {_said(result.trend)}",
        options.json,
    )


def _said(trend: Trend | None) -> str:
    if trend is None:
        return f"too short to say what becomes of it after {FILLED_S:.0f} s"
    (a, b), (c, d), (e, f) = trend.rss_mb, trend.fresh_p50_ms, trend.fresh_p99_ms
    return f"memory {a:.1f} -> {b:.1f} MB, fresh p50 {c:.0f} -> {d:.0f} ms, p99 {e:.0f} -> {f:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
