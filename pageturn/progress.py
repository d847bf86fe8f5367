"""A live loop in a line: what has happened in it so far, read from its files as they grow."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from model_export.served import serving
from model_export.verdicts import read_verdicts
from pageturn.lines import Tail
from pageturn.measuring.asked import Learning
from pageturn.measuring.learning import METRICS
from pageturn.run import Run
from pageturn.traffic_log import PAGES, VISITS, AskedPage, Visit
from pipeline.simulation.outcomes import clustered

_UNANSWERED = "unanswered"


class _Earned(NamedTuple):
    """Of visits; 0 of one that did not look at the feed."""

    rewards: list[float]
    users: list[str]

    def __str__(self) -> str:
        """The mean, and half of its 95 % interval where there are users enough for one."""
        if not self.rewards:
            return "-"
        found = clustered(self.rewards, self.users)
        return f"{found.mean:.2f} ± {found.half:.2f}" if found.half == found.half else f"{found.mean:.2f}"


class Progress:
    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config()
        self._buckets = Learning(self._config)
        self._visits, self._pages = Tail(run.traffic / VISITS, Visit), Tail(run.traffic / PAGES, AskedPage)
        self._training = Tail(run.trainer / METRICS, dict[str, Any])
        self._count = 0  # of pages
        self._since: Counter[str] = Counter()  # the last line: pages of learned buckets, by who decided
        self._earned = {learns: _Earned([], []) for learns in (False, True)}
        self._learning: dict[str, Any] = {}

    def line(self) -> str:
        self._read()
        since, names = self._since, ("policy", "fallback", _UNANSWERED)
        shares = [f"{100 * since[by] / since.total():.0f} % {by}" for by in names if since[by]]
        parts = [
            f"{self._count:,} pages",
            *([f"learned buckets: {', '.join(shares)}"] if shares else []),
            f"{self._learning.get('transitions', 0):,} ingested, {self._learning.get('updates', 0):,} updates",
            f"versions {self._versions()}",
            f"reward per visit {self._earned[True]} learned, {self._earned[False]} baseline",
        ]
        return " | ".join(parts)

    def _read(self) -> None:
        self._since = Counter()
        for page in self._pages.lines():
            self._count += 1
            if self._buckets.of(page):
                self._since[page.decided_by or _UNANSWERED] += 1
        for visit in self._visits.lines():
            earned = self._earned[self._buckets.of_user(visit.outcome.user_id)]
            earned.rewards.append(visit.outcome.reward)
            earned.users.append(visit.outcome.user_id)
        for row in self._training.lines():
            self._learning = row

    def _versions(self) -> str:
        verdicts, found = list(read_verdicts(self._run.models)), []
        for policy in sorted(self._config.learned_policies()):
            now = serving(verdict for verdict in verdicts if verdict.policy == policy)
            found.append(f"{policy} {now.version if now else 1}")
        return ", ".join(found)
