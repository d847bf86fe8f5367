"""What the live loop learns, over seeds: `pageturn demo`, one after another, and what their buckets earned.

    python -m benchmarks.lift [--seeds 3] [--minutes 30] [--runs FOLDER] [--json FILE]

Everything is in it: processes, windows, publishing with its checks, exploration noise, pages on which the agent fell
back. With --runs, runs of this layout that are there already (FOLDER/seed1 and so on) are measured and not repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from pageturn.measures import Measures, measure
from pageturn.measuring.buckets import Lift
from pageturn.measuring.rows import percent, signed
from pageturn.run import RECORD, open_run
from pageturn.table import render
from pipeline.errors import PageturnError


class Seed(Struct, frozen=True):
    seed: int
    simulator: str | None
    minutes: float
    pages: int
    versions: int  # accepted, of all policies
    by_policy: float | None  # share of the learned buckets' pages
    page_closed_to_served_s: float | None  # median, of the policy that waited longer
    events_lost: int
    events_missing: int  # acknowledged, and nowhere
    lifts: tuple[Lift, ...]  # learned policies together, against the baseline bucket
    twins: tuple[Lift, ...]  # against the same visits under the baseline


def run_seed(seed: int, minutes: float, folder: Path) -> None:
    """Raises PageturnError where the demo failed."""
    words = ("demo", "--no-replay", "--minutes", str(minutes), "--seed", str(seed), "--run", str(folder))
    done = subprocess.run([sys.executable, "-m", "pageturn", *words], check=False)
    if done.returncode != 0:
        message = f"seed {seed}: the demo ended with status {done.returncode}; see {folder}"
        raise PageturnError(message)


def seed_of(measures: Measures) -> Seed:
    counts, accounting, asked = measures.counts, measures.accounting, measures.asked
    assert counts is not None
    assert accounting is not None
    assert asked is not None
    assert measures.comparison is not None
    waits = [each.page_s.p50 for each in measures.freshness if each.page_s.p50 is not None]
    fates = counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    return Seed(
        seed=measures.run.seed,
        simulator=measures.simulator,
        minutes=round((measures.ended_ms - measures.began_ms) / 60_000, 1),
        pages=counts.pages,
        versions=sum(each.accepted for each in measures.versions),
        by_policy=asked.policy_share,
        page_closed_to_served_s=round(max(waits), 1) if waits else None,
        events_lost=counts.read - fates,
        events_missing=accounting.missing,
        lifts=tuple(lift for lift in measures.comparison.lifts if lift.policy is None),
        twins=tuple(lift for lift in measures.twins.lifts if lift.policy is None) if measures.twins else (),
    )


def table(seeds: list[Seed]) -> str:
    rows = [
        (
            f"seed {seed.seed}",
            what,
            lift.measure,
            lift.period,
            signed(lift.absolute),
            percent(lift.relative) if lift.relative else "",
        )
        for seed in seeds
        for what, lifts in (("against the baseline bucket", seed.lifts), ("against the same visits", seed.twins))
        for lift in lifts
    ]
    return render(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lift", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--runs", type=Path, default=Path("runs/lift"))
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args(arguments)
    seeds = []
    for seed in range(1, asked.seeds + 1):
        folder = asked.runs / f"seed{seed}"
        if not (folder / RECORD).exists():
            run_seed(seed, asked.minutes, folder)
        seeds.append(seed_of(measure(open_run(folder))))
        print(table(seeds[-1:]), flush=True)
    better = [any(lift.primary and lift.absolute.low > 0 for lift in seed.lifts) for seed in seeds]
    print(f"{sum(better)} of {len(seeds)} seeds ahead of the baseline bucket")
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(seeds), indent=2))


if __name__ == "__main__":
    main()
