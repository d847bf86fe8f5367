"""Starting a model server: the real binary that PAGETURN_MODEL_SERVER names, or the stand-in. Same flags and files."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from pipeline.serving.client import ModelServer
from pipeline.serving.errors import TooLate, Unavailable

MODEL_SERVER = "PAGETURN_MODEL_SERVER"  # path of a tensorflow_model_server binary

# Why each has its value: serving_config/tensorflow_model_server.sh; a test keeps the two equal.
FLAGS: Mapping[str, int | bool] = {
    "model_config_file_poll_wait_seconds": 1,
    "file_system_poll_wait_seconds": 1,
    "num_load_threads": 2,
    "num_unload_threads": 1,
    "max_num_load_retries": 1,
    "load_retry_interval_micros": 5_000_000,
    "enable_model_warmup": True,
    "num_request_iterations_for_warmup": 3,
    "enable_grpc_healthcheck_service": True,
    "enable_profiler": False,
}


_PORTS = range(20_000, 32_000)


class RunningServer(NamedTuple):
    target: str
    process: subprocess.Popen[bytes]
    log: Path  # what it wrote to stdout and stderr


def uses_real_binary() -> bool:
    return bool(os.environ.get(MODEL_SERVER))


def server_command(port: int, model_config_file: Path | str, **flags: int | bool | str) -> list[str]:
    """The command line; `flags` are added to ours or replace them, whichever server answers."""
    binary = os.environ.get(MODEL_SERVER)
    program = [binary] if binary else [sys.executable, "-m", "pipeline.serving.standin"]
    values = {"port": port, "model_config_file": str(model_config_file), **FLAGS, **flags}
    return [*program, *(f"--{name}={_text(value)}" for name, value in values.items())]


def become_server(port: int, model_config_file: Path | str) -> NoReturn:
    """Turn this process into the server: its signals and its exit status are the server's."""
    command = server_command(port, model_config_file)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise _no_program(command, error) from error


@contextmanager
def running_server(
    model_config_file: Path | str, *, port: int = 0, timeout_s: float = 120.0, **flags: int | bool | str
) -> Iterator[RunningServer]:
    """A server of one's own, ready on entry, stopped on exit. Port 0: any free one.

    Raises Unavailable when it ends before it is ready and TooLate when it is not ready in time, both with the end of
    its log. The stand-in listens on the loopback interface, the real binary on all.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="model-server-") as folder:
        log = Path(folder, "log")
        process = _started(server_command(port, model_config_file, **flags), log)
        try:
            server = RunningServer(f"127.0.0.1:{port}", process, log)
            _wait_until_ready(server, timeout_s)
            yield server
        finally:
            _stop(process)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(n: int) -> list[int]:
    """Different ones, below those that the system gives to connections: they stay free until they are bound."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == n:
            break
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        try:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise _no_program(command, error) from error


def _no_program(command: list[str], error: OSError) -> Unavailable:
    message = f"{MODEL_SERVER}: expected the path of a program, found {command[0]!r}: {error.strerror}"
    return Unavailable(message, code="UNAVAILABLE")


def _wait_until_ready(server: RunningServer, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with ModelServer(server.target) as client:
        while True:
            if server.process.poll() is not None:
                message = f"model server ended with exit code {server.process.returncode} before it was ready"
                raise Unavailable(f"{message}:\n{_tail(server.log)}", code="UNAVAILABLE")  # noqa: EM102
            try:
                client.wait_until_ready(0.2)
                return
            except (TooLate, Unavailable) as error:
                time.sleep(0.02)
                if time.monotonic() > deadline:
                    message = f"{error} after {timeout_s:g} s; the end of its log:\n{_tail(server.log)}"
                    raise TooLate(message, code="DEADLINE_EXCEEDED") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _text(value: int | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
