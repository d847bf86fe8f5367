"""A learner's course: it learns from so many transitions, and is examined on the way, with its noise off.

The same for our learners and for others', which live in an environment without our frameworks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Struct, structs

from benchmarks.feeding import CONTROL, FEEDS, Scaling
from benchmarks.rows import Row
from benchmarks.shares import Judge, share_of_gap
from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.outcomes import Estimate
from pipeline.simulation.params import World
from pipeline.simulation.rollout import Policy

HARNESS = 1  # goes up when feeds, learners or examinations change what comes out, and rows have to be run anew
_EXAMINED_AT = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the transitions

Decide = Callable[[Array], Array]  # scaled observations [n, columns] -> actions [n]


class Plan(Struct, frozen=True):
    """What every learner is given, and what it is examined on."""

    transitions: int  # of each seed; where a learner makes use of the baseline's pages, these are among them
    users: int  # of the last examination
    curve_users: int  # of those on the way


class Pupil(NamedTuple):
    """A seed of a row."""

    row: Row
    seed: int
    plan: Plan
    world: str  # sha256

    @property
    def key(self) -> str:
        """Of all that its figures depend on: where a run has this key it need not be repeated."""
        settings = (*self, HARNESS, FEEDS, CONTROL, _EXAMINED_AT)
        return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:16]


class Point(Struct, frozen=True):
    transitions: int
    share: float  # on `curve_users`


class Run(Struct, frozen=True):
    row: str
    seed: int
    key: str
    made: str  # day
    transitions: int
    updates: int
    cpu_s: float  # of the process, for this seed: learning and examining
    discounted_ratio: Estimate  # to the baseline, on the same users
    share: float  # of the gap from the baseline to the best
    area: float  # mean share over the transitions: the area under the curve
    curve: tuple[Point, ...]


class School(Protocol):
    """Seeds that learn, each from feeds of its own."""

    @property
    def transitions(self) -> int:
        """Of each seed so far."""

    @property
    def updates(self) -> int: ...

    def learn(self, transitions: int) -> None:
        """Go on until there were so many transitions in all."""

    def decider(self, number: int) -> Decide:
        """What the seed of this number would do now, without noise."""


def attend(world: World, judge: Judge, school: School, pupils: Sequence[Pupil]) -> list[Run]:
    """All of them take the same course at once."""
    began, plan, scaling = time.process_time(), pupils[0].plan, Scaling.of(world)
    curves: list[list[Point]] = [[] for _ in pupils]
    for share in (0.0, *_EXAMINED_AT):
        school.learn(round(share * plan.transitions))
        for number, curve in enumerate(curves):
            policy = decided(world, scaling, school.decider(number))
            curve.append(Point(school.transitions, judge.share(policy, plan.curve_users)))
    found = [judge.ratio(decided(world, scaling, school.decider(number))) for number in range(len(pupils))]
    cpu_s = (time.process_time() - began) / len(pupils)
    return [
        Run(
            row=pupil.row.name,
            seed=pupil.seed,
            key=pupil.key,
            made=datetime.now(UTC).date().isoformat(),
            transitions=school.transitions,
            updates=school.updates,
            cpu_s=round(cpu_s, 1),
            discounted_ratio=ratio,
            share=share_of_gap(ratio.mean, judge.yardstick),
            area=area(curve),
            curve=tuple(curve),
        )
        for pupil, ratio, curve in zip(pupils, found, curves, strict=True)
    ]


def teaching(world: World, row: Row) -> World:
    """The world that a row learns in."""
    return world if row.penalties else structs.replace(world, objective=world.objective.without_penalties())


def decided(world: World, scaling: Scaling, decide: Decide) -> Policy:
    return lambda sessions: decide(scaling(observing.vector(world.params, sessions)))


def area(curve: Sequence[Point]) -> float:
    """Under the curve, over its transitions: by trapezia."""
    x, y = np.array([(point.transitions, point.share) for point in curve], np.float64).T
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
