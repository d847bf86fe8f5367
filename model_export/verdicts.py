"""Every verdict, twice: as a line of <models>/verdicts.jsonl (all of them) and as a record in the store (the last)."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from model_export.checks import Outcome, Verdict
from model_export.lease import Lease
from pipeline import durable
from pipeline.stores.published import verdict_key
from pipeline.stores.store import KeyValueStore

VERDICTS = "verdicts.jsonl"
_KEPT_IN_STORE = 500  # per policy
_REMEMBERED = 10_000  # per policy; candidates are cleared out of staging long before
_LOG = logging.getLogger(__name__)


class Judged(NamedTuple):
    """What has to be remembered of a verdict."""

    outcome: Outcome
    version: int | None
    reason: str
    detail: str


class VerdictLog:
    def __init__(self, models: Path, store: KeyValueStore, prefix: str) -> None:
        self._models = models
        self._store = store
        self._prefix = prefix
        self._judged: dict[str, dict[str, Judged]] = {}  # policy -> candidate, in order of judgement
        for verdict in read_verdicts(models):
            self._remember(verdict)

    def verdict_on(self, policy: str, candidate: str) -> Judged | None:
        return self._judged.get(policy, {}).get(candidate)

    def last_accepted(self, policy: str) -> int | None:
        """The version of the last accepted candidate."""
        accepted = (v.version for v in reversed(self._judged.get(policy, {}).values()) if v.outcome == "accepted")
        return next(accepted, None)

    def record(self, verdict: Verdict, lease: Lease) -> None:
        """Write a verdict in both places. Repeating one is harmless. Raises: LeaseLost, StoreError, OSError."""
        self._put(verdict, lease)
        if self.verdict_on(verdict.policy, verdict.candidate) is None:
            durable.append_line(self._models / VERDICTS, msgspec.json.encode(verdict))
            self._remember(verdict)
            self._forget_oldest(verdict.policy)

    def refill(self, lease: Lease) -> None:
        """Put the newest verdicts into a store that was emptied."""
        newest: defaultdict[str, deque[Verdict]] = defaultdict(lambda: deque(maxlen=_KEPT_IN_STORE))
        for verdict in read_verdicts(self._models):
            newest[verdict.policy].append(verdict)
        for verdicts in newest.values():
            for verdict in verdicts:
                self._put(verdict, lease)

    def _put(self, verdict: Verdict, lease: Lease) -> None:
        lease.put(verdict_key(self._prefix, verdict.policy, verdict.candidate), msgspec.json.encode(verdict))

    def _remember(self, verdict: Verdict) -> None:
        judged = self._judged.setdefault(verdict.policy, {})
        judged[verdict.candidate] = Judged(verdict.outcome, verdict.version, verdict.reason, verdict.detail)
        if len(judged) > _REMEMBERED:
            del judged[next(iter(judged))]

    def _forget_oldest(self, policy: str) -> None:
        judged = list(self._judged[policy])
        if len(judged) > _KEPT_IN_STORE:
            oldest = judged[-_KEPT_IN_STORE - 1]
            self._store.delete_many([verdict_key(self._prefix, policy, oldest)])


def read_verdicts(models: Path) -> Iterator[Verdict]:
    """All verdicts, oldest first. A line that is no verdict (torn by a crash) is skipped with a warning."""
    path = models / VERDICTS
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield msgspec.json.decode(line, type=Verdict)
            except msgspec.MsgspecError as error:
                _LOG.warning("%s:%d: not a verdict (%s); skipped", path, number, error)
