"""Plain text tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.streaming.counts import Counts

_WIDTH = 100


def render(rows: Iterable[Sequence[object]], title: str | None = None) -> str:
    """Left-aligned first column, the others after it; an empty row draws a line."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    widths = [max((len(row[i]) for row in cells if len(row) > i), default=0) for i in range(columns)]
    rule = "-" * min(sum(widths) + 2 * max(columns - 1, 0), _WIDTH)
    lines = [_line(row, widths) if row else rule for row in cells]
    return "\n".join([title, rule, *lines] if title else lines)


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def event_rows(counts: Counts) -> list[tuple[str, object]]:
    """The balance of events, and what the stream made of them."""
    balance = counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    return [
        ("events in", counts.read),
        ("  joined", counts.joined),
        ("  duplicate", counts.duplicate),
        ("  late", counts.late),
        ("  orphan", counts.orphan),
        ("  dead letters", counts.dead),
        ("  open", counts.open),
        ("  lost", max(counts.read - balance, 0)),  # a stream at work is past its snapshot: the rest is below zero
        ("pages", counts.pages),
        ("sessions", counts.sessions),
        ("transitions", f"{counts.transitions} ({counts.terminal} terminal)"),
        ("episodes", counts.episodes),
    ]
