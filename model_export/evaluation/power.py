"""How much traffic it takes to see a difference between a policy's bucket and the baseline's. Pure.

One look: a test at a size that was fixed beforehand, (z_{1 - alpha / 2} + z_power)^2 v / d^2 units in both buckets
together, v = s^2 / (q (1 - q)) for a unit's variance s^2 and the policy's share q. All the time: as many as make an
epoch's lower confidence bound of `contrast` pass zero by then with that probability; on the way it may earlier.
Its v is s^2 / q + (1 + lift)^2 s^2 / (1 - q) for the lift that it has to pass.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from model_export.evaluation.contrast import Terms
from model_export.evaluation.sequences import alpha_of_epoch, deviation

_UNIT = NormalDist()
_MOST = 1e15


def one_look(variance: float, share: float, difference: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Units in both buckets together; infinite for no difference."""
    quantiles = _UNIT.inv_cdf(1 - alpha / 2) + _UNIT.inv_cdf(power)
    return quantiles**2 * _contrast_variance(variance, share) / difference**2 if difference else math.inf


def all_the_time(
    variance: float, terms: Terms, difference: float, *, alpha: float = 0.05, power: float = 0.8, epoch: int = 1
) -> float:
    """Units in both buckets together, to within a thousandth; infinite where 1e15 are not enough. `difference`: of what
    the policy brings and (1 + terms.lift) times what the baseline does."""
    each, reach = _contrast_variance(variance, terms.share, terms.lift), terms.reach()
    spend, quantile = alpha_of_epoch(alpha, epoch) / 2, _UNIT.inv_cdf(power)

    def shown(units: float) -> bool:
        far = reach * float(deviation(np.array([units * each / reach**2]), spend)[0])
        return units * abs(difference) - quantile * math.sqrt(units * each) >= far

    if not shown(_MOST):
        return math.inf
    low, high = 1.0, _MOST
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _contrast_variance(variance: float, share: float, lift: float = 0.0) -> float:
    return variance / share + (1 + lift) ** 2 * variance / (1 - share)
