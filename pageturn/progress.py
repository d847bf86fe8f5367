"""A live loop in a line: what has happened in it so far, read from its files as they grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from model_export.verdicts import read_verdicts
from pageturn.run import Run
from pageturn.simulating import PAGES, VISITS, AskedPage, Visit
from pipeline.agent.buckets import bucket_table, slot_of

_UNANSWERED = "unanswered"


class _Tail:
    """The lines that a file has grown by."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def lines(self) -> Iterator[bytes]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield line


class Progress:
    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config()
        self._buckets = bucket_table(self._config.buckets)
        self._learned = frozenset(self._config.learned_policies())
        self._visits, self._pages = _Tail(run.traffic / VISITS), _Tail(run.traffic / PAGES)
        self._training = _Tail(run.trainer / "metrics.jsonl")
        self._decided: Counter[str] = Counter()
        self._since: Counter[str] = Counter()  # the same, since the last line
        self._rewards: dict[bool, list[float]] = {False: [], True: []}  # of sessions, by whether the bucket learns
        self._learning: dict[str, Any] = {}

    def line(self) -> str:
        self._read()
        pages, since = self._decided.total(), self._since
        parts = [
            f"{pages:,} pages",
            *(
                f"{100 * since[by] / since.total():.0f} % {by}"
                for by in ("policy", "fallback", _UNANSWERED)
                if since[by]
            ),
            f"{self._learning.get('transitions', 0):,} learned from, {self._learning.get('updates', 0):,} updates",
            f"versions {self._versions()}",
            f"reward per session {_mean(self._rewards[True])} learned, {_mean(self._rewards[False])} baseline",
        ]
        return " | ".join(parts)

    def _read(self) -> None:
        self._since = Counter()
        for line in self._pages.lines():
            page = msgspec.json.decode(line, type=AskedPage)
            self._since[page.decided_by or _UNANSWERED] += 1
        self._decided += self._since
        for line in self._visits.lines():
            outcome = msgspec.json.decode(line, type=Visit).outcome
            if outcome.exposed:
                self._rewards[self._learns(outcome.user_id)].append(outcome.reward)
        for line in self._training.lines():
            self._learning = msgspec.json.decode(line)

    def _learns(self, user_id: str) -> bool:
        return self._buckets[slot_of(self._config.buckets, user_id)].policy in self._learned

    def _versions(self) -> str:
        newest = dict.fromkeys(sorted(self._learned), 1)
        for verdict in read_verdicts(self._run.models):
            if verdict.outcome == "accepted" and verdict.version:
                newest[verdict.policy] = verdict.version
        return ", ".join(f"{policy} {version}" for policy, version in newest.items())


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"
