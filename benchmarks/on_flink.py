"""Events per CPU-second of the stream on Flink, beside a plain loop and the embedded runner.

    make cluster && python -m benchmarks.on_flink [--visits 3000] [--repeats 3] [--json FILE]

The rules are those of `benchmarks.stream`. Flink is a real one, as the cluster tests start it: a job manager and a task
manager with one slot. The naive job has one element per event, pickled state, and Beam's defaults.

A job is measured from when it only looks for events until its last output is written: what comes before (starting Java
and Python, submitting) is not counted; what the job manager takes, and the looking, is. The events are older than the
clock, which would close all their pages: for the source it stands still until they are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer, FlinkRunner
from apache_beam.runners.portability.job_server import JobServer, StopOnExitJobServer

from benchmarks.naive import NaiveRecords
from benchmarks.shares import BenchmarkError
from benchmarks.stream import CONTENDERS, Contender, Result, measure, table
from benchmarks.watching import load
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.logs.files import FileLog, wall_clock_ms
from pipeline.logs.log import EVENTS, OUTPUTS, Entry
from pipeline.streaming.flink.options import Settings, pipeline_options, worker_command
from pipeline.streaming.flink.sink import AppendToLog
from pipeline.streaming.flink.source import ReadLog
from pipeline.streaming.job import StreamRecords
from pipeline.streaming.outputs import read_all
from tests.cluster.broker import free_ports
from tests.cluster.flink import Cluster, job_server

ROOT = Path(__file__).resolve().parents[1]
JARS = ROOT / ".cluster" / "flink"
_PATIENCE_S = 1_800.0
_QUIET_S = 10.0  # without outputs: there are no more
_IDLE = 0.3  # of a core: a job that only looks for events takes less


class Job(NamedTuple):
    records: Callable[[FeatureConfig], beam.PTransform]
    flags: tuple[str, ...] = ()  # of Beam's, beside those that a stream is submitted with


class Clock:
    """Stands still until a file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> int:
        return wall_clock_ms() if self._file.exists() else 0


class Site:
    """A cluster, and a job server that submits to it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.cluster = Cluster(JARS, folder / "flink", free_ports(3), task_managers=1, jvm=())
        self._jar = job_server(JARS, folder)
        self._job_server = StopOnExitJobServer(FlinkJarJobServer(self._options(())))

    def start(self) -> None:
        self.cluster.start()

    def stop(self) -> None:
        self._job_server.stop()
        self.cluster.stop()

    def contender(self, job: Job) -> Contender:
        return lambda task: self._cpu_s(job, task.config, task.folder)

    def _cpu_s(self, job: Job, config: FeatureConfig, log_folder: Path) -> float:
        """CPU-seconds that Flink and its Python take to make the log's events into outputs in the same log."""
        entries = _taken_out(log_folder)
        with closing(FileLog(log_folder)) as log:
            there = log_folder / "events-are-there"
            self._submit(job, config, log, log_folder, Clock(there))
            try:
                idle_s = self._until_idle()
                log.append(EVENTS, entries)
                there.touch()
                return self._until_quiet(log) - idle_s
            finally:
                self.cluster.cancel_jobs()

    def _submit(self, job: Job, config: FeatureConfig, log: FileLog, folder: Path, clock: Clock) -> None:
        stream, url = config.stream, folder.as_uri()
        source = ReadLog(url, log.partitions(EVENTS), 1, stream.lateness, stream.clock_skew, clock_ms=clock)
        pipeline = beam.Pipeline(runner=_Runner(self._job_server), options=self._options(job.flags))
        _ = pipeline | "Read" >> source | "Stream" >> job.records(config) | "Write" >> beam.ParDo(AppendToLog(url))
        pipeline.run()

    def _options(self, flags: tuple[str, ...]) -> PipelineOptions:
        """Modules that jobs are pickled from by name must be there for the workers, too."""
        environment = json.dumps({"command": worker_command(), "env": {"PYTHONPATH": str(ROOT)}})
        extra = (f"--environment_config={environment}", *flags)
        settings = Settings(self.cluster.address, job_server=str(self._jar), extra=extra)
        self._number += 1
        return pipeline_options(settings, f"job-{self._number}", (self._folder / "checkpoints").as_uri(), None)

    def _until_idle(self) -> float:
        """CPU-seconds until then, since the cluster started."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            before_s = self._taken_s()
            time.sleep(2)
            taken_s = self._taken_s()
            if self.cluster.is_running() and taken_s - before_s < 2 * _IDLE:
                return taken_s
        message = f"the job on Flink did not start within {_PATIENCE_S:.0f} s: {self.cluster.said()}"
        raise BenchmarkError(message)

    def _until_quiet(self, log: FileLog) -> float:
        """CPU-seconds until the last output, since the cluster started."""
        outputs, taken_s, at_s, deadline_s = 0, 0.0, time.monotonic(), time.monotonic() + _PATIENCE_S
        while not outputs or time.monotonic() - at_s < _QUIET_S:
            there = sum(sum(log.end_offsets(topic).values()) for topic in OUTPUTS)
            if there > outputs:
                outputs, taken_s, at_s = there, self._taken_s(), time.monotonic()
            if time.monotonic() > deadline_s:
                message = f"the job on Flink did not end within {_PATIENCE_S:.0f} s: {self.cluster.said()}"
                raise BenchmarkError(message)
            time.sleep(0.1)
        return taken_s

    def _taken_s(self) -> float:
        return load(self.cluster.pids()).cpu_s


class _Runner(FlinkRunner):
    def __init__(self, server: JobServer) -> None:
        super().__init__()
        self._server = server

    def default_job_server(self, options: PipelineOptions) -> JobServer:
        return self._server


OURS, NAIVE = "job on Flink", "naive job on Flink"
JOBS = {OURS: Job(StreamRecords), NAIVE: Job(NaiveRecords, ("--max_cache_memory_usage_mb=0",))}  # 0: as Beam has it


@contextmanager
def contenders() -> Iterator[dict[str, Contender]]:
    """Flink is there until the end."""
    if not JARS.is_dir():
        message = f"no Flink in {JARS}: `make cluster` puts it there"
        raise BenchmarkError(message)
    with TemporaryDirectory(prefix="pageturn-bench-flink-") as folder:
        site = Site(Path(folder))
        try:
            site.start()
            yield {name: site.contender(job) for name, job in JOBS.items()}
        finally:
            site.stop()


def _taken_out(folder: Path) -> list[Entry]:
    """The events, of which the log is left without."""
    with closing(FileLog(folder)) as log:
        records = sorted(read_all(log, EVENTS), key=lambda each: (each.appended_at_ms, each.partition, each.offset))
        partitions = log.partitions(EVENTS)
    (folder / EVENTS).unlink()  # a link to what all contenders read
    with closing(FileLog(folder)) as log:
        log.create(EVENTS, partitions)
    return [Entry(record.key, record.payload, record.appended_at_ms) for record in records]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_flink", description=__doc__.split("\n")[0])
    parser.add_argument("--visits", type=int, default=3_000, help="of simulated users; each makes some ten events")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    try:
        with contenders() as on_flink:
            here = {name: CONTENDERS[name] for name in ("plain loop", "embedded runner")}
            result = measure(
                options.visits, options.repeats, here | on_flink, lambda line: print(line, file=sys.stderr)
            )
    except PageturnError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(result))
    print(f"{OURS} / {NAIVE}: {_ratio(result):.2f} (median of {options.repeats})")
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0


def _ratio(result: Result) -> float:
    speeds = {row.name: row.events_per_cpu_s for row in result.rows}
    return statistics.median(ours / naive for ours, naive in zip(speeds[OURS], speeds[NAIVE], strict=True))


if __name__ == "__main__":
    sys.exit(main())
