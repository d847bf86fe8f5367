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
# V, which sees the baseline's pages only, would bend the tower towards the luck on those few, and A would have to
# follow it: the tower is A's, and V goes slowly. It is the prior that keeps the policy from following luck, more than
# `actor_after`.
DDPG = schema.Ddpg(
    gamma=GAMMA,
    actor="argmax",
    prior_cost=0.1,
    prior_transitions=5_000,
    target="polyak",
    target_tau=0.01,
    weight_decay=1e-4,
    value_learning_rate=1e-4,
    tower_trained_by=("advantage",),
    **(REPLAYING | {"actor_after": 500}),
    **NETWORKS,
)
# A network that climbs A, which has to wait until A is worth it
CLIMBING: dict[str, object] = {
    "actor": "ascent",
    "actor_learning_rate": 3e-3,
    "actor_after": 3_000,
    "prior_cost": None,
    "prior_transitions": None,
}
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
TEXTBOOK: dict[str, object] = {
    **CLIMBING,
    "critic": "plain",
    "target_tau": 0.005,
    "towers": "separate",
    "weight_decay": 0.0,
    "value_learning_rate": None,
}

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
    _ddpg("actor: ascent", **CLIMBING),
    _ddpg("no prior", prior_cost=None, prior_transitions=None, actor_after=3_000),
    _ddpg("target: none", target="none", target_tau=None),
    _ddpg("no weight decay", weight_decay=0.0),
    _ddpg("critic: plain", critic="plain", value_learning_rate=None),
    _ddpg("V at A's pace", value_learning_rate=None),
    _ddpg("tower by V and A", tower_trained_by=("value", "advantage")),
    _ddpg("v_data: all", v_data="all"),
    Row("penalties off", DDPG, NOISE, penalties=False),
    # what needs an actor that climbs: to be compared with `actor: ascent`
    _ddpg("towers: separate", **CLIMBING, towers="separate"),
    _ddpg("advantage: network", **CLIMBING, advantage="network"),
    _ddpg("saturation: penalty", **CLIMBING, saturation="penalty"),
)
# not in the table by default: they are slower, or further from what the system is about
OTHERS = (
    Row("a3c", schema.A3c(gamma=GAMMA, rollout=32, workers=4, actor_learning_rate=1e-3, **ON_POLICY), NOISE),
    Row("q_learning", schema.QLearning(gamma=GAMMA, cells=CELLS, **(REPLAYING | {"learning_rate": 0.02})), NOISE),
)
ROWS = {row.name: row for row in (*LEARNERS, *OUTSIDERS, *SWITCHES, *OTHERS)}
