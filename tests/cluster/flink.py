"""A real Flink: a job manager and task managers, each a process of its own on loopback ports, from jars.

What Flink's own start scripts work out, the shares of the memory, is written into the settings here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

_START_S, _STOP_S = 300.0, 300.0
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

    def __init__(self, jars: Path, folder: Path, ports: list[int], task_managers: int = 2) -> None:
        self._jars, self._folder, self._count = jars, folder, task_managers
        self._rpc, self._rest, self._blob = ports
        self.task_managers: list[subprocess.Popen[bytes]] = []
        self._job_manager: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._rest}"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._job_manager = self._launch(
            "jobmanager", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", 512
        )
        for _ in range(self._count):
            self.add_task_manager()
        deadline_s = time.monotonic() + _START_S
        while self._free_slots() < self._count:
            assert time.monotonic() < deadline_s, self.said()
            assert self._job_manager.poll() is None, self.said()
            time.sleep(0.2)

    def add_task_manager(self) -> None:
        name = f"taskmanager-{len(self.task_managers)}"
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        self.task_managers.append(self._launch(name, main, 640))

    def kill_task_manager(self, index: int) -> None:
        """With all that it started: as when its machine goes."""
        os.killpg(self.task_managers[index].pid, signal.SIGKILL)
        self.task_managers[index].wait()

    def stop(self) -> None:
        for process in [*self.task_managers, *filter(None, [self._job_manager])]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as reply:
            return json.load(reply)

    def said(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-2_000:]}" for log in sorted(self._folder.glob("*.log")))

    def _free_slots(self) -> int:
        try:
            return int(self.get("/overview")["slots-available"])
        except (urllib.error.URLError, ConnectionError, KeyError):
            return 0

    def _launch(self, name: str, main: str, heap_mb: int) -> subprocess.Popen[bytes]:
        home = self._folder / name
        home.mkdir(exist_ok=True)
        settings = {**self._settings(), "io.tmp.dirs": str(home)}
        (home / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        opens = [f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS]
        flags = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info"]
        command = ["java", *flags, *opens, "-cp", f"{self._jars}/*", main, "--configDir", str(home)]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

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
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> str:
        """In order; what it said at the end."""
        self._process.terminate()
        assert self._process.wait(_STOP_S) == 0, self.said()
        return self.said().splitlines()[-1]

    def check_alive(self) -> None:
        assert self._process.poll() is None, self.said()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        return self._log.read_text()[-5_000:]
