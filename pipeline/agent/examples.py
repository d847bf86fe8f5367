"""Examples of trouble for the process's log: a counter says how often, an example says what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_EVERY_S = 60.0
_LOG = logging.getLogger(__name__)


class Examples:
    """One line a minute for each kind of trouble, however many pages meet it. Safe for threads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._next_s: dict[str, float] = {}  # by kind, of which there are few

    def show(self, kind: str, message: str, *arguments: object) -> None:
        with self._lock:
            now_s = self._monotonic()
            if now_s < self._next_s.get(kind, now_s):
                return
            self._next_s[kind] = now_s + _EVERY_S
        _LOG.warning(message, *arguments)
