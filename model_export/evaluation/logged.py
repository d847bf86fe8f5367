"""Logged sessions as arrays, for off-policy evaluation: only those whose every page was drawn, and as the log says.

A session is all of its episodes: the noise goes on from page to page whatever ends between them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from model_export.evaluation.sequences import Array
from pipeline.config.schema import ActionDimension
from pipeline.exploration import log_density, log_density_clipped
from pipeline.records import Action, DecidedBy, Ending, Episode, Propensity, Step

Integers = NDArray[np.int64]

_ROUNDING = 1e-6  # of numbers that went through JSON
FALLBACK, NOT_DRAWN, ACTIONS = "fallback", "not_drawn", "actions"
DENSITY, NOISE, ORDER, HELD_BACK = "density", "noise", "order", "held_back"
UNFINISHED = "unfinished"


@dataclass(frozen=True, eq=False)
class Sessions:
    """Pages of whole sessions, one row each: n pages of S sessions, d action dimensions."""

    names: tuple[str, ...]  # of the sessions
    users: tuple[str, ...]
    starts: Integers  # [S + 1] where each session's rows begin; the last one: n
    gaps: Integers  # [n] draws of noise since the page before; of a first page since the start of the noise
    rewards: Array  # [n]
    raw: Array  # [n, d] before clipping, as are all that follow
    executed: Array
    means: Array
    sigmas: Array
    thetas: Array
    low: Array  # [d]
    high: Array

    @property
    def lengths(self) -> Integers:
        return np.diff(self.starts)

    @property
    def first(self) -> NDArray[np.bool_]:
        """[n] whether a page is its session's first."""
        found = np.zeros(len(self.rewards), np.bool_)
        found[self.starts[:-1]] = True
        return found

    @property
    def owner(self) -> Integers:
        """[n] the session of each page."""
        return np.repeat(np.arange(len(self.names)), self.lengths)

    @property
    def turn(self) -> Integers:
        """[n] how many pages of its session came before."""
        return np.arange(len(self.rewards)) - self.starts[self.owner]


class Gathered(NamedTuple):
    sessions: Sessions
    steps: tuple[Step, ...]  # of the rows: their states are what a target policy is asked for
    left_out: Mapping[str, int]  # sessions, by the first reason

    @property
    def fallback_share(self) -> float:
        """Of the sessions that were not held back on purpose. A large one: those left are not the traffic."""
        seen = len(self.sessions.names) + sum(n for reason, n in self.left_out.items() if reason != HELD_BACK)
        return self.left_out.get(FALLBACK, 0) / seen if seen else 0.0


@dataclass(frozen=True)
class Slices:
    """Sessions, or users, by hash. Seeds are chosen on some slices, policies judged on others that no seed saw."""

    salt: str
    count: int

    def of(self, unit: str) -> int:
        return xxhash.xxh3_64_intdigest("\x1f".join((self.salt, "slice", unit)).encode()) % self.count

    def among(self, chosen: Iterable[int]) -> Callable[[str], bool]:
        wanted = frozenset(chosen)
        return lambda unit: self.of(unit) in wanted


def gather(
    episodes: Iterable[Episode],
    dimensions: Sequence[ActionDimension],
    policy: str,
    usable: Callable[[str], bool] = lambda session: True,
) -> Gathered:
    """The sessions that `policy` decided throughout. `usable`, by session id, holds back what training had a say in.

    A session is left out as a whole where a page was a fallback's, was not drawn, or does not agree with itself: a
    ratio of the other pages would be of other sessions than those that were chosen. So is one that goes on behind its
    last episode: what it brought is not all that it will.
    """
    by_session: dict[str, list[Episode]] = {}
    for episode in episodes:
        if any(step.decision.policy == policy for step in episode.steps):
            by_session.setdefault(episode.session_id, []).append(episode)
    left_out: Counter[str] = Counter()
    kept: list[tuple[Episode, list[Step]]] = []
    for name, parts in sorted(by_session.items()):
        parts = sorted(parts, key=lambda part: part.steps[0].time_ms)
        steps = [step for part in parts for step in part.steps]
        reason: str | None = HELD_BACK
        if usable(name):
            reason = UNFINISHED if parts[-1].ending is Ending.TRUNCATED else trouble(steps, dimensions, policy)
        if reason is None:
            kept.append((parts[0], steps))
        else:
            left_out[reason] += 1
    return Gathered(_sessions(kept, dimensions), tuple(s for _, steps in kept for s in steps), dict(left_out))


def trouble(steps: Sequence[Step], dimensions: Sequence[ActionDimension], policy: str) -> str | None:
    """Why a session says nothing about a policy; None where it does."""
    if any(step.decision.decided_by is DecidedBy.FALLBACK for step in steps):
        return FALLBACK
    if any(step.decision.decided_by is not DecidedBy.POLICY or step.decision.policy != policy for step in steps):
        return NOT_DRAWN
    drawn = [_drawn(step, dimensions) for step in steps]
    if any(actions is None for actions in drawn):
        return ACTIONS
    if any(b.page_index <= a.page_index for a, b in pairwise(steps)):
        return ORDER  # an index that starts again repeats its draws
    rows = [actions for actions in drawn if actions is not None]
    if not all(_agrees(a, d) for actions in rows for a, d in zip(actions, dimensions, strict=True)):
        return DENSITY
    return None if _noise_goes_on(steps, rows) else NOISE


class _Drawn(NamedTuple):
    value: float
    how: Propensity


def _drawn(step: Step, dimensions: Sequence[ActionDimension]) -> list[_Drawn] | None:
    """In the order of the config; None where one is missing, or was not drawn."""
    actions: dict[str, Action] = {action.name: action for action in step.decision.actions}
    if actions.keys() != {d.name for d in dimensions}:
        return None
    ordered = [actions[d.name] for d in dimensions]
    drawn = [_Drawn(action.value, action.propensity) for action in ordered if action.propensity is not None]
    return drawn if len(drawn) == len(dimensions) else None


def _agrees(action: _Drawn, dimension: ActionDimension) -> bool:
    """The value is the clipped raw action, and the densities are those of the Gaussian that the log describes."""
    value, how = action
    low, high = dimension.range
    if not (how.sigma > 0 and 0 < how.theta <= 1 and math.isfinite(how.raw) and math.isfinite(how.mean)):
        return False
    expectation = how.mean + (1 - how.theta) * how.previous_noise
    expected = (
        min(max(how.raw, low), high),
        log_density(how.raw, expectation, how.sigma),
        log_density_clipped(value, expectation, how.sigma, low, high),
    )
    found = (value, how.log_density_raw, how.log_density_clipped)
    return all(math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING) for a, b in zip(expected, found, strict=True))


def _noise_goes_on(steps: Sequence[Step], rows: Sequence[Sequence[_Drawn]]) -> bool:
    """The previous noise of a page is what was drawn on the page before it, or nothing on a session's first."""
    for i, (step, row) in enumerate(zip(steps, rows, strict=True)):
        for k, action in enumerate(row):
            if i and step.page_index == steps[i - 1].page_index + 1:
                before = rows[i - 1][k].how
                expected = before.raw - before.mean
            elif step.page_index == 0:
                expected = 0.0
            else:  # pages between were not shown: nobody knows their draws
                continue
            if not math.isclose(action.how.previous_noise, expected, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
                return False
    return True


def _sessions(kept: Sequence[tuple[Episode, list[Step]]], dimensions: Sequence[ActionDimension]) -> Sessions:
    steps = [step for _, session in kept for step in session]
    drawn = [row for step in steps if (row := _drawn(step, dimensions)) is not None]

    def column(read: Callable[[_Drawn], float]) -> Array:
        return np.array([[read(a) for a in row] for row in drawn], np.float64).reshape(len(steps), len(dimensions))

    return Sessions(
        names=tuple(episode.session_id for episode, _ in kept),
        users=tuple(episode.user_id for episode, _ in kept),
        starts=np.cumsum([0, *(len(session) for _, session in kept)]),
        gaps=np.array([gap for _, session in kept for gap in _gaps(session)], np.int64),
        rewards=np.array([step.reward for step in steps], np.float64),
        raw=column(lambda a: a.how.raw),
        executed=column(lambda a: a.value),
        means=column(lambda a: a.how.mean),
        sigmas=column(lambda a: a.how.sigma),
        thetas=column(lambda a: a.how.theta),
        low=np.array([d.range[0] for d in dimensions], np.float64),
        high=np.array([d.range[1] for d in dimensions], np.float64),
    )


def _gaps(session: Sequence[Step]) -> list[int]:
    indices = [-1, *(step.page_index for step in session)]
    return [after - before for before, after in pairwise(indices)]
