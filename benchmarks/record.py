"""What has been run: one file that is read to resume, and is committed with the figures."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, structs

from benchmarks.courses import Plan, Pupil, Run
from benchmarks.rows import Row
from benchmarks.shares import BenchmarkError
from pipeline.simulation.params import World
from pipeline.simulation.yardstick import Yardstick


class Record(Struct, frozen=True):
    simulator_version: int
    simulator_sha256: str
    best: float  # the yardstick's discounted ratio
    constant: float  # that of the best constant
    myopic: float  # and of the best policy that counts the present page alone
    plan: Plan
    rows: tuple[Row, ...] = ()  # as they were run
    runs: tuple[Run, ...] = ()

    @classmethod
    def empty(cls, world: World, yardstick: Yardstick, plan: Plan) -> Record:
        best, constant, myopic = (
            yardstick.row(name).discounted_ratio.mean for name in ("best", "best constant", "best myopic")
        )
        return cls(yardstick.version, world.sha256, best, constant, myopic, plan)

    def has(self, pupil: Pupil) -> bool:
        return any(run.key == pupil.key for run in self.runs)

    def of(self, row: str) -> tuple[Run, ...]:
        return tuple(sorted((run for run in self.runs if run.row == row), key=lambda run: run.seed))

    def kept(self, pupils: list[Pupil]) -> Record:
        """Without runs of a row that has other settings by now."""
        row, keys = pupils[0].row, {pupil.key for pupil in pupils}
        runs = tuple(run for run in self.runs if run.row != row.name or run.key in keys)
        rows = (*(each for each in self.rows if each.name != row.name), row)
        return structs.replace(self, rows=rows, runs=runs)

    def with_runs(self, runs: list[Run]) -> Record:
        return structs.replace(self, runs=(*self.runs, *runs))


def read_record(path: Path, empty: Record) -> Record:
    """What is there of the same simulator and plan, or nothing. BenchmarkError where it cannot be read."""
    if not path.exists():
        return empty
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.MsgspecError as error:
        msg = f"{path}: expected what `python -m benchmarks.learning` writes, found: {error}"
        raise BenchmarkError(msg) from error
    same = (found.simulator_sha256, found.plan) == (empty.simulator_sha256, empty.plan)
    return structs.replace(empty, rows=found.rows, runs=found.runs) if same else empty


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    part.replace(path)
