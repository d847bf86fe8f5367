"""Everything a publish touches, in one value: the rim around the pure parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from model_export.desired import DesiredState, PolicyState, write_desired
from model_export.lease import Lease
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.features.encoder import Encoder
from pipeline.logs.log import EventLog
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics
from pipeline.serving.client import Prediction, VersionStatus
from pipeline.stores.published import Pointer
from pipeline.stores.store import KeyValueStore


class Stopping(Exception):
    """The process was asked to stop while it waited. What was begun is finished after the next start."""


class Server(Protocol):
    """What is needed of `pipeline.serving.client.ModelServer`."""

    target: str

    def status(self, model: str, timeout_s: float) -> tuple[VersionStatus, ...]: ...

    def predict(
        self, model: str, inputs: dict[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction: ...


class VolumeError(PageturnError):
    """The model volume or the staging area cannot be read or written."""


@dataclass(frozen=True)
class Site:
    config: FeatureConfig
    store: KeyValueStore
    servers: Iterable[Server]  # those that are there now, at every look; Unavailable where none is to be found
    models: Path
    served_models: str  # where the model servers see `models`
    encoder: Encoder
    lease: Lease
    clock_ms: Callable[[], int]
    pause: Callable[[], None]  # between two looks at something that takes its time; raises Stopping
    on_step: Callable[[str, str], None]  # (policy, step just done): for logs and traces
    rpc_timeout_s: float = 5.0
    metrics: Metrics = field(default_factory=lambda: Metrics(CONTROLLER))
    log: EventLog | None = None  # where transitions are, for evidence; None where none is gathered

    @property
    def prefix(self) -> str:
        return self.config.kv_prefix

    def write(self, state: DesiredState, policy: str, changed: PolicyState) -> DesiredState:
        """Write the desired state with one policy changed, if it did change."""
        after = state.with_policy(policy, changed)
        if after != state:
            self.lease.check()
            write_desired(self.models, after, self.served_models)
        return after

    def own(self, pointer: Pointer, last_seen: Pointer) -> None:
        """Call on a pointer before it is changed. Every pointer is claimed at the beginning of a term; one that carries
        another token is a newer holder's, or was lost since, with all that operators have switched on it.

        Raises: LeaseLost: the next term fills the store again first.
        """
        if pointer.fence != self.lease.token or was_lost(pointer, last_seen):
            self.lease.lost()


def was_lost(now: Pointer | None, last_seen: Pointer) -> bool:
    """Or changes of it, since it was last seen: of a restart, a failover, a backup. As many changes as were lost may
    have been made again, but not the same."""
    if last_seen.stable is None:
        return False
    if now is None or now.stable is None:
        return True
    if now.changes == last_seen.changes > 0:
        return replace(now, fence=last_seen.fence) != last_seen
    return 0 < now.changes < last_seen.changes
