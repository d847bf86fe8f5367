"""How much of what can be earned on the simulated feed do learners learn to earn, and from how many transitions?

    python -m benchmarks.learning [--quick] [--rows ddpg ppo ...] [--json FILE]

Every seed of every row starts from nothing and learns from users of its own. On the way and at the end its noise is
switched off, and it meets the users on whom the yardsticks were measured. A share of 0 is the baseline, 1 the best
policy known on what the agent sees. Seeds that FILE has with the same settings are not run again, so the command can be
stopped and resumed.
"""

from __future__ import annotations

import argparse
import sys
from functools import cached_property
from pathlib import Path

import tensorflow as tf
from msgspec import structs

from benchmarks.comparing import table
from benchmarks.courses import Plan, Pupil, Run, attend, teaching
from benchmarks.outside import taught_outside
from benchmarks.record import Record, read_record, write_record
from benchmarks.rows import IMPROVED, LEARNERS, OUTSIDERS, ROWS, SWITCHES, Outsider, Row
from benchmarks.schools import school_of
from benchmarks.shares import USERS, YARDSTICK, Judge, countable, read_yardstick
from pipeline.errors import PageturnError
from pipeline.simulation.params import World
from pipeline.simulation.yardstick import Yardstick

FULL, QUICK = Plan(200_000, USERS, 5_000), Plan(30_000, 4_000, 4_000)
SEEDS, QUICK_SEEDS = 5, 2
TABLE = Path(__file__).parent / "results" / "learning.json"
QUICK_TABLE = Path("runs") / "learning-quick.json"


class Benchmark:
    """Runs what the record lacks, and writes it down as it comes."""

    def __init__(self, world: World, yardstick: Yardstick, plan: Plan, path: Path) -> None:
        self._world, self._yardstick, self._path = world, yardstick, path
        self.record = read_record(path, Record.empty(world, yardstick, plan))

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self._world, self._yardstick, self.record.plan.users)

    def run(self, row: Row, seeds: int) -> None:
        pupils = [Pupil(row, seed, self.record.plan, self._world.sha256) for seed in range(1, seeds + 1)]
        self.record = self.record.kept(pupils)
        for together in side_by_side([pupil for pupil in pupils if not self.record.has(pupil)]):
            self.record = self.record.with_runs(self._taught(row, together))
            write_record(self._path, self.record)

    def _taught(self, row: Row, pupils: list[Pupil]) -> list[Run]:
        if isinstance(row.learner, Outsider):
            return [taught_outside(pupil) for pupil in pupils]
        algorithm = structs.replace(row.learner, seed=pupils[0].seed, seeds=len(pupils))
        return attend(self._world, self._judge, school_of(teaching(self._world, row), algorithm, row.noise), pupils)


def side_by_side(pupils: list[Pupil]) -> list[list[Pupil]]:
    """Seeds that follow one another learn together."""
    groups: list[list[Pupil]] = []
    for pupil in pupils:
        if groups and groups[-1][-1].seed + 1 == pupil.seed:
            groups[-1].append(pupil)
        else:
            groups.append([pupil])
    return groups


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small figures, in about ten minutes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--transitions", type=int, help="to learn from, for each seed")
    parser.add_argument("--users", type=int, help="to measure on")
    parser.add_argument("--yardstick", type=Path, default=YARDSTICK, help="figures to compare with")
    parser.add_argument("--json", type=Path, help="where figures are kept; those that are there are not made again")
    asked = parser.parse_args(arguments)
    try:
        run(asked)
    except PageturnError as error:
        sys.exit(f"error: {error}")


def run(asked: argparse.Namespace) -> None:
    world, plan = World(), plan_of(asked)
    rows = asked.rows or [row.name for row in (*LEARNERS, *OUTSIDERS, *SWITCHES)]
    seeds = countable(asked.seeds or (QUICK_SEEDS if asked.quick else SEEDS))
    path = asked.json or (QUICK_TABLE if asked.quick else TABLE)
    benchmark = Benchmark(world, read_yardstick(asked.yardstick, world), plan, path)
    for name in rows:
        benchmark.run(ROWS[name], seeds)
        print(table(benchmark.record, [name], IMPROVED), flush=True)
    print(table(benchmark.record, list(ROWS), IMPROVED))


def plan_of(asked: argparse.Namespace) -> Plan:
    plan = QUICK if asked.quick else FULL
    given = {name: x for name in ("transitions", "users") if (x := getattr(asked, name)) is not None}
    plan = structs.replace(plan, **given)
    return structs.replace(plan, curve_users=min(plan.curve_users, plan.users))


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the nets are too small to share
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
