"""What a shape has started and is still there: by a mark in the environment, which every process inherits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "CLUSTER_SHAPE"  # its folder


def left(folder: Path) -> list[int]:
    """Processes with the mark, other than this one."""
    wanted = f"{MARK}={folder.resolve()}".encode()
    return [pid for pid in _pids() if pid != os.getpid() and wanted in _environment(pid)]


def end(folder: Path) -> None:
    """Kill them: what a part has started may outlive it."""
    for pid in left(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _environment(pid: int) -> list[bytes]:
    """Of one that ended meanwhile, or is another user's: nothing."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []
