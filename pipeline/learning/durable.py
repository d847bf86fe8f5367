"""Directories that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_tree(root: Path) -> None:
    """Force all files and folders under root to the disk, root included."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_dir(source: Path, target: Path) -> None:
    """Rename, durably. The target must not be there."""
    source.rename(target)
    fsync(target.parent)
