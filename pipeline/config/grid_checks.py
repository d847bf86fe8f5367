"""Rules about the learners that choose from a grid of actions."""

from __future__ import annotations

from itertools import pairwise

from pipeline.config.findings import Finding, Findings, all_read
from pipeline.config.grid import MOST_ATOMS, atoms, levels_of
from pipeline.config.problems import Unknown, suggestion
from pipeline.config.schema import (
    ActionDimension,
    Cell,
    DeepQ,
    Dense,
    Discretised,
    DoubleDqn,
    Feature,
    FeatureConfig,
    QLearning,
    Sequence,
)

MOST_ENTRIES = 2**25  # of a table, 128 MiB: every published model holds one


def grid(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, Discretised):
        return
    dimensions, levels = _grid(config, algorithm)
    if (count := atoms(dimensions, levels)) > MOST_ATOMS:
        each = " x ".join(str(len(levels_of(dimension, levels))) for dimension in dimensions)
        message = f"must leave at most {MOST_ATOMS} actions to choose from, got {each} = {count}; take fewer levels"
        yield Finding(("algorithm", "levels"), message)


def _grid(config: FeatureConfig, algorithm: Discretised) -> tuple[tuple[ActionDimension, ...], int]:
    dimensions = tuple(all_read(config.action))
    all_read([part for dimension in dimensions for part in (dimension.baseline, *dimension.range)])
    return dimensions, all_read([algorithm.levels])[0]


def target(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, DeepQ) or algorithm.target != "none":
        return
    if isinstance(algorithm, DoubleDqn):
        message = "none would make it dqn: double_dqn lets one network choose and another one value the choice"
        yield Finding(("algorithm", "target"), message)
    if algorithm.target_period is not None:
        yield Finding(("algorithm", "target_period"), "is for target: periodic")


def cells(config: FeatureConfig) -> Findings:
    if not isinstance(config.algorithm, QLearning):
        return
    features = {feature.name: feature for feature in all_read(config.features)}
    named: set[str] = set()
    for i, cell in enumerate(config.algorithm.cells):
        path = ("algorithm", "cells", i)
        if isinstance(cell, Unknown) or isinstance(cell.feature, Unknown):
            continue
        if cell.feature not in features:
            hint = suggestion(cell.feature, features)
            yield Finding((*path, "feature"), f'no feature "{cell.feature}"{hint}')
            continue
        if cell.feature in named:
            yield Finding((*path, "feature"), f'"{cell.feature}" is named twice')
        named.add(cell.feature)
        yield from (Finding((*path, *found.path), found.message) for found in _cell(cell, features[cell.feature]))


def _cell(cell: Cell, feature: Feature) -> Findings:
    if isinstance(feature, Sequence):
        yield Finding(("feature",), f'"{cell.feature}" is a sequence, which has no cells; take another feature')
    elif not isinstance(feature, Dense) and cell.cuts:
        yield Finding(("cuts",), f'are for dense features; every value of "{cell.feature}" is a cell of its own')
    elif isinstance(feature, Dense) and not cell.cuts:
        yield Finding(("cuts",), f'are needed for dense feature "{cell.feature}": where its normalised value is cut')
    elif any(not low < high for low, high in pairwise(all_read(cell.cuts))):
        yield Finding(("cuts",), f"must increase, got {list(cell.cuts)}")


def table(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, QLearning):
        return
    columns, (rows,) = atoms(*_grid(config, algorithm)), all_read([algorithm.rows])
    if columns <= MOST_ATOMS and rows * columns > MOST_ENTRIES:
        message = f"must leave a table of at most {MOST_ENTRIES} entries, got {rows} x {columns} actions"
        yield Finding(("algorithm", "rows"), message)


RULES = (grid, target, cells, table)
