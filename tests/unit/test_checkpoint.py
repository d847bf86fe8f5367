"""Checkpoints: every variable comes back, and what is incomplete or damaged is never used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.checkpoint import Checkpoints, restore
from pipeline.learning.errors import CheckpointError
from pipeline.learning.optimiser import Adam


class Model(tf.Module):
    def __init__(self, fill: float, width: int = 2) -> None:
        super().__init__()
        self.parts = {"w": tf.Variable(tf.fill([width], fill))}
        self.adam = Adam([self.parts["w"]], learning_rate=fill)
        self.adam.apply([tf.fill([width], fill)])


def values(module: tf.Module) -> list[np.ndarray]:
    return [variable.numpy() for variable in module.variables]


def test_every_variable_and_slot_comes_back(tmp_path: Path) -> None:
    checkpoints, model, other = Checkpoints(tmp_path), Model(1.0), Model(5.0)
    assert len(model.variables) == 5
    checkpoints.write(1, model, b"state")
    loaded = Checkpoints(tmp_path).newest()
    restore(other, loaded)
    assert (loaded.number, loaded.state) == (1, b"state")
    for mine, theirs in zip(values(model), values(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_empty_directory_has_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new").newest() is None


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(1, 6):
        checkpoints.write(number, Model(1.0), str(number).encode())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000004", "000000000005"]
    assert checkpoints.newest().state == b"5"


def test_what_was_being_written_is_cleared_away(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write(1, Model(1.0), b"one")
    (tmp_path / ".tmp-000000000002").mkdir()
    (tmp_path / ".tmp-000000000002" / "trainer.msgpack").write_bytes(b"half")
    assert Checkpoints(tmp_path).newest().state == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["000000000001"]


@pytest.mark.parametrize("name", ["trainer.msgpack", "model.index", "model.data-00000-of-00001", "files.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_anywhere_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, Model(1.0), b"one")
    path = checkpoints.write(2, Model(2.0), b"two") / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest().state == b"one"
    assert "damaged-000000000002" in caplog.text
    assert (tmp_path / "damaged-000000000002").is_dir()
    checkpoints.write(2, Model(2.0), b"two again")
    assert checkpoints.newest().state == b"two again"


def test_nothing_undamaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.write(1, Model(1.0), b"one") / "model.index").unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        checkpoints.newest()


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, Model(1.0, width=2), b"")
    with pytest.raises(CheckpointError, match="expected the weights of this learner"):
        restore(Model(1.0, width=3), checkpoints.newest())


def test_a_module_with_more_variables_is_refused(tmp_path: Path) -> None:
    checkpoints, larger = Checkpoints(tmp_path), Model(1.0)
    checkpoints.write(1, Model(1.0), b"")
    larger.more = tf.Variable(1.0)
    with pytest.raises(CheckpointError, match="expected the weights of this learner"):
        restore(larger, checkpoints.newest())
