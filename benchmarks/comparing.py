"""The table of the learning benchmark: rows over seeds, and paired with the first of them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.courses import Run
from benchmarks.record import Record
from benchmarks.shares import over_seeds
from pipeline.simulation.outcomes import Estimate

_NAME = 24


def table(record: Record, rows: Sequence[str], against: str) -> str:
    """Shares in %. Intervals: 95 % over seeds, by Student's t."""
    mine = record.of(against)
    marks = _marks(record)
    lines = [
        f"simulated feed v{record.simulator_version}, sha256 {record.simulator_sha256}",
        f"{record.plan.transitions} transitions of each seed, {record.plan.users} users to judge by "
        f"({record.plan.curve_users} on the way); share of the gap from the baseline to the best policy known, %",
        f"{'row':{_NAME}} {'seeds':>5} {'share at the end':>20} {'area':>20} {f'area of {against} less it':>24} "
        f"{'CPU s':>6}  " + " ".join(f"{mark:>6}" for mark in marks),
        *(_line(name, record.of(name), mine, name == against) for name in rows if record.of(name)),
        *(f"{name:{_NAME}} {'':5} {100 * share:6.1f}" for name, share in yardsticks(record)),
    ]
    if missing := [name for name in rows if not record.of(name)]:
        lines.append(f"not run yet: {', '.join(missing)}")
    return "\n".join(lines)


def yardsticks(record: Record) -> list[tuple[str, float]]:
    gap = record.best - 1
    return [("best constant", (record.constant - 1) / gap), ("best myopic", (record.myopic - 1) / gap), ("best", 1.0)]


def paired(mine: Sequence[Run], others: Sequence[Run]) -> Estimate | None:
    """Mean difference of the areas, over the seeds that both have; None where there are none."""
    areas = {run.seed: run.area for run in others}
    differences = [run.area - areas[run.seed] for run in mine if run.seed in areas]
    return over_seeds(differences) if differences else None


def _marks(record: Record) -> list[int]:
    return [point.transitions for point in record.runs[0].curve[1:]] if record.runs else []


def _line(name: str, runs: Sequence[Run], mine: Sequence[Run], itself: bool) -> str:
    difference = None if itself else paired(mine, runs)
    curves = zip(*(run.curve[1:] for run in runs), strict=True)
    means = (sum(point.share for point in points) / len(points) for points in curves)
    less = "" if difference is None else percent(difference)
    return (
        f"{name:{_NAME}} {len(runs):5} {percent(over_seeds([run.share for run in runs])):>20} "
        f"{percent(over_seeds([run.area for run in runs])):>20} {less:>24} "
        f"{sum(run.cpu_s for run in runs) / len(runs):6.0f}  " + " ".join(f"{100 * mean:6.1f}" for mean in means)
    )


def percent(x: Estimate) -> str:
    return f"{100 * x.mean:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"
