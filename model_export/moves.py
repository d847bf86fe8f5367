"""How far features have moved between two snapshots, as what is served for the same values shows it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config.schema import Dense, Feature, ZScore
from pipeline.features.moments import Moments
from pipeline.features.quantiles import shift
from pipeline.features.snapshot import Snapshot


def moves(features: Iterable[Feature], before: Snapshot, now: Snapshot) -> dict[str, float]:
    """In standard deviations: of the mean, or with quantiles the shift of a normal feature that moves ranks as far.

    Without features whose statistics the encoder does not use yet: in one of the two they are served as 0.
    """
    found: dict[str, float | None] = {}
    for feature in features:
        if isinstance(feature, Dense) and feature.zscore is not None:
            found[feature.name] = _of_means(feature.zscore, before.moments[feature.name], now.moments[feature.name])
        elif isinstance(feature, Dense) and feature.quantile is not None:
            tables = before.quantiles[feature.name], now.quantiles[feature.name]
            found[feature.name] = shift(*tables) if all(map(len, tables)) else None
    return {name: move for name, move in found.items() if move is not None}


def _of_means(rule: ZScore, before: Moments, now: Moments) -> float | None:
    """A feature that was constant is measured by its new std: the first values to differ are no reason to refuse every
    version from then on."""
    if min(before.count, now.count) < rule.min_count:
        return None
    scale = before.std if before.std > rule.min_std else max(now.std, rule.min_std)
    return abs(now.mean - before.mean) / scale
