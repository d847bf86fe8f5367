"""Checkpoints in a directory: <number>/{trainer.msgpack, model.index, model.data-*}, complete or not there at all.

A checkpoint is written beside its place, forced to the disk and renamed; the highest number is the newest. Each file
is listed with its sha256 in `files.json`, written last, so damage is noticed and the one before is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec
import tensorflow as tf

from pipeline import durable
from pipeline.learning.errors import CheckpointError

_NUMBER = re.compile(r"\d{12}")
_STATE, _FILES, _MODEL = "trainer.msgpack", "files.json", "model"
_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    number: int
    path: Path
    state: bytes


class Checkpoints:
    """Owns the directory; the caller sees to it that there is one owner."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self._directory, self._keep = directory, keep
        directory.mkdir(parents=True, exist_ok=True)
        for left_over in directory.glob(".tmp-*"):
            shutil.rmtree(left_over)

    def write(self, number: int, module: tf.Module, state: bytes) -> Path:
        """A complete checkpoint of the module's variables and the state, durable when it returns."""
        temporary = self._directory / f".tmp-{number:012d}"
        temporary.mkdir()
        tf.train.Checkpoint(module=module).write(str(temporary / _MODEL))
        (temporary / _STATE).write_bytes(state)
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / _FILES).write_bytes(msgspec.json.encode(sums))
        durable.sync_tree(temporary)
        final = self._directory / f"{number:012d}"
        durable.rename(temporary, final)
        self._prune()
        return final

    def newest(self) -> Loaded | None:
        """The newest checkpoint that is undamaged; None where there never was one.

        Damaged ones are put aside with a warning. CheckpointError when none is left of those there were.
        """
        numbers = sorted(self._numbers(), reverse=True)
        for number in numbers:
            path = self.path(number)
            try:
                return Loaded(number, path, verified(path))
            except CheckpointError as error:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                _log.warning("checkpoint put aside as %s: %s; using the one before it", aside, error)
        if numbers:
            msg = f"{self._directory}: all {len(numbers)} checkpoints are damaged; restore one, or empty the directory"
            raise CheckpointError(msg)
        return None

    def path(self, number: int) -> Path:
        return self._directory / f"{number:012d}"

    def _numbers(self) -> list[int]:
        return [int(path.name) for path in self._directory.iterdir() if _NUMBER.fullmatch(path.name)]

    def _prune(self) -> None:
        for number in sorted(self._numbers())[: -self._keep]:
            doomed = self._directory / f".tmp-old-{number:012d}"  # a kill half-way leaves nothing that has a number
            os.replace(self.path(number), doomed)
            shutil.rmtree(doomed)


def restore(module: tf.Module, loaded: Loaded) -> None:
    """Every variable of the module from the checkpoint, none left out on either side."""
    try:
        tf.train.Checkpoint(module=module).read(str(loaded.path / _MODEL)).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        msg = f"{loaded.path}: expected the weights of this learner, found others ({error})"
        raise CheckpointError(msg) from error


def verified(path: Path) -> bytes:
    """The state in a checkpoint whose files are as they were written. Raises: CheckpointError."""
    try:
        sums = msgspec.json.decode((path / _FILES).read_bytes(), type=dict[str, str])
        for name, expected in sums.items():
            if (found := _sha256(path / name)) != expected:
                msg = f"{path / name}: expected sha256 {expected[:12]}, found {found[:12]}"
                raise CheckpointError(msg)
        return (path / _STATE).read_bytes()
    except (OSError, msgspec.MsgspecError) as error:
        msg = f"{path}: expected a complete checkpoint, found {error}"
        raise CheckpointError(msg) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
