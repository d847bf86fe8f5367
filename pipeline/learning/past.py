"""What the trainer was when it handed out a candidate: its checkpoint of then, under the candidate's name.

They are hard links of checkpoints, which never change: the newest cost no room.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from pipeline import durable
from pipeline.learning.checkpoint import Loaded, verified

_NEWEST = 5  # candidates that may not have been judged yet


class Past:
    """Owns the directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for left_over in directory.glob(".tmp-*"):
            shutil.rmtree(left_over)

    def add(self, candidate: str, checkpoint: Path) -> None:
        """Durable when it returns. One of that name is left alone."""
        target = self._directory / candidate
        if target.exists():
            return
        aside = target.with_name(f".tmp-{candidate}")
        shutil.copytree(checkpoint, aside, copy_function=_link)
        durable.sync(aside)
        durable.rename(aside, target)

    def find(self, candidate: str) -> Loaded | None:
        """None where it is no longer kept. Raises: CheckpointError where it is damaged."""
        path = self._directory / candidate
        return Loaded(0, path, verified(path)) if path.is_dir() else None

    def keep_only(self, candidates: Collection[str]) -> None:
        """And the newest few, whatever they are."""
        found = sorted(path for path in self._directory.iterdir() if not path.name.startswith("."))
        for path in found[:-_NEWEST]:
            if path.name not in candidates:
                durable.remove_folder(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        durable.sync(Path(target))
