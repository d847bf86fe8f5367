"""What has been run: one file that is read to resume, and is committed with the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from benchmarks.news.plans import Settings
from benchmarks.news.running import Run, Scale
from benchmarks.shares import BenchmarkError
from pipeline import durable
from pipeline.simulation.news.params import VERSION, World

REVISION = 1  # of the code that rows depend on: counted up by hand


class Row(Struct, frozen=True):
    key: str  # of all that it depends on
    method: str
    seed: int
    settings: dict[str, Any] | None
    run: Run
    seconds: float  # of processor time


class Record(Struct, frozen=True):
    simulator_version: int
    simulator_sha256: str
    scale: Scale
    rows: tuple[Row, ...] = ()

    @classmethod
    def empty(cls, world: World, scale: Scale) -> Record:
        return cls(VERSION, world.sha256, scale)

    def find(self, key: str) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def with_row(self, row: Row) -> Record:
        """In the place of one with other settings."""
        others = (each for each in self.rows if (each.method, each.seed) != (row.method, row.seed))
        return structs.replace(self, rows=(*others, row))


def key(world: World, scale: Scale, method: str, seed: int, settings: Settings) -> str:
    parts = (REVISION, VERSION, world.sha256, scale, method, seed, settings)
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def read_record(path: Path, empty: Record) -> Record:
    """What is there, or nothing. BenchmarkError where it cannot be read, or is of another simulator or scale."""
    if not path.exists():
        return empty
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        msg = f"{path}: expected what `python -m benchmarks.drn` writes, found: {error}"
        raise BenchmarkError(msg) from error
    if structs.replace(found, rows=()) != empty:
        expected, there = (msgspec.json.encode(structs.replace(each, rows=())).decode() for each in (empty, found))
        msg = f"{path}: expected figures of {expected}, found those of {there}: name another file with --json"
        raise BenchmarkError(msg)
    return found


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def by_method(rows: Iterable[Row]) -> dict[str, dict[int, Run]]:
    found: dict[str, dict[int, Run]] = {}
    for row in rows:
        found.setdefault(row.method, {})[row.seed] = row.run
    return found
