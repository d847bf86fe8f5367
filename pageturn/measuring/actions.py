"""What the policies did over time: what they meant, and what was executed with the noise on top."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from pageturn.measuring.series import Bins
from pageturn.measuring.topics import Drawn
from pipeline.config.schema import ActionDimension, FeatureConfig

_TIMES, _VALUES = 60, 40


class Spread(Struct, frozen=True):
    """Shares of a time bin's pages by value [times][values], and their median; empty where there were no pages."""

    shares: tuple[tuple[float, ...], ...]
    median: tuple[float | None, ...]


class ActionOverTime(Struct, frozen=True):
    policy: str
    dimension: str
    baseline: float
    bins: Bins
    edges: tuple[float, ...]  # of the values, over the action's range
    executed: Spread
    mean: Spread  # of the policy without noise
    pages: int


def actions_over_time(config: FeatureConfig, drawn: Mapping[str, Drawn]) -> tuple[ActionOverTime, ...]:
    """Of every policy that has decided pages, per dimension of the action."""
    times = {policy: np.array(each.times_ms, np.int64) for policy, each in drawn.items() if each.times_ms}
    if not times:
        return ()
    everything = np.concatenate(list(times.values()))
    bins = Bins.over(int(everything.min()), int(everything.max()), _TIMES)
    return tuple(
        _over_time(policy, config.action[number], number, len(config.action), bins, when, drawn[policy])
        for policy, when in times.items()
        for number in range(len(config.action))
    )


def _over_time(
    policy: str, dimension: ActionDimension, number: int, dimensions: int, bins: Bins, when: np.ndarray, drawn: Drawn
) -> ActionOverTime:
    edges, where = np.linspace(*dimension.range, _VALUES + 1), bins.of(when)
    executed, means = (np.array(flat).reshape(-1, dimensions)[:, number] for flat in (drawn.executed, drawn.means))
    return ActionOverTime(
        policy=policy,
        dimension=dimension.name,
        baseline=dimension.baseline,
        bins=bins,
        edges=tuple(edges.tolist()),
        executed=_spread(where, executed, bins.count, edges),
        mean=_spread(where, means, bins.count, edges),
        pages=len(when),
    )


def _spread(where: np.ndarray, values: np.ndarray, count: int, edges: np.ndarray) -> Spread:
    parts = [values[where == index] for index in range(count)]
    return Spread(tuple(_shares(part, edges) for part in parts), tuple(_median(part) for part in parts))


def _shares(values: np.ndarray, edges: np.ndarray) -> tuple[float, ...]:
    if not len(values):
        return ()
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return tuple((counts / len(values)).tolist())


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
