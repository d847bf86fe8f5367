"""The trainer's own figures, a row per round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pageturn.lines import lines_of

METRICS = "metrics.jsonl"


def learning_rows(trainer: Path) -> tuple[dict[str, Any], ...]:
    """By transitions. A round that was done again after a kill is one row."""
    rows: dict[int, dict[str, Any]] = {}
    for path in (trainer / f"{METRICS}.1", trainer / METRICS):
        for row in lines_of(path, dict[str, Any]):
            if isinstance(row.get("transitions"), int) and isinstance(row.get("time_ms"), int):
                rows.setdefault(row["transitions"], row)
    return tuple(rows[transitions] for transitions in sorted(rows))
