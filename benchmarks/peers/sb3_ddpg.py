"""DDPG of Stable-Baselines3: its own `train`, which samples from its own replay."""

from __future__ import annotations

from answering import GAMMA, HIDDEN, LEARNING_RATE, OBSERVATION, REPLAY, TAU, Learner, Task, answer


def make(task: Task) -> tuple[Learner, str]:
    import gymnasium
    import numpy as np
    import stable_baselines3
    import torch
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(task.threads)

    class Env(gymnasium.Env):  # type: ignore[type-arg]
        """Only says what observations and actions are."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        action_space = gymnasium.spaces.Box(0.0, 2.0, (1,), np.float32)

    model = stable_baselines3.DDPG(
        "MlpPolicy", Env(), learning_rate=LEARNING_RATE, buffer_size=REPLAY, batch_size=task.batch, tau=TAU,
        gamma=GAMMA, policy_kwargs={"net_arch": list(HIDDEN)}, seed=0, device="cpu",
    )  # fmt: skip
    model.set_logger(configure(None, []))
    replay, rng = model.replay_buffer, np.random.default_rng(0)
    for i in range(REPLAY):
        state, following = rng.normal(size=(2, 1, OBSERVATION)).astype("f4")
        done = np.array([i % 5 == 4])
        replay.add(state, following, rng.uniform(-1, 1, (1, 1)), rng.normal(size=1), done, [{}])
    return lambda updates: model.train(updates, task.batch), (
        f"stable-baselines3 {stable_baselines3.__version__}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    answer(make)
