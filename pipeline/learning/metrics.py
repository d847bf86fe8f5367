"""One JSON line per round in the work directory: what a dashboard or a person wants to see of learning.

After a kill the rounds since the last checkpoint are done, and written, again: they are the same lines but for
`time_ms`, and `transitions` tells them apart.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.durable import appending
from pipeline.learning.training import Training

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
        "explored": progress.explored,
        "replay": len(training.replay),
        "reward_abs_max": progress.reward_abs_max,
        **training.losses,
    }
