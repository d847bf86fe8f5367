"""The table: which cell a state is, what an update moves, and how far."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import schema
from pipeline.config.schema import Bits, Cell, Dense, DynamicVocabulary, GraphTable, HashedId, IdFeature
from pipeline.learning.cells import Cells
from pipeline.learning.q_learning import QLearning

FEATURES = {
    "features": (
        Dense("unused", "user.u"),
        Dense("x", "user.x"),
        IdFeature("city", "user.city", "cities"),
        HashedId("device", "context.device", buckets=5, dim=3),
        Bits("seen", "user.seen", width=2),
    ),
    "embeddings": {"cities": GraphTable(2, DynamicVocabulary(10))},
}
ALL_CELLS = (Cell("x", (-1.0, 0.5)), Cell("city"), Cell("device"), Cell("seen"))  # 3 x 10 x 6 x 4
NONE = np.array([False, False])


def states(x: list[float], city: int = 0, device: int = 0, seen: tuple[int, int] = (0, 0)) -> dict[str, np.ndarray]:
    """[S, B, ...] of one seed."""
    n = len(x)
    return {
        "dense": np.stack([np.full(n, 7.0), x], axis=1).astype("f4")[None],
        "city": np.full((1, n), city, "i4"),
        "device": np.full((1, n), device, "i4"),
        "seen": np.tile(np.array(seen, "f4"), (1, n, 1)),
    }


def every_state() -> dict[str, np.ndarray]:
    """One state of each of the 720 cells."""
    digits = np.array(list(np.ndindex(3, 10, 6, 2, 2)))
    parts = {"city": digits[:, 1], "device": digits[:, 2]}
    dense = np.stack([np.zeros(720), digits[:, 0] - 1.5], axis=1).astype("f4")  # -1.5, -0.5, 0.5
    dense[digits[:, 0] == 2, 1] = 0.6
    columns = {"dense": dense, "seen": digits[:, 3:].astype("f4"), **{k: v.astype("i4") for k, v in parts.items()}}
    return {name: x[None] for name, x in columns.items()}


def test_every_combination_has_a_row_of_its_own_where_there_is_room(make_config) -> None:
    cells = Cells(make_config(FEATURES, kind=schema.QLearning, cells=ALL_CELLS, rows=720))
    assert (cells.exact, cells.rows) == (True, 720)
    np.testing.assert_array_equal(cells(every_state()), [np.arange(720)])


def test_a_value_on_a_cut_is_below_it(make_config) -> None:
    cells = Cells(make_config(FEATURES, kind=schema.QLearning, cells=(Cell("x", (-1.0, 0.5)),)))
    assert cells.rows == 3
    np.testing.assert_array_equal(cells(states([-9.0, -1.0, -0.9, 0.5, 0.6, 9.0])), [[0, 0, 1, 1, 2, 2]])


def test_where_there_is_no_room_cells_share_rows_evenly(make_config) -> None:
    """Of 720 cells hashed into 719 rows 720 / e are alone, give or take 4 standard deviations of about 15."""
    cells = Cells(make_config(FEATURES, kind=schema.QLearning, cells=ALL_CELLS, rows=719))
    assert (cells.exact, cells.rows) == (False, 719)
    rows = np.asarray(cells(every_state()))[0]
    assert rows.min() >= 0
    assert rows.max() < 719
    alone = np.sum(np.bincount(rows, minlength=719) == 1)
    assert abs(alone - 720 / np.e) < 60


def test_long_histories_do_not_overflow(make_config) -> None:
    """2^64 combinations; the row still depends on every bit."""
    features = {"features": (Bits("seen", "user.seen", width=64),)}
    cells = Cells(make_config(features, kind=schema.QLearning, cells=(Cell("seen"),), rows=100_000))
    one_bit_each = np.concatenate([np.ones((1, 64)), 1 - np.eye(64)]).astype("f4")
    rows = np.asarray(cells({"seen": one_bit_each[None]}))[0]
    assert len(set(rows.tolist())) == 65
    assert (rows >= 0).all()


def learner_of_x(make_config, **algorithm) -> QLearning:
    """Two cells, x below and above 0; atoms 1, 0 and 2; a step of a quarter."""
    settings = {"cells": (Cell("x", (0.0,)),), "levels": 3, "learning_rate": 0.25, "gamma": 0.5, **algorithm}
    return QLearning(make_config(kind=schema.QLearning, **settings))


def test_an_update_moves_the_executed_entry_towards_its_target(make_config, make_batch) -> None:
    learner = learner_of_x(make_config)
    learner.heads.q.values.assign(np.broadcast_to(np.array([[1.0, 2, 3], [4, 5, 6]], "f4"), (1, 2, 2, 3)))
    batch = make_batch(
        3,
        state={"dense": np.array([[-1.0], [1.0], [1.0]], "f4")},
        next_state={"dense": np.array([[1.0], [1.0], [-1.0]], "f4")},
        action=np.array([[1.1], [0.2], [1.8]], "f4"),
        reward=np.array([1.0, 1.0, 0.0], "f4"),
        discount=np.array([1.0, 0.0, 1.0], "f4"),
    )
    losses = learner.step.python_function(batch, NONE)
    # 1 + .5 * 6 = 4 from 1; 1 from 5, the last page of a visit; .5 * 3 from 6
    expected = [[1 + 0.25 * 3, 2, 3], [4, 5 - 0.25 * 4, 6 - 0.25 * 4.5]]
    np.testing.assert_allclose(learner.heads.q.values[0], [expected, expected])
    np.testing.assert_allclose(losses["q_loss"], np.full((1, 2), (9 + 16 + 4.5**2) / 6))
    np.testing.assert_allclose(losses["q_abs"], np.full((1, 2), 4))


def test_pages_of_one_entry_move_it_once_to_the_mean_of_their_targets(make_config, make_batch) -> None:
    learner = learner_of_x(make_config, seeds=2)
    one = make_batch(
        4,
        state={"dense": np.array([[-1.0], [-1.0], [-1.0], [1.0]], "f4")},
        action=np.array([[1.1], [0.9], [1.0], [2.0]], "f4"),
        reward=np.array([1.0, 2.0, 6.0, 8.0], "f4"),
    )
    both = type(one)(*({k: np.repeat(v, 2, 0) for k, v in x.items()} if isinstance(x, dict) else np.repeat(x, 2, 0)
                       for x in one))  # fmt: skip
    both.reward[1] *= 10
    learner.step.python_function(both, NONE)
    expected = np.array([[0.75, 0, 0], [0, 0, 2.0]])
    np.testing.assert_allclose(learner.heads.q.values, np.stack([[expected] * 2, [10 * expected] * 2]))


@pytest.mark.parametrize("rows", [4, 720])
def test_a_fresh_table_is_the_baseline_to_the_last_bit(make_config, rows: int) -> None:
    learner = QLearning(make_config(FEATURES, kind=schema.QLearning, cells=ALL_CELLS, rows=rows))
    assert not np.signbit(learner.heads.q.values).any()
    learner.heads.open(np.array([True, True]))
    np.testing.assert_array_equal(learner.actor(every_state()), np.ones((1, 2, 720, 1), "f4"))
