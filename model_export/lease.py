"""The controller's lease: who may write the desired state, and the fencing token that goes into all it writes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import PageturnError
from pipeline.stores.store import KeyValueStore


class LeaseLost(PageturnError):
    """Another controller writes now: stop at once. Nothing is broken; the other one goes on from what is there."""


class Lease:
    def __init__(
        self, store: KeyValueStore, prefix: str, holder: str, clock_ms: Callable[[], int], ttl_ms: int = 15_000
    ) -> None:
        self.name = f"{prefix}:controller"
        self.token = 0  # of the last lease that was taken
        self.ttl_ms = ttl_ms
        self._store = store
        self._holder = holder
        self._clock_ms = clock_ms
        self._renewed_ms: int | None = None

    @property
    def held(self) -> bool:
        return self._renewed_ms is not None

    def take(self, above: int) -> bool:
        """Try to become the holder, with a token above every one that was ever written to the model volume."""
        asked_ms = self._clock_ms()
        token = self._store.acquire_lease(self.name, self._holder, self.ttl_ms, above)
        if token is None:
            return False
        self.token, self._renewed_ms = token, asked_ms
        return True

    def check(self) -> None:
        """Call before every write. Renews when a third of the term has passed, or the clock was put back: the store
        goes by its own.

        Raises: LeaseLost when another holder came in between (even if it is gone again), StoreError.
        """
        now_ms = self._clock_ms()
        if self._renewed_ms is None:
            self.lost()
        elif not 0 <= now_ms - self._renewed_ms < self.ttl_ms // 3:
            self._renew(now_ms)

    def confirm(self) -> None:
        """As `check`, but the store is asked in any case: one that was emptied has forgotten whose turn it is.

        Raises: LeaseLost, StoreError.
        """
        if self._renewed_ms is None:
            self.lost()
        self._renew(self._clock_ms())

    def _renew(self, now_ms: int) -> None:
        if self._store.acquire_lease(self.name, self._holder, self.ttl_ms) != self.token:
            self.lost()
        self._renewed_ms = now_ms

    def lost(self) -> None:
        """Raises: LeaseLost."""
        self._renewed_ms = None
        message = f"lease {self.name!r}: no longer held with token {self.token}; another controller may be writing"
        raise LeaseLost(message)

    def release(self) -> None:
        self._renewed_ms = None
        self._store.release_lease(self.name, self._holder)

    def put(self, key: str, value: bytes) -> None:
        """Write to the store unless a newer holder has come. Raises: LeaseLost."""
        if not self._store.fenced_put(self.name, self.token, key, value):
            self.lost()
