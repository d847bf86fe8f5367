"""Asking the model server for the policy's means, and believing nothing of the reply unchecked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.agent.guarding import Avoided, PredictionSource
from pipeline.agent.policies import OUTPUT, Q_EXPLORERS, Pinned, Q
from pipeline.agent.reasons import Reason, Trouble
from pipeline.config.schema import ActionDimension
from pipeline.serving.errors import BadRequest, NotServed, ServingError, TooLate, Unavailable

_ROUNDING = 1e-4  # of the range: the model clips in float32


def ask(
    server: PredictionSource, pinned: Pinned, inputs: Mapping[str, np.ndarray], timeout_s: float
) -> Mapping[str, np.ndarray]:
    """The outputs of exactly the pinned version. Raises Trouble."""
    version = pinned.served.version
    try:
        prediction = server.predict(pinned.model_name, inputs, version=version, timeout_s=timeout_s)
    except ServingError as error:
        raise Trouble(reason_of(error), str(error)) from error
    if prediction.version != version:
        raise Trouble(Reason.VERSION_MISMATCH, f"asked version {version}, version {prediction.version} answered")
    return prediction.outputs


def ask_means(
    server: PredictionSource,
    pinned: Pinned,
    inputs: Mapping[str, np.ndarray],
    dimensions: tuple[ActionDimension, ...],
    timeout_s: float,
) -> np.ndarray:
    """mu(s) [B, dimensions] of exactly the pinned version. Raises Trouble."""
    means = ask(server, pinned, inputs, timeout_s).get(OUTPUT)
    rows = len(next(iter(inputs.values())))
    if means is None or means.shape != (rows, len(dimensions)) or means.dtype != np.float32:
        found = "no such output" if means is None else f"{list(means.shape)} {means.dtype}"
        raise Trouble(Reason.BAD_REPLY, f"{OUTPUT}: expected [{rows}, {len(dimensions)}] float32, found {found}")
    return means


def ask_q(
    server: PredictionSource, pinned: Pinned, inputs: Mapping[str, np.ndarray], shape: tuple[int, int], timeout_s: float
) -> np.ndarray:
    """Q [B, 1 + explorers, N] of exactly the pinned version, for `shape` [B, N]. Raises Trouble."""
    outputs, explorers = ask(server, pinned, inputs, timeout_s), len(pinned.snapshot.explorers)
    parts = [_output(outputs, Q, shape)[:, None]]
    if explorers:
        found = _output(outputs, Q_EXPLORERS, (shape[0], None, shape[1]))
        if found.shape[1] < explorers:
            raise Trouble(Reason.BAD_REPLY, f"{Q_EXPLORERS}: expected {explorers} explorers, found {found.shape[1]}")
        parts.append(found[:, :explorers])
    return np.concatenate(parts, axis=1)


def _output(outputs: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    found = outputs.get(name)
    if found is None or found.dtype != np.float32 or not _shaped(found.shape, shape):
        said = "no such output" if found is None else f"{list(found.shape)} {found.dtype}"
        raise Trouble(Reason.BAD_REPLY, f"{name}: expected {list(shape)} float32, found {said}")
    return found


def _shaped(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(b in (None, a) for a, b in zip(found, expected, strict=True))


def usable_means(means: np.ndarray, dimensions: tuple[ActionDimension, ...]) -> tuple[float, ...]:
    """One page's row as floats. Raises Trouble where a number is outside its dimension's range, or is none."""
    numbers: list[float] = means.tolist()
    for number, dimension in zip(numbers, dimensions, strict=True):
        low, high = dimension.range
        slack = _ROUNDING * (high - low)
        if not low - slack <= number <= high + slack:  # NaN is in no range
            raise Trouble(Reason.BAD_REPLY, f"{dimension.name}: expected a number from {low} to {high}, found {number}")
    return tuple(numbers)


def reason_of(error: ServingError) -> Reason:
    match error:
        case Avoided():
            return Reason.AVOIDED
        case NotServed():
            return Reason.NOT_SERVED
        case TooLate():
            return Reason.TIMEOUT
        case Unavailable():
            return Reason.UNAVAILABLE
        case BadRequest(code="UNIMPLEMENTED"):  # no model server: something else answers at its address, a proxy, say
            return Reason.UNAVAILABLE
    return Reason.REFUSED
