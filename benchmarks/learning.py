"""How much of what can be earned on the simulated feed a learner learns to earn, over seeds.

    python -m benchmarks.learning [--kind ddpg] [--seeds 5] [--transitions N] [--json FILE]

Each seed is a learner that starts as the baseline and learns from feeds of its own (`FeedEnv`), a third of them
decided by the baseline. Then its noise is switched off and it meets the users on whom the yardstick was measured. A
share of 0 is the baseline, 1 the best policy known on what the agent sees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tensorflow as tf
from msgspec import Struct, structs

from benchmarks.feeding import Apprenticeship, feed_config
from benchmarks.shares import USERS, YARDSTICK, countable, discounted_ratio, over_seeds, read_yardstick, share_of_gap
from pipeline.config import schema
from pipeline.config.schema import Algorithm, Cell, OrnsteinUhlenbeck
from pipeline.errors import PageturnError
from pipeline.simulation.outcomes import Estimate
from pipeline.simulation.params import World
from pipeline.simulation.yardstick import Yardstick

NOISE = OrnsteinUhlenbeck(theta=1.0, sigma=0.6)
TRANSITIONS = 30_000


REPLAYING = {"batch_size": 512, "updates_per_transition": 0.25, "actor_after": 1_500}
NETWORKS = {"tower": (64, 32), "learning_rate": 1e-4}
ON_POLICY = {"tower": (64, 32), "learning_rate": 1e-3, "actor_after": 1_500}
CELLS = (
    Cell("page_index", (-0.5, 0.5)),
    Cell("clicks", (0.0,)),
    Cell("idle_pages", (-0.5, 0.5)),
    Cell("shown_lean", (-0.5, 0.5)),
)
SETTINGS: dict[str, tuple[type[Algorithm], dict[str, object]]] = {
    "ddpg": (schema.Ddpg, {**REPLAYING, **NETWORKS, "actor_learning_rate": 3e-4}),
    "dqn": (schema.Dqn, {**REPLAYING, **NETWORKS}),
    "double_dqn": (schema.DoubleDqn, {**REPLAYING, **NETWORKS}),
    "dueling_dqn": (schema.DuelingDqn, {**REPLAYING, **NETWORKS}),
    "q_learning": (schema.QLearning, {**REPLAYING, "learning_rate": 0.02, "cells": CELLS}),
    "a2c": (schema.A2c, {**ON_POLICY, "rollout": 128, "actor_learning_rate": 3e-3}),
    "a3c": (schema.A3c, {**ON_POLICY, "rollout": 32, "workers": 4, "actor_learning_rate": 1e-3}),
    "ppo": (schema.Ppo, {**ON_POLICY, "rollout": 1024, "epochs": 6, "actor_learning_rate": 1e-3}),
}


def algorithm(world: World, kind: str = "ddpg") -> Algorithm:
    learner, settings = SETTINGS[kind]
    return learner(gamma=world.objective.gamma, **settings)


class Seed(Struct, frozen=True):
    seed: int
    transitions: int
    updates: int
    discounted_ratio: Estimate  # to the baseline, on the same users
    share: float  # of the gap from the baseline to the best


class Result(Struct, frozen=True):
    simulator_version: int
    simulator_sha256: str
    best: float  # the yardstick's discounted ratio
    users: int
    algorithm: Algorithm
    noise: OrnsteinUhlenbeck
    seeds: tuple[Seed, ...]
    share: Estimate  # over seeds


def run_seed(world: World, yardstick: Yardstick, learning: Algorithm, transitions: int, users: int) -> Seed:
    apprentice = Apprenticeship(world, feed_config(world, learning, NOISE))
    apprentice.learn(transitions)
    found = discounted_ratio(world, apprentice.policy(), yardstick, users)
    share = share_of_gap(found.mean, yardstick)
    return Seed(learning.seed, apprentice.transitions, apprentice.updates, found, share)


def summarised(learning: Algorithm, yardstick: Yardstick, users: int, seeds: Sequence[Seed]) -> Result:
    best = yardstick.row("best").discounted_ratio.mean
    share = over_seeds([seed.share for seed in seeds])
    version, sha256 = yardstick.version, yardstick.sha256
    return Result(version, sha256, best, users, learning, NOISE, tuple(seeds), share)


def head(yardstick: Yardstick) -> str:
    best = yardstick.row("best").discounted_ratio
    return (
        f"simulated feed v{yardstick.version}, sha256 {yardstick.sha256}\n"
        f"best policy known: {best} of the baseline's discounted reward\n"
        f"{'seed':>4} {'transitions':>11} {'updates':>7} {'discounted / baseline':>22} {'share of gap':>12}"
    )


def line(seed: Seed) -> str:
    return (
        f"{seed.seed:4} {seed.transitions:11} {seed.updates:7} {seed.discounted_ratio!s:>22} {100 * seed.share:10.1f} %"
    )


def tail(result: Result) -> str:
    mean, low, high = (100 * x for x in (result.share.mean, result.share.low, result.share.high))
    return f"share of the gap over {len(result.seeds)} seeds: {mean:.1f} % [{low:.1f}, {high:.1f}] (95 %, Student's t)"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--kind", choices=SETTINGS, default="ddpg", help="of learner")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--transitions", type=int, default=TRANSITIONS, help="to learn from, for each seed")
    parser.add_argument("--users", type=int, default=USERS, help="to measure on")
    parser.add_argument("--yardstick", type=Path, default=YARDSTICK, help="figures to compare with")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args(arguments)
    try:
        run(asked)
    except PageturnError as error:
        sys.exit(f"error: {error}")


def run(asked: argparse.Namespace) -> None:
    world = World()
    learning = algorithm(world, asked.kind)
    yardstick = read_yardstick(asked.yardstick, world)
    print(head(yardstick), flush=True)
    seeds = []
    for number in range(1, countable(asked.seeds) + 1):
        seeds.append(run_seed(world, yardstick, structs.replace(learning, seed=number), asked.transitions, asked.users))
        print(line(seeds[-1]), flush=True)
    result = summarised(learning, yardstick, asked.users, seeds)
    print(tail(result))
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the nets are too small to share
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
