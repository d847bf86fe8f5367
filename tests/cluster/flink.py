"""A real Flink: a job manager and task managers, each a process of its own on loopback ports, from jars.

What Flink's own start scripts work out, the shares of the memory, is written into the settings here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_START_S, _STOP_S, _ANSWER_S = 600.0, 600.0, 250.0
QUICK = ("-XX:TieredStopAtLevel=1",)  # to start, rather than fast in the long run
_OPENS = [
    "java.base/java.io", "java.base/java.lang", "java.base/java.net", "java.base/java.nio", "java.base/java.text",
    "java.base/java.time", "java.base/java.util", "java.base/java.util.concurrent", "java.base/sun.net.util",
]  # fmt: skip


def job_server(jars: Path, folder: Path) -> Path:
    """A jar that stands for all of them, as Beam's own job server jar does."""
    path = folder / "job-server.jar"
    manifest = {
        "Manifest-Version": "1.0",
        "Main-Class": "org.apache.beam.runners.flink.FlinkJobServerDriver",
        "Add-Opens": " ".join(_OPENS),
        "Class-Path": " ".join(jar.resolve().as_uri() for jar in sorted(jars.glob("*.jar"))),
    }
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "".join(map(_folded, manifest.items())))
    return path


def _folded(entry: tuple[str, str]) -> str:
    """A line of a manifest; it may have 72 bytes, and goes on behind a space."""
    line = ": ".join(entry)
    return "\n ".join([line[:70], *(line[i : i + 69] for i in range(70, len(line), 69))]) + "\n"


class Cluster:
    """A session cluster of `task_managers` with one slot each."""

    def __init__(
        self, jars: Path, folder: Path, ports: list[int], task_managers: int = 2, jvm: Sequence[str] = QUICK
    ) -> None:
        self._jars, self._folder, self._count, self._jvm = jars, folder, task_managers, jvm
        self._rpc, self._rest, self._blob = ports
        self.extra: dict[str, Any] = {}  # settings beside those below, or in their place
        self._numbers, self._logs = itertools.count(), dict[int, Path]()
        self.task_managers: list[subprocess.Popen[bytes]] = []
        self._job_manager: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._rest}"

    @property
    def groups(self) -> set[int]:
        """Of processes: each server's own, with what it started."""
        return {server.pid for server in [*self.task_managers, self._job_manager] if server is not None}

    def pids(self) -> list[int]:
        """Of all processes in these groups."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int(file.read_text().rpartition(")")[2].split()[2]) in self.groups:
                    found.append(int(file.parent.name))
        return found

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._launch_job_manager()
        self.task_managers = [self._launch_task_manager() for _ in range(self._count)]
        self.await_task_managers()

    def replace_task_manager(self, index: int) -> None:
        """Killed with all that it started, as when its machine goes; and another one in its place."""
        os.killpg(self.task_managers[index].pid, signal.SIGKILL)
        self.task_managers[index].wait()
        self.task_managers[index] = self._launch_task_manager()

    def await_task_managers(self) -> None:
        """Until all are there. One that has ended is started again: on a busy machine some give up while starting."""
        deadline_s = time.monotonic() + _START_S
        while not all(self._is_registered(process) for process in self.task_managers):
            assert time.monotonic() < deadline_s, self.said()
            if self._job_manager is None or self._job_manager.poll() is not None:
                self._launch_job_manager()
            for index, process in enumerate(self.task_managers):
                if process.poll() is not None:
                    self.task_managers[index] = self._launch_task_manager()
            time.sleep(0.2)

    def stop(self) -> None:
        for process in [*self.task_managers, *filter(None, [self._job_manager])]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=_ANSWER_S) as reply:
            return json.load(reply)

    def job(self) -> str:
        """The one that has not ended."""
        (job,) = [job["jid"] for job in self.get("/jobs/overview")["jobs"] if job["end-time"] == -1]
        return str(job)

    def is_running(self) -> bool:
        """Whether there is a job, with all its tasks."""
        jobs = [job for job in self.get("/jobs/overview")["jobs"] if job["state"] == "RUNNING"]
        return bool(jobs) and all(job["tasks"]["running"] == job["tasks"]["total"] for job in jobs)

    def checkpoints(self) -> int:
        """How many of the job were completed."""
        return int(self._checkpoints()["counts"]["completed"])

    def restored(self) -> str | None:
        """The checkpoint or savepoint that the job last went on from."""
        restored = self._checkpoints()["latest"]["restored"]
        return restored and str(restored["external_path"])

    def state_of_sessions(self) -> int:
        """Bytes of the step with sessions, its timers included, in the latest checkpoint."""
        latest = self._checkpoints()["latest"]["completed"]
        if latest is None:
            return 0
        job = self.job()
        tasks = self.get(f"/jobs/{job}/checkpoints/details/{latest['id']}")["tasks"]
        names = {vertex["id"]: vertex["name"] for vertex in self.get(f"/jobs/{job}")["vertices"]}
        return sum(int(task["state_size"]) for id_, task in tasks.items() if names[id_].endswith("]{Stream, Write}"))

    def checkpoint_bytes(self) -> int:
        latest = self._checkpoints()["latest"]["completed"]
        return int(latest["state_size"]) if latest else 0

    def _checkpoints(self) -> Any:
        return self.get(f"/jobs/{self.job()}/checkpoints")

    def cancel_jobs(self) -> None:
        for job in self.get("/jobs/overview")["jobs"]:
            if job["end-time"] == -1:
                request = urllib.request.Request(f"http://{self.address}/jobs/{job['jid']}?mode=cancel", method="PATCH")
                urllib.request.urlopen(request, timeout=_ANSWER_S).close()
        self.await_slots()

    def await_slots(self) -> None:
        """Until all are there and free."""
        deadline_s = time.monotonic() + _START_S
        while self.get("/overview")["slots-available"] < self._count:
            assert time.monotonic() < deadline_s, self.said()
            time.sleep(0.2)

    def broken_promises(self) -> list[str]:
        """What readers said of records that came too late for their watermark."""
        lines = (line for log in self._folder.glob("*.log") for line in log.read_text().splitlines())
        return [line for line in lines if "taken to be over" in line]

    def said(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-2_000:]}" for log in sorted(self._folder.glob("*.log")))

    def _is_registered(self, process: subprocess.Popen[bytes]) -> bool:
        return process.poll() is None and "Successful registration at resource manager" in self._log_of(process)

    def _log_of(self, process: subprocess.Popen[bytes]) -> str:
        return self._logs[process.pid].read_text()

    def _launch_job_manager(self) -> None:
        self._job_manager = self._launch("jobmanager", self.job_manager_command())

    def _launch_task_manager(self) -> subprocess.Popen[bytes]:
        name = f"taskmanager-{next(self._numbers)}"
        return self._launch(name, self.task_manager_command(name))

    def job_manager_command(self) -> list[str]:
        return self._command("jobmanager", "runtime.entrypoint.StandaloneSessionClusterEntrypoint", 512)

    def task_manager_command(self, name: str) -> list[str]:
        return self._command(name, "runtime.taskexecutor.TaskManagerRunner", 640)

    def _command(self, name: str, main: str, heap_mb: int) -> list[str]:
        """That starts it; its settings are written."""
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        settings = {**self._settings(), **self.extra, "io.tmp.dirs": str(home)}
        (home / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        opens = [f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS]
        flags = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", *self._jvm, "-Dorg.slf4j.simpleLogger.defaultLogLevel=info"]
        return ["java", *flags, *opens, "-cp", f"{self._jars}/*", f"org.apache.flink.{main}", "--configDir", str(home)]

    def _launch(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._logs[process.pid] = self._folder / f"{name}.log"
        return process

    def _settings(self) -> dict[str, Any]:
        return {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self._rpc,
            "jobmanager.bind-host": "127.0.0.1",
            "rest.address": "127.0.0.1",
            "rest.port": self._rest,
            "rest.bind-address": "127.0.0.1",
            "blob.server.port": self._blob,
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": 1,
            "taskmanager.cpu.cores": 1.0,
            "taskmanager.memory.task.heap.size": "384m",
            "taskmanager.memory.task.off-heap.size": "64m",
            "taskmanager.memory.framework.heap.size": "64m",
            "taskmanager.memory.framework.off-heap.size": "64m",
            "taskmanager.memory.jvm-metaspace.size": "192m",
            "taskmanager.memory.jvm-overhead.min": "64m",
            "taskmanager.memory.jvm-overhead.max": "64m",
            "taskmanager.memory.network.min": "32m",
            "taskmanager.memory.network.max": "32m",
            "taskmanager.memory.managed.size": "16m",
            "classloader.resolve-order": "parent-first",  # what a job brings along is here already, loaded and compiled
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 15000,  # machines that run tests are busy
            "pekko.startup-timeout": "120 s",
            "pekko.ask.timeout": "60 s",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1000,
            "restart-strategy.fixed-delay.delay": "1 s",
        }


class Stream:
    """`pageturn stream --runner flink`, as a process."""

    def __init__(self, options: list[str], folder: Path) -> None:
        self._log = folder / "stream.log"
        command = [sys.executable, "-m", "pageturn", "stream", "--runner", "flink", *options]
        with self._log.open("ab") as log:
            environment = {**os.environ, "JAVA_TOOL_OPTIONS": " ".join(QUICK)}  # of the job server
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def stop(self) -> str:
        """In order; all that it said."""
        self._process.terminate()
        assert self._process.wait(_STOP_S) == 0, self.said()
        return self._log.read_text()

    def failure(self) -> str:
        """What it says, having ended by itself."""
        assert self._process.wait(_STOP_S) != 0
        return self.said()

    def check_alive(self) -> None:
        assert self._process.poll() is None, self.said()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        return self._log.read_text()[-5_000:]
