"""Our learners at school: seeds side by side, each with feeds and a memory of its own."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from msgspec import structs

from benchmarks.courses import Decide, School
from benchmarks.feeding import Feeds, Page, feed_config
from benchmarks.rollouts import RolloutLessons
from pipeline.config import schema
from pipeline.config.schema import FeatureConfig, OrnsteinUhlenbeck
from pipeline.features.inputs import DENSE
from pipeline.learning.actions import Served
from pipeline.learning.learner import Batch
from pipeline.learning.learners import actor_of, learner_of
from pipeline.simulation import observing
from pipeline.simulation.params import World

_UPDATES_AT_ONCE = 8  # whose pages are drawn together


def school_of(world: World, algorithm: schema.Algorithm, noise: OrnsteinUhlenbeck) -> School:
    if isinstance(algorithm, schema.OnPolicy):
        return Apart([RolloutSchool(world, feed_config(world, of_seed, noise)) for of_seed in _apart(algorithm)])
    return ReplaySchool(world, feed_config(world, algorithm, noise))


def _apart(algorithm: schema.Algorithm) -> list[schema.Algorithm]:
    return [structs.replace(algorithm, seed=seed, seeds=1) for seed in algorithm.all_seeds]


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


class ReplaySchool:
    """All seeds in one step: a part of an update for each transition, on transitions of any age."""

    def __init__(self, world: World, config: FeatureConfig) -> None:
        algorithm = self._algorithm = config.algorithm
        self.learner, columns = learner_of(config), len(observing.names(world.params))
        self._act = acting(self.learner.actor, columns)
        self._shown = Shown(config, columns)
        self._feeds = [Feeds(world, config, seed) for seed in algorithm.all_seeds]
        self._memories = [Memory(algorithm.replay, columns) for _ in self._feeds]
        self._randoms = [np.random.default_rng([seed, 2]) for seed in algorithm.all_seeds]
        self.updates, self._owed, self._explored = 0, 0.0, 0

    @property
    def transitions(self) -> int:
        return self._memories[0].added

    def learn(self, transitions: int) -> None:
        while self.transitions < transitions:
            added = self._turn_pages()
            if self.transitions >= self._algorithm.batch_size:
                self._owed += added * self._algorithm.updates_per_transition
                due = int(self._owed)
                self._owed -= due
                self._update(due)

    def decider(self, number: int) -> Decide:
        return self._shown.of(self.learner.actor, number)

    def _turn_pages(self) -> int:
        means = self._act(np.stack([feeds.state for feeds in self._feeds])).numpy().astype(np.float64)
        for feeds, memory, mean in zip(self._feeds, self._memories, means, strict=True):
            page = feeds.page(mean)
            memory.add(page)
        self._explored += int(np.sum(~page.by_baseline))
        return len(page.reward)

    def _update(self, due: int) -> None:
        active = np.array([self._explored >= self._algorithm.actor_after])
        for start in range(0, due, _UPDATES_AT_ONCE):
            for batch in self._batches(min(_UPDATES_AT_ONCE, due - start)):
                self.learner.step(batch, active)
        self.updates += due

    def _batches(self, count: int) -> list[Batch]:
        size = self._algorithm.batch_size
        drawn = [m.sample(random, count * size) for m, random in zip(self._memories, self._randoms, strict=True)]
        columns = [np.stack(column) for column in zip(*drawn, strict=True)]
        lots = ([column[:, i * size : (i + 1) * size] for column in columns] for i in range(count))
        return [Batch({DENSE: state}, {DENSE: reached}, *rest) for state, reached, *rest in lots]


class RolloutSchool:
    """One seed, taught with each page once, when there is a rollout of its policy."""

    def __init__(self, world: World, config: FeatureConfig) -> None:
        self._algorithm = config.algorithm
        self.learner, self._lessons = learner_of(config), RolloutLessons(config.algorithm)
        self._shown = Shown(config, len(observing.names(world.params)))
        self._feeds = Feeds(world, config, config.algorithm.seed)
        self.updates, self._explored = 0, 0

    @property
    def transitions(self) -> int:
        return self._lessons.added

    def learn(self, transitions: int) -> None:
        while self.transitions < transitions:
            seen = self._feeds.logged_page(self.decider(0)(self._feeds.state))[1]
            self._lessons.add(seen)
            self._explored += int(np.sum(~seen.control))
            active = self._explored >= self._algorithm.actor_after
            self.updates = self._lessons.teach(self.learner, active, self.updates)

    def decider(self, number: int) -> Decide:
        return self._shown.of(self.learner.actor, number)


class Apart:
    """Schools of one seed each, one after another."""

    def __init__(self, schools: list[RolloutSchool]) -> None:
        self._schools = schools

    @property
    def transitions(self) -> int:
        return self._schools[0].transitions

    @property
    def updates(self) -> int:
        return self._schools[0].updates

    def learn(self, transitions: int) -> None:
        for school in self._schools:
            school.learn(transitions)

    def decider(self, number: int) -> Decide:
        return self._schools[number].decider(0)


class Shown:
    """One seed of a learner's, as it would be served."""

    def __init__(self, config: FeatureConfig, columns: int) -> None:
        self._actor = actor_of(config, [config.algorithm.seed], 1)
        self._act = acting(self._actor, columns)

    def of(self, actor: Served, seed: int) -> Decide:
        """Until it is asked for another one."""
        self._actor.copy_from(actor, seed, 0)
        return lambda states: self._act(states[None]).numpy()[0].astype(np.float64)


def acting(actor: Served, columns: int) -> tf.Function:
    """[S, n, columns] -> the only policy's actions [S, n]."""
    signature = (tf.TensorSpec([None, None, columns]),)
    return tf.function(lambda states: actor({DENSE: states})[:, 0, :, 0], input_signature=signature, autograph=False)
