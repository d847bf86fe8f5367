"""DDPG of TF-Agents: its agent over its replay for graphs, many updates in one compiled loop as its `Learner` does it.

TF-Agents wants Keras 2, which for today's TensorFlow is the package tf-keras.
"""

from __future__ import annotations

import os

from answering import GAMMA, HIDDEN, LEARNING_RATE, OBSERVATION, REPLAY, TAU, Learner, Task, answer

_FEEDS = 500  # that fill the replay side by side


def make(task: Task) -> tuple[Learner, str]:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import numpy as np
    import tensorflow as tf
    import tf_agents
    from tf_agents.agents.ddpg.actor_network import ActorNetwork
    from tf_agents.agents.ddpg.critic_network import CriticNetwork
    from tf_agents.agents.ddpg.ddpg_agent import DdpgAgent
    from tf_agents.replay_buffers.tf_uniform_replay_buffer import TFUniformReplayBuffer
    from tf_agents.specs.tensor_spec import BoundedTensorSpec
    from tf_agents.trajectories.time_step import time_step_spec
    from tf_agents.trajectories.trajectory import Trajectory

    state, action = tf.TensorSpec([OBSERVATION], tf.float32), BoundedTensorSpec([1], tf.float32, 0.0, 2.0)
    agent = DdpgAgent(
        time_step_spec(state),
        action,
        ActorNetwork(state, action, fc_layer_params=HIDDEN),
        CriticNetwork((state, action), joint_fc_layer_params=HIDDEN),
        tf.compat.v1.train.AdamOptimizer(LEARNING_RATE),  # as in its examples; one fused kernel per weight
        tf.compat.v1.train.AdamOptimizer(LEARNING_RATE),
        target_update_tau=TAU,
        gamma=GAMMA,
    )
    agent.initialize()
    replay = TFUniformReplayBuffer(agent.collect_data_spec, _FEEDS, max_length=REPLAY // _FEEDS)
    rng = np.random.default_rng(0)
    for i in range(REPLAY // _FEEDS):
        inside = np.full(_FEEDS, 1, np.int32)
        columns = rng.normal(size=(_FEEDS, OBSERVATION)), rng.uniform(0, 2, (_FEEDS, 1)), rng.normal(size=_FEEDS)
        observed, acted, reward = (tf.constant(x, tf.float32) for x in columns)
        discount = tf.fill([_FEEDS], float(i % 5 != 4))
        replay.add_batch(Trajectory(inside, observed, acted, (), inside, reward, discount))

    @tf.function
    def learn(updates: tf.Tensor) -> None:
        for _ in tf.range(updates):
            experience, _ = replay.get_next(sample_batch_size=task.batch, num_steps=2)
            agent.train(experience)

    return lambda updates: learn(
        tf.constant(updates)
    ), f"tf-agents {tf_agents.__version__}, tensorflow {tf.__version__}"


if __name__ == "__main__":
    answer(make)
