"""DRN and what it is compared with, on the simulated news: the rows of the paper's tables, and its orderings.

    python -m benchmarks.drn [--quick] [--seeds 5] [--only NAME ...] [--json FILE]

Every method meets the same users and the same items: a day that is shown at random and logged, from which it starts,
and then a week of its own, with a minor update every 30 minutes and a major one every 60. Figures are over all pages of
that week, what exploration cost included. A row that was run already is read from the file of rows; a change of the
simulator, the scale, a method's settings or `REVISION` makes it run again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import tensorflow as tf
from msgspec import Struct

from benchmarks.news import table
from benchmarks.news.methods import Linear, Random
from benchmarks.news.ranking import DrnMethod, Plan
from benchmarks.news.running import Make, Run, Scale, run
from benchmarks.shares import BenchmarkError, countable
from pipeline.errors import PageturnError
from pipeline.ranking.ftrl import Ftrl
from pipeline.ranking.linucb import LinUcb
from pipeline.ranking.perturbing import Noise
from pipeline.simulation.news.params import VERSION, World

REVISION = 1  # of the code that rows depend on: counted up by hand
RESULTS = Path(__file__).with_name("results")
QUICK = Scale(users=150, warm_days=1, days=2)
UCB_ALPHA = 0.3
_NORMAL = Noise(layers=("advantage",), shape="normal")

METHODS: dict[str, Plan | None] = {
    "random": None,
    "LR (FTRL)": None,
    "LinUCB": None,
    "DN": Plan(gamma=0.0, beta=0.0),
    "DDQN": Plan(beta=0.0),
    "DDQN+U": Plan(),
    "DDQN+U+EG": Plan(minor="epsilon"),
    "DDQN+U+DBGD": Plan(minor="dbgd"),
    "DDQN+U+gradient": Plan(minor="gradient"),
    "DDQN+U+ES": Plan(minor="es", noise=_NORMAL),
}


class Row(Struct, frozen=True):
    key: str  # of all that it depends on
    method: str
    seed: int
    run: Run
    seconds: float


class Result(Struct, frozen=True):
    simulator_version: int
    simulator_sha256: str
    scale: Scale
    rows: tuple[Row, ...]


def maker(name: str, plan: Plan | None) -> Make:
    if plan is not None:
        return lambda seed, users, places, requests: DrnMethod(plan, seed, users, places, requests)
    if name == "random":
        return lambda seed, *_: Random(seed)

    def linear(seed: int, users: int, places: int, requests: object) -> Linear:
        width = 1 + requests.user_features.shape[1] + requests.item_features.shape[2]
        return Linear(LinUcb(width, alpha=UCB_ALPHA) if name == "LinUCB" else Ftrl(width))

    return linear


def key(world: World, scale: Scale, name: str, seed: int, plan: Plan | None) -> str:
    parts = (REVISION, VERSION, world.sha256, scale, name, seed, plan, UCB_ALPHA)
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


class Rows:
    """The file of rows: one JSON object per line, appended as they are run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            lines = path.read_bytes().splitlines() if path.exists() else []
            self._known = {row.key: row for row in (msgspec.json.decode(line, type=Row) for line in lines)}
        except msgspec.MsgspecError as error:
            msg = f"{path}: expected a row of this benchmark on every line, found: {error}"
            raise BenchmarkError(msg) from error

    def find(self, key: str) -> Row | None:
        return self._known.get(key)

    def add(self, row: Row) -> None:
        self._known[row.key] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")


def obtain(world: World, scale: Scale, names: Iterable[str], seeds: int, known: Rows) -> list[Row]:
    found = []
    for seed in range(1, seeds + 1):  # seed by seed: what is there after a while is comparable
        for name in names:
            where = key(world, scale, name, seed, METHODS[name])
            row = known.find(where)
            if row is None:
                row = measured(world, scale, name, seed, where)
                known.add(row)
                print(
                    f"{name:16} seed {seed}: ctr {table.mean_of(row.run, 'ctr'):.4f}, {row.seconds:.0f} s", flush=True
                )
            found.append(row)
    return found


def measured(world: World, scale: Scale, name: str, seed: int, where: str) -> Row:
    started_s = time.process_time()
    made = run(maker(name, METHODS[name]), world.params, scale, seed)
    return Row(where, name, seed, made, round(time.process_time() - started_s, 1))


def by_method(rows: Iterable[Row]) -> dict[str, dict[int, Run]]:
    found: dict[str, dict[int, Run]] = {}
    for row in rows:
        found.setdefault(row.method, {})[row.seed] = row.run
    return found


def report(world: World, scale: Scale, rows: Iterable[Row]) -> str:
    runs = by_method(rows)
    seeds = max(len(of_seeds) for of_seeds in runs.values())
    parts = [
        [
            f"{world}, sha256 {world.sha256}",
            f"{scale.users} users, {scale.days} days, {seeds} seeds; ±: 95 %, Student's t",
        ],
        table.rows(runs),
        ["click rate by day", *table.over_time(runs, "ctr")],
        ["clicks per user by day", *table.over_time(runs, "clicks")],
        ["reward per shown item by day", *table.over_time(runs, "reward")],
        ["minor updates", *table.updates(runs)],
        ["of the paper's orderings (differences on the same seeds, 95 %)", *table.statements(runs, table.CLAIMS)],
        ["what the paper does not say", *table.statements(runs, table.QUESTIONS)],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drn", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few users, two days, two seeds: that it works")
    parser.add_argument("--seeds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=list(METHODS), metavar="NAME", help="of methods")
    parser.add_argument("--rows", type=Path, help="file of the rows that were run")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args(arguments)
    try:
        perform(asked)
    except PageturnError as error:
        sys.exit(f"error: {error}")


def perform(asked: argparse.Namespace) -> None:
    world, scale = World(), QUICK if asked.quick else Scale()
    path = asked.rows or RESULTS / ("drn-quick.jsonl" if asked.quick else "drn.jsonl")
    seeds = countable(asked.seeds if asked.seeds is not None else 2 if asked.quick else 5)
    rows = obtain(world, scale, asked.only, seeds, Rows(path))
    print(report(world, scale, rows))
    if asked.json:
        result = Result(VERSION, world.sha256, scale, tuple(rows))
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the nets are too small to share
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
