"""What is known of an article when it is shown: counts of what went before, in place of the item features that the
EB-NeRD excerpt lacks. Nothing in them is later than the page."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pageturn.ebnerd_rows import clicked_ms, clicked_of, ms
from pipeline.records import Features

_HOURS = 6  # what is counted is forgotten by half in so long
_HOUR_MS = 3_600_000


class _Decaying:
    """A count that loses half of itself every `_HOURS`."""

    def __init__(self) -> None:
        self._value, self._ms = 0.0, 0

    def at(self, now_ms: int) -> float:
        return float(self._value * 0.5 ** ((now_ms - self._ms) / (_HOURS * _HOUR_MS)))

    def add(self, now_ms: int) -> None:
        self._value, self._ms = self.at(now_ms) + 1, now_ms


def item_features(behaviors: Iterable[dict[str, Any]], read_before: dict[int, set[str]]) -> dict[int, list[Features]]:
    """By impression the features of each article in view, in order. `read_before`: of the user's history."""
    views: defaultdict[str, _Decaying] = defaultdict(_Decaying)
    clicks: defaultdict[str, _Decaying] = defaultdict(_Decaying)
    first_ms: dict[str, int] = {}
    read = defaultdict(set, {user: set(articles) for user, articles in read_before.items()})
    to_come: list[tuple[int, int, str]] = []  # clicks that have not happened yet: time, user, article
    found: dict[int, list[Features]] = {}
    for row in sorted(behaviors, key=lambda row: (row["impression_time"], row["impression_id"])):
        now_ms, user = ms(row["impression_time"]), row["user_id"]
        for when_ms, who, article in _due(to_come, now_ms):
            clicks[article].add(when_ms)
            read[who].add(article)
        in_view = [str(article) for article in row["article_ids_inview"]]
        for article in in_view:
            first_ms.setdefault(article, now_ms)
        found[row["impression_id"]] = [
            {
                "views": round(views[article].at(now_ms), 3),
                "clicks": round(clicks[article].at(now_ms), 3),
                "age_h": round((now_ms - first_ms[article]) / _HOUR_MS, 3),
                "read_before": int(article in read[user]),
            }
            for article in in_view
        ]
        for article in in_view:
            views[article].add(now_ms)
        for article in clicked_of(row):
            heapq.heappush(to_come, (clicked_ms(row), user, str(article)))
    return found


def _due(to_come: list[tuple[int, int, str]], now_ms: int) -> Iterator[tuple[int, int, str]]:
    while to_come and to_come[0][0] <= now_ms:
        yield heapq.heappop(to_come)
