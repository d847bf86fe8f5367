"""What a person or a dashboard wants to see of learning: a JSON line per round in the work directory, and gauges.

After a kill the rounds since the last checkpoint are done, and written, again: they are the same lines but for
`time_ms`, and `transitions` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import tensorflow as tf

from pipeline.durable import appending
from pipeline.learning.training import Training
from pipeline.monitoring.metrics import Metrics

_LARGE = 2**20  # entries, of a table: summing over more would take as long as the round did
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
        **({**_of_seeds(training), **_of_weights(training)} if training.config.ranking is None else {}),
        **_ratios(training.losses),
    }


def _of_seeds(training: Training) -> dict[str, float]:
    """Which seed is handed out, and how they compared; nothing where there is one."""
    seeds = training.config.algorithm.all_seeds
    return {"seed_chosen": float(seeds[training.chosen]), **training.progress.seeds} if len(seeds) > 1 else {}


def _of_weights(training: Training) -> dict[str, float]:
    """Norms of the chosen seed's weights: of the tower and V, and of each policy's heads. Without large tables."""
    actor, seed = training.learner.actor, training.chosen
    unserved: dict[str, tf.Module] = getattr(training.learner, "unserved", {})
    parts = {"tower": actor.tower, "head": actor.heads, **unserved}
    norms: dict[str, float] = {}
    for part, module in parts.items():
        variables = [v for v in module.variables if np.prod(v.shape) < _LARGE]
        if part in ("tower", "value"):
            norms |= {f"{part}_norm": _norm(v[seed] for v in variables)}
        else:
            names = enumerate(training.config.learned_policies())
            norms |= {f"{part}_norm/{name}": _norm(v[seed, k] for v in variables) for k, name in names}
    return norms


def _norm(parts: Iterable[tf.Tensor]) -> float:
    return float(np.sqrt(sum(float(tf.reduce_sum(tf.square(tf.cast(part, tf.float32)))) for part in parts)))


def _ratios(losses: Mapping[str, float]) -> dict[str, float]:
    """A of what each policy does over V, of means on states that the baseline's pages cover.

    The Meituan system's was about 3 : 97, and stayed above 0.
    """
    value, prefix = losses.get("value_covered"), "advantage_covered/"
    of_policies = {name.removeprefix(prefix): x for name, x in losses.items() if name.startswith(prefix)}
    return {f"advantage_ratio/{policy}": x / abs(value) for policy, x in of_policies.items()} if value else {}


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
    for (table, start), total in training.tables.begun.items() if training.config.ranking is None else ():
        metrics.count_to("rows_begun", total, table=table, start=start)
    for name, value in training.losses.items():
        quantity, policy, action = [*name.split("/"), "", ""][:3]
        metrics.gauge("learning", value, quantity=quantity, policy=policy, action=action)
