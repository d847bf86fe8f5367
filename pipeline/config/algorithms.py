"""How a learner learns: one value per `algorithm.kind`. See `pipeline/learning/learners.py` for who they are."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from pipeline.config.values import Count, Fraction, Name, NonNegative, Positive, Value

Layers = tuple[Count, ...]  # their widths
Tower = Annotated[Layers, Meta(min_length=1)]


class _Algorithm(Value, frozen=True):
    """What all learners have. Those of networks also: one shared `tower` of the state, a `head` per policy, Adam."""

    gamma: Annotated[float, Meta(ge=0, lt=1)]
    learning_rate: Positive = 1e-3
    actor_after: Annotated[int, Meta(ge=0)] = 2_000  # transitions a policy explored, before its actor moves
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 1
    seeds: Annotated[int, Meta(ge=1, le=64)] = 1  # learners side by side: seed, seed + 1 and so on
    # share of the sessions that nothing is learned from, and the seeds are compared on; 0.1, of a single seed 0
    holdout: Annotated[float, Meta(ge=0, le=0.5)] | None = None

    @property
    def held_out(self) -> float:
        return self.holdout if self.holdout is not None else 0.1 if self.seeds > 1 else 0.0

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


# From a replay ---------------------------------------------------------------------------------------------------


class Replaying(_Algorithm, frozen=True):
    """Learns from transitions of any age, whoever decided them, drawn from the last `replay` of them."""

    batch_size: Count = 256
    replay: Count = 100_000  # transitions
    updates_per_transition: NonNegative = 0.25


class Ddpg(Replaying, frozen=True, tag_field="kind", tag="ddpg"):
    """Shared state tower, V, and per policy A and mu. Q = V + A; see `pipeline/learning/ddpg.py`."""

    tower: Tower = (128, 64)
    head: Layers = (32,)
    # A as a function of the action: a parabola (a dimension at a time, without cross terms), or any function
    advantage: Literal["quadratic", "network"] = "quadratic"
    weight_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share of the critic's kernels that an update takes
    tower_trained_by: tuple[Literal["value", "advantage"], ...] = ("value", "advantage")
    value_learning_rate: Positive | None = None  # of V; `learning_rate`
    # mu: a network that climbs A, or where A's parabola has its top
    actor: Literal["ascent", "argmax"] = "ascent"
    actor_learning_rate: Positive = 1e-4  # of a mu that climbs
    # With `argmax`: half a range away from the baseline is taken to cost so much reward, and that belief to be worth
    # so many transitions (5000); what A says counts for more the more there were
    prior_cost: Positive | None = None
    prior_transitions: Count | None = None
    # Switches: the first of each is this system's way, what follows is the textbook's
    critic: Literal["v_plus_a", "plain"] = "v_plus_a"  # plain: one Q(s, a) per policy, and no V
    v_data: Literal["baseline", "all"] = "baseline"  # whose pages V learns from
    towers: Literal["shared", "separate"] = "shared"  # by critic and actors
    saturation: Literal["invert", "penalty"] = "invert"  # what keeps mu inside its range
    penalty_weight: Positive | None = None  # of the squared excess, with `saturation: penalty`; 1
    target: Literal["none", "polyak", "periodic"] = "none"
    target_tau: Annotated[float, Meta(gt=0, le=1)] | None = None  # of the way per update, with polyak; 0.005
    target_period: Count | None = None  # updates between copies, with periodic; 500


class Discretised(Replaying, frozen=True):
    """Chooses from a grid of actions, see `pipeline/learning/grid.py`; the agent explores around what it chose."""

    levels: Annotated[int, Meta(ge=2, le=512)] = 11  # of each action dimension, beside the baseline


class DeepQ(Discretised, frozen=True):
    """Q of the grid by a network; see `pipeline/learning/dqn.py`."""

    tower: Tower = (128, 64)
    head: Layers = (32,)
    loss: Literal["squared", "huber"] = "squared"
    target: Literal["periodic", "none"] = "periodic"
    target_period: Count | None = None  # updates between copies, with periodic; 200


class Dqn(DeepQ, frozen=True, tag_field="kind", tag="dqn"):
    """The target network chooses the next action and values it."""


class DoubleDqn(DeepQ, frozen=True, tag_field="kind", tag="double_dqn"):
    """The online network chooses the next action, the target network values it."""


class DuelingDqn(DeepQ, frozen=True, tag_field="kind", tag="dueling_dqn"):
    """Double DQN whose Q is V + A less the mean of A."""


class Cell(Value, frozen=True):
    """A feature whose values tell cells apart: every one, or for a dense feature the intervals between `cuts`."""

    feature: Name
    cuts: tuple[float, ...] = ()  # of the normalised value; a value on a cut is below it


class QLearning(Discretised, frozen=True, kw_only=True, tag_field="kind", tag="q_learning"):
    """Q of the grid by a table with a row per cell of the state; see `pipeline/learning/q_learning.py`."""

    cells: Annotated[tuple[Cell, ...], Meta(min_length=1)]
    rows: Count = 65_536  # as many cells have rows of their own; where there are more, some share a row
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.1  # how far Q goes towards its target


# On policy -------------------------------------------------------------------------------------------------------


class OnPolicy(_Algorithm, frozen=True):
    """Learns from a policy's pages while they are new, once: `rollout` of them at a time.

    The policy is the agent's: a Gaussian around mu whose spread is configured with the action, not learned.
    """

    tower: Tower = (128, 64)
    head: Layers = (32,)
    rollout: Count = 512  # pages of a policy
    gae_lambda: Fraction = 0.95
    actor_learning_rate: Positive = 3e-4
    tower_trained_by: tuple[Literal["value", "actor"], ...] = ("value", "actor")
    # in sigmas: pages decided with a mean further than this from what it would be now are left out
    max_lag: Positive = 1.0


class A2c(OnPolicy, frozen=True, tag_field="kind", tag="a2c"):
    """One step of the policy's gradient per rollout; see `pipeline/learning/a2c.py`."""

    rollout: Count = 128


class A3c(OnPolicy, frozen=True, tag_field="kind", tag="a3c"):
    """A2C by workers with a part of the sessions and parameters of their own; see `pipeline/learning/a3c.py`."""

    rollout: Count = 32  # of a policy and a worker
    workers: Annotated[int, Meta(ge=1, le=64)] = 4


class Ppo(OnPolicy, frozen=True, tag_field="kind", tag="ppo"):
    """Several epochs over a rollout, with the ratio to the logged density clipped; see `pipeline/learning/ppo.py`."""

    rollout: Count = 2_048
    epochs: Count = 4
    minibatches: Count = 8  # of a rollout
    clip: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    max_kl: Positive = 0.03  # mean over a minibatch, of the policy from the one that was served: beyond it mu rests


# Of items -------------------------------------------------------------------------------------------------------


class Drn(Value, frozen=True, tag_field="kind", tag="drn"):
    """V of user and context, A of these and an item, Q = V + A ranks; see `pipeline/learning/drn` and `ranking`."""

    gamma: Annotated[float, Meta(ge=0, lt=1)] = 0.4
    hidden: Tower = (64, 32)  # of either tower
    learning_rate: Positive = 1e-3
    target_period: Annotated[int, Meta(ge=0)] = 200  # updates between copies; 0: the network looks ahead with itself
    beta: NonNegative = 0.05  # of the user's activeness, in the reward of an item
    replay: Count = 20_000  # pages
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 1

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + 1)


Algorithm = Ddpg | Dqn | DoubleDqn | DuelingDqn | QLearning | A2c | A3c | Ppo | Drn
