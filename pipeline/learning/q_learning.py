"""Q-learning over a table of cells and a grid of actions, for all seeds and learned policies k at once.

Q_k(cell, a) goes the learning rate's share of the way to r + gamma d max Q_k(next cell, .) (Watkins & Dayan 1992). A
batch's pages are one such step each where they fall into entries of their own; what falls into the same entry moves it
once, to the mean of their targets. All Q_k learn from every page, from zeros: policies differ in what they are served
as only.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.actions import ActionSpace, Served
from pipeline.learning.cells import Cells
from pipeline.learning.greedy import GreedyHeads, best, evaluated, reported
from pipeline.learning.grid import ActionGrid
from pipeline.learning.learner import Batch, Evaluation, batch_spec, for_seeds, in_turn, inputs_spec
from pipeline.learning.networks import Draw, Inputs, drawing
from pipeline.learning.q_losses import q_learning


class Table(tf.Module):
    """Cells [S, B] -> Q_k of every atom [S, K, B, M]."""

    def __init__(self, draw: Draw, policies: int, rows: int, atoms: int) -> None:
        super().__init__(name="table")
        zeros = draw("table", (policies, rows, atoms), 0.0)
        self.values = tf.Variable(tf.abs(zeros), trainable=False, name="table")  # [S, K, C, M]

    def __call__(self, cells: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.values, cells, axis=2, batch_dims=1)

    def move(self, cells: tf.Tensor, atom: tf.Tensor, by: tf.Tensor) -> None:
        """Each entry by the mean of what its pages ask for. Cells and atom [S, B], by [S, K, B]."""
        seeds, policies, rows, atoms = self.values.shape
        seed = tf.broadcast_to(tf.range(seeds)[:, None], tf.shape(cells))
        entries = tf.cast(tf.stack([seed, cells, atom], axis=-1), tf.int64)  # [S, B, 3]
        entry = (entries[..., 0] * rows + entries[..., 1]) * atoms + entries[..., 2]
        found, place = tf.unique(tf.reshape(entry, [-1]))
        asked = tf.reshape(tf.transpose(by, [0, 2, 1]), [-1, policies])  # [S B, K]
        mean = tf.math.unsorted_segment_mean(asked, place, tf.size(found))  # [entries, K]
        self.values.scatter_nd_add(_of_policies(found, policies, rows, atoms), mean)


def _of_policies(entry: tf.Tensor, policies: int, rows: int, atoms: int) -> tf.Tensor:
    """Where an entry of (seed, cell, atom) lies for each policy: [E] -> [E, K, 4]."""
    seed, cell, atom = entry // (rows * atoms), entry // atoms % rows, entry % atoms
    policy = tf.range(policies, dtype=tf.int64)
    columns = tf.meshgrid(seed, policy, indexing="ij")
    spread = [tf.broadcast_to(x[:, None], tf.shape(columns[0])) for x in (cell, atom)]
    return tf.stack([*columns, *spread], axis=-1)


def table_actor(config: FeatureConfig, draw: Draw, policies: int) -> Served:
    """The table itself, and the way from a state to its row."""
    cells, grid = Cells(config), ActionGrid(config)
    table = Table(draw, policies, cells.rows, grid.size)
    return Served(ActionSpace(config), cells, GreedyHeads(grid, table, draw, policies))


class QLearning(tf.Module):
    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="q_learning")
        algorithm, policies = config.algorithm, len(config.learned_policies())
        self.gamma, self.learning_rate = algorithm.gamma, algorithm.learning_rate
        self._seeds = len(algorithm.all_seeds)
        self.actor = table_actor(config, drawing(algorithm.all_seeds), policies)
        self.space, self.cells, self.heads = self.actor.space, self.actor.tower, self.actor.heads
        signature = (batch_spec(config, self._seeds), tf.TensorSpec([policies], tf.bool))
        self.step = tf.function(self._step, input_signature=signature, autograph=False)
        self.steps = in_turn(self.step)
        self.evaluate = tf.function(self._evaluate, input_signature=(inputs_spec(config),), autograph=False)

    def _step(self, batch: Batch, active: tf.Tensor) -> dict[str, tf.Tensor]:
        cells = self.cells(batch.state)
        q_tm1, q_t = self.heads.q(cells), self.heads.q(self.cells(batch.next_state))
        atom = self.heads.grid.nearest(self.space.units(batch.action))
        fit = q_learning(q_tm1, atom, batch.reward, self.gamma * batch.discount, q_t, best(q_t))
        report = reported(fit, evaluated(self.heads, self.space, q_tm1))
        self.heads.q.move(cells, atom, self.learning_rate * fit.error)
        self.heads.open(active)
        return report._asdict()

    def _evaluate(self, inputs: Inputs) -> Evaluation:
        return evaluated(self.heads, self.space, self.heads.q(self.cells(for_seeds(inputs, self._seeds))))
