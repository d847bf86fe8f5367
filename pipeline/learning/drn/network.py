"""The network of a feature config: tables and blocks of its features, then the two towers of DRN.

Items have tables and blocks of their own. Shapes: S seeds, B pages, N candidates.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import item_input, model_inputs, part_of
from pipeline.learning.drn.learner import Kind, Pages
from pipeline.learning.drn.towers import TwoTowers, Widths
from pipeline.learning.drn.weighted import Weighted
from pipeline.learning.networks import Columns, Draw, Inputs


class RankingNetwork(Weighted):
    """Q of candidates. A fresh one says 0 of everything, which leaves them in the order in which they came.

    Weights are `state_...`, `item_...`, `value_...` and `advantage_...`.
    """

    def __init__(self, config: FeatureConfig, draw: Draw) -> None:
        super().__init__(name="ranking")
        self._item_names = [i.name for i in model_inputs(part_of(config, "item"))]
        self.state = Columns(part_of(config, "state"), _prefixed(draw, "state"))
        self.item = Columns(part_of(config, "item"), _prefixed(draw, "item"))
        self.towers = TwoTowers(draw, Widths(self.state.columns, self.item.columns), config.algorithm.hidden)

    def __call__(self, user: Inputs, items: Inputs) -> tf.Tensor:
        """State inputs [S, B, ...] and item inputs [S, B, N, ...], by their names in the signature -> Q [S, B, N]."""
        rows = {name: items[item_input(name)] for name in self._item_names}
        lead = tf.shape(next(iter(rows.values())))[:3]
        flat = {name: _flattened(x) for name, x in rows.items()}
        columns = tf.reshape(self.item(flat), tf.concat([lead, [self.item.columns]], 0))
        return self.towers(self.state(user), columns)


def kind_of(config: FeatureConfig) -> Kind:
    return Kind(lambda draw: RankingNetwork(config, draw), lambda seeds: pages_spec(config, seeds))


def pages_spec(config: FeatureConfig, seeds: int) -> Pages:
    user, items = inputs_spec(config, [seeds, None])
    one, several = tf.TensorSpec([seeds, None]), tf.TensorSpec([seeds, None, None])
    exists = tf.TensorSpec([seeds, None, None], tf.bool)
    return Pages(user, items, exists, several, one, dict(user), dict(items), exists)


def inputs_spec(config: FeatureConfig, lead: list[int | None]) -> tuple[Inputs, Inputs]:
    """Of states [*lead, ...] and of items [*lead, N, ...]."""
    user = {i.name: tf.TensorSpec([*lead, *i.shape], i.dtype) for i in model_inputs(part_of(config, "state"))}
    of_items = model_inputs(part_of(config, "item"))
    return user, {item_input(i.name): tf.TensorSpec([*lead, None, *i.shape], i.dtype) for i in of_items}


def _flattened(x: tf.Tensor) -> tf.Tensor:
    """[S, B, N, ...] -> [S, B N, ...]: to a block every candidate is an example."""
    shape = tf.shape(x)
    return tf.reshape(x, tf.concat([[shape[0], shape[1] * shape[2]], shape[3:]], 0))


def _prefixed(draw: Draw, prefix: str) -> Draw:
    return lambda name, shape, bound: draw(f"{prefix}_{name}", shape, bound)
