"""DRN and what it is compared with, on the simulated news: the rows of the paper's tables, and its orderings.

    python -m benchmarks.drn [--quick] [--seeds 5] [--only NAME ...] [--json FILE]
    python -m benchmarks.drn --tuning           # other settings, on other users
    python -m benchmarks.drn --docs             # what was found into docs/drn.md

Every method meets the same users and the same items: a day that is shown at random and logged, from which it starts,
and then a week of its own, with a minor update every 30 minutes and a major one every 60. Figures are over all pages of
that week, what exploration cost included. FILE is read and added to after every row, so the command can be stopped and
resumed; a change of a method's settings, or of `REVISION`, makes its rows run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import tensorflow as tf

from benchmarks.news import table, telling
from benchmarks.news.plans import METHODS, TRIED, Settings, maker
from benchmarks.news.record import Record, Row, by_method, key, read_record, write_record
from benchmarks.news.running import Scale, run
from benchmarks.shares import countable
from pipeline.errors import PageturnError
from pipeline.simulation.news.params import World

RESULTS = Path(__file__).parent / "results"
FIGURES, TUNING_FIGURES = RESULTS / "drn.json", RESULTS / "drn_tuning.json"
QUICK_FIGURES = Path("runs") / "drn-quick.json"
QUICK = Scale(users=150, warm_days=1, days=2)
TUNING, TUNING_SEEDS = Scale(users=400, warm_days=1, days=3), (101, 102)


class Benchmark:
    """Runs what the record lacks, and writes it down as it comes."""

    def __init__(self, world: World, scale: Scale, path: Path, methods: Mapping[str, Settings]) -> None:
        self._world, self._scale, self._path, self._methods = world, scale, path, methods
        self.record = read_record(path, Record.empty(world, scale))

    def obtain(self, names: Sequence[str], seeds: Iterable[int]) -> list[Row]:
        """Seed by seed: what is there after a while is comparable."""
        return [self._row(name, seed) for seed in seeds for name in names]

    def _row(self, name: str, seed: int) -> Row:
        where = key(self._world, self._scale, name, seed, self._methods[name])
        row = self.record.find(where)
        if row is None:
            row = self._measured(name, seed, where)
            self.record = self.record.with_row(row)
            write_record(self._path, self.record)
            print(f"{name:16} seed {seed}: ctr {table.mean_of(row.run, 'ctr'):.4f}, {row.seconds:.0f} s", flush=True)
        return row

    def _measured(self, name: str, seed: int, where: str) -> Row:
        settings, started_s = self._methods[name], time.process_time()
        made = run(maker(settings), self._world.params, self._scale, seed)
        said = None if settings is None else msgspec.to_builtins(settings)
        return Row(where, name, seed, said, made, round(time.process_time() - started_s, 1))


def report(world: World, scale: Scale, rows: Iterable[Row]) -> str:
    runs = by_method(rows)
    parts = [
        [f"{world}, sha256 {world.sha256}", telling.conditions(scale, runs)],
        table.rows(runs),
        ["click rate by day", *table.over_time(runs, "ctr")],
        ["clicks per user by day", *table.over_time(runs, "clicks")],
        ["reward per shown item by day", *table.over_time(runs, "reward")],
        ["minor updates", *table.updates(runs)],
        ["of the paper's orderings (differences on the same seeds, 95 %)", *table.statements(runs, table.CLAIMS)],
        ["of all pairs of the paper's table", *table.agreement(runs)],
        ["what the paper does not say", *table.statements(runs, table.QUESTIONS)],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drn", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few users, two days, two seeds: that it works")
    parser.add_argument("--seeds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=list(METHODS), metavar="NAME", help="of methods")
    parser.add_argument("--json", type=Path, help="where figures are kept; those that are there are not made again")
    parser.add_argument("--tuning", action="store_true", help="what other settings would give, on other users")
    parser.add_argument("--docs", action="store_true", help="run nothing: write what is there into docs/drn.md")
    asked = parser.parse_args(arguments)
    try:
        perform(asked)
    except PageturnError as error:
        sys.exit(f"error: {error}")


def perform(asked: argparse.Namespace) -> None:
    world = World()
    if asked.docs:
        telling.write(read_record(asked.json or FIGURES, Record.empty(world, Scale())))
    elif asked.tuning:
        benchmark = Benchmark(world, TUNING, asked.json or TUNING_FIGURES, TRIED)
        runs = by_method(benchmark.obtain(list(TRIED), TUNING_SEEDS))
        print("\n".join([telling.conditions(TUNING, runs), *table.rows(runs)]))
    else:
        scale, path, seeds = (QUICK, QUICK_FIGURES, 2) if asked.quick else (Scale(), FIGURES, 5)
        seeds = countable(seeds if asked.seeds is None else asked.seeds)
        benchmark = Benchmark(world, scale, asked.json or path, METHODS)
        print(report(world, scale, benchmark.obtain(asked.only, range(1, seeds + 1))))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the nets are too small to share
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
