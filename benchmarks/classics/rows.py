"""What is run: learners, their settings, and what others have published of theirs.

Settings are near to those of RL Baselines3 Zoo (hyperparams/*.yml): steps, batches, widths, rates, discount, how often
is learned and how is explored. What is not the same: CartPole is played by `a2c` and `ppo` as a number whose sign is
the action, for their policy is a Gaussian of fixed width; no gradient is clipped to a norm, no rate decays; Adam is
the optimiser of all; rewards of Pendulum are learned from at a tenth of their size.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.classics.tasks import CART_POLE, LEANING_POLE, PENDULUM, Task
from pipeline.config.schema import A2c, Algorithm, Ddpg, DoubleDqn, Dqn, DuelingDqn, Ppo


class Replaying(NamedTuple):
    """From a memory of all steps."""

    warm_up: int  # steps at random before anything is learned
    every: int  # steps, after which
    updates: int  # are done
    noise: float  # share of actions at random; or with `greedy_after` None sigma, in half ranges
    greedy_after: float | None = None  # share of the steps over which that share comes down from 1
    reward_scale: float = 1.0


class Rolling(NamedTuple):
    """From rollouts of several games."""

    games: int
    length: int
    sigma: float
    reward_scale: float = 1.0


class Published(NamedTuple):
    mean: float
    spread: float  # between the games of one run
    steps: int


class Row(NamedTuple):
    name: str
    task: Task
    algorithm: Algorithm
    way: Replaying | Rolling
    steps: int
    published: Published | None = None


# RL Baselines3 Zoo, benchmark.md at commit 0088472: one run each, deterministic policy, 150,000 steps of evaluation
SOURCE = "RL Baselines3 Zoo, benchmark.md (commit 0088472)"
_GRID = {"gamma": 0.99, "tower": (256,), "head": (256,), "batch_size": 64, "learning_rate": 2.3e-3, "loss": "huber"}
# There the target follows every 10 steps of the game, of which none lie between the 128 updates after each 256 steps
_DEEP = {**_GRID, "levels": 2, "target_period": 128, "actor_after": 0}
_GREEDY = Replaying(warm_up=1_000, every=256, updates=128, noise=0.04, greedy_after=0.16)
_CLIMB = {"gamma": 0.98, "tower": (256,), "head": (256,), "batch_size": 256, "learning_rate": 1e-3, "actor_after": 0}
_TEXTBOOK = {"critic": "plain", "towers": "separate", "target": "polyak", "target_tau": 0.005, "advantage": "network"}
_OURS = {"v_data": "all", "target": "polyak", "target_tau": 0.005, "advantage": "network"}
_SWING = Replaying(warm_up=1_000, every=200, updates=200, noise=0.1, reward_scale=0.1)  # an episode at a time
_ON_POLICY = {"tower": (64,), "head": (64,), "actor_after": 0}
_DQN, _PPO, _A2C = Published(500.0, 0.0, 50_000), Published(500.0, 0.0, 100_000), Published(500.0, 0.0, 500_000)
_DDPG = Published(-152.099, 94.282, 20_000)

ROWS = {
    row.name: row
    for row in (
        Row("dqn", CART_POLE, Dqn(**_DEEP), _GREEDY, 50_000, _DQN),
        Row("double_dqn", CART_POLE, DoubleDqn(**_DEEP), _GREEDY, 50_000, _DQN),
        Row("dueling_dqn", CART_POLE, DuelingDqn(**_DEEP), _GREEDY, 50_000, _DQN),
        Row(
            "ppo", LEANING_POLE,
            Ppo(0.98, learning_rate=1e-3, actor_learning_rate=1e-3, rollout=256, gae_lambda=0.8, epochs=20,
                minibatches=1, max_kl=0.1, **_ON_POLICY),
            Rolling(8, 32, 0.5), 100_000, _PPO,
        ),
        Row(
            "a2c", LEANING_POLE,
            A2c(0.99, learning_rate=1e-3, actor_learning_rate=1e-3, rollout=128, gae_lambda=0.95, **_ON_POLICY),
            Rolling(8, 16, 0.5), 500_000, _A2C,
        ),
        Row("ddpg, plain", PENDULUM, Ddpg(**_CLIMB, **_TEXTBOOK, actor_learning_rate=1e-3), _SWING, 20_000, _DDPG),
        Row("ddpg", PENDULUM, Ddpg(**_CLIMB, **_OURS, actor_learning_rate=1e-3), _SWING, 20_000, _DDPG),
    )
}  # fmt: skip
