"""Action noise, clipping and their exact density. Pure: the agent draws with it, off-policy evaluation inverts it.

Ornstein-Uhlenbeck with dt = 1 (Lillicrap 2016, section 7): n_i = (1 - theta) n_{i-1} + sigma eps_i, n_{-1} = 0, and
raw_i = mu(s_i) + n_i, so that given n_{i-1} the raw action is N(mu + (1 - theta) n_{i-1}, sigma^2). Clipping to the
range puts point masses on its bounds. eps_i comes from a hash of (salt, session, page index, dimension): any replica
knows the noise of any page, and a decision can be recomputed from its log. dt = 0.01, the default elsewhere, would
explore next to nothing in a session of ten pages (std .06 instead of .37).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import xxhash

from pipeline.records import Action, Propensity

_UNIT = NormalDist()
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_MASS_ON_BOUNDS = 0.1


def stationary_std(theta: float, sigma: float) -> float:
    """Standard deviation of the noise after many pages."""
    return sigma / math.sqrt(theta * (2 - theta))


def mass_on_bounds(mean: float, std: float, low: float, high: float) -> float:
    """Probability that a Gaussian is clipped to [low, high]."""
    return _UNIT.cdf((low - mean) / std) + _UNIT.cdf((mean - high) / std)


def default_sigma(baseline: float, low: float, high: float, theta: float) -> float:
    """The largest sigma (action units) for which stationary noise around the baseline is clipped a tenth of the time.

    A baseline on a bound clips half of any noise; the far bound alone decides there.
    """
    near, far = sorted((baseline - low, high - baseline))

    def clipped(std: float) -> float:
        return _UNIT.cdf(-far / std) + (_UNIT.cdf(-near / std) if near > 0 else 0.0)

    lower, upper = 0.0, high - low
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if clipped(middle) <= _MASS_ON_BOUNDS else (lower, middle)
    return lower * math.sqrt(theta * (2 - theta))


def draw(salt: str, session_id: str, page_index: int, dimension: str) -> float:
    """eps_i: a standard normal number that depends on nothing but the arguments."""
    key = "\x1f".join((salt, session_id, str(page_index), dimension)).encode()
    bits = xxhash.xxh3_64_intdigest(key) >> 12  # 52 of them: one more and the largest would round to 1
    return _UNIT.inv_cdf((bits + 0.5) / 2**52)


def horizon(theta: float) -> int:
    """How many draws the noise remembers: older ones weigh less than 1e-16 of one draw."""
    return 1 if theta == 1 else math.ceil(-37 / math.log1p(-theta))


def noise_before(page_index: int, *, theta: float, sigma: float, salt: str, session_id: str, dimension: str) -> float:
    """n_{i-1}, the noise of the page before `page_index`; 0 for the first page.

    Terms older than the horizon are left out, so that a page far into a session costs no more than its horizon.
    """
    if sigma == 0 or page_index == 0:
        return 0.0
    keep = 1 - theta
    noise = 0.0
    for index in range(page_index - min(page_index, horizon(theta)), page_index):
        noise = keep * noise + sigma * draw(salt, session_id, index, dimension)
    return noise


def explore(
    name: str,
    mean: float,
    *,
    low: float,
    high: float,
    theta: float,
    sigma: float,
    previous_noise: float,
    epsilon: float,
) -> Action:
    """The executed action of one dimension with its propensity; without one where sigma is 0 (nothing was drawn)."""
    if sigma == 0:
        return Action(name, min(max(mean, low), high))
    raw = mean + (1 - theta) * previous_noise + sigma * epsilon
    value = min(max(raw, low), high)
    expectation = mean + (1 - theta) * previous_noise
    return Action(
        name,
        value,
        Propensity(
            raw=raw,
            mean=mean,
            sigma=sigma,
            theta=theta,
            previous_noise=previous_noise,
            log_density_raw=log_density(raw, expectation, sigma),
            log_density_clipped=log_density_clipped(value, expectation, sigma, low, high),
        ),
    )


def log_density(x: float, expectation: float, sigma: float) -> float:
    """log N(x; expectation, sigma^2)."""
    z = (x - expectation) / sigma
    return -0.5 * z * z - math.log(sigma) - _LOG_SQRT_2PI


def log_density_clipped(value: float, expectation: float, sigma: float, low: float, high: float) -> float:
    """The Gaussian's log density inside (low, high); at a bound the log of the mass that clipping put there.

    The two are of different measures: compare only like with like (two policies at the same executed value).
    """
    if value <= low:
        return _log_cdf((low - expectation) / sigma)
    if value >= high:
        return _log_cdf((expectation - high) / sigma)
    return log_density(value, expectation, sigma)


def _log_cdf(z: float) -> float:
    """log Phi(z), finite also where Phi underflows (asymptotic series of the Mills ratio, to 2e-10)."""
    if z > -30:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2)))
    w = 1 / (z * z)
    return -0.5 * z * z - _LOG_SQRT_2PI - math.log(-z) + math.log1p(-w * (1 - w * (3 - 15 * w)))
