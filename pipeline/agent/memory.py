"""What was answered in the last minutes, so that a retry gets the same answer and no second impression."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from pipeline.agent.requests import PageDecision, PageRequest

_Fingerprint = tuple[str, str, int, tuple[str, ...]]


class RetryMemory:
    """Least recently written goes first. Safe for threads."""

    def __init__(self, capacity: int, items: int, keep_s: float, monotonic: Callable[[], float]) -> None:
        """`capacity`: of pages; `items`: of items of all pages together, for a page may have one or a thousand."""
        self._capacity, self._most_items = capacity, items
        self._items = 0
        self._keep_s = keep_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, _Fingerprint, PageDecision]] = OrderedDict()

    def recall(self, request: PageRequest) -> PageDecision | None:
        with self._lock:
            return self._standing(request)

    def settle(self, request: PageRequest, decision: PageDecision) -> PageDecision:
        """The decision that stands: this one, or the one of a twin of this request that was quicker."""
        with self._lock:
            standing = self._standing(request)
            if standing is not None:
                return standing
            self._forget(self._entries.pop(request.request_id, None))
            self._entries[request.request_id] = self._monotonic(), _fingerprint(request), decision
            self._items += len(decision.order)
            while len(self._entries) > self._capacity or self._items > self._most_items:
                self._forget(self._entries.popitem(last=False)[1])
            return decision

    def _forget(self, entry: tuple[float, _Fingerprint, PageDecision] | None) -> None:
        if entry is not None:
            self._items -= len(entry[2].order)

    def _standing(self, request: PageRequest) -> PageDecision | None:
        written_s, fingerprint, decision = self._entries.get(request.request_id, (0.0, None, None))
        if decision is None or self._monotonic() - written_s > self._keep_s:
            return None
        return decision if fingerprint == _fingerprint(request) else None  # an id used twice is another page


def _fingerprint(request: PageRequest) -> _Fingerprint:
    return request.user_id, request.session_id, request.page_index, tuple([item.item_id for item in request.items])
