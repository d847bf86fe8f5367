"""How far a policy gets from the baseline to the best policy known, on the yardstick's users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipeline.errors import PageturnError
from pipeline.simulation.outcomes import Estimate, ratio
from pipeline.simulation.params import VERSION, World
from pipeline.simulation.rollout import Policy, constant, play
from pipeline.simulation.yardstick import Budget, Yardstick

YARDSTICK = Path(__file__).with_name("yardstick.json")  # python -m pipeline.simulation.yardstick --json FILE
USERS = Budget().measured
# Student's t: 97.5 % quantiles for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class BenchmarkError(PageturnError):
    """The benchmark cannot be run as asked; says what was expected and what was found."""


def read_yardstick(path: Path, world: World) -> Yardstick:
    """The figures to compare with. BenchmarkError where they are of another world than this one."""
    try:
        yardstick = msgspec.json.decode(path.read_bytes(), type=Yardstick)
    except (OSError, msgspec.MsgspecError) as error:
        msg = f"{path}: expected figures of `python -m pipeline.simulation.yardstick --json`, found: {error}"
        raise BenchmarkError(msg) from error
    expected, found = (VERSION, world.sha256), (yardstick.version, yardstick.sha256)
    if expected != found:
        names = [f"v{version} {sha256[:12]}" for version, sha256 in (expected, found)]
        msg = f"{path}: expected figures of simulated feed {names[0]}, found those of {names[1]}: measure them anew"
        raise BenchmarkError(msg)
    return yardstick


class Judge:
    """Plays policies on the users on whom the yardstick was measured: the first so many of them, or all."""

    def __init__(self, world: World, yardstick: Yardstick, users: int = USERS) -> None:
        self.yardstick, self.users = yardstick, users
        self._world, self._seed = world, yardstick.seed + 2
        self._base = play(world, constant(world.objective.baseline), self._seed, np.arange(users)).discounted

    def ratio(self, policy: Policy, users: int | None = None) -> Estimate:
        """Discounted reward per session over the baseline's, on the same users."""
        users = min(users or self.users, self.users)
        played = play(self._world, policy, self._seed, np.arange(users))
        return ratio(played.discounted, self._base[:users])

    def share(self, policy: Policy, users: int | None = None) -> float:
        return share_of_gap(self.ratio(policy, users).mean, self.yardstick)


def share_of_gap(found: float, yardstick: Yardstick) -> float:
    """0 for the baseline's ratio, 1 for that of the best policy known."""
    return (found - 1.0) / (yardstick.row("best").discounted_ratio.mean - 1.0)


def countable(seeds: int) -> int:
    """As many seeds as there are quantiles for."""
    if not 1 <= seeds <= len(_T) + 1:
        msg = f"seeds: expected 1 to {len(_T) + 1}, found {seeds}"
        raise BenchmarkError(msg)
    return seeds


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % interval by Student's t; an infinite one for a single seed."""
    n = countable(len(values))
    mean = float(np.mean(values))
    half = _T[n - 2] * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, mean - half, mean + half)
