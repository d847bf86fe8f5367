"""What a person or a dashboard wants to see of learning: a JSON line per round in the work directory, and gauges.

After a kill the rounds since the last checkpoint are done, and written, again: they are the same lines but for
`time_ms`, and `transitions` tells them apart.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.durable import appending
from pipeline.learning.training import Training
from pipeline.monitoring.metrics import Metrics

_LIMIT_BYTES = 64 * 1024 * 1024  # then the file is put aside as <name>.1, in place of the one before


class MetricsFile:
    def __init__(self, path: Path, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._path, self._limit_bytes = path, limit_bytes

    def append(self, line: dict[str, object]) -> None:
        if self._path.exists() and self._path.stat().st_size > self._limit_bytes:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        with appending(self._path) as file:
            file.write(msgspec.json.encode(line) + b"\n")


def measured(training: Training, time_ms: int) -> dict[str, object]:
    progress = training.progress
    return {
        "time_ms": time_ms,
        "transitions": progress.ingested,
        "updates": progress.updates,
        "duplicates": progress.duplicates,
        "refused": progress.refused,
        "left_out": progress.left_out,
        "explored": progress.explored,
        "replay": len(training.feeding),
        "reward_abs_max": progress.reward_abs_max,
        **training.losses,
    }


def show(training: Training, appended_at_ms: int, metrics: Metrics) -> None:
    """The same to Prometheus, with the stamp of the last transition."""
    progress = training.progress
    metrics.gauge("last_transition_timestamp_seconds", appended_at_ms / 1000)
    metrics.gauge("replay_transitions", len(training.feeding))
    for name, total in (("transitions", progress.ingested), ("duplicates", progress.duplicates)):
        metrics.count_to(name, total)
    metrics.count_to("updates", progress.updates)
    for reason, total in progress.refused.items():
        metrics.count_to("refused", total, reason=reason)
    for policy, total in progress.explored.items():
        metrics.count_to("explored", total, policy=policy)
    for name, value in training.losses.items():
        quantity, policy, action = [*name.split("/"), "", ""][:3]
        metrics.gauge("learning", value, quantity=quantity, policy=policy, action=action)
