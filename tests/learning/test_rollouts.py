"""Pages become rollouts: each page once, with those of its visit, and the same after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from pipeline import exploration
from pipeline.config import schema
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.learning.ingestion import to_example
from pipeline.learning.progress import Progress
from pipeline.learning.rollouts import Lesson, Pages, RolloutFeeding, Turn
from pipeline.records import Action, DecidedBy, Decision, Transition

BOTH = np.array([True, True])


class Recorder:
    """A learner that notes what it is taught. Takes two updates per rollout, and leaves a page out."""

    def __init__(self) -> None:
        self.lessons: list[tuple[Pages, Turn]] = []

    def learn(self, pages: Pages, turn: Turn) -> Lesson:
        self.lessons.append((pages, turn))
        return Lesson(2, {"actor_loss": np.zeros(1), "action_mean": np.zeros((1, 1))}, np.array([1]))

    @property
    def rewards(self) -> list[list[float]]:
        return [pages.reward.tolist() for pages, _ in self.lessons]


@pytest.fixture
def config(make_config) -> FeatureConfig:
    return make_config({"algorithm": schema.A2c(gamma=0.5, rollout=4)})


@pytest.fixture
def page(make_transition) -> Callable[..., Transition]:
    """Page number `index` of a visit, of reward `i`. By default drawn by p1."""

    def page(i: int, session: str = "s", index: int = 0, policy: str = "p1", **changes: Any) -> Transition:
        by = DecidedBy.BASELINE if policy == "base" else DecidedBy.POLICY
        drawn = exploration.explore(
            "a", 1.1, low=0, high=2, theta=0.25, sigma=0.5, previous_noise=0.4, epsilon=(-1) ** i * 2.0
        )
        decision = Decision(by, policy, "b", (Action("a", 1.0) if policy == "base" else drawn,))
        parts = {"session_id": session, "page_index": index, "decision": decision, "reward": float(i)}
        following = {"discount": 1.0, "next_state": make_transition(0).next_state, "ending": None}
        return make_transition(i, **{**parts, **following, **changes})

    return page


def fed(config: FeatureConfig, transitions: Iterable[Transition]) -> RolloutFeeding:
    encoder = Encoder(config)
    feeding = RolloutFeeding(config, encoder)
    for i, transition in enumerate(transitions):
        feeding.add(to_example(transition, config, encoder), 0, i)
    return feeding


def lessons(config: FeatureConfig, feeding: RolloutFeeding, progress: Progress | None = None) -> Recorder:
    learner = Recorder()
    feeding.learn(learner, Snapshot.initial(config), progress or Progress(), BOTH)
    return learner


def test_a_rollout_is_learned_from_when_it_is_full_and_then_never_again(config, page) -> None:
    feeding = fed(config, [page(i, f"s{i}") for i in range(11)])
    assert lessons(config, feeding).rewards == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(feeding) == 3
    assert lessons(config, feeding).lessons == []


def test_each_policy_has_rollouts_of_its_own_in_the_order_in_which_they_fill_up(config, page) -> None:
    names = ["p1", "p2", "p2", "base", "p2", "base", "p1", "base", "p2", "p1", "p1", "base"]
    found = lessons(config, fed(config, [page(i, f"s{i:02}", policy=name) for i, name in enumerate(names)]))
    assert found.rewards == [[1, 2, 4, 8], [0, 6, 9, 10], [3, 5, 7, 11]]
    assert [turn.policy for _, turn in found.lessons] == [1, 0, 2]


def test_the_pages_of_a_visit_lie_in_their_order_and_are_linked(config, page) -> None:
    """Session a arrives out of order and between others; b's pages 0 and 2 have none between them in the rollout."""
    pages = [page(0, "a", 1), page(1, "b", 0), page(2, "a", 0), page(3, "b", 2)]
    found, _ = lessons(config, fed(config, pages)).lessons[0]
    assert found.reward.tolist() == [2, 0, 1, 3]
    assert found.linked.tolist() == [1, 0, 0, 0]


def test_a_leave_ends_the_visit_even_where_the_session_goes_on(config, page) -> None:
    leave = {"discount": 0.0, "next_state": None}
    pages = [page(0, "a", 0), page(1, "a", 1, **leave), page(2, "a", 2), page(3, "a", 3)]
    found, _ = lessons(config, fed(config, pages)).lessons[0]
    assert found.linked.tolist() == [1, 0, 1, 0]
    assert found.discount.tolist() == [1, 0, 1, 1]


def test_a_page_of_another_policy_breaks_the_link(config, page) -> None:
    pages = [page(0, "a", 0), page(1, "a", 1, "p2"), page(2, "a", 2), page(3, "c", 0), page(4, "d", 0)]
    found, _ = lessons(config, fed(config, pages)).lessons[0]
    assert found.reward.tolist() == [0, 2, 3, 4]
    assert found.linked.tolist() == [0, 0, 0, 0]


def test_columns_are_what_the_agent_logged(config, page) -> None:
    """raw = 1.1 + .75 * .4 + .5 * (+-2), clipped only for execution."""
    found, _ = lessons(config, fed(config, [page(i, f"s{i}") for i in range(4)])).lessons[0]
    np.testing.assert_allclose(found.raw[:, 0], [2.4, 0.4, 2.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found.mean[:, 0], 1.1, rtol=1e-6)
    np.testing.assert_allclose(found.carried[:, 0], 0.3, rtol=1e-6)
    np.testing.assert_allclose(found.sigma[:, 0], 0.5)
    np.testing.assert_allclose(found.log_density, exploration.log_density(2.4, 1.4, 0.5), rtol=1e-6)


def test_of_a_rollout_in_which_page_none_may_move_none_does(config, page) -> None:
    feeding = fed(config, [page(i, f"s{i}", policy=("p1", "p2", "base")[i % 3]) for i in range(12)])
    learner = Recorder()
    feeding.learn(learner, Snapshot.initial(config), Progress(), np.array([True, False]))
    assert {turn.policy: turn.active for _, turn in learner.lessons} == {0: True, 1: False, 2: False}


def test_what_nobody_learns_from_is_said(config, page) -> None:
    encoder = Encoder(config)
    feeding, plain = RolloutFeeding(config, encoder), (Action("a", 1.0),)
    why = {
        "fallback": Decision(DecidedBy.FALLBACK, "p1", "b", plain, fallback_reason="timeout"),
        "other_policy": Decision(DecidedBy.POLICY, "former", "b", plain),
        "no_propensity": Decision(DecidedBy.POLICY, "p1", "b", plain),
    }
    for reason, decision in why.items():
        example = to_example(page(1, decision=decision), config, encoder)
        assert feeding.add(example, 0, 0) == reason
    assert len(feeding) == 0


def test_updates_and_pages_left_out_are_counted(config, page) -> None:
    progress = Progress()
    history = lessons(config, fed(config, [page(i, f"s{i}") for i in range(8)]), progress)
    assert [turn.number for _, turn in history.lessons] == [0, 2]
    assert (progress.updates, progress.left_out) == (4, {"off_policy": 2})


def test_losses_are_named_after_the_policy_and_of_the_baseline_after_nobody(config, page) -> None:
    feeding = fed(config, [page(i, f"s{i}", policy=("p1", "p2", "base")[i % 3]) for i in range(12)])
    history = feeding.learn(Recorder(), Snapshot.initial(config), Progress(), BOTH)
    assert [list(each) for each in history] == [
        ["actor_loss/p1", "action_mean/p1/a"],
        ["actor_loss/p2", "action_mean/p2/a"],
        ["actor_loss", "action_mean"],
    ]


def test_workers_have_sessions_of_their_own(make_config, page) -> None:
    config = make_config({"algorithm": schema.A3c(gamma=0.5, rollout=4, workers=2)})
    transitions = [page(i, f"s{i // 4}", i % 4) for i in range(64)]
    found = lessons(config, fed(config, transitions)).lessons
    worker = {turn.worker for _, turn in found}
    assert worker == {0, 1}
    assert sum(len(pages.reward) for pages, _ in found) == 64
    assert all(pages.linked.tolist() == [1, 1, 1, 0] for pages, _ in found)  # a session is with one worker


@pytest.mark.parametrize("stop", [3, 6, 9, 12])
def test_rows_put_back_become_the_rollouts_that_they_would_have_become(config, page, stop: int) -> None:
    """From the origins that were held, whether a rollout was full by then or not."""
    names = ("p1", "p2", "p1", "base")
    transitions = [page(i, f"s{i // 3}", i % 3, names[i % 4]) for i in range(24)]
    encoder = Encoder(config)

    def half(feeding: RolloutFeeding, numbers: range) -> Recorder:
        learner = Recorder()
        for i in numbers:
            feeding.add(to_example(transitions[i], config, encoder), 0, i)
            if i % 6 == 5:
                feeding.learn(learner, Snapshot.initial(config), Progress(), BOTH)
        return learner

    whole = half(RolloutFeeding(config, encoder), range(24))
    first = RolloutFeeding(config, encoder)
    before, held = half(first, range(stop)), first.held()
    again = RolloutFeeding(config, encoder)
    for offset, spent in zip(held.origins.offsets.tolist(), held.spent.tolist(), strict=True):
        again.add(to_example(transitions[offset], config, encoder), 0, offset, spent)
    after = half(again, range(stop, 24))
    assert before.rewards + after.rewards == whole.rewards
    assert held.origins.offsets.tolist() == list(range(stop))


def test_origins_of_rows_long_spent_are_forgotten(config, page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.learning.rollouts._REMEMBERED", 3)
    feeding = fed(config, [page(0, "z", policy="p2"), *(page(i, f"s{i}") for i in range(1, 9))])
    lessons(config, feeding)
    held = feeding.held()
    assert held.origins.offsets.tolist() == [0, 6, 7, 8]  # the first one still waits for its rollout
    assert held.spent.tolist() == [False, True, True, True]
