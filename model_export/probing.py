"""Actions of a version on a candidate's probes, as the model servers answer them. Encoded here, not by the trainer:
what is compared is what agents will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from model_export.candidate import Probe
from model_export.checks import Actions
from model_export.site import Server, Site
from pipeline.errors import PageturnError
from pipeline.features.snapshot import Snapshot
from pipeline.serving.errors import NotServed, TooLate, Unavailable

ACTION = "action"
_T = TypeVar("_T")


class Unreachable(PageturnError):
    """A model server did not answer within the time limit: no fault of the candidate."""


class WrongAnswer(PageturnError):
    """A model server answered something that is no answer to the probes."""


def encoded(site: Site, probes: Sequence[Probe], snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Model inputs [n probes, ...]. Raises: FeatureError, SnapshotError, StoreError (look-ups)."""
    rows = site.encoder.stack([site.encoder.prepare(probe.state) for probe in probes])
    return site.encoder.finish(rows, snapshot)


def ask(site: Site, server: Server, model: str, version: int, inputs: dict[str, np.ndarray]) -> Actions:
    """Actions [n probes][n dimensions] of a pinned version. Raises: ServingError, WrongAnswer."""
    answer = server.predict(model, inputs, version=version, timeout_s=site.rpc_timeout_s)
    where = f"{server.target}: {model} version {version}"
    if answer.version != version:
        message = f"{where}: answered by version {answer.version}"
        raise WrongAnswer(message)
    expected = (len(next(iter(inputs.values()))), len(site.config.action))
    action = answer.outputs.get(ACTION)
    if action is None or action.shape != expected:
        found = f"outputs {sorted(answer.outputs)}" if action is None else f"shape {action.shape}"
        message = f"{where}: expected an output {ACTION!r} of shape {expected}, found {found}"
        raise WrongAnswer(message)
    return [[float(x) for x in row] for row in action]


def patiently(site: Site, what: str, deadline_ms: int, attempt: Callable[[], _T]) -> _T:
    """Repeat an attempt while servers are out of reach or have not loaded a version yet.

    Raises: Unreachable after the deadline; LeaseLost, Stopping.
    """
    while True:
        try:
            return attempt()
        except (NotServed, TooLate, Unavailable) as error:
            if site.clock_ms() >= deadline_ms:
                message = f"{what}: {error}"
                raise Unreachable(message) from error
        site.lease.check()
        site.pause()


def largest_error(served: Actions, expected: Actions) -> float:
    """Largest |served - expected| / max(1, |expected|); NaN if any number is."""
    differences = [
        abs(x - y) / max(1.0, abs(y)) for a, b in zip(served, expected, strict=True) for x, y in zip(a, b, strict=True)
    ]
    return float(np.max(differences)) if differences else 0.0
