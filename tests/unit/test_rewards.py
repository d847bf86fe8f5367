"""The reward of a page, by hand."""

from __future__ import annotations

import pytest

from pipeline.config.schema import Penalties, Reward
from pipeline.records import Feedback, FeedbackKind
from pipeline.transitions.rewards import page_reward, reward_version

RULE = Reward({"click": 1.0, "order": 10.0, "dwell": 0.5}, Penalties(0.25, 2.0))
CLICK, ORDER, DWELL, TURN, LEAVE, SHOWN = (
    FeedbackKind.CLICK,
    FeedbackKind.ORDER,
    FeedbackKind.DWELL,
    FeedbackKind.PAGE_TURN,
    FeedbackKind.LEAVE,
    FeedbackKind.SHOWN,
)


def heard(*kinds_and_values: tuple[FeedbackKind, float]) -> list[Feedback]:
    return [
        Feedback(1, f"e{i}", "r", "u", "s", 0, kind, value=value) for i, (kind, value) in enumerate(kinds_and_values)
    ]


@pytest.mark.parametrize(
    ("feedback", "left", "expected"),
    [
        (heard((CLICK, 1)), False, 1.0),
        (heard((CLICK, 1), (CLICK, 1), (ORDER, 3)), False, 32.0),
        (heard((CLICK, 1)), True, 1.0),  # converted: leaving costs nothing
        (heard((ORDER, 0)), True, 0.0),  # an order worth nothing is a conversion all the same
        (heard(), False, -0.25),
        (heard(), True, -2.25),
        (heard((DWELL, 3)), False, 1.25),
        (heard((DWELL, 3)), True, -0.75),
        (heard((TURN, 1), (SHOWN, 1)), False, -0.25),  # kinds without a weight
        (heard((LEAVE, 1)), True, -2.25),
    ],
)
def test_reward(feedback: list[Feedback], left: bool, expected: float) -> None:
    assert page_reward(RULE, feedback, left=left) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.1, 1.0), (0.5, 5.0), (9.0, 5.0)])
def test_clip(value: float, expected: float) -> None:
    rule = Reward({"order": 10.0}, clip=(-1.0, 5.0))
    assert page_reward(rule, heard((ORDER, value)), left=False) == expected


def test_clip_holds_after_the_penalties() -> None:
    rule = Reward({"click": 1.0}, Penalties(3.0, 3.0), clip=(-1.0, 5.0))
    assert page_reward(rule, heard(), left=True) == -1.0


def test_version_names_the_rule_and_nothing_else() -> None:
    assert len(reward_version(RULE)) == 12
    assert reward_version(RULE) == reward_version(Reward({"dwell": 0.5, "order": 10, "click": 1}, Penalties(0.25, 2)))  # type: ignore[arg-type]
    others = [Reward({"click": 1.0}), Reward({"click": 1.0}, Penalties(0.1)), Reward({"click": 1.0}, clip=(0, 1))]
    assert len({reward_version(rule) for rule in (RULE, *others)}) == 4
