"""What is served of a policy: the network W and those tried beside it, all in one signature of one version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.drn.network import RankingNetwork, inputs_spec
from pipeline.learning.networks import drawing
from pipeline.ranking.perturbing import Weights

_SIGNATURE = "serving_default"


class ServedRankers(tf.Module):
    """Inputs of the signature, states [B, ...] and items [B, N, ...] -> q [B, N], and of so many explorers
    q_explorers [B, E, N]. What is said of padding is for the caller to leave out."""

    def __init__(self, config: FeatureConfig, explorers: int) -> None:
        super().__init__(name="rankers")
        self.explorers = explorers
        self.network = RankingNetwork(config, drawing(range(1 + explorers)))
        user, items = inputs_spec(config, [None])
        self._of_items = frozenset(items)
        specs = {name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in {**user, **items}.items()}
        self.serve = tf.function(self._serve, autograph=False).get_concrete_function(**specs)

    def hold(self, weights: Weights, explorers: Sequence[Weights]) -> None:
        """Places without an explorer hold the served weights, too."""
        for place in range(1 + self.explorers):
            held = explorers[place - 1] if 0 < place <= len(explorers) else weights
            self.network.assign(held, place)

    def save(self, folder: Path) -> None:
        tf.saved_model.save(self, str(folder), signatures={_SIGNATURE: self.serve})

    def q(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Of the served weights, [B, N]."""
        return np.asarray(self.serve(**{name: tf.constant(x) for name, x in inputs.items()})["q"])

    def _serve(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        stacked = {name: tf.repeat(x[None], 1 + self.explorers, axis=0) for name, x in inputs.items()}
        user = {name: x for name, x in stacked.items() if name not in self._of_items}
        items = {name: x for name, x in stacked.items() if name in self._of_items}
        q = self.network(user, items)  # [1 + E, B, N]
        return {"q": q[0], "q_explorers": tf.transpose(q[1:], [1, 0, 2])} if self.explorers else {"q": q[0]}
