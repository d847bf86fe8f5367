"""How alive a user is: a survival model with a constant hazard. Pure; a function of the set of request times.

S is S0 at a user's first request. It decays as exp(-lambda t), and every later request, a return, lifts it:
S <- min(1, S + Sa). A user who returns exactly once in T0 keeps coming back to S0.

The cap makes the order of requests matter, so their times are kept until nothing older can come; then they fold into
one value. Until then they may come in any order and more than once.

Source: Zheng et al. 2018, "DRN", equations 3-5 and section 4.4.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from msgspec import Struct

from pipeline.errors import PageturnError


class ActivenessError(PageturnError):
    """A survival model or a moment that makes no sense; says what was expected and found."""


class Survival(Struct, frozen=True, forbid_unknown_fields=True):
    """S0, T0, lambda and Sa. Left out, lambda and Sa follow from the other two."""

    initial: float = 0.5  # S0
    absence_s: float = 86_400.0  # T0, the mean life of a user who does not return: the integral of exp(-lambda t)
    hazard_per_s: float | None = None  # lambda; 1 / T0
    gain: float | None = None  # Sa; S0 (1 - exp(-lambda T0))

    def __post_init__(self) -> None:
        if not (0 < self.initial <= 1 and 0 < self.absence_s < math.inf):
            msg = f"expected 0 < initial <= 1 and a positive absence, found {self.initial} and {self.absence_s}"
            raise ActivenessError(msg)
        if not 0 <= self.decay_per_s < math.inf:
            msg = f"expected hazard_per_s >= 0, found {self.decay_per_s}"
            raise ActivenessError(msg)
        if not 0 <= self.lift <= 1:
            msg = f"expected 0 <= gain <= 1, found {self.lift}"
            raise ActivenessError(msg)

    @property
    def decay_per_s(self) -> float:
        return 1 / self.absence_s if self.hazard_per_s is None else self.hazard_per_s

    @property
    def lift(self) -> float:
        if self.gain is not None:
            return self.gain
        return self.initial * -math.expm1(-self.decay_per_s * self.absence_s)

    def kept(self, elapsed_ms: int) -> float:
        """The share of S that is left after a time."""
        return math.exp(-self.decay_per_s * elapsed_ms / 1000)


EXACT = Survival()
AS_PRINTED = Survival(hazard_per_s=1.2e-5, gain=0.32)  # rounded in the paper: S drifts to .4958 under daily returns


class Activeness(Struct, frozen=True, array_like=True):
    """What is known of a user's requests. The empty value is a user who was never seen."""

    value: float | None = None  # S right after the last settled request; None: none is settled
    value_ms: int = 0  # when that was
    settled_ms: int = -1  # no request at or before this moment is taken in any more
    recent: tuple[int, ...] = ()  # request times after it, increasing


def observe(state: Activeness, times_ms: Iterable[int]) -> Activeness:
    """Take in requests, in any order; a time that is known already changes nothing, nor does one that is settled."""
    new = {time_ms for time_ms in times_ms if time_ms > state.settled_ms}
    known = set(state.recent)
    return state if new <= known else Activeness(state.value, state.value_ms, state.settled_ms, _sorted(new | known))


def merge(a: Activeness, b: Activeness) -> Activeness:
    """Of two parts of one user's requests that were settled alike: as if one had seen all. ActivenessError if not."""
    if (a.value, a.value_ms, a.settled_ms) != (b.value, b.value_ms, b.settled_ms):
        msg = f"expected states settled alike, found one up to {a.settled_ms} ms and one up to {b.settled_ms} ms"
        raise ActivenessError(msg)
    return observe(a, b.recent)


def settle(model: Survival, state: Activeness, until_ms: int) -> Activeness:
    """Fold what happened at or before a moment; the caller knows that nothing older is to come.

    The values at later moments stay the same but for rounding; moments before the last folded request are gone.
    """
    if until_ms <= state.settled_ms:
        return state
    at = bisect_right(state.recent, until_ms)
    if at == 0:
        return Activeness(state.value, state.value_ms, until_ms, state.recent)
    value, value_ms = _replayed(model, state.value, state.value_ms, state.recent[:at])
    return Activeness(value, value_ms, until_ms, state.recent[at:])


def after(model: Survival, state: Activeness, now_ms: int) -> float:
    """S at a moment, a request at that very moment included; S0 for a user who was never seen up to then.

    Raises ActivenessError for a moment before the last settled request.
    """
    return _value(model, state, bisect_right(state.recent, now_ms), now_ms)


def before(model: Survival, state: Activeness, now_ms: int) -> float:
    """S just before a moment, a request at that very moment not included."""
    return _value(model, state, bisect_left(state.recent, now_ms), now_ms)


def _value(model: Survival, state: Activeness, count: int, now_ms: int) -> float:
    if state.value is not None and now_ms < state.value_ms:
        msg = f"activeness: expected a moment at or after {state.value_ms} ms, the last settled request; found {now_ms}"
        raise ActivenessError(msg)
    value, value_ms = _replayed(model, state.value, state.value_ms, state.recent[:count])
    return model.initial if value is None else value * model.kept(now_ms - value_ms)


def _replayed(
    model: Survival, value: float | None, value_ms: int, times_ms: tuple[int, ...]
) -> tuple[float | None, int]:
    for time_ms in times_ms:
        value = model.initial if value is None else min(1.0, value * model.kept(time_ms - value_ms) + model.lift)
        value_ms = time_ms
    return value, value_ms


def _sorted(times_ms: set[int]) -> tuple[int, ...]:
    return tuple(sorted(times_ms))
