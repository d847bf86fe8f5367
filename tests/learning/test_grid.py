"""The grid of actions: the baseline in it to the last bit, its order, and which atom an executed action is."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import schema
from pipeline.config.grid import atoms, levels_of
from pipeline.config.schema import ActionDimension
from pipeline.learning.actions import ActionSpace
from pipeline.learning.greedy import best
from pipeline.learning.grid import ActionGrid

ODD = (ActionDimension("a", 1.1, (0.3, 1.7)), ActionDimension("b", 0.1, (0.1, 0.9)))


def grid_of(make_config, action: tuple[ActionDimension, ...], levels: int) -> tuple[ActionGrid, ActionSpace]:
    config = make_config({"action": action}, kind=schema.Dqn, levels=levels)
    return ActionGrid(config), ActionSpace(config)


def test_levels_are_even_and_hold_the_baseline() -> None:
    assert levels_of(ActionDimension("a", 1.0, (0.0, 2.0)), 5) == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert levels_of(ActionDimension("a", 0.9, (0.0, 2.0)), 3) == (0.0, 0.9, 1.0, 2.0)
    assert 0.1 + (1.3 - 0.1) * 3 / 4 != 1.0
    assert levels_of(ActionDimension("a", 1.0, (0.1, 1.3)), 5)[3:] == (1.0, 1.3)
    assert atoms(ODD, 3) == 4 * 3


def test_the_nearest_to_the_baseline_come_first(make_config) -> None:
    grid, space = grid_of(make_config, (ActionDimension("a", 1.0, (0.0, 2.0)),), 5)
    np.testing.assert_allclose(space.action(grid.atoms)[:, 0], [1.0, 0.5, 1.5, 0.0, 2.0])
    grid, space = grid_of(make_config, ODD, 3)  # .3 1 1.1 1.7 in halves of .7, and .1 .5 .9 in halves of .4
    assert grid.size == 12
    np.testing.assert_allclose(
        space.action(grid.atoms)[:5], [[1.1, 0.1], [1.0, 0.1], [1.7, 0.1], [1.1, 0.5], [1.0, 0.5]], rtol=1e-6
    )
    np.testing.assert_array_equal(space.action(grid.atoms)[0], np.array([1.1, 0.1], "f4"))


def test_an_action_belongs_to_the_atom_that_is_nearest(make_config) -> None:
    grid, space = grid_of(make_config, ODD, 4)
    action = np.random.default_rng(0).uniform([0.3, 0.1], [1.7, 0.9], (3, 200, 2)).astype("f4")
    units = space.units(action)
    distance = np.linalg.norm(units[..., None, :] - grid.atoms, axis=-1)
    np.testing.assert_array_equal(grid.nearest(units), distance.argmin(axis=-1))
    np.testing.assert_array_equal(grid.nearest(grid.atoms), np.arange(grid.size))


@pytest.mark.parametrize(("action", "atom"), [(1.0, 0), (0.76, 0), (0.74, 1), (1.26, 2), (2.0, 4), (0.0, 3)])
def test_cells_end_half_way(make_config, action: float, atom: int) -> None:
    grid, space = grid_of(make_config, (ActionDimension("a", 1.0, (0.0, 2.0)),), 5)
    assert int(grid.nearest(space.units(tf.constant([action])))) == atom


def test_of_atoms_that_are_worth_the_same_the_first_is_taken() -> None:
    """In lengths that a vectorised search goes through in blocks, too."""
    np.testing.assert_array_equal(best(tf.constant([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-1.0, -3.0, 0.0]])), [1, 0, 2])
    q = np.zeros((1, 100), "f4")
    q[0, [37, 38, 64, 99]] = 1.0
    assert int(best(tf.constant(q))[0]) == 37
