"""A model server that fails is asked again where that may help, and left alone where it only costs pages their time.

Asked again: once, within the page's deadline, where no server answered (the channel goes to another replica, if there
is one) or where this attempt's share of the time was used up. Left alone: after failures in a row; then a call at a
time is let through, until one is answered. Whatever a server says, even a refusal, is an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from pipeline.monitoring.metrics import Metrics
from pipeline.serving.client import Prediction
from pipeline.serving.errors import ServingError, TooLate, Unavailable

_SHORT_S = 0.02  # who gave less time learned nothing about the server


class PredictionSource(Protocol):
    def predict(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction: ...


class Avoided(ServingError):
    """The server was not asked: it failed several times in a row, and the last time not long ago."""


class Breaker:
    """Safe for threads."""

    def __init__(
        self,
        failures: int,
        pause_s: float,
        monotonic: Callable[[], float],
        changed: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        """`changed` hears, in the order in which it happens, that it opened or closed."""
        self._limit, self._pause_s, self._monotonic = failures, pause_s, monotonic
        self._changed = changed
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._next_s = 0.0  # when the next call may be tried, while it is open

    @property
    def is_open(self) -> bool:
        return self._failures >= self._limit

    def admits(self) -> bool:
        """Whether to call now. While it is open one caller per pause hears yes."""
        if not self.is_open:
            return True
        with self._lock:
            now_s = self._monotonic()
            if not self.is_open or now_s >= self._next_s:
                self._next_s = now_s + self._pause_s
                return True
            return False

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures == self._limit:
                self._next_s = self._monotonic() + self._pause_s
                self._changed(True)

    def answered(self) -> None:
        if self._failures:
            with self._lock:
                was_open, self._failures = self.is_open, 0
                if was_open:
                    self._changed(False)


def noted(metrics: Metrics) -> Callable[[bool], None]:
    """For the breaker: so that the gauge says what it is, whichever of two threads is quicker."""

    def note(is_open: bool) -> None:
        metrics.gauge("breaker_open", int(is_open))
        if is_open:
            metrics.count("breaker_opened")

    return note


class GuardedServer:
    """A model server behind a breaker, with a second attempt."""

    def __init__(
        self,
        server: PredictionSource,
        breaker: Breaker,
        metrics: Metrics,
        monotonic: Callable[[], float],
        first_attempt: float,
    ) -> None:
        """`first_attempt`: its share of the time. Below 1 where another replica may answer the second."""
        self._server, self._breaker, self._metrics = server, breaker, metrics
        self._monotonic, self._first = monotonic, first_attempt

    def predict(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction:
        """Raises ServingError; Avoided where the server was left alone."""
        if not self._breaker.admits():
            message = f"{model}: not asked, for the model server has failed several times in a row"
            raise Avoided(message, code="UNAVAILABLE")
        deadline_s = self._monotonic() + timeout_s
        try:
            return self._attempt(model, inputs, version, timeout_s * self._first)
        except (Unavailable, TooLate) as error:
            left_s = deadline_s - self._monotonic()
            if left_s <= 0 or self._breaker.is_open or (self._first == 1 and isinstance(error, TooLate)):
                raise
        self._metrics.count("second_attempts")
        return self._attempt(model, inputs, version, left_s)

    def _attempt(
        self, model: str, inputs: Mapping[str, np.ndarray], version: int | None, timeout_s: float
    ) -> Prediction:
        try:
            prediction = self._server.predict(model, inputs, version=version, timeout_s=timeout_s)
        except (Unavailable, TooLate) as error:
            if isinstance(error, Unavailable) or timeout_s >= _SHORT_S:
                self._breaker.failed()
            raise
        except ServingError:
            self._breaker.answered()
            raise
        self._breaker.answered()
        return prediction
