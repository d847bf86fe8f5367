"""The simulated feed as a learner meets it: many sessions side by side, some of them left to the baseline.

Outside learners read this module, too: it imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.config import schema
from pipeline.config.schema import ActionDimension, Bucket, Buckets, Dense, FeatureConfig, PayPlusAPhi
from pipeline.exploration import default_sigma
from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react, rewards
from pipeline.simulation.params import World
from pipeline.simulation.people import Visitors
from pipeline.simulation.rollout import Step, constant, play

FEEDS = 256
CONTROL = 8  # every eighth feed is the baseline's
_SCALED_ON, _SCALED_USERS = 99, 1_000  # population and users that scales are taken from
_FLAGS = ("first_page", "active_", "city_", "entrance_", "hour_")  # columns of 0 and 1
_LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))


def feed_config(world: World, algorithm: schema.Algorithm, noise: schema.OrnsteinUhlenbeck) -> FeatureConfig:
    """A config whose dense input is the observation, already on its scale, with one learned policy."""
    objective = world.objective
    return FeatureConfig(
        schema_version=1,
        name="benchmark",
        kv_prefix="bench",
        features=tuple(Dense(name, f"page.{name}") for name in observing.names(world.params)),
        fusion=PayPlusAPhi(objective.phi),
        action=(ActionDimension("a", objective.baseline, (objective.low, objective.high), noise),),
        reward=objective.reward,
        algorithm=algorithm,
        policies=(schema.Policy("base", "baseline"), schema.Policy("learned", "learned")),
        buckets=Buckets("benchmark", (Bucket("all", "base", (0, 99)),)),
    )


class Scaling(NamedTuple):
    """Observations as every learner sees them: numbers with mean 0 and deviation 1, flags as they are.

    Of pages of the baseline, and fixed: unscaled, numbers would hardly vary next to flags.
    """

    mean: Array  # [columns]
    std: Array

    @classmethod
    def of(cls, world: World) -> Scaling:
        steps: list[Step] = []
        play(world, constant(world.objective.baseline), _SCALED_ON, np.arange(_SCALED_USERS), watch=steps)
        seen = np.concatenate([observing.vector(world.params, step.before) for step in steps]).astype(np.float64)
        flags = np.array([name.startswith(_FLAGS) for name in observing.names(world.params)])
        mean, std = np.where(flags, 0.0, seen.mean(axis=0)), np.where(flags, 1.0, seen.std(axis=0))
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(self, seen: Array) -> Array:
        return np.asarray((seen - self.mean) / self.std)


class Page(NamedTuple):
    """One page of each feed, [n]."""

    state: Array  # [n, columns]
    next_state: Array
    action: Array  # [n, 1]
    reward: Array
    discount: Array
    by_baseline: Array


class Seen(NamedTuple):
    """One page of each feed with all that an agent would log, [n] or [n, ...]."""

    state: Array
    next_state: Array
    raw: Array
    mean: Array
    carried: Array
    sigma: Array
    log_density: Array
    reward: Array
    discount: Array
    visit: Array  # number of the session
    index: Array  # of the page in it
    control: Array  # 1 where the baseline decided


class Turned(NamedTuple):
    """What a page of each feed came to."""

    reached: Array  # [n, columns], also where the session ended there
    reward: Array
    left: Array
    cut: Array  # of a session that has as many pages as there may be


class SideBySide:
    """Sessions of one population, stepped together; whoever's ends is followed by the population's next user.

    Each is what `FeedEnv` would have shown that user.
    """

    def __init__(self, world: World, population: int, size: int) -> None:
        self._world, self._population = world, population
        self.user, self._next = np.arange(size), size
        self.sessions = self._begin(self.user)
        self.state = self._seen(self.sessions)

    def turn(self, action: Array) -> Turned:
        params = self._world.params
        page = offer(params, self.sessions)
        reaction = react(params, self.sessions, page, arrange(self._world, page, action))
        self.sessions = advance(params, self.sessions, reaction)
        cut = ~reaction.left & (self.sessions.page >= params.max_pages)
        reached = self.state = self._seen(self.sessions)
        self._follow(np.flatnonzero(reaction.left | cut))
        return Turned(reached, rewards(self._world.objective, reaction), reaction.left, cut)

    def _seen(self, sessions: Sessions) -> Array:
        return observing.vector(self._world.params, sessions)

    def _begin(self, users: Array) -> Sessions:
        return begin(self._world.params, self._population, users, np.zeros_like(users))

    def _follow(self, ended: Array) -> None:
        if not len(ended):
            return
        self.user = self.user.copy()
        self.user[ended] = np.arange(self._next, self._next + len(ended))
        self._next += len(ended)
        fresh = self._begin(self.user[ended])
        visitors = Visitors(*_with(self.sessions.visitors, ended, fresh.visitors))
        self.sessions = Sessions(visitors, *_with(self.sessions[1:], ended, fresh[1:]))
        self.state = self.state.copy()
        self.state[ended] = self._seen(fresh)


def _with(columns: Iterable[Array], at: Array, fresh: Iterable[Array]) -> Iterable[Array]:
    for column, new in zip(columns, fresh, strict=True):
        changed = column.copy()
        changed[..., at] = new
        yield changed


class Feeds:
    """Sessions side by side, decided around a policy's means with the agent's noise, or by the baseline."""

    def __init__(self, world: World, config: FeatureConfig, seed: int, size: int = FEEDS) -> None:
        self._random = np.random.default_rng([seed, 1])
        self._feed = SideBySide(world, int(self._random.integers(2**62)), size)
        self._noise, self._index = np.zeros(size), np.zeros(size, int)
        dimension = config.action[0]
        (self._low, self._high), self._baseline = dimension.range, dimension.baseline
        self._theta, self._sigma = dimension.noise.theta, _sigma(dimension)
        self._scaling = Scaling.of(world)
        self.control = np.arange(size) % CONTROL == 0
        self.state = self._scaling(self._feed.state)

    def page(self, mean: Array) -> Page:
        """Every feed turns a page, around the given mean actions; sessions that end are followed by new ones."""
        return self.logged_page(mean)[0]

    def logged_page(self, mean: Array) -> tuple[Page, Seen]:
        """The same, with all that an agent would log of it."""
        size = len(self.control)
        fresh = self._random.standard_normal(size)
        carried = (1 - self._theta) * self._noise
        noise = carried + self._sigma * fresh
        raw = mean + noise
        action = np.where(self.control, self._baseline, np.clip(raw, self._low, self._high))
        visit, index = self._feed.user, self._index
        before, turned = self.state, self._feed.turn(action)
        self.state = self._scaling(self._feed.state)
        reached, reward, left, cut = self._scaling(turned.reached), turned.reward, turned.left, turned.cut
        over = left | cut
        self._noise, self._index = np.where(over, 0.0, noise), np.where(over, 0, index + 1)
        discount, sigma = np.where(left, 0.0, 1.0), np.full(size, self._sigma)
        density = -0.5 * fresh**2 - np.log(self._sigma) - _LOG_SQRT_2PI
        seen = Seen(before, reached, raw, mean, carried, sigma, density, reward, discount, visit, index, self.control)
        return Page(before, reached, action[:, None], reward, discount, self.control), seen


def _sigma(dimension: ActionDimension) -> float:
    noise, (low, high) = dimension.noise, dimension.range
    if noise.sigma is None:
        return default_sigma(dimension.baseline, low, high, noise.theta)
    return noise.sigma * (high - low) / 2
