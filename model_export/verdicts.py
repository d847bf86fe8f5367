"""Every verdict, twice: as a line of <models>/verdicts.jsonl and as a record in the store (the last of each policy).

A line has some 2 kB: at a version a minute a policy writes 1 GB in a year. A file that is full is put aside as
verdicts.jsonl.1, in the place of the one before; both are read.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from model_export.checks import Outcome, Verdict
from model_export.lease import Lease
from model_export.served import to_all
from pipeline import durable
from pipeline.stores.published import verdict_key
from pipeline.stores.store import KeyValueStore

VERDICTS = "verdicts.jsonl"
_LIMIT_BYTES = 64 * 1024 * 1024
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

    def judged(self, policy: str) -> Collection[str]:
        """Those on whom the verdict is remembered, in order of judgement."""
        return self._judged.get(policy, {}).keys()

    def last_accepted(self, policy: str, among: Collection[int] | None = None) -> int | None:
        """The last version that went to all of its buckets, at once or when it was promoted, and was not sent back."""
        judged = list(self._judged.get(policy, {}).values())
        sent_back = {v.version for v in judged if v.outcome == "sent_back"}
        accepted = [v for v in judged if to_all(v.outcome, v.reason)]
        left = (v.version for v in reversed(accepted) if v.version not in sent_back)
        return next((version for version in left if among is None or version in among), None)

    def record(self, verdict: Verdict, lease: Lease) -> None:
        """Write a verdict in both places. Repeating one is harmless. Raises: LeaseLost, StoreError, OSError."""
        self._put(verdict, lease)
        if self.verdict_on(verdict.policy, verdict.candidate) is None:
            _put_aside_if_full(self._models / VERDICTS)
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
    """Those that are kept, oldest first. A line that is no verdict (torn by a crash) is skipped with a warning."""
    with ExitStack() as files:
        for file in _opened(models, files):
            for number, line in enumerate(file, start=1):
                try:
                    yield msgspec.json.decode(line, type=Verdict)
                except msgspec.MsgspecError as error:
                    _LOG.warning("%s:%d: not a verdict (%s); skipped", file.name, number, error)


def _opened(models: Path, files: ExitStack) -> list[BinaryIO]:
    """The newer file is opened first: should it be put aside meanwhile, it is found twice, and not missed."""
    found: list[BinaryIO] = []
    for path in (models / VERDICTS, _aside(models / VERDICTS)):
        try:
            file = files.enter_context(path.open("rb"))
        except FileNotFoundError:
            continue
        if not any(os.path.sameopenfile(file.fileno(), other.fileno()) for other in found):
            found.append(file)
    return found[::-1]


def _put_aside_if_full(path: Path) -> None:
    if path.exists() and path.stat().st_size >= _LIMIT_BYTES:
        path.replace(_aside(path))
        durable.sync(path.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
