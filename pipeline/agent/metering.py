"""What an agent has seen of the versions in use, for its heartbeats: the controller sends a version back by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

import numpy as np

from pipeline.agent.guarding import PredictionSource
from pipeline.agent.reasons import Reason
from pipeline.serving.client import Prediction
from pipeline.serving.errors import TooLate
from pipeline.stores.published import Usage

# What a version may be at fault for. A server or a store that is away is nobody's version.
AT_FAULT = frozenset(
    reason.value
    for reason in (
        Reason.NOT_SERVED,
        Reason.REFUSED,
        Reason.VERSION_MISMATCH,
        Reason.BAD_SIGNATURE,
        Reason.BAD_REPLY,
    )
)


class Meter:
    """Counts by model and version, since the agent began to use it. Safe for threads."""

    def __init__(self, slow_s: float) -> None:
        """`slow_s`: a Predict call that takes longer is slow."""
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], list[int]] = {}

    def page(self, model: str, version: int, fallback_reason: str | None) -> None:
        self._add(model, version, pages=1, faults=int(fallback_reason in AT_FAULT))

    def call(self, model: str, version: int, took_s: float, pages: int = 1) -> None:
        """One for several pages is one of each of them, or where pages come in batches too few are called for to judge
        by."""
        self._add(model, version, calls=pages, slow=pages * (took_s > self._slow_s))

    def read(self, in_use: Collection[tuple[str, int]]) -> dict[tuple[str, int], Usage]:
        """Of the models' versions in use. All others are forgotten."""
        with self._lock:
            self._counts = {key: self._counts.get(key, [0, 0, 0, 0]) for key in in_use}
            return {key: Usage(*counts) for key, counts in self._counts.items()}

    def _add(self, model: str, version: int, pages: int = 0, faults: int = 0, calls: int = 0, slow: int = 0) -> None:
        with self._lock:
            counts = self._counts.setdefault((model, version), [0, 0, 0, 0])
            for place, more in enumerate((pages, faults, calls, slow)):
                counts[place] += more


class MeteredServer:
    """A model server whose answers are timed. One that cannot be reached has not answered."""

    def __init__(self, server: PredictionSource, meter: Meter, monotonic: Callable[[], float]) -> None:
        self._server, self._meter, self._monotonic = server, meter, monotonic

    def predict(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction:
        began_s, pages = self._monotonic(), len(next(iter(inputs.values())))
        try:
            prediction = self._server.predict(model, inputs, version=version, timeout_s=timeout_s)
        except TooLate:
            self._time(model, version, float("inf"), pages)
            raise
        self._time(model, version, self._monotonic() - began_s, pages)
        return prediction

    def _time(self, model: str, version: int | None, took_s: float, pages: int) -> None:
        if version is not None:
            self._meter.call(model, version, took_s, pages)
