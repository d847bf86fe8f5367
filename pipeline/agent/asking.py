"""Asking the model server for the policy's means, and believing nothing of the reply unchecked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.agent.guarding import Avoided, PredictionSource
from pipeline.agent.policies import OUTPUT, Pinned
from pipeline.agent.reasons import Reason, Trouble
from pipeline.config.schema import ActionDimension
from pipeline.serving.errors import NotServed, ServingError, TooLate, Unavailable

_ROUNDING = 1e-4  # of the range: the model clips in float32


def ask_means(
    server: PredictionSource,
    pinned: Pinned,
    inputs: Mapping[str, np.ndarray],
    dimensions: tuple[ActionDimension, ...],
    timeout_s: float,
) -> np.ndarray:
    """mu(s) [B, dimensions] of exactly the pinned version. Raises Trouble."""
    version = pinned.served.version
    try:
        prediction = server.predict(pinned.model_name, inputs, version=version, timeout_s=timeout_s)
    except ServingError as error:
        raise Trouble(reason_of(error), str(error)) from error
    if prediction.version != version:
        raise Trouble(Reason.VERSION_MISMATCH, f"asked version {version}, version {prediction.version} answered")
    rows = len(next(iter(inputs.values())))
    means = prediction.outputs.get(OUTPUT)
    if means is None or means.shape != (rows, len(dimensions)) or means.dtype != np.float32:
        found = "no such output" if means is None else f"{list(means.shape)} {means.dtype}"
        raise Trouble(Reason.BAD_REPLY, f"{OUTPUT}: expected [{rows}, {len(dimensions)}] float32, found {found}")
    return means


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
    return Reason.REFUSED
