"""Advantage actor-critic: one step along the policy's gradient for each rollout of its pages.

grad = min(1, rho) (A) grad log pi(raw | s), with A the generalised advantage of the rollout. Feeds log what versions a
few minutes old decided: rho, the ratio to the logged density, is what makes that honest (`policy_losses.py`).
Source: Mnih et al. 2016, algorithm S3, in its synchronous form.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.config.schema import FeatureConfig
from pipeline.learning.policy_gradient import OnPolicy
from pipeline.learning.policy_losses import Surrogate, truncated_gradient


class A2c(OnPolicy):
    def __init__(self, config: FeatureConfig, name: str = "a2c") -> None:
        super().__init__(config, name)

    def _surrogate(self, log_ratio: tf.Tensor, log_pi: tf.Tensor, advantage: tf.Tensor) -> Surrogate:
        return truncated_gradient(log_ratio, log_pi, advantage)
