"""Events per CPU-second of the stream on Flink, beside a plain loop and the embedded runner.

    make bench-stream, or: make cluster && python -m benchmarks.on_flink [--visits 3000] [--repeats 3] [--json FILE]

The rules are those of `benchmarks.stream`. Flink is a real one, as the cluster tests start it: a job manager and a task
manager with one slot. The naive job has one element per event, pickled state, and Beam's defaults.

A job is measured from when it only looks for events until its last output is written: what comes before (starting Java
and Python, submitting) is not counted; what the job manager takes, and the looking, is. The events are older than the
clock, which would close all their pages: for the source it stands still until they are there.

Below the table: where the job's time goes. In a last run, which is not in the table, the worker's Python is profiled.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer, FlinkRunner
from apache_beam.runners.portability.job_server import JobServer, StopOnExitJobServer
from msgspec import Struct

from benchmarks import spending
from benchmarks.naive import NaiveRecords
from benchmarks.shares import BenchmarkError
from benchmarks.stream import CONTENDERS, Contender, Result, Task, lone_task, measure, table
from benchmarks.telling import parser, say, tell
from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog, wall_clock_ms
from pipeline.logs.log import EPISODES, EVENTS, SAMPLES, TRANSITIONS, Entry
from pipeline.serving.launch import free_ports
from pipeline.streaming.flink.options import GROUPS, Settings, pipeline_options, worker_command
from pipeline.streaming.flink.sink import AppendToLog
from pipeline.streaming.flink.source import ReadLog
from pipeline.streaming.job import StreamRecords
from pipeline.streaming.outputs import read_all
from tests.cluster.flink import Cluster, job_server

ROOT = Path(__file__).resolve().parents[1]
JARS = ROOT / ".cluster" / "flink"
_PATIENCE_S = 1_800.0
_QUIET_S = 10.0  # without outputs: there are no more
_AT_LAST = (SAMPLES, TRANSITIONS, EPISODES)  # pages close when all is read; a dead letter says nothing of them
_IDLE = 0.3  # of a core: a job that only looks for events takes less


class Job(NamedTuple):
    records: Callable[[FeatureConfig], beam.PTransform]
    flags: tuple[str, ...] = ()  # of Beam's, beside those that a stream is submitted with
    worker: str = ""  # a module that is one; without: ours


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
        self.spent: Counter[str] = Counter()  # CPU-seconds of the last job, by what they went to
        self.cluster = Cluster(JARS, folder / "flink", free_ports(3), task_managers=1, jvm=())
        self._jar = job_server(JARS, folder)
        self._job_server = StopOnExitJobServer(FlinkJarJobServer(self._options(Job(StreamRecords))))

    def start(self) -> None:
        self.cluster.start()

    def stop(self) -> None:
        self._job_server.stop()
        self.cluster.stop()

    def contender(self, job: Job) -> Contender:
        return lambda task: self._run(job, task).total()

    def profile(self, job: Job, task: Task) -> Counter[str]:
        """Seconds of the worker's Python, by layer of the code."""
        folder = self._folder / "profiles"
        folder.mkdir()
        self._run(job._replace(flags=(*job.flags, "--profile_cpu", f"--profile_location={folder}")), task)
        return spending.layers(folder)

    def _run(self, job: Job, task: Task) -> Counter[str]:
        """CPU-seconds that Flink and its Python take to make the log's events into outputs in the same log."""
        entries = _taken_out(task.folder)
        with closing(FileLog(task.folder)) as log:
            there = task.folder / "events-are-there"
            self._submit(job, task.config, log, task.folder, Clock(there))
            try:
                idle = self._until_idle()
                log.append(EVENTS, entries)
                there.touch()
                self.spent = self._until_quiet(log) - idle
                return self.spent
            finally:
                self.cluster.cancel_jobs()

    def _submit(self, job: Job, config: FeatureConfig, log: FileLog, folder: Path, clock: Clock) -> None:
        stream, url = config.stream, folder.as_uri()
        source = ReadLog(url, log.partitions(EVENTS), 1, stream.lateness, stream.clock_skew, clock_ms=clock)
        pipeline = beam.Pipeline(runner=_Runner(self._job_server), options=self._options(job))
        _ = pipeline | "Read" >> source | "Stream" >> job.records(config) | "Write" >> beam.ParDo(AppendToLog(url))
        pipeline.run()

    def _options(self, job: Job) -> PipelineOptions:
        """Modules that jobs are pickled from by name must be there for the workers, too."""
        command = self._command(job.worker) if job.worker else worker_command()
        environment = json.dumps({"command": command, "env": {"PYTHONPATH": str(ROOT)}})
        extra = (f"--environment_config={environment}", *job.flags)
        settings = Settings(self.cluster.address, job_server=str(self._jar), extra=extra)
        self._number += 1
        return pipeline_options(settings, f"job-{self._number}", (self._folder / "checkpoints").as_uri(), None)

    def _command(self, module: str) -> str:
        """A file that runs a module."""
        file = self._folder / module
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        file.chmod(0o755)
        return str(file)

    def _until_idle(self) -> Counter[str]:
        """What was taken until then, since the cluster started."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            before = self._taken()
            time.sleep(2)
            taken = self._taken()
            if self.cluster.is_running() and taken.total() - before.total() < 2 * _IDLE:
                return taken
        message = f"the job on Flink did not start within {_PATIENCE_S:.0f} s: {self.cluster.said()}"
        raise BenchmarkError(message)

    def _until_quiet(self, log: FileLog) -> Counter[str]:
        """What was taken until the last output, since the cluster started."""
        outputs, taken, at_s, deadline_s = 0, Counter[str](), time.monotonic(), time.monotonic() + _PATIENCE_S
        before, looked_s = self._taken(), time.monotonic()
        while not outputs or time.monotonic() - at_s < _QUIET_S:
            there = sum(sum(log.end_offsets(topic).values()) for topic in _AT_LAST)
            if there > outputs:
                outputs, taken, at_s = there, self._taken(), time.monotonic()
            if time.monotonic() - looked_s > 2:
                now, now_s = self._taken(), time.monotonic()
                if now.total() - before.total() > _IDLE * (now_s - looked_s):
                    at_s = now_s  # something is under way
                before, looked_s = now, now_s
            if time.monotonic() > deadline_s:
                message = f"the job on Flink did not end within {_PATIENCE_S:.0f} s: {self.cluster.said()}"
                raise BenchmarkError(message)
            time.sleep(0.1)
        return taken

    def _taken(self) -> Counter[str]:
        return spending.seconds(self.cluster.pids())


class _Runner(FlinkRunner):
    def __init__(self, server: JobServer) -> None:
        super().__init__()
        self._server = server

    def default_job_server(self, options: PipelineOptions) -> JobServer:
        return self._server


OURS, NAIVE = "job on Flink", "naive job on Flink"
JOBS = {  # a cache of 0: as Beam has it
    OURS: Job(partial(StreamRecords, groups=GROUPS)),
    NAIVE: Job(NaiveRecords, ("--max_cache_memory_usage_mb=0",), "benchmarks.naive_worker"),
}


@contextmanager
def a_site() -> Iterator[Site]:
    """Flink is there until the end."""
    if not JARS.is_dir():
        message = f"no Flink in {JARS}: `make cluster` puts it there"
        raise BenchmarkError(message)
    with TemporaryDirectory(prefix="pageturn-bench-flink-") as folder:
        site = Site(Path(folder))
        try:
            site.start()
            yield site
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


class Profile(Struct, frozen=True):
    """Of our job. A run with the profile of Python takes longer, and is in no row."""

    cpu_s: dict[str, float]  # by process and kind of thread
    python_s: dict[str, float]  # of the worker, by layer of the code


class OnFlink(Struct, frozen=True):
    compared: Result
    profile: Profile


def compare(visits: int, repeats: int) -> OnFlink:
    with a_site() as site:
        on_flink = {name: site.contender(job) for name, job in JOBS.items()}
        compared = measure(visits, repeats, CONTENDERS | on_flink, say)
        with lone_task(visits) as task:
            site.contender(JOBS[OURS])(task)
            by_thread = site.spent
        with lone_task(visits) as task:
            by_layer = site.profile(JOBS[OURS], task)
    return OnFlink(compared, Profile(_rounded(by_thread), _rounded(by_layer)))


def _rounded(spent: Counter[str]) -> dict[str, float]:
    return {what: round(seconds, 2) for what, seconds in spent.most_common()}


def _told(found: OnFlink) -> str:
    profile = found.profile
    return "\n".join(
        [
            table(found.compared),
            f"{OURS} / {NAIVE}: {_ratio(found.compared):.2f} (median of the repeats)",
            f"Where the CPU-seconds of the {OURS} go:",
            spending.shares(Counter(profile.cpu_s)),
            "and, profiled, those of its Python worker:",
            spending.shares(Counter(profile.python_s)),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("on_flink", __doc__)
    known.add_argument("--visits", type=int, default=3_000, help="of simulated users; each makes some ten events")
    known.add_argument("--repeats", type=int, default=3)
    options = known.parse_args(arguments)
    return tell(lambda: compare(options.visits, options.repeats), _told, options.json)


def _ratio(result: Result) -> float:
    speeds = {row.name: row.events_per_cpu_s for row in result.rows}
    return statistics.median(ours / naive for ours, naive in zip(speeds[OURS], speeds[NAIVE], strict=True))


if __name__ == "__main__":
    sys.exit(main())
