"""The machine's clock is set now and then. Publishing goes by it, so it is told."""

from __future__ import annotations

import logging
import time

from model_export.site import Site

_JUMP_MS = 1_000
_LOG = logging.getLogger(__name__)


class Deadline:
    """A while from now; a clock that is put back puts it off by no more than the time between two looks."""

    def __init__(self, site: Site, in_ms: int) -> None:
        self._site, self._left_ms, self._looked_ms = site, in_ms, site.clock_ms()

    def over(self) -> bool:
        now_ms = self._site.clock_ms()
        self._left_ms -= max(now_ms - self._looked_ms, 0)
        self._looked_ms = now_ms
        return self._left_ms <= 0


class ClockWatch:
    """Tells when the wall clock and the one that nobody sets go apart: what is timed by it is wrong then, once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._apart_ms = self._apart()

    def look(self) -> None:
        before, self._apart_ms = self._apart_ms, self._apart()
        jump_ms = self._apart_ms - before
        if abs(jump_ms) > _JUMP_MS:
            self._site.metrics.count("clock_jumps")
            _LOG.warning("the clock was set by %+.1f s", jump_ms / 1000)

    def _apart(self) -> float:
        return self._site.clock_ms() - 1000 * time.monotonic()
