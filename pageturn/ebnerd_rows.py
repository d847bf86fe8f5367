"""Values of EB-NeRD's rows as they are meant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def clicked_of(row: dict[str, Any]) -> list[int]:
    return list(row["article_ids_clicked"])


def clicked_ms(row: dict[str, Any]) -> int:
    return ms(row["impression_time"]) + round(seconds_of(row["read_time"]) * 1000)


def ms(time: datetime) -> int:
    """The log's times name no zone; they are taken as UTC."""
    return round(time.replace(tzinfo=UTC).timestamp() * 1000)


def number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def seconds_of(value: float | None) -> float:
    return number(value) or 0.0
