"""A small made-up log with the files and columns of EB-NeRD, for machines that do not have the real one."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_START = datetime(2023, 2, 23, 8)  # noqa: DTZ001 - the real log's times name no zone either
_USERS, _ARTICLES = 40, 300


def generate(directory: Path, *, seed: int = 1, sessions: int = 450) -> None:
    """Write behaviors.parquet and history.parquet: readers who visit a few times a day and turn a few pages."""
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    appeal = random.gamma(1.0, size=_ARTICLES)
    history = [_history(user, appeal, random) for user in range(_USERS)]
    behaviors = [row for session in range(sessions) for row in _session(session, appeal, random)]
    behaviors.sort(key=lambda row: row["impression_time"])
    for number, row in enumerate(behaviors):
        row["impression_id"] = number
    pq.write_table(pa.Table.from_pylist(history), directory / "history.parquet")
    pq.write_table(pa.Table.from_pylist(behaviors), directory / "behaviors.parquet")


def _history(user: int, appeal: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    length = int(random.integers(5, 120))
    hours = np.sort(random.uniform(1, 21 * 24, length))[::-1]
    return {
        "user_id": _user_id(user),
        "impression_time_fixed": [_START - timedelta(hours=float(h)) for h in hours],
        "article_id_fixed": [_article_id(a) for a in random.choice(_ARTICLES, length, p=appeal / appeal.sum())],
        "read_time_fixed": [float(s) for s in random.gamma(2.0, 25.0, length).round()],
    }


def _session(session: int, appeal: np.ndarray, random: np.random.Generator) -> list[dict[str, Any]]:
    user = int(random.integers(_USERS))
    time = _START + timedelta(seconds=float(random.uniform(0, 7 * 86_400)))
    rows = []
    for _ in range(int(min(random.geometric(0.45), 20))):
        rows.append(_page(session, user, time, appeal, random))
        pause = rows[-1]["read_time"] + rows[-1]["next_read_time"] + random.exponential(20)
        time += timedelta(seconds=round(float(pause)) + 1)
    return rows


def _page(session: int, user: int, time: datetime, appeal: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    shown = random.choice(_ARTICLES, int(random.integers(5, 20)), replace=False)
    clicked = random.choice(shown, p=appeal[shown] / appeal[shown].sum())
    return {
        "impression_id": 0,
        "user_id": _user_id(user),
        "session_id": session,
        "impression_time": time,
        "read_time": float(round(random.gamma(1.5, 15.0))),
        "device_type": int(1 + user % 3),
        "age": None if user % 2 else float(20 + user),
        "gender": None if user % 4 == 0 else float(user % 2),
        "is_subscriber": user % 5 == 0,
        "article_ids_inview": [_article_id(a) for a in shown],
        "article_ids_clicked": [_article_id(clicked)],
        "next_read_time": float(round(random.gamma(1.5, 40.0))),
    }


def _user_id(user: int) -> int:
    return 10_000 + user


def _article_id(article: int) -> int:
    return 9_000_000 + int(article)
