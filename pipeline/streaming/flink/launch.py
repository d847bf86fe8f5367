"""Runs the stream on Flink: submits the job, or finds it running; follows it; stops it so that it can go on.

With a cluster, the job is the cluster's: it outlives this process, restarts by itself from its checkpoints, and is
stopped with a savepoint. The state folder, which the cluster must see under the same path, holds its checkpoints and
savepoints and the name of the job; the next start goes on from the newest of them. With Flink inside the job server on
this machine nothing outlives the process, and the events are read again from the start: for trying things out.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import msgspec
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.runner import PipelineResult, PipelineState
from msgspec import Struct

from pipeline import durable
from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.logs.log import EVENTS, OUTPUTS, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.streaming import groups
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.flink.options import FLINK_VERSION, MAX_PARALLELISM, Settings, pipeline_options
from pipeline.streaming.flink.rest import ENDED, FlinkError, Rest, Unreachable
from pipeline.streaming.flink.sink import AppendToLog
from pipeline.streaming.flink.source import ReadLog
from pipeline.streaming.job import build
from pipeline.streaming.run import job_of

_LOG = logging.getLogger(__name__)
_POLL_S = 0.5
_SUBMIT_S, _SAVEPOINT_S, _SILENCE_S = 600.0, 600.0, 120.0


class Submitted(Struct, frozen=True):
    """What the state folder says of the job."""

    job: dict[str, Any]  # what its state depends on
    log: str
    name: str


def run_on_flink(
    config: FeatureConfig,
    log_url: str,
    state_dir: Path,
    settings: Settings,
    *,
    partitions: int = 1,
    stop: threading.Event,
) -> str | None:
    """Follow the job until it is to stop. Returns where its savepoint is, if Flink keeps one."""
    for name in ("apache_beam.utils.subprocess_server", "apache_beam.options.pipeline_options"):
        logging.getLogger(name).setLevel(logging.ERROR)  # commands, pages long; options that Beam knows only later
    _check_parallelism(settings)
    with exclusive(state_dir):
        if settings.local:
            return _run_locally(config, log_url, state_dir, settings, partitions, stop)
        rest = Rest(settings.master)
        _check_version(rest, settings)
        job = _running(rest, config, log_url, state_dir, settings) or _submit(
            rest, config, log_url, state_dir, settings, partitions, stop
        )
        return job and _follow(rest, job, state_dir, stop)


def _check_parallelism(settings: Settings) -> None:
    if settings.parallelism > MAX_PARALLELISM:
        message = f"parallelism: expected at most {MAX_PARALLELISM}, found {settings.parallelism}"
        raise FlinkError(message)


def _check_version(rest: Rest, settings: Settings) -> None:
    """FlinkError where the cluster is not there, or not one for the job server that Beam would fetch."""
    found = rest.version()
    if settings.job_server is None and not found.startswith(f"{FLINK_VERSION}."):
        remedy = f"give Beam's job server for Flink {found.rpartition('.')[0]} with --flink-job-server"
        message = f"Flink at {settings.master}: expected version {FLINK_VERSION}, found {found}; {remedy}"
        raise FlinkError(message)


def _run_locally(
    config: FeatureConfig, log_url: str, state_dir: Path, settings: Settings, partitions: int, stop: threading.Event
) -> None:
    result = _start(config, log_url, settings, partitions, _name(config), state_dir, None)
    while not stop.wait(_POLL_S):
        _check_result(result)
    threading.excepthook = _less_loud
    result.cancel()


def _less_loud(
    args: threading.ExceptHookArgs, loud: Callable[[threading.ExceptHookArgs], Any] = threading.excepthook
) -> None:
    """Of threads that talk to the job server, which ends before them."""
    if not isinstance(args.exc_value, grpc.RpcError):
        loud(args)


def _check_result(result: PipelineResult) -> None:
    """FlinkError with what the job server says, where it has ended the job."""
    if PipelineState.is_terminal(result.state):
        try:
            result.wait_until_finish()
        except RuntimeError as error:
            message = f"Flink's job server could not run the stream: {error}"
            raise FlinkError(message) from error
        message = f"Flink's job server has ended the stream: {result.state}"
        raise FlinkError(message)


def _running(rest: Rest, config: FeatureConfig, log_url: str, state_dir: Path, settings: Settings) -> str | None:
    """The job that this folder is of, if the cluster still has it."""
    submitted = _submitted(state_dir)
    if submitted is None:
        return None
    _check(state_dir, submitted, Submitted(_job(config, settings), log_url, submitted.name))
    job = rest.job_named(submitted.name)
    if job is None or rest.state(job) in ENDED:
        return None
    _LOG.info("job %s is running already: following it", submitted.name)
    return job


def _submit(
    rest: Rest,
    config: FeatureConfig,
    log_url: str,
    state_dir: Path,
    settings: Settings,
    partitions: int,
    stop: threading.Event,
) -> str | None:
    """The job's id; None when told to stop before Flink had it."""
    name, resume = _name(config), resume_point(state_dir)
    durable.write(_file(state_dir), msgspec.json.encode(Submitted(_job(config, settings), log_url, name)))
    _LOG.info("submitting job %s, which goes on from %s", name, resume or "the start of the events")
    result = _start(config, log_url, settings, partitions, name, state_dir, resume)
    deadline_s = time.monotonic() + _SUBMIT_S
    while (job := _found(rest, name)) is None:
        _check_result(result)
        if time.monotonic() > deadline_s:
            message = f"Flink at {settings.master} has not got job {name} within {_SUBMIT_S:.0f} s of submitting it"
            raise FlinkError(message)
        stop.wait(_POLL_S)
    return job


def _found(rest: Rest, name: str) -> str | None:
    """The job's id, if the cluster has it and says so."""
    try:
        return rest.job_named(name)
    except Unreachable:  # it answered a moment ago: it is busy
        return None


def _follow(rest: Rest, job: str, state_dir: Path, stop: threading.Event) -> str | None:
    heard_s = time.monotonic()
    while not stop.wait(_POLL_S):
        try:
            _check_running(rest, job)
            heard_s = time.monotonic()
        except Unreachable:  # a job manager that is starting again, or busy
            if time.monotonic() - heard_s > _SILENCE_S:
                raise
    return rest.stop_with_savepoint(job, (state_dir.resolve() / "savepoints").as_uri(), _SAVEPOINT_S)


def _check_running(rest: Rest, job: str) -> None:
    state = rest.state(job)
    if state is None or state in ENDED:
        message = f"job {job} is {state or 'not known to Flink any more'}: {rest.failure(job) if state else ''}"
        raise FlinkError(message)


def _start(
    config: FeatureConfig,
    log_url: str,
    settings: Settings,
    partitions: int,
    name: str,
    state_dir: Path,
    resume: str | None,
) -> PipelineResult:
    if shutil.which("java") is None:
        message = "Flink's job server: expected Java 11 or later on the PATH, found none"
        raise FlinkError(message)
    with closing(open_log(log_url)) as log:
        for topic in (EVENTS, *OUTPUTS):
            ensure_topic(log, topic, partitions)
        count = log.partitions(EVENTS)
    checkpoints = (state_dir.resolve() / "checkpoints").as_uri()
    pipeline = beam.Pipeline(runner=FlinkRunner(), options=pipeline_options(settings, name, checkpoints, resume))
    source = ReadLog(log_url, count, settings.parallelism, config.stream.lateness, config.stream.clock_skew)
    build(pipeline, source, beam.ParDo(AppendToLog(log_url)), config, settings.groups)
    return pipeline.run()


def resume_point(state_dir: Path) -> str | None:
    """The newest complete checkpoint or savepoint in the folder. Flink writes `_metadata` last."""
    found = [*state_dir.glob("savepoints/*/_metadata"), *state_dir.glob("checkpoints/*/chk-*/_metadata")]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return newest and newest.resolve().parent.as_uri()


def _job(config: FeatureConfig, settings: Settings) -> dict[str, Any]:
    """What the job's state depends on."""
    return {**job_of(config), "groups of sessions": settings.groups, "format of groups": groups.FORMAT}


def _name(config: FeatureConfig) -> str:
    return f"pageturn-{config.name}-{secrets.token_hex(4)}"


def _file(state_dir: Path) -> Path:
    return state_dir / "flink.json"


def _submitted(state_dir: Path) -> Submitted | None:
    try:
        return msgspec.json.decode(_file(state_dir).read_bytes(), type=Submitted)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        message = f"{_file(state_dir)} is damaged: {error}; start anew with an empty state folder"
        raise SnapshotError(message) from error


def _check(state_dir: Path, was: Submitted, now: Submitted) -> None:
    """SnapshotError where the state in the folder is of another job."""
    old, new = {**was.job, "log": was.log}, {**now.job, "log": now.log}
    names = sorted(old.keys() | new.keys())
    differences = [f"{n} was {old.get(n)}, is {new.get(n)}" for n in names if old.get(n) != new.get(n)]
    if differences:
        remedy = "go back to that, or start anew with an empty state folder and new output topics"
        message = f"{state_dir} holds the state of another job: {'; '.join(differences)}; {remedy}"
        raise SnapshotError(message)
