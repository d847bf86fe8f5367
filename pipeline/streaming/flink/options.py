"""Which of Beam's and its Flink runner's options a stream is submitted with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from apache_beam.options.pipeline_options import PipelineOptions

LOCAL = "[local]"
FLINK_VERSION = "1.20"
# Groups of keys that Flink stores state by; a savepoint is bound to it, and no parallelism can be higher. Each table of
# state has a map for each of them: Beam's runner before 2.76 leaves one table behind in every second (docs/flink.md).
MAX_PARALLELISM = 32
# Of sessions, by their name: the keys of their state, so that a bundle costs as many round trips to the task manager,
# at most, and not one for each session in it. No more workers than that have sessions, and fewer than four for each
# make for unequal shares. A savepoint is bound to it.
GROUPS = 64
# What a step gave out, and the watermark, go on when its bundle ends: this often, at the latest.
_BUNDLE_MS = 200
# Of each Python worker, for the state of groups. It must only not be 0: what they hold is in memory in any case.
_CACHE_MB = 100
# Flink's and Beam's libraries reach into the JDK's own packages.
_OPENS = ("io", "lang", "net", "nio", "text", "time", "util", "util.concurrent")


class Settings(NamedTuple):
    """How to reach Flink and what a job may take of it."""

    master: str = LOCAL  # or HOST:PORT of a cluster's REST interface
    parallelism: int = 1
    job_server: str | None = None  # the jar of Beam's job server; None: Beam fetches it
    worker: str | None = None  # the command on task managers; None: the one beside this Python
    checkpoint_interval_ms: int = 10_000
    groups: int = GROUPS
    job_server_flags: tuple[str, ...] = ()  # for its JVM
    extra: tuple[str, ...] = ()  # more options of Beam's runner

    @property
    def local(self) -> bool:
        return self.master == LOCAL


def pipeline_options(settings: Settings, name: str, checkpoints: str, resume: str | None) -> PipelineOptions:
    flags = [
        "--runner=FlinkRunner",
        f"--flink_version={FLINK_VERSION}",
        f"--flink_master={settings.master}",
        f"--job_name={name}",
        "--streaming",
        f"--parallelism={settings.parallelism}",
        f"--max_parallelism={MAX_PARALLELISM}",
        f"--checkpointing_interval={settings.checkpoint_interval_ms}",
        f"--max_bundle_time_mills={_BUNDLE_MS}",
        f"--max_cache_memory_usage_mb={_CACHE_MB}",
        # The path counts only beside a kind: on the heap of the task managers, and from there to files.
        "--state_backend=filesystem",
        f"--state_backend_storage_path={checkpoints}",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
        *(f"--job_server_jvm_properties={flag}" for flag in (*_jvm_flags(), *settings.job_server_flags)),
        *_environment(settings),
        *([f"--flink_job_server_jar={settings.job_server}"] if settings.job_server else []),
        *([f"--savepoint_path={resume}"] if resume else []),
        *settings.extra,
    ]
    return PipelineOptions(flags)


def _environment(settings: Settings) -> list[str]:
    """Where the Python of the job runs: in a process that each task manager starts, or, with Flink in this machine's
    job server, in this one."""
    if settings.local:
        return ["--environment_type=LOOPBACK"]
    command = settings.worker or worker_command()
    return ["--environment_type=PROCESS", f"--environment_config={json.dumps({'command': command})}"]


def worker_command() -> str:
    beside = Path(sys.executable).parent / "pageturn-flink-worker"
    return str(beside) if beside.exists() else shutil.which(beside.name) or beside.name


def _jvm_flags() -> list[str]:
    return [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENS]
