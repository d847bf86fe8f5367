"""Files that survive a crash, and folders that one process has for itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.streaming.errors import BusyError, StorageError


def replace(path: Path, data: bytes) -> None:
    """Whoever reads finds the old bytes or the new ones, also after a crash of the machine."""
    staged = path.with_name(path.name + ".new")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or a folder's names, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Have the folder for this process alone (it is made if need be); BusyError if another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        message = f"cannot use the folder {folder}: {error.strerror}; choose one that this user can write"
        raise StorageError(message) from error
    try:
        _lock(fd, folder)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"{folder} is in use by another process: stop that one, or choose another folder"
        raise BusyError(message) from error
