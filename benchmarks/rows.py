"""The rows of the learning benchmark: which learner, with which settings."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from pipeline.config import schema
from pipeline.config.schema import Algorithm, Cell, OrnsteinUhlenbeck
from pipeline.simulation.params import Objective

GAMMA = Objective().gamma


Settings = Mapping[str, float | int | str | tuple[int, ...]]


class Outsider(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="outsider"):
    """Somebody else's learner, with its own names for its settings."""

    package: str  # a module of benchmarks.peers
    settings: Settings


class Row(Struct, frozen=True):
    name: str
    learner: Algorithm | Outsider
    noise: OrnsteinUhlenbeck
    penalties: bool = True  # in the reward that is learned from; it is judged with them in any case


NOISE = OrnsteinUhlenbeck(theta=1.0, sigma=0.6)
# As many updates, of as many pages each, for all that learn from a replay.
REPLAYING = {"batch_size": 1_024, "replay": 1_000_000, "updates_per_transition": 0.015, "actor_after": 3_000}
NETWORKS = {"tower": (64, 32), "head": (32,), "learning_rate": 3e-4}
ON_POLICY = {"tower": (64, 32), "head": (32,), "learning_rate": 1e-3, "actor_after": 3_000}
CELLS = (
    Cell("page_index", (-0.5, 0.5)),
    Cell("clicks", (0.0,)),
    Cell("idle_pages", (-0.5, 0.5)),
    Cell("shown_lean", (-0.5, 0.5)),
)
# V, which sees the baseline's pages only, would bend the tower towards the luck on those few.
DDPG = schema.Ddpg(gamma=GAMMA, actor_learning_rate=3e-3, tower_trained_by=("advantage",), **REPLAYING, **NETWORKS)
# TD3 as shipped (step sizes, target noise, delayed actor, tau) with our batches and exploration, and twice our updates
TD3: Settings = {
    "learning_rate": 1e-3,
    "batch_size": 1_024,
    "updates_per_transition": 0.03,
    "replay": 1_000_000,
    "learning_starts": 3_000,
    "noise": 0.6,  # of half a range
    "layers": (64, 64),
}
# A tree of 16 actions, smoothed over a tenth of the range on either side
CATS: Settings = {"actions": 16, "bandwidth": 0.2, "epsilon": 0.2, "learning_rate": 0.1}
TEXTBOOK: dict[str, object] = {"critic": "plain", "target": "polyak", "towers": "separate"}

IMPROVED, PLAIN = "ddpg", "ddpg, plain"


def _ddpg(name: str, **changes: object) -> Row:
    return Row(name, structs.replace(DDPG, **changes), NOISE)


LEARNERS = (
    _ddpg(IMPROVED),
    _ddpg(PLAIN, **TEXTBOOK),
    Row("ppo", schema.Ppo(gamma=GAMMA, rollout=1024, epochs=6, actor_learning_rate=1e-3, **ON_POLICY), NOISE),
    Row("a2c", schema.A2c(gamma=GAMMA, rollout=128, actor_learning_rate=3e-3, **ON_POLICY), NOISE),
    Row("dqn", schema.Dqn(gamma=GAMMA, **REPLAYING, **NETWORKS), NOISE),
    Row("double_dqn", schema.DoubleDqn(gamma=GAMMA, **REPLAYING, **NETWORKS), NOISE),
    Row("dueling_dqn", schema.DuelingDqn(gamma=GAMMA, **REPLAYING, **NETWORKS), NOISE),
)
OUTSIDERS = (
    Row("Stable-Baselines3 TD3", Outsider("td3", TD3), NOISE),
    Row("Vowpal Wabbit CATS", Outsider("cats", CATS), NOISE),
)
SWITCHES = (
    _ddpg("v_data: all", v_data="all"),
    _ddpg("towers: separate", towers="separate"),
    _ddpg("critic: plain", critic="plain"),
    _ddpg("target: polyak", target="polyak"),
    _ddpg("advantage: network", advantage="network"),
    _ddpg("tower by V and A", tower_trained_by=("value", "advantage")),
    _ddpg("saturation: penalty", saturation="penalty"),
    Row("penalties off", DDPG, NOISE, penalties=False),
)
# not in the table by default: they are slower, or further from what the system is about
OTHERS = (
    Row("a3c", schema.A3c(gamma=GAMMA, rollout=32, workers=4, actor_learning_rate=1e-3, **ON_POLICY), NOISE),
    Row("q_learning", schema.QLearning(gamma=GAMMA, cells=CELLS, **(REPLAYING | {"learning_rate": 0.02})), NOISE),
)
ROWS = {row.name: row for row in (*LEARNERS, *OUTSIDERS, *SWITCHES, *OTHERS)}
