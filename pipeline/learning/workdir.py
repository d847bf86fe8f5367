"""A trainer's work directory has one owner."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.learning.errors import TrainerError


@contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Holds the directory for this process; the system lets go of it whatever way the process ends."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work_dir / "trainer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        msg = f"{work_dir}: expected a work directory that can be written to, found: {error.strerror}"
        raise TrainerError(msg) from error
    try:
        _lock(descriptor, work_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, work_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        msg = f"{work_dir}: expected no other trainer in this work directory, found process {holder}"
        raise TrainerError(msg) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
