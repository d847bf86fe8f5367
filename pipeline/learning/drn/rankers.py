"""What is served: the network W and its candidates W + dW, scored together.

They are a stack along the axis that a learner has its seeds on, so that one call ranks all candidates of a page with
all of them, and they cannot be of different versions.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pipeline.learning.drn.towers import TwoTowers, Widths
from pipeline.learning.networks import drawing
from pipeline.ranking.candidates import Candidate
from pipeline.ranking.perturbing import Noise, Weights, moved, noise


class Rankers(tf.Module):
    def __init__(self, widths: Widths, hidden: tuple[int, ...], candidates: int) -> None:
        super().__init__(name="rankers")
        self.networks = TwoTowers(drawing(range(1 + candidates)), widths, hidden)
        user, items = tf.TensorSpec([None, widths.user]), tf.TensorSpec([None, None, widths.item])
        self.scores = tf.function(self._scores, input_signature=(user, items), autograph=False)

    def serve(self, weights: Weights, candidates: Sequence[Candidate], rule: Noise) -> None:
        """W, and W + dW of every candidate for which there is room."""
        self.networks.assign(weights)
        for ranker, candidate in enumerate(candidates, start=1):
            self.networks.assign(moved(weights, noise(candidate, weights, rule)), ranker)

    def _scores(self, user: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """[B, U], [B, N, I] -> q [B, N] of W and q_candidates [B, C, N] of each W + dW.

        What is said of padding is for the caller to leave out.
        """
        rankers = self.networks.advantage.bias.shape[0]
        stacked = tf.repeat(user[None], rankers, axis=0), tf.repeat(items[None], rankers, axis=0)
        q = self.networks(*stacked)
        return {"q": q[0], "q_candidates": tf.transpose(q[1:], [1, 0, 2])}
