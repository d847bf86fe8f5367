"""Files of one JSON value per line, which their writer may have left torn: a kill in the middle of a line.

Whoever appends next (`pipeline.durable.appending`) closes the torn line first; whoever reads passes over it, and says
so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class Tail(Generic[_T]):
    """The lines that a file has grown by. `skipped` counts those that were not what they should be."""

    def __init__(self, path: Path, kind: type[_T]) -> None:
        self.skipped = 0
        self._path, self._at = path, 0
        self._decoder = msgspec.json.Decoder(kind)

    def lines(self) -> Iterator[_T]:
        """Whole lines since the last time; the last one may be on its way to the disk. A file may not be there yet."""
        if not self._path.exists():
            return
        before = self.skipped
        with self._path.open("rb") as file:
            if self._at > file.seek(0, os.SEEK_END):  # its writer has put it aside, and begun another
                self._at = 0
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                try:
                    value = self._decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self.skipped += 1
                    continue
                yield value
        if self.skipped > before:
            _LOG.warning("%s: skipped %d lines that are not whole", self._path, self.skipped - before)


def lines_of(path: Path, kind: type[_T]) -> Iterator[_T]:
    """All whole lines of a file that are what they should be."""
    return Tail(path, kind).lines()
