"""The tables of docs/drn.md, from the record: `python -m benchmarks.drn --docs` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.news import table
from benchmarks.news.record import Record, Row, by_method
from benchmarks.news.running import Scale
from benchmarks.shares import BenchmarkError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "drn.md"
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_HEADS = {
    "ctr": "click rate", "precision5": "precision@5", "ndcg": "nDCG", "ils": "ILS", "reward": "reward per shown item",
    "activeness": "activeness", "requests": "requests per user and day", "clicks": "clicks per user and day",
}  # fmt: skip
_DIGITS = {"requests": 1, "clicks": 1}
_BY_DAY = ("reward", "ctr", "clicks")


def conditions(scale: Scale, runs: table.Runs) -> str:
    seeds = max(len(of_seeds) for of_seeds in runs.values())
    return f"{scale.users} users, {scale.days} days, {seeds} seeds; ±: 95 %, Student's t"


def write(record: Record, docs: Path = DOCS) -> None:
    """Raises BenchmarkError where there is nothing to tell."""
    if not record.rows:
        msg = "expected figures to write down, found none: `make bench-drn` makes them"
        raise BenchmarkError(msg)
    made = f"{_BEGIN}\n{markdown(record)}\n{_END}"
    docs.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: made, docs.read_text(), flags=re.S))


def markdown(record: Record) -> str:
    rows = complete(record.rows)
    runs = by_method(rows)
    seconds = sum(row.seconds for row in rows)
    world = f"Simulated news v{record.simulator_version}, sha256 {record.simulator_sha256[:12]}"
    parts = [
        f"{world}; {conditions(record.scale, runs)}; {seconds / 60:.0f} minutes of a core.",
        _figures(runs),
        _plainly(runs),
        "By day, means over seeds:",
        *(_by_day(runs, figure) for figure in _BY_DAY),
        "The same with the differences, on the same seeds:",
        _orderings(runs, table.CLAIMS),
        "Of all pairs of methods that the paper's table puts in an order:",
        _agreement(runs),
        "What the paper does not say:",
        _orderings(runs, table.QUESTIONS),
        "Minor updates, over all seeds:",
        _updates(runs),
    ]
    return "\n\n".join(parts)


def complete(rows: Sequence[Row]) -> list[Row]:
    """Of the seeds that all methods have been run with; all there is where there is no such seed."""
    methods = {row.method for row in rows}
    whole = {s for s in {row.seed for row in rows} if {row.method for row in rows if row.seed == s} == methods}
    return [row for row in rows if row.seed in whole] or list(rows)


def _plainly(runs: table.Runs) -> str:
    """Which orderings of the paper's are there and which are not."""
    said: dict[str, list[str]] = {verdict: [] for verdict in table.VERDICTS}
    for each in table.known(runs, table.CLAIMS):
        name = f"{each.higher} over {each.lower} in {_HEADS[each.figure]}"
        said[table.verdict(table.difference(runs, each))].append(name)
    parts = (f"*{verdict}*: {', '.join(names) or 'none'}" for verdict, names in said.items())
    return f"Of {sum(map(len, said.values()))} orderings of the paper's that are most talked about: {'; '.join(parts)}."


def _figures(runs: table.Runs) -> str:
    head = ["method", *_HEADS.values(), "of the paper: CTR, P@5, nDCG, ILS"]
    rows = [[name, *(_cell(runs, name, figure) for figure in _HEADS), _papers(name)] for name in runs]
    return _table(head, rows)


def _cell(runs: table.Runs, name: str, figure: str) -> str:
    found, digits = table.estimate(runs[name], figure), _DIGITS.get(figure, 4)
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def _papers(name: str) -> str:
    return ", ".join(f"{x:.4f}" for x in table.PAPER[name]) if name in table.PAPER else ""


def _by_day(runs: table.Runs, figure: str) -> str:
    days = [(name, table.daily(of_seeds, figure)) for name, of_seeds in runs.items()]
    head = [_HEADS[figure], *(str(day + 1) for day in range(len(days[0][1])))]
    return _table(head, [[name, *(f"{x:.{_DIGITS.get(figure, 4)}f}" for x in found)] for name, found in days])


def _orderings(runs: table.Runs, orderings: Sequence[table.Ordering]) -> str:
    rows = []
    for each in table.known(runs, orderings):
        found = table.difference(runs, each)
        interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        rows.append([_HEADS[each.figure], f"{each.higher} > {each.lower}", table.verdict(found), interval])
    return _table(["", "ordering", "here", "difference"], rows)


def _agreement(runs: table.Runs) -> str:
    rows = [[_HEADS[f], *(str(n) for n in table.tally(runs, i, f).values())] for i, f in enumerate(table.FIGURES[:4])]
    return _table(["", *table.VERDICTS], rows)


def _updates(runs: table.Runs) -> str:
    rows = [[name, ", ".join(f"{what} {n}" for what, n in found.items())] for name, found in table.outcomes(runs)]
    return _table(["method", "what became of them"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
