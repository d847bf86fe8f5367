"""Files and folders that are whole or not there, also after a power cut; and folders that one process has alone.

The recipe is always the same: write aside, fsync, rename, fsync the folder that holds the name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import PageturnError

_LOCK = ".lock"
_LOOKS, _LOOK_S = 5, 0.02


class StorageError(PageturnError):
    """A folder or file cannot be used."""


class BusyError(StorageError):
    """Another process has the folder."""


def sync(path: Path) -> None:
    """Force a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Force all files and folders under root to the disk, root included."""
    for folder, _, names in os.walk(root):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def write(path: Path, content: bytes) -> None:
    """Whoever reads finds the old bytes or the new ones. One writer at a time."""
    aside = path.with_name(f".tmp-{path.name}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def appending(path: Path) -> BinaryIO:
    """The file, open for whole lines. A torn last line of a crashed writer is closed first."""
    file = path.open("ab+")
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def append_line(path: Path, line: bytes) -> None:
    """Append one line, durable on return."""
    with appending(path) as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def copy(source: Path, target: Path) -> None:
    """Copy a folder to a new path."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    sync_tree(target)


def rename(source: Path, target: Path) -> None:
    """Rename within a file system; a target folder must not be there."""
    source.rename(target)
    sync(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder that others may be looking at: out of sight first, so that nobody sees half of it."""
    hidden = path if path.name.startswith(".tmp-") else path.with_name(f".tmp-{path.name}")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        rename(path, hidden)
    shutil.rmtree(hidden)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Have the folder, made if need be, for this process alone. The system lets go of it however the process ends.

    Raises BusyError if another process has it, StorageError if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        message = f"cannot use the folder {folder}: {error.strerror}; choose one that this user can write"
        raise StorageError(message) from error
    try:
        _lock(descriptor, folder)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """The process that has the folder by `exclusive`; None where nobody has, or says so yet."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(descriptor, 32)
        return int(said) if said else None
    finally:
        os.close(descriptor)
    return None


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock and leave the process id in it, for the next one's message."""
    for looks_left in reversed(range(_LOOKS)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if looks_left:  # somebody who only asks for the holder has the lock for a moment, too
                time.sleep(_LOOK_S)
                continue
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            message = f"{folder} is in use by another process ({holder}): stop that one, or choose another folder"
            raise BusyError(message) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
