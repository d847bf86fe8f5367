"""The learner in the Gymnasium environment: several feeds side by side, some of them left to the baseline."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.rollouts import Inputs, RolloutLessons, Seen
from pipeline.config import schema
from pipeline.config.schema import ActionDimension, Bucket, Buckets, Dense, FeatureConfig, PayPlusAPhi, ZScore
from pipeline.exploration import default_sigma, log_density
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.learning.learner import Batch, Learner
from pipeline.learning.learners import learner_of
from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.env import FeedEnv
from pipeline.simulation.feed import Sessions
from pipeline.simulation.params import World
from pipeline.simulation.rollout import Policy

_FEEDS = 48
_CONTROL = 3  # every third feed is the baseline's
_FLAGS = ("first_page", "active_", "city_", "entrance_", "hour_")  # columns of 0 and 1


def feed_config(world: World, algorithm: schema.Algorithm, noise: schema.OrnsteinUhlenbeck) -> FeatureConfig:
    """A config whose dense input is the environment's observation, with one learned policy.

    Numbers are z-scored: next to flags they would hardly vary.
    """
    objective = world.objective
    return FeatureConfig(
        schema_version=1,
        name="benchmark",
        kv_prefix="bench",
        features=tuple(_feature(name) for name in observing.names(world.params)),
        fusion=PayPlusAPhi(objective.phi),
        action=(ActionDimension("a", objective.baseline, (objective.low, objective.high), noise),),
        reward=objective.reward,
        algorithm=algorithm,
        policies=(schema.Policy("base", "baseline"), schema.Policy("learned", "learned")),
        buckets=Buckets("benchmark", (Bucket("all", "base", (0, 99)),)),
    )


def _feature(name: str) -> Dense:
    return Dense(name, f"page.{name}", zscore=None if name.startswith(_FLAGS) else ZScore(min_count=200))


class Page(NamedTuple):
    """One page of each feed, [n]."""

    state: Array  # [n, columns]
    next_state: Array
    action: Array  # [n, 1]
    reward: Array
    discount: Array
    by_baseline: Array


class Memory:
    """The last `capacity` transitions."""

    def __init__(self, capacity: int, columns: int) -> None:
        widths = Page((columns,), (columns,), (1,), (), (), ())
        self._kept = Page(*(np.zeros((capacity, *width), np.float32) for width in widths))
        self.capacity, self.added = capacity, 0

    def add(self, page: Page) -> None:
        at = (self.added + np.arange(len(page.reward))) % self.capacity
        for kept, new in zip(self._kept, page, strict=True):
            kept[at] = new
        self.added += len(page.reward)

    def sample(self, random: np.random.Generator, size: int) -> Page:
        at = random.integers(0, min(self.added, self.capacity), size)
        return Page(*(kept[at] for kept in self._kept))


class Lessons(Protocol):
    """What a learner is taught with, and when."""

    added: int

    def add(self, page: Page, seen: Seen) -> None: ...

    def teach(self, learner: Learner, inputs: Inputs, active: bool, updates: int) -> int:
        """What is due. Returns the number of updates in all; there were `updates` before."""


class ReplayLessons:
    """A part of an update for each transition, on transitions of any age."""

    def __init__(self, algorithm: schema.Replaying, columns: int) -> None:
        self._algorithm, self._memory = algorithm, Memory(algorithm.replay, columns)
        self._random = np.random.default_rng([algorithm.seed, 2])
        self._owed, self._new = 0.0, 0

    @property
    def added(self) -> int:
        return self._memory.added

    def add(self, page: Page, seen: Seen) -> None:
        self._memory.add(page)
        self._new = len(page.reward)

    def teach(self, learner: Learner, inputs: Inputs, active: bool, updates: int) -> int:
        if self.added < self._algorithm.batch_size:
            return updates
        self._owed += self._new * self._algorithm.updates_per_transition
        due = int(self._owed)
        self._owed -= due
        for _ in range(due):
            page = self._memory.sample(self._random, self._algorithm.batch_size)
            of_seed = ({name: x[None] for name, x in inputs(state).items()} for state in (page.state, page.next_state))
            learner.step(Batch(*of_seed, *(x[None] for x in page[2:])), np.array([active]))
        return updates + due


class Feeds:
    """Environments side by side, and the noise of each session."""

    def __init__(self, world: World, config: FeatureConfig, seed: int) -> None:
        self._envs = [FeedEnv(world) for _ in range(_FEEDS)]
        self._random = np.random.default_rng([seed, 1])
        seeds = self._random.integers(2**31, size=_FEEDS)
        self.state = np.stack([env.reset(seed=int(s))[0] for env, s in zip(self._envs, seeds, strict=True)])
        self._noise = np.zeros(_FEEDS)
        self._visit, self._index = np.arange(_FEEDS), np.zeros(_FEEDS, int)
        dimension = config.action[0]
        (self._low, self._high), self._baseline = dimension.range, dimension.baseline
        self._theta, self._sigma = dimension.noise.theta, _sigma(dimension)
        self.control = np.arange(_FEEDS) % _CONTROL == 0

    def page(self, mean: Array) -> Page:
        """Every feed turns a page, around the given mean actions; sessions that end are followed by new ones."""
        return self.logged_page(mean)[0]

    def logged_page(self, mean: Array) -> tuple[Page, Seen]:
        """The same, with all that an agent would log of it."""
        fresh = self._random.standard_normal(_FEEDS)
        carried = (1 - self._theta) * self._noise
        self._noise = carried + self._sigma * fresh
        raw = mean + self._noise
        action = np.where(self.control, self._baseline, np.clip(raw, self._low, self._high))
        before, after = self.state, [env.step(np.array([a])) for env, a in zip(self._envs, action, strict=True)]
        reached = np.stack([obs for obs, *_ in after])
        left = np.array([terminated for _, _, terminated, _, _ in after])
        cut = np.array([truncated for _, _, _, truncated, _ in after])
        self.state = reached.copy()
        visit, index = self._visit.copy(), self._index.copy()
        self._index += 1
        for i in np.flatnonzero(left | cut):
            self.state[i], _ = self._envs[i].reset()
            self._noise[i], self._index[i], self._visit[i] = 0.0, 0, self._visit.max() + 1
        reward, discount = np.array([r for _, r, *_ in after]), np.where(left, 0.0, 1.0)
        density = np.array([log_density(float(x), 0.0, 1.0) for x in fresh]) - np.log(self._sigma)
        sigma = np.full(_FEEDS, self._sigma)
        seen = Seen(before, reached, raw, mean, carried, sigma, density, reward, discount, visit, index, self.control)
        return Page(before, reached, action[:, None], reward, discount, self.control), seen


class Apprenticeship:
    """A learner, its feeds and what it remembers."""

    def __init__(self, world: World, config: FeatureConfig) -> None:
        self._world, self._algorithm = world, config.algorithm
        self.learner = learner_of(config)
        self._encoder, self._statistics = Encoder(config), Statistics(config)
        self._snapshot = Snapshot.initial(config)
        self._feeds = Feeds(world, config, config.algorithm.seed)
        self._lessons = _lessons(config.algorithm, len(observing.names(world.params)))
        self.updates, self._explored = 0, 0

    @property
    def transitions(self) -> int:
        return self._lessons.added

    def learn(self, transitions: int) -> None:
        """Go on until there were so many transitions in all, those of the baseline included."""
        while self.transitions < transitions:
            page, seen = self._feeds.logged_page(self._actions(self._feeds.state))
            self._lessons.add(page, seen)
            self._statistics.update(self._rows(page.state))
            self._snapshot = self._statistics.freeze()
            self._explored += int(np.sum(~self._feeds.control))
            active = self._explored >= self._algorithm.actor_after
            self.updates = self._lessons.teach(self.learner, self._inputs, active, self.updates)

    def policy(self) -> Policy:
        """What the learner would do now, without noise."""
        return lambda sessions: self._seen(sessions)

    def _seen(self, sessions: Sessions) -> Array:
        return self._actions(observing.vector(self._world.params, sessions))

    def _actions(self, state: Array) -> Array:
        return np.asarray(self.learner.evaluate(self._inputs(state)).action)[0, 0, :, 0].astype(np.float64)

    def _inputs(self, state: Array) -> dict[str, Array]:
        return self._encoder.finish(self._rows(state), self._snapshot)

    def _rows(self, state: Array) -> Array:
        """Observations are prepared features: all of them numbers, none transformed."""
        rows = np.zeros(len(state), self._encoder.prepared_dtype)
        rows["dense"] = state
        return rows


def _lessons(algorithm: schema.Algorithm, columns: int) -> Lessons:
    return RolloutLessons(algorithm) if isinstance(algorithm, schema.OnPolicy) else ReplayLessons(algorithm, columns)


def _sigma(dimension: ActionDimension) -> float:
    noise, (low, high) = dimension.noise, dimension.range
    if noise.sigma is None:
        return default_sigma(dimension.baseline, low, high, noise.theta)
    return noise.sigma * (high - low) / 2
