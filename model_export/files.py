"""Files that are whole or not there, also after a power cut: write aside, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line, durable on return. A torn last line of a crashed writer is closed first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def copy_durably(source: Path, target: Path) -> None:
    """Copy a folder to a new path; every file and folder of the copy is on disk on return."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder, _, names in os.walk(target):
        for name in names:
            _sync(Path(folder, name))
        sync_folder(Path(folder))


def rename_durably(source: Path, target: Path) -> None:
    source.rename(target)
    sync_folder(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder that others may be looking at: out of sight first, so that nobody sees half of it."""
    hidden = path if path.name.startswith(".tmp-") else path.with_name(f".tmp-{path.name}")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        rename_durably(path, hidden)
    shutil.rmtree(hidden)


def sync_folder(path: Path) -> None:
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
