"""A seed of a row of others: reads who it is (JSON) and writes what became of it (JSON, the last line)."""

from __future__ import annotations

import importlib
import sys

import msgspec

from benchmarks.courses import Pupil, attend, teaching
from benchmarks.rows import Outsider
from benchmarks.shares import YARDSTICK, Judge, read_yardstick
from pipeline.simulation.params import World


def main() -> None:
    pupil, world = msgspec.json.decode(sys.stdin.buffer.read(), type=Pupil), World()
    assert isinstance(pupil.row.learner, Outsider)
    judge = Judge(world, read_yardstick(YARDSTICK, world), pupil.plan.users)
    module = importlib.import_module(f"benchmarks.peers.{pupil.row.learner.package}")
    school = module.school(teaching(world, pupil.row), pupil.row.learner.settings, pupil.seed)
    (run,) = attend(world, judge, school, [pupil])
    sys.stdout.buffer.write(msgspec.json.encode(run) + b"\n")


if __name__ == "__main__":
    main()
