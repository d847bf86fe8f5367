"""What the controller tells of the state it is in."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.desired import DesiredState
from pipeline.monitoring.metrics import Metrics

_CAUSES = ("lease", "store", "volume")


def begin(metrics: Metrics, policies: Sequence[str]) -> None:
    """Of a counter that is not there before its first event, Prometheus does not see that event."""
    for cause in _CAUSES:
        metrics.count("terms_ended", 0, cause=cause)
    for policy in policies:
        metrics.count("records_restored", 0, policy=policy)


def show(metrics: Metrics, state: DesiredState) -> None:
    for name, policy in state.policies.items():
        pointer = policy.pointer
        metrics.gauge("frozen", pointer.frozen, policy=name)
        pinned = pointer.stable.version if pointer.pinned and pointer.stable else 0
        metrics.gauge("pinned_version", pinned, policy=name)
        metrics.gauge("off", pointer.off, policy=name)
        metrics.gauge("canary_version", pointer.canary.version if pointer.canary else 0, policy=name)
        for loaded in policy.loaded:
            if pointer.stable is not None and loaded.version == pointer.stable.version:
                metrics.gauge("served_version", loaded.version, policy=name)
                metrics.gauge("served_since_timestamp_seconds", loaded.since_ms / 1000, policy=name)
