"""What a page earned, and which version of the rule said so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from pipeline.config.schema import Reward
from pipeline.records import Feedback, FeedbackKind

_CONVERSIONS = (FeedbackKind.CLICK, FeedbackKind.ORDER)


def reward_version(rule: Reward) -> str:
    """First 12 hex digits of the SHA-256 of the rule as canonical JSON: equal rules have equal versions."""
    canonical = msgspec.convert(msgspec.to_builtins(rule), Reward)  # a weight written 1 is the weight 1.0
    return hashlib.sha256(msgspec.json.encode(canonical, order="sorted")).hexdigest()[:12]


def page_reward(rule: Reward, feedback: Sequence[Feedback], *, left: bool) -> float:
    """r = sum of weight[kind] * value, minus the penalties where the page has neither click nor order, clipped.

    `left`: the user left on this page, said so or was inferred to have. Kinds without a weight earn nothing.
    The sum runs in the order of `feedback`, which a Page fixes, so that a recount gives the same bits.
    """
    weights = rule.weights
    reward = 0.0
    converted = False
    for event in feedback:
        reward += weights.get(event.kind.value, 0.0) * event.value  # type: ignore[call-overload]
        converted = converted or event.kind in _CONVERSIONS
    if not converted:
        penalties = rule.penalties
        reward -= penalties.page_without_conversion + (penalties.leave_without_conversion if left else 0.0)
    if rule.clip is not None:
        low, high = rule.clip
        reward = min(max(reward, low), high)
    return reward
