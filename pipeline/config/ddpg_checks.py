"""Rules about the switches of `ddpg`: which go together, and that none is given that has no effect."""

from __future__ import annotations

from pipeline.config.findings import Finding, Findings, all_read
from pipeline.config.schema import Ddpg, FeatureConfig

# option -> the switch that it belongs to, and the position at which it has an effect
_BELONGS_TO = {
    "value_learning_rate": ("critic", "v_plus_a"),
    "prior_cost": ("actor", "argmax"),
    "prior_transitions": ("actor", "argmax"),
    "penalty_weight": ("saturation", "penalty"),
    "target_tau": ("target", "polyak"),
    "target_period": ("target", "periodic"),
}


def options(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, Ddpg):
        return
    for option, (switch, position) in _BELONGS_TO.items():
        given, found = all_read([getattr(algorithm, option), getattr(algorithm, switch)])
        if given is not None and found != position:
            yield Finding(("algorithm", option), f"has an effect with {switch}: {position} only, got {found}")


def plain(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, Ddpg) or all_read([algorithm.critic]) != ["plain"]:
        return
    if all_read([algorithm.v_data]) != ["baseline"]:
        yield Finding(("algorithm", "v_data"), "has an effect with critic: v_plus_a only: plain has no V")
    if "advantage" not in all_read(algorithm.tower_trained_by):
        message = "must contain advantage with critic: plain, which has no V: nothing would train the tower"
        yield Finding(("algorithm", "tower_trained_by"), message)


def argmax(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if not isinstance(algorithm, Ddpg):
        return
    if algorithm.prior_transitions is not None and algorithm.prior_cost is None:
        yield Finding(("algorithm", "prior_transitions"), "has an effect with a prior_cost only")
    if all_read([algorithm.actor]) != ["argmax"]:
        return
    if all_read([algorithm.advantage]) != ["quadratic"]:
        yield Finding(("algorithm", "actor"), "argmax needs advantage: quadratic, of which the top is known")
    if all_read([algorithm.towers]) != ["shared"]:
        yield Finding(("algorithm", "towers"), "has an effect with actor: ascent only: argmax reads the critic's tower")
    if all_read([algorithm.saturation]) != ["invert"]:
        yield Finding(("algorithm", "saturation"), "has an effect with actor: ascent only: argmax is never outside")


RULES = (options, plain, argmax)
