"""The simulated feed as a Gymnasium environment: one step is one page, the action is the product's `a`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from pipeline.simulation import observing
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react
from pipeline.simulation.params import World
from pipeline.simulation.reactions import feedback, ids_of
from pipeline.transitions.rewards import page_reward

_BOUND = 4.0  # of an observation's column; see observing.vector


class FeedEnv(gymnasium.Env[Array, Array]):
    """Observation: float32 [columns] of `observing.names`. Reward: shaped, as the stream would count it.

    Terminated when the user leaves, truncated after `max_pages`. `reset(seed=...)` starts a new population; each
    later reset brings its next user. `info` names the page's clicks, orders, dwell and, for evaluation, the hidden
    intent.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, world: World | None = None, *, max_pages: int | None = None) -> None:
        self.world = world or World()
        self._max_pages = max_pages or self.world.params.max_pages
        objective = self.world.objective
        columns = len(observing.names(self.world.params))
        self.observation_space = spaces.Box(-_BOUND, _BOUND, (columns,), np.float32)
        self.action_space = spaces.Box(objective.low, objective.high, (1,), np.float32)
        self.population = 0  # the seed of its users' draws
        self._user = -1
        self._sessions: Sessions | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._user < 0:
            self.population, self._user = int(self.np_random.integers(2**63)), -1
        self._user += 1
        self._sessions = begin(self.world.params, self.population, np.array([self._user]), np.zeros(1, np.int64))
        return self._observation(), self._info()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self._sessions is not None, "reset the environment before the first step"
        world, sessions = self.world, self._sessions
        a = np.clip(np.asarray(action, np.float64).reshape(1), world.objective.low, world.objective.high)
        page = offer(world.params, sessions)
        reaction = react(world.params, sessions, page, arrange(world, page, a))
        events = feedback(world.params, ids_of(sessions), page, reaction)
        left = bool(reaction.left[0])
        reward = page_reward(world.objective.reward, events, left=left)
        self._sessions = advance(world.params, sessions, reaction)
        truncated = not left and int(self._sessions.page[0]) >= self._max_pages
        counts = {"clicks": int(reaction.clicks[0]), "orders": int(reaction.orders[0])}
        info = self._info() | counts | {"dwell_s": float(reaction.dwell_s[0])}
        return self._observation(), reward, left, truncated, info

    def _observation(self) -> Array:
        assert self._sessions is not None
        return np.asarray(observing.vector(self.world.params, self._sessions)[0])

    def _info(self) -> dict[str, Any]:
        assert self._sessions is not None
        return {"user": self._user, "buyer": bool(self._sessions.visitors.buyer[0])}
