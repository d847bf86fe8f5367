"""What types cannot say about a config. Each rule yields findings: where, and what is wrong.

A rule that meets UNKNOWN, a part that could not be read, stops there; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import ddpg_checks, feature_checks, grid_checks, ranking_checks
from pipeline.config.findings import Finding, Findings, all_read, for_each, repeated_names, until_unknown
from pipeline.config.problems import suggestion
from pipeline.config.schema import (
    ActionDimension,
    Bucket,
    Discretised,
    Drn,
    FeatureConfig,
    OnPolicy,
    PayPlusAPhi,
    Policy,
    Ppo,
    Replaying,
)

_BASELINE_ACTION = 1.0  # of both fusions


def check(config: FeatureConfig) -> list[Finding]:
    """Everything that is wrong with a config whose types are right."""
    found = [finding for rule in _RULES for finding in until_unknown(rule, config)]
    found += for_each(lambda: config.features, ("features",), _FEATURE_RULES, config)
    found += for_each(lambda: config.action, ("action",), (_dimension,))
    found += for_each(lambda: config.policies, ("policies",), (_has_slots,), config)
    found += for_each(lambda: config.buckets.assign, ("buckets", "assign"), (_policy_exists, _slots), config)
    return found


# Actions and reward ----------------------------------------------------------------------------------------------


def _dimension(dimension: ActionDimension) -> Findings:
    low, high = dimension.range
    if not low < high:
        yield Finding(("range",), f"must be [low, high] with low < high, got [{low}, {high}]")
    elif not low <= dimension.baseline <= high:
        yield Finding(("baseline",), f"must lie in the range [{low}, {high}], got {dimension.baseline}")


def _action_names(config: FeatureConfig) -> Findings:
    yield from repeated_names(config.action, ("action",))


def _fusion(config: FeatureConfig) -> Findings:
    if config.fusion is None:  # `ranking_checks` says whether it has to be there
        return
    kind, takes = ("pay_plus_a_phi", 1) if isinstance(config.fusion, PayPlusAPhi) else ("exponents", 2)
    all_read([config.fusion])
    if len(config.action) != takes:
        dimensions = "one action dimension" if takes == 1 else f"{takes} action dimensions"
        yield Finding(("action",), f"fusion {kind} takes {dimensions}, got {len(config.action)}")
    for i, dimension in enumerate(all_read(config.action)):
        if dimension.baseline != _BASELINE_ACTION:
            message = f"must be {_BASELINE_ACTION}, where fusion {kind} gives exactly the baseline order"
            yield Finding(("action", i, "baseline"), f"{message}; got {dimension.baseline}")
        if kind == "pay_plus_a_phi" and dimension.range[0] < 0:
            message = "low must be >= 0: below that fusion pay_plus_a_phi ranks by how little an item is clicked"
            yield Finding(("action", i, "range"), f"{message}; got {dimension.range[0]}")


def _reward_weights(config: FeatureConfig) -> Findings:
    if not any(weight > 0 for weight in config.reward.weights.values()):
        yield Finding(("reward", "weights"), "at least one weight must be > 0")


def _reward_clip(config: FeatureConfig) -> Findings:
    if config.reward.clip is not None:
        low, high = config.reward.clip
        if not low < high:
            yield Finding(("reward", "clip"), f"must be [low, high] with low < high, got [{low}, {high}]")


# Learning --------------------------------------------------------------------------------------------------------


def _tower_losses(config: FeatureConfig) -> Findings:
    if isinstance(config.algorithm, Discretised | Drn):  # one loss, one answer
        return
    losses = config.algorithm.tower_trained_by
    path = ("algorithm", "tower_trained_by")
    if isinstance(config.algorithm, OnPolicy) and "value" not in losses:
        yield Finding(path, "must contain value: the baseline's traffic trains the tower through V")
    elif not losses:
        yield Finding(path, "must name a loss: nothing would train the tower")
    if len(set(losses)) < len(losses):
        yield Finding(path, f"names a loss twice: {', '.join(losses)}")


def _replay(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if isinstance(algorithm, Replaying) and algorithm.replay < algorithm.batch_size:
        message = f"must hold at least one batch of {algorithm.batch_size} transitions, got {algorithm.replay}"
        yield Finding(("algorithm", "replay"), message)


def _rollout(config: FeatureConfig) -> Findings:
    algorithm = config.algorithm
    if isinstance(algorithm, Ppo) and algorithm.rollout < algorithm.minibatches:
        message = f"must hold at least one page for each of {algorithm.minibatches} minibatches"
        yield Finding(("algorithm", "rollout"), f"{message}, got {algorithm.rollout}")


def _noise_to_learn_from(config: FeatureConfig) -> Findings:
    if not isinstance(config.algorithm, OnPolicy):
        return
    for i, dimension in enumerate(all_read(config.action)):
        if dimension.noise.sigma == 0:
            message = "must be > 0: an on-policy learner learns from what noise tries"
            yield Finding(("action", i, "noise", "sigma"), f"{message}; got {dimension.noise.sigma}")


def _certification(config: FeatureConfig) -> Findings:
    rules, path = config.publish.certification, ("publish", "certification")
    if rules is None:
        return
    low, high = rules.unit_reward
    if not low < high:
        yield Finding((*path, "unit_reward"), f"must be [low, high] with low < high, got [{low}, {high}]")
    if rules.horizon == 0:
        yield Finding((*path, "horizon"), "must be longer than 0: nothing is earned within it")


def _canary(config: FeatureConfig) -> Findings:
    if config.publish.canary is not None and config.publish.guard is None:
        yield Finding(("publish", "canary"), "needs publish.guard: by its bounds a canary passes, or is sent back")


# Policies and buckets --------------------------------------------------------------------------------------------


def _policies(config: FeatureConfig) -> Findings:
    yield from repeated_names(config.policies, ("policies",))
    if all(policy.kind != "baseline" for policy in all_read(config.policies)):
        message = "at least one policy of kind baseline is needed: it is the yardstick, and V is its value"
        yield Finding(("policies",), message)


def _has_slots(config: FeatureConfig, policy: Policy) -> Findings:
    assigned = {bucket.policy for bucket in all_read(config.buckets.assign)}
    if policy.name not in assigned:
        yield Finding((), "has no slots in buckets.assign")


def _bucket_names(config: FeatureConfig) -> Findings:
    yield from repeated_names(config.buckets.assign, ("buckets", "assign"))


def _policy_exists(config: FeatureConfig, bucket: Bucket) -> Findings:
    names = [policy.name for policy in all_read(config.policies)]
    if bucket.policy not in names:
        yield Finding(("policy",), f'no policy "{bucket.policy}"{suggestion(bucket.policy, names)}')


def _slots(config: FeatureConfig, bucket: Bucket) -> Findings:
    first, last = bucket.slots
    if first > last:
        yield Finding(("slots",), f"must be [first, last] with first <= last, got [{first}, {last}]")
        return
    outside = next((slot for slot in (first, last) if not 0 <= slot < config.buckets.slots), None)
    if outside is not None:
        yield Finding(("slots",), f"slot {outside} is outside 0..{config.buckets.slots - 1}")


def _overlaps(config: FeatureConfig) -> Findings:
    buckets = all_read(config.buckets.assign)
    for i, bucket in enumerate(buckets):
        for other in buckets[:i]:
            shared = max(bucket.slots[0], other.slots[0])
            if shared <= min(bucket.slots[1], other.slots[1]):
                yield Finding(("buckets", "assign", i, "slots"), f'slot {shared} already belongs to "{other.name}"')
                break


def _unassigned(config: FeatureConfig) -> Findings:
    """By runs of slots, not slot by slot: there may be many."""
    total, free, next_slot = config.buckets.slots, [], 0
    for first, last in sorted(tuple(bucket.slots) for bucket in all_read(config.buckets.assign)):
        if first > next_slot:
            free.append((next_slot, min(first, total)))
        next_slot = max(next_slot, last + 1)
    if next_slot < total:
        free.append((next_slot, total))
    if free:
        count = sum(end - start for start, end in free)
        yield Finding(("buckets", "assign"), f"{count} of {total} slots unassigned (first: {free[0][0]})")


def _session_gap(config: FeatureConfig) -> Findings:
    if config.stream.session_gap == 0:
        yield Finding(("stream", "session_gap"), "must be longer than 0: every page would end its session")


_RULES: tuple[Callable[[FeatureConfig], Findings], ...] = (
    feature_checks.feature_names,
    feature_checks.unused_tables,
    feature_checks.capacities,
    feature_checks.fading_tables,
    _action_names,
    _fusion,
    _reward_weights,
    _reward_clip,
    _tower_losses,
    _replay,
    *grid_checks.RULES,
    *ddpg_checks.RULES,
    *ranking_checks.RULES,
    _rollout,
    _noise_to_learn_from,
    _certification,
    _canary,
    _policies,
    _bucket_names,
    _overlaps,
    _unassigned,
    _session_gap,
)
_FEATURE_RULES = (
    feature_checks.reserved_name,
    feature_checks.reference,
    feature_checks.missing_rule,
    feature_checks.normaliser,
    feature_checks.convolution,
    *ranking_checks.FEATURE_RULES,
)
