"""Vectors for a page within its deadline: the cache answers in the caller's thread, the store in another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

from pipeline.features.stored_vectors import StoredVectors
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.store import StoreError

_THREADS = 4  # a store that hangs holds this many, and no page longer than its deadline


class TimelyVectors:
    """A `VectorSource`; what it is asked inside `within(deadline_s)` it answers by then, or with StoreError."""

    def __init__(self, stored: StoredVectors, monotonic: Callable[[], float], metrics: Metrics) -> None:
        self._stored = stored
        self._monotonic = monotonic
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vectors")
        self._local = threading.local()

    @contextmanager
    def within(self, deadline_s: float) -> Iterator[None]:
        """`deadline_s` on the monotonic clock; for the current thread."""
        self._local.deadline_s = deadline_s
        try:
            yield
        finally:
            del self._local.deadline_s

    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        ready = self._stored.cached(table, epoch, ids)
        found = self._timely(table, epoch, ids) if ready is None else ready
        self._metrics.count("vectors", len(ids), table=table)
        if unknown := found.count(None):
            self._metrics.count("vectors_unknown", unknown, table=table)
        return found

    def _timely(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        left_s = self._local.deadline_s - self._monotonic()
        try:
            future = self._pool.submit(self._stored.vectors, table, epoch, ids)
        except RuntimeError as error:  # the pool was shut down
            msg = "vectors: the agent is closed"
            raise StoreError(msg) from error
        try:
            return future.result(max(left_s, 0.0))
        except FutureTimeoutError as error:
            future.cancel()
            msg = (
                f"vectors of table {table}: no answer from the store within the {max(left_s, 0.0):.3f} s that were left"
            )
            raise StoreError(msg) from error

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
