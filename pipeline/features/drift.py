"""How far features have moved from a reference: the population stability index, by feature. Pure.

PSI = sum over bins of (p - q) ln(p / q), p the shares of a window of rows, q those of the reference. Customary readings
(Siddiqi, Credit Risk Scorecards, 2006): below 0.1 nothing, above 0.25 another population. Bins are the tenths of the
reference, and one for missing values; ids fall into ten by their hash. Of two windows of n rows without any drift it is
about 2 (bins - 1) / n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from pipeline.config.schema import FeatureConfig, HashedId
from pipeline.features.inputs import HASHED_MISSING_ROW, MISSING_ROW
from pipeline.features.layout import Layout
from pipeline.features.snapshot import Snapshot

_TENTHS = np.arange(1, 10) / 10
_BY_HASH = tuple(i + 0.5 for i in range(9))
_NONE_SEEN = 0.5  # counted to each bin: an empty one is no proof that nothing can be in it


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one feature. Upper edges of all bins but the last; counts of them, and of missing values."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Column(NamedTuple):
    values: np.ndarray  # float64 [n]; NaN is missing
    edges: tuple[float, ...] | None  # None: tenths of the values


def columns(rows: np.ndarray, config: FeatureConfig) -> Iterator[tuple[str, Column]]:
    """Of prepared rows [n], a number per row and feature."""
    layout = Layout.of(config)
    for i, dense in enumerate(layout.dense):
        yield dense.name, Column(rows["dense"][:, i], None)
    for i, known in enumerate(layout.hashes):
        yield known.name, _hashed(rows["hashes"][:, i], 0)
    for i, bits in enumerate(layout.bits):
        yield bits.name, Column(np.bitwise_count(rows["bits"][:, i]).astype(np.float64), None)
    for i, fixed in enumerate(layout.rows):
        missing = HASHED_MISSING_ROW if isinstance(fixed, HashedId) else MISSING_ROW
        yield fixed.name, _hashed(rows["rows"][:, i], missing)
    for i, slot in enumerate(layout.sequences):
        yield slot.feature.name, Column(rows["lengths"][:, i].astype(np.float64), None)


def _hashed(ids: np.ndarray, missing: int) -> Column:
    return Column(np.where(ids == missing, np.nan, (ids % 10).astype(np.float64)), _BY_HASH)


def profile(column: Column) -> Profile:
    """With bins of its own."""
    edges = column.edges
    if edges is None:
        present = column.values[~np.isnan(column.values)]
        edges = tuple(np.unique(np.quantile(present, _TENTHS)).tolist()) if len(present) else ()
    return Profile(edges, _counts(column.values, edges))


def _counts(values: np.ndarray, edges: tuple[float, ...]) -> tuple[int, ...]:
    missing = np.isnan(values)
    bins = np.searchsorted(np.array(edges), values[~missing], side="left")  # a value on an edge is below it
    return (*np.bincount(bins, minlength=len(edges) + 1).tolist(), int(missing.sum()))


def psi(reference: Profile, values: np.ndarray) -> float:
    q, p = (_shares(counts) for counts in (reference.counts, _counts(values, reference.edges)))
    return float(np.sum((p - q) * np.log(p / q)))


def _shares(counts: tuple[int, ...]) -> np.ndarray:
    smoothed: np.ndarray = np.array(counts, np.float64) + _NONE_SEEN
    shares: np.ndarray = smoothed / smoothed.sum()
    return shares


def missing_share(column: Column) -> float:
    return float(np.isnan(column.values).mean())


def out_of_vocabulary(rows: np.ndarray, config: FeatureConfig, snapshot: Snapshot) -> Mapping[str, float]:
    """By id feature with a vocabulary that grows: the share of the ids that have no row of their own."""
    found = {}
    for i, feature in enumerate(Layout.of(config).hashes):
        ids = rows["hashes"][:, i]
        ids = ids[ids != 0]
        known = np.isin(ids, snapshot.vocabularies[feature.embedding])
        found[feature.name] = float(1 - known.mean()) if len(ids) else 0.0
    return found
