"""Actions of a version on a candidate's probes, as the model servers answer them. Encoded here, not by the trainer:
what is compared is what agents will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from model_export.candidate import Probe
from model_export.checks import Actions
from model_export.clock import Deadline
from model_export.site import Server, Site
from pipeline.errors import PageturnError
from pipeline.features.candidates import item_inputs
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.serving.errors import NotServed, TooLate, Unavailable

ACTION, Q = "action", "q"
_T = TypeVar("_T")


class Unreachable(PageturnError):
    """A model server did not answer within the time limit: no fault of the candidate."""


class WrongAnswer(PageturnError):
    """A model server answered something that is no answer to the probes."""


def encoded(site: Site, probes: Sequence[Probe], snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Model inputs [n probes, ...]. Raises: FeatureError, SnapshotError, StoreError (look-ups)."""
    rows = site.encoder.stack([site.encoder.prepare(probe.state) for probe in probes])
    inputs = site.encoder.finish(rows, snapshot)
    if site.config.ranking is None:
        return inputs
    items = Encoder(site.config, part="item")
    return {**inputs, **item_inputs(items, [items.prepare_items(probe.items) for probe in probes], snapshot)}


def answers(
    site: Site, server: Server, model: str, version: int, probes: Sequence[Probe], snapshot: Snapshot
) -> Actions:
    """What a pinned version says to probes: actions, or Q of each candidate. Raises: ServingError, WrongAnswer,
    FeatureError, SnapshotError, StoreError (look-ups)."""
    inputs = encoded(site, probes, snapshot)
    if site.config.ranking is None:
        return ask(site, server, model, version, inputs)
    widest = max(len(probe.items) for probe in probes)
    q = _output(site, server, model, version, inputs, Q, (len(probes), widest))
    return [[float(x) for x in row[: len(probe.items)]] for row, probe in zip(q, probes, strict=True)]


def ask(site: Site, server: Server, model: str, version: int, inputs: dict[str, np.ndarray]) -> Actions:
    """Actions [n probes][n dimensions] of a pinned version. Raises: ServingError, WrongAnswer."""
    expected = (len(next(iter(inputs.values()))), len(site.config.action))
    action = _output(site, server, model, version, inputs, ACTION, expected)
    return [[float(x) for x in row] for row in action]


def _output(
    site: Site,
    server: Server,
    model: str,
    version: int,
    inputs: dict[str, np.ndarray],
    output: str,
    expected: tuple[int, ...],
) -> np.ndarray:
    answer = server.predict(model, inputs, version=version, timeout_s=site.rpc_timeout_s)
    where = f"{server.target}: {model} version {version}"
    if answer.version != version:
        message = f"{where}: answered by version {answer.version}"
        raise WrongAnswer(message)
    said = answer.outputs.get(output)
    if said is None or said.shape != expected:
        found = f"outputs {sorted(answer.outputs)}" if said is None else f"shape {said.shape}"
        message = f"{where}: expected an output {output!r} of shape {expected}, found {found}"
        raise WrongAnswer(message)
    return said


def patiently(site: Site, what: str, deadline: Deadline, attempt: Callable[[], _T]) -> _T:
    """Repeat an attempt while servers are out of reach or have not loaded a version yet.

    Raises: Unreachable after the deadline; LeaseLost, Stopping.
    """
    while True:
        try:
            return attempt()
        except (NotServed, TooLate, Unavailable) as error:
            if deadline.over():
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
