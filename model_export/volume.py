"""The model volume's version folders.

<models>/<model name>/<version>/         a published version; renamed into place, never changed, number never reused
<models>/<model name>/.bad-<version>/    one that a model server refused
<models>/<model name>/.tmp-<version>/    a copy on its way in, or a folder on its way out
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from model_export.candidate import EXTRA, MODEL, RECORD, Candidate, CandidateError, decode_candidate, encode_candidate
from pipeline import durable

_NUMBER = re.compile(r"[1-9][0-9]*")
_BAD = re.compile(rf"\.bad-({_NUMBER.pattern})")
_ANY_NUMBER = re.compile(r"(?:\.bad-|\.tmp-)?([0-9]+)")  # also of folders that are not ours


def folder_of(models: Path, model: str, version: int) -> Path:
    return models / model / str(version)


def versions_on(models: Path, model: str) -> tuple[int, ...]:
    """Numbers of the folders in place, rising."""
    return tuple(sorted(int(p.name) for p in _children(models / model) if _NUMBER.fullmatch(p.name)))


def first_free_version(models: Path, model: str, counter: int) -> int:
    """Above the counter and above every number a folder has or had."""
    used = [int(m[1]) for p in _children(models / model) if (m := _ANY_NUMBER.fullmatch(p.name))]
    return max(counter, max(used, default=0) + 1)


def read_version(models: Path, model: str, version: int) -> Candidate:
    """The record of the candidate that became a version. Raises: CandidateError."""
    return decode_candidate(folder_of(models, model, version) / EXTRA / RECORD)


def place(models: Path, model: str, version: int, source: Path, candidate: Candidate) -> None:
    """Copy a candidate's SavedModel to its version folder, with its record inside. Harmless when it is there."""
    target = folder_of(models, model, version)
    if target.exists():
        found = read_version(models, model, version)
        if found != candidate:
            message = f"{target}: expected candidate {candidate.id}, found {found.id}; version numbers are never reused"
            raise CandidateError(message)
        return
    aside = target.with_name(f".tmp-{version}")
    shutil.rmtree(aside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.sync(models)
    durable.copy(source / MODEL, aside)
    durable.write(aside / EXTRA / RECORD, encode_candidate(candidate))
    durable.rename(aside, target)


def set_aside(models: Path, model: str, version: int) -> None:
    """Keep a refused version for inspection, under a name that no model server reads."""
    folder = folder_of(models, model, version)
    if folder.exists():
        durable.rename(folder, folder.with_name(f".bad-{version}"))


def remove(models: Path, model: str, version: int) -> None:
    folder = folder_of(models, model, version)
    if folder.exists():
        durable.remove_folder(folder)


def remove_leftovers(models: Path, model: str, keep_bad: int) -> None:
    """Copies that were broken off, and all but the newest refused versions."""
    for path in _children(models / model):
        if path.name.startswith(".tmp-"):
            shutil.rmtree(path)
    bad = {int(m[1]): path for path in _children(models / model) if (m := _BAD.fullmatch(path.name))}
    for number in sorted(bad)[: -keep_bad or None]:
        shutil.rmtree(bad[number])


def _children(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
