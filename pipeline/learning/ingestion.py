"""A record of the transitions topic -> an example to learn from, or the reason why it cannot be one. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.config.schema import ActionDimension, FeatureConfig
from pipeline.events import EventError, decode
from pipeline.features.encoder import Encoder, FeatureError, MissingVector
from pipeline.records import DecidedBy, Decision, Transition

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TOLERANCE = 1e-6  # of an action's range: JSON and float32 may have rounded an action on a bound


class Example(NamedTuple):
    """A transition as arrays. What `rows` holds for the next state does not matter where discount is 0."""

    transition: Transition
    rows: np.ndarray  # [2] prepared: state, next state
    action: np.ndarray  # [N] executed
    by_baseline: bool


class Unusable(NamedTuple):
    reason: str
    detail: str


NO_ACTION = "no_action"  # nothing is wrong with such a page: it only says nothing about any action


def read_transition(payload: bytes) -> Transition | Unusable:
    try:
        transition = decode(payload, Transition)
    except EventError as error:
        return Unusable("malformed", str(error))
    if transition.discount not in (0.0, 1.0):
        return Unusable("discount", f"expected a discount of 0 or 1, found {transition.discount}")
    if (transition.next_state is None) != (transition.discount == 0):
        found = "none" if transition.next_state is None else "one"
        return Unusable("next_state", f"expected a next state if and only if discount is 1, found {found}")
    if not abs(transition.reward) <= _FLOAT32_MAX:
        return Unusable("reward", f"expected a reward that fits float32, found {transition.reward}")
    return transition


def to_example(transition: Transition, config: FeatureConfig, encoder: Encoder) -> Example | Unusable:
    action = _executed(transition.decision, config.action)
    if isinstance(action, Unusable):
        return action
    try:
        state = encoder.prepare(transition.state).row
        following = state if transition.next_state is None else encoder.prepare(transition.next_state).row
    except MissingVector as error:
        return Unusable("missing_vector", str(error))
    except FeatureError as error:
        return Unusable("feature", str(error))
    rows = np.empty(2, encoder.prepared_dtype)
    rows[0], rows[1] = state[0], following[0]
    return Example(transition, rows, action, transition.decision.decided_by is not DecidedBy.POLICY)


def _executed(decision: Decision, dimensions: tuple[ActionDimension, ...]) -> np.ndarray | Unusable:
    """The executed action in the order of the config; a page of the baseline need not say what that is.

    A fallback page without one was served in the order in which it came, which is that of no action.
    """
    values = {a.name: a.value for a in decision.actions}
    if not values and decision.decided_by is DecidedBy.FALLBACK:
        return Unusable(NO_ACTION, "expected an executed action, found none: the received order was served")
    if not values and decision.decided_by is DecidedBy.BASELINE:
        values = {d.name: d.baseline for d in dimensions}
    expected = {d.name for d in dimensions}
    if values.keys() != expected:
        return Unusable("action", f"expected actions {sorted(expected)}, found {sorted(values)}")
    for dimension in dimensions:
        low, high = dimension.range
        slack = _TOLERANCE * (high - low)
        if not low - slack <= values[dimension.name] <= high + slack:
            found = f"found {values[dimension.name]}"
            return Unusable("action", f"expected {dimension.name} in [{low}, {high}], {found}")
    return np.array([values[d.name] for d in dimensions], np.float32)
