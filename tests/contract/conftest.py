"""A real redis-server on a free loopback port, for the tests of everything that can rest on Redis."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.serving.launch import free_port


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], deadline_s: float) -> None:
    while process.poll() is None and time.monotonic() < deadline_s:
        with socket.socket() as client:
            client.settimeout(1)
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"redis-server did not open port {port}")


@pytest.fixture(scope="session")
def redis_url(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty server per session of tests. Its user `guest` has the password `open-sesame` and the keys `gyl:*`."""
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [redis_binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    command += ["--user", "guest", "on", ">open-sesame", "~gyl:*", "+@all"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_until_listening(port, process, time.monotonic() + 250)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(250)
