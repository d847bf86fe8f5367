"""Runs what the file lacks, and writes the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import numpy as np
import tensorflow as tf
from msgspec import Struct, structs

from benchmarks.classics import __doc__ as said
from benchmarks.classics.players import Point, ReplayPlayer, RolloutPlayer, measured
from benchmarks.classics.rows import ROWS, SOURCE, Replaying, Row
from benchmarks.shares import BenchmarkError, over_seeds
from pipeline.errors import PageturnError

FULL, QUICK = Path("benchmarks") / "results" / "classics.json", Path("runs") / "classics-quick.json"
_QUICK_STEPS, _POINTS = 2_000, 20


class Run(Struct, frozen=True):
    """A seed of a row. The last point is of ten times as many games."""

    row: str
    settings: str
    seed: int
    steps: tuple[int, ...]
    returns: tuple[float, ...]


class Size(Struct, frozen=True):
    steps: int | None  # of each row; None: its own
    seeds: int
    games: int  # that are measured on the way


def settings_of(row: Row, size: Size) -> str:
    """What a run depends on besides its seed."""
    algorithm = msgspec.json.encode(row.algorithm, order="sorted").decode()
    return f"{row.task.name} {algorithm} {row.way} {size.steps or row.steps} {size.games}"


def taught(row: Row, seeds: range, size: Size) -> list[Run]:
    player = (ReplayPlayer if isinstance(row.way, Replaying) else RolloutPlayer)(row, seeds)
    steps, points = size.steps or row.steps, list[Point]()
    for done in player.play(steps):
        if done >= steps or done >= steps * (len(points) + 1) / _POINTS:
            games = size.games * (10 if done >= steps else 1)
            points.append(Point(done, measured(player, row.task, len(seeds), games)))
    at = tuple(point.steps for point in points)
    settings = settings_of(row, size)
    return [Run(row.name, settings, seed, at, tuple(p.returns[i] for p in points)) for i, seed in enumerate(seeds)]


def read(path: Path) -> tuple[Run, ...]:
    if not path.exists():
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Run, ...])
    except msgspec.MsgspecError as error:
        message = f"{path}: expected what `python -m benchmarks.classics` writes, found: {error}"
        raise BenchmarkError(message) from error


def write(path: Path, runs: tuple[Run, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(runs), indent=1) + b"\n")
    part.replace(path)


def run(row: Row, size: Size, path: Path) -> tuple[Run, ...]:
    """The seeds of the row that the file lacks; side by side where the learner can."""
    settings = settings_of(row, size)
    kept = tuple(each for each in read(path) if each.row != row.name or each.settings == settings)
    known = {each.seed for each in kept if each.row == row.name}
    missing = [seed for seed in range(1, size.seeds + 1) if seed not in known]
    together = isinstance(row.way, Replaying) and not known
    groups = [range(1, size.seeds + 1)] if together and missing else [range(seed, seed + 1) for seed in missing]
    for seeds in groups:
        kept = (*kept, *taught(row, seeds, size))
        write(path, kept)
    return tuple(each for each in kept if each.row == row.name and each.seed <= size.seeds)


def table(found: dict[str, tuple[Run, ...]]) -> str:
    head = "| learner | task | steps | return at the end | seeds solved | after (steps, median) | published, steps |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    lines += [_line(ROWS[name], runs) for name, runs in found.items() if runs]
    return "\n".join([*lines, "", f"Published: {SOURCE}: mean and spread between games of one run."])


def _line(row: Row, runs: tuple[Run, ...]) -> str:
    last = over_seeds([each.returns[-1] for each in runs])
    solved = [each.returns[-1] >= row.task.solved for each in runs]
    first = [next((s for s, r in zip(e.steps, e.returns, strict=True) if r >= row.task.solved), None) for e in runs]
    known = [step for step in first if step is not None]
    median = f"{int(np.median(known)):,}" if len(known) == len(runs) else "–"
    p = row.published
    published = f"{p.mean:.0f} ± {p.spread:.0f}, {p.steps:,}" if p else "–"
    end = f"{last.mean:.0f} [{last.low:.0f}, {last.high:.0f}]"
    steps = f"{runs[0].steps[-1]:,}"
    return (
        f"| `{row.name}` | {row.task.name} | {steps} | {end} | {sum(solved)} of {len(runs)} | {median} | {published} |"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classics", description=said)
    parser.add_argument("--quick", action="store_true", help=f"one seed, {_QUICK_STEPS:,} steps: whether it runs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, help="5")
    parser.add_argument("--steps", type=int, help="of each seed; each row has its own")
    parser.add_argument("--json", type=Path, help=f"{FULL}; with --quick {QUICK}")
    asked = parser.parse_args(arguments)
    size = Size(_QUICK_STEPS, 1, 2) if asked.quick else Size(None, 5, 10)
    size = structs.replace(size, steps=asked.steps or size.steps, seeds=asked.seeds or size.seeds)
    path, found = asked.json or (QUICK if asked.quick else FULL), dict[str, tuple[Run, ...]]()
    tf.config.experimental.enable_op_determinism()
    for name in asked.rows or ROWS:
        found[name] = run(ROWS[name], size, path)
        print(table({name: found[name]}).splitlines()[2], flush=True)
    print(table(found))


if __name__ == "__main__":
    try:
        main()
    except PageturnError as error:
        sys.exit(f"Error: {error}")
