"""The figures of all methods with intervals over seeds, beside the paper's, and which of its orderings appear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from benchmarks.news.running import Day, Run
from benchmarks.shares import over_seeds
from pipeline.simulation.outcomes import Estimate

FIGURES = ("ctr", "precision5", "ndcg", "ils", "reward", "activeness", "requests", "clicks")

VERDICTS = ("appears", "reversed", "not told apart")

Runs = Mapping[str, Mapping[int, Run]]  # by method and seed

# Zheng et al. 2018, online evaluation: CTR, precision@5, nDCG, ILS
PAPER = {
    "LinUCB": (0.0075, 0.0091, 0.0383, 0.2636),
    "LR (FTRL)": (0.0059, 0.0082, 0.0326, 0.1833),
    "DN": (0.0100, 0.0135, 0.0474, 0.1546),
    "DDQN": (0.0111, 0.0139, 0.0477, 0.1935),
    "DDQN+U": (0.0089, 0.0110, 0.0425, 0.1713),
    "DDQN+U+EG": (0.0083, 0.0100, 0.0339, 0.1907),
    "DDQN+U+DBGD": (0.0113, 0.0149, 0.0492, 0.1216),
}


class Ordering(NamedTuple):
    figure: str
    higher: str
    lower: str


# What the paper's table says, and what it does not say but its readers ask
CLAIMS = (
    Ordering("ctr", "DN", "LR (FTRL)"),
    Ordering("ctr", "DN", "LinUCB"),
    Ordering("ctr", "LinUCB", "LR (FTRL)"),
    Ordering("ctr", "DDQN", "DN"),
    Ordering("ctr", "DDQN", "DDQN+U"),
    Ordering("ctr", "DDQN+U", "DDQN+U+EG"),
    Ordering("ctr", "DDQN+U+DBGD", "DDQN+U+EG"),
    Ordering("ctr", "DDQN+U+DBGD", "DDQN+U"),
    Ordering("ctr", "DDQN+U+DBGD", "DDQN"),
    Ordering("precision5", "DDQN+U+DBGD", "DDQN"),
    Ordering("ndcg", "DDQN+U+DBGD", "DDQN"),
    Ordering("ils", "DDQN", "DDQN+U+DBGD"),
    Ordering("ils", "LinUCB", "DDQN+U+DBGD"),
)
QUESTIONS = (
    Ordering("ctr", "DDQN", "DQN"),
    Ordering("ctr", "DDQN+U+gradient", "DDQN+U"),
    Ordering("ctr", "DDQN+U+gradient", "DDQN+U+DBGD"),
    Ordering("ctr", "DDQN+U+ES", "DDQN+U+DBGD"),
    Ordering("clicks", "DDQN", "DN"),
    Ordering("clicks", "DDQN+U", "DDQN"),
    Ordering("clicks", "DDQN+U+gradient", "DDQN+U+DBGD"),
)


def mean_of(run: Run, figure: str) -> float:
    """Over the days."""
    return float(np.mean([getattr(day, figure) for day in run.days]))


def estimate(runs: Mapping[int, Run], figure: str) -> Estimate:
    return over_seeds([mean_of(run, figure) for _, run in sorted(runs.items())])


def difference(runs: Runs, ordering: Ordering) -> Estimate:
    """Of the same seeds: the same users and the same items."""
    a, b = runs[ordering.higher], runs[ordering.lower]
    common = sorted(a.keys() & b.keys())
    return over_seeds([mean_of(a[s], ordering.figure) - mean_of(b[s], ordering.figure) for s in common])


def verdict(found: Estimate) -> str:
    appears, turned, open_ = VERDICTS
    if found.low > 0:
        return appears
    return turned if found.high < 0 else open_


def agreement(runs: Runs) -> list[str]:
    """Of each figure of the paper's table what becomes of its orderings of any two methods."""
    tallies = [(figure, tally(runs, place, figure)) for place, figure in enumerate(FIGURES[:4])]
    return [f"  {figure:11} " + ", ".join(f"{n} {what}" for what, n in found.items()) for figure, found in tallies]


def tally(runs: Runs, place: int, figure: str) -> dict[str, int]:
    """`place` is that of the figure in the paper's table."""
    found = Counter(verdict(difference(runs, each)) for each in _pairs(runs, place, figure))
    return {each: found[each] for each in VERDICTS}


def _pairs(runs: Runs, place: int, figure: str) -> list[Ordering]:
    """The paper's, from the higher to the lower; equal ones are in no order."""
    names = sorted((name for name in PAPER if name in runs), key=lambda name: -PAPER[name][place])
    return [Ordering(figure, a, b) for a, b in combinations(names, 2) if PAPER[a][place] > PAPER[b][place]]


def rows(runs: Runs) -> list[str]:
    head = f"{'':16}" + "".join(f"{figure:>19}" for figure in FIGURES) + "   of the paper: ctr, p@5, ndcg, ils"
    return [head, *(_row(name, of_seeds) for name, of_seeds in runs.items())]


def _row(name: str, runs: Mapping[int, Run]) -> str:
    cells = [f"{e.mean:8.4f} ±{e.half:8.4f} " for e in (estimate(runs, figure) for figure in FIGURES)]
    paper = "   " + " ".join(f"{x:.4f}" for x in PAPER[name]) if name in PAPER else ""
    return f"{name:16}" + "".join(f"{cell:>19}" for cell in cells) + paper


def over_time(runs: Runs, figure: str) -> list[str]:
    return [f"{name:16}" + "".join(f"{x:9.4f}" for x in daily(of_seeds, figure)) for name, of_seeds in runs.items()]


def daily(runs: Mapping[int, Run], figure: str) -> np.ndarray:
    """Means over seeds, per day."""
    return np.mean([[getattr(day, figure) for day in run.days] for run in runs.values()], axis=0)


def statements(runs: Runs, orderings: Sequence[Ordering]) -> list[str]:
    return [_statement(o, difference(runs, o)) for o in known(runs, orderings)]


def known(runs: Runs, orderings: Sequence[Ordering]) -> list[Ordering]:
    """Those of methods that were run."""
    return [o for o in orderings if o.higher in runs and o.lower in runs]


def _statement(o: Ordering, found: Estimate) -> str:
    interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return f"  {o.figure:11} {o.higher:16} > {o.lower:16} {verdict(found):15} {interval}"


def updates(runs: Runs) -> list[str]:
    """Of minor updates what became of them, over all seeds."""
    return [f"{name:16} " + ", ".join(f"{what} {n}" for what, n in found.items()) for name, found in outcomes(runs)]


def outcomes(runs: Runs) -> list[tuple[str, dict[str, int]]]:
    """By method that has minor updates."""
    found = []
    for name, of_seeds in runs.items():
        counts = sum((Counter(run.updates) for run in of_seeds.values()), Counter[str]())
        if counts:
            found.append((name, dict(sorted(counts.items()))))
    return found


assert set(FIGURES) == set(Day.__struct_fields__)
