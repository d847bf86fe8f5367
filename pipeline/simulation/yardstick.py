"""What can be earned on the simulated feed by a policy that sees what the agent sees.

    python -m pipeline.simulation.yardstick [--config FILE] [--seed N] [--scale X] [--json FILE]

Expectations over fresh draws: policies are made on one seed, chosen on a second and measured on a third, with the
discount and the shaped reward of the feature config. `best` and `best myopic` are the better of policies found on two
roads that share no step: a natural policy gradient, and fitted Q iteration (its greedy policy, and that polished by the
gradient). Both are functions of the present observation, with the probability of a buyer judged from all that is
visible; what separates the two roads bounds what either has left. `best constant` is the best of a grid. `all-knowing`
sees intents and moods besides: no policy of an agent's can be expected to earn more, and none sees that much.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, structs

from pipeline.config.reading import load_config
from pipeline.simulation import fitted
from pipeline.simulation.intent import Everything, Seen, View, fit_intent
from pipeline.simulation.outcomes import Estimate, estimate, ratio
from pipeline.simulation.params import VERSION, World
from pipeline.simulation.rollout import Policy, Sums, constant, digest, play
from pipeline.simulation.search import Schedule, baseline, distilled, search

_CONSTANTS = 21


class Budget(Struct, frozen=True):
    intent: int = 6_000  # sessions, as are the others without a word
    fitted: int = 8_000  # per round
    searched: int = 3_000  # per iteration
    iterations: int = 60
    chosen: int = 10_000
    measured: int = 40_000

    def scaled(self, scale: float) -> Budget:
        return Budget(**{name: max(1, round(scale * size)) for name, size in structs.asdict(self).items()})


class Row(Struct, frozen=True):
    name: str
    found_by: str
    discounted: Estimate  # mean shaped reward of a session, discounted
    undiscounted: Estimate
    discounted_ratio: Estimate  # to the baseline, on the same users
    undiscounted_ratio: Estimate
    depth: float
    dwell_s: float
    buyers_with_click: float  # share


class Yardstick(Struct, frozen=True):
    version: int
    sha256: str
    gamma: float
    seed: int
    rows: tuple[Row, ...]
    others: tuple[Row, ...]  # policies that were not chosen: the second road
    dynamics: str = ""  # `digest` of the world: what the code made of it

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


Found = dict[str, Policy]  # by how it was found


def measure(world: World, *, seed: int = 1, budget: Budget | None = None) -> Yardstick:
    budget = budget or Budget()
    seen = Seen(world.params, fit_intent(world, seed, budget.intent))
    candidates: dict[str, Found] = {
        "best constant": constants(world),
        "best myopic": two_roads(myopic(world), seen, seed, budget),
        "best": two_roads(world, seen, seed, budget),
        "all-knowing": {"fitted Q": fitted.fit(world, Everything(world.params), seed, sessions=budget.fitted)},
    }
    base = play(world, constant(world.objective.baseline), seed + 2, np.arange(budget.measured))
    rows = [_row("baseline", "a = baseline", base, base)]
    others: list[Row] = []
    for name, found in candidates.items():
        chosen = choose(world, found, seed + 1, budget.chosen)
        for road, policy in found.items():
            if road == chosen:
                rows.append(_row(name, road, _played(world, policy, seed, budget), base))
            elif name != "best constant":
                others.append(_row(name, road, _played(world, policy, seed, budget), base))
    return Yardstick(VERSION, world.sha256, world.objective.gamma, seed, tuple(rows), tuple(others), digest(world))


def myopic(world: World) -> World:
    """The same world for one who only counts the present page."""
    return structs.replace(world, objective=structs.replace(world.objective, gamma=0.0))


def constants(world: World) -> Found:
    objective = world.objective
    return {f"a = {a:.2f}": constant(float(a)) for a in np.linspace(objective.low, objective.high, _CONSTANTS)}


def two_roads(world: World, view: View, seed: int, budget: Budget) -> Found:
    greedy = fitted.fit(world, view, seed, sessions=budget.fitted)
    schedule = Schedule(budget.searched, budget.iterations)
    polish = schedule._replace(iterations=max(1, budget.iterations // 2), first_step=0.1)
    near = distilled(greedy, world, view, seed, budget.searched)
    return {
        "policy gradient": search(baseline(world, view), seed, schedule),
        "fitted Q": greedy,
        "fitted Q, polished": search(near, seed, polish),
    }


def choose(world: World, found: Mapping[str, Policy], seed: int, sessions: int) -> str:
    """The policy with the highest discounted reward in this world, on users of their own."""
    users = np.arange(sessions)
    return max(found, key=lambda road: play(world, found[road], seed, users).mean("discounted"))


def table(yardstick: Yardstick) -> str:
    lines = [
        f"simulated feed v{yardstick.version}, sha256 {yardstick.sha256}, dynamics {yardstick.dynamics[:12] or '-'}, "
        f"gamma {yardstick.gamma}, seed {yardstick.seed}; means with 95 % intervals",
        f"{'policy':14} {'found by':19} {'discounted':>22} {'/ baseline':>22} {'undiscounted':>22} {'/ baseline':>22}"
        f" {'depth':>6} {'dwell':>6} {'buyers clicking':>15}",
        *map(_line, yardstick.rows),
        "not chosen:",
        *map(_line, yardstick.others),
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    estimates = (row.discounted, row.discounted_ratio, row.undiscounted, row.undiscounted_ratio)
    figures = " ".join(f"{each!s:>22}" for each in estimates)
    return (
        f"{row.name:14} {row.found_by:19} {figures} {row.depth:6.2f} {row.dwell_s:6.1f} {row.buyers_with_click:15.3f}"
    )


def _played(world: World, policy: Policy, seed: int, budget: Budget) -> Sums:
    return play(world, policy, seed + 2, np.arange(budget.measured))


def _row(name: str, road: str, played: Sums, base: Sums) -> Row:
    return Row(
        name=name,
        found_by=road,
        discounted=estimate(played.discounted),
        undiscounted=estimate(played.reward),
        discounted_ratio=ratio(played.discounted, base.discounted),
        undiscounted_ratio=ratio(played.reward, base.reward),
        depth=played.mean("pages"),
        dwell_s=played.mean("dwell_s"),
        buyers_with_click=float(np.mean(played.clicks[played.buyer] > 0)),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.simulation.yardstick", description=__doc__)
    parser.add_argument("--config", type=Path, help="feature config with the action, reward and gamma to measure")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the budget: 0.2 for a quick look")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args(arguments)
    world = World.of(load_config(asked.config)) if asked.config else World()
    yardstick = measure(world, seed=asked.seed, budget=Budget().scaled(asked.scale))
    print(table(yardstick))
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(yardstick), indent=2))


if __name__ == "__main__":
    main()
