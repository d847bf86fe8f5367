"""The Experience Collector at its boundaries: pages of a session to transitions and episodes.

Window 10, lateness 5, skew 2, gap 50, at most 3 pages an episode: a page at t closes at t + 10, settles at t + 13, and
without a successor is left at t + 63.
"""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from pipeline.config.schema import Penalties, Reward
from pipeline.logs import log as topics
from pipeline.records import (
    DecidedBy,
    Decision,
    Ending,
    Episode,
    Event,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Page,
    Stamp,
    State,
    Transition,
)
from pipeline.transitions.rewards import reward_version
from pipeline.transitions.session import Output, Rules, Stamped, Turn, on_events, on_watermark, output_id, topic_of

REWARD = Reward({"click": 1.0}, Penalties(0.25, 2.0))
VERSION = reward_version(REWARD)
RULES = Rules(
    windows_ms=dict.fromkeys(FeedbackKind, 10),
    longest_window_ms=10,
    lateness_ms=5,
    skew_ms=2,
    gap_ms=50,
    remember_ms=0,
    max_events=1000,
    intake_ms=10,
    max_pages=3,
    deferred=False,
    reward=REWARD,
    reward_version=VERSION,
)


def state(name: str) -> State:
    return State({"page": name})


def page(name: str, time_ms: int, index: int) -> Impression:
    decision = Decision(DecidedBy.BASELINE, "baseline", "all")
    return Impression(1, name, "u", "s", time_ms, index, (Item("a"),), state(name), decision)


def heard(name: str, time_ms: int, kind: FeedbackKind) -> Feedback:
    return Feedback(1, f"{name}-{kind.value}", name, "u", "s", time_ms, kind)


def records(*events: Event) -> list[Stamped]:
    """Each stamped with its own time."""
    return [Stamped(Stamp(event.time_ms, 0, i), event) for i, event in enumerate(events)]


def run(*events: Event, rules: Rules = RULES) -> tuple[list[Transition], list[Episode]]:
    """Read in three orders, which must agree; in time order of the decisions."""
    results = []
    for seed in range(3):
        log = random.Random(seed).sample(records(*events), len(events))
        turn = on_events(rules, None, log)
        outputs: list[Output] = []
        while turn.state is not None:
            assert turn.wake_at_ms is not None
            turn = on_watermark(rules, turn.state, turn.wake_at_ms)
            outputs += turn.outputs
        results.append([o for o in outputs if isinstance(o, Transition | Episode)])
    assert results[0] == results[1] == results[2]
    return [o for o in results[0] if isinstance(o, Transition)], [o for o in results[0] if isinstance(o, Episode)]


def chains(episodes: list[Episode]) -> list[tuple[str, Ending]]:
    return [(" ".join(step.request_id for step in e.steps), e.ending) for e in episodes]


LEAVE, CLICK, SHOWN = FeedbackKind.LEAVE, FeedbackKind.CLICK, FeedbackKind.SHOWN
LEFT, INFERRED, TRUNCATED = Ending.LEAVE, Ending.INFERRED_LEAVE, Ending.TRUNCATED


def test_two_pages_and_an_inferred_leave() -> None:
    (first, last), (episode,) = run(page("a", 100, 0), heard("a", 105, CLICK), page("b", 120, 1))
    assert (first.reward, first.discount, first.next_state, first.ending) == (1.0, 1.0, state("b"), None)
    assert (last.reward, last.discount, last.next_state, last.ending) == (-2.25, 0.0, None, INFERRED)
    assert first.id == f"a@{VERSION}"
    assert (episode.id, episode.discount, episode.bootstrap_state) == (f"a@{VERSION}", 0.0, None)
    assert [step.reward for step in episode.steps] == [1.0, -2.25]


SESSIONS = {
    "one_page": ([page("a", 100, 0)], [("a", INFERRED)]),
    "exactly_at_the_gap": ([page("a", 100, 0), page("b", 150, 1)], [("a b", INFERRED)]),
    "one_ms_beyond_the_gap": ([page("a", 100, 0), page("b", 151, 1)], [("a", INFERRED), ("b", INFERRED)]),
    "leave": ([page("a", 100, 0), page("b", 110, 1), heard("b", 115, LEAVE)], [("a b", LEFT)]),
    "a_page_after_leave_opens_an_episode": (
        [page("a", 100, 0), heard("a", 105, LEAVE), page("b", 110, 1)],
        [("a", LEFT), ("b", INFERRED)],
    ),
    "exactly_the_maximal_length": (
        [page("a", 100, 0), page("b", 110, 1), page("c", 120, 2)],
        [("a b c", INFERRED)],
    ),
    "one_page_more_than_the_maximal_length": (
        [page("a", 100, 0), page("b", 110, 1), page("c", 120, 2), page("d", 130, 3)],
        [("a b c", TRUNCATED), ("d", INFERRED)],
    ),
    "maximal_length_and_then_the_gap": (
        [page("a", 100, 0), page("b", 110, 1), page("c", 120, 2), page("d", 171, 3)],
        [("a b c", INFERRED), ("d", INFERRED)],
    ),
    "maximal_length_and_leave": (
        [page("a", 100, 0), page("b", 110, 1), page("c", 120, 2), heard("c", 121, LEAVE), page("d", 130, 3)],
        [("a b c", LEFT), ("d", INFERRED)],
    ),
    "index_decides_exactly_within_the_skew": ([page("b", 100, 1), page("a", 102, 0)], [("a b", INFERRED)]),
    "time_decides_one_ms_beyond_the_skew": ([page("b", 100, 1), page("a", 103, 0)], [("b a", INFERRED)]),
    "same_time_by_index": ([page("b", 100, 1), page("a", 100, 0)], [("a b", INFERRED)]),
    "same_time_and_index_by_request": ([page("b", 100, 0), page("a", 100, 0)], [("a b", INFERRED)]),
    "an_index_that_starts_again": (
        [page("a", 100, 7), page("b", 120, 0), page("c", 140, 1)],
        [("a b c", INFERRED)],
    ),
}


@pytest.mark.parametrize("case", SESSIONS)
def test_episodes(case: str) -> None:
    events, expected = SESSIONS[case]
    transitions, episodes = run(*events)
    assert chains(episodes) == expected
    assert sorted(t.request_id for t in transitions) == sorted(
        e.request_id for e in events if isinstance(e, Impression)
    )


def test_a_cut_episode_goes_on_in_value_and_in_its_transition() -> None:
    events, _ = SESSIONS["one_page_more_than_the_maximal_length"]
    transitions, (cut, rest) = run(*events)
    assert (cut.discount, cut.bootstrap_state) == (1.0, state("d"))
    assert (rest.id, rest.discount) == (f"d@{VERSION}", 0.0)
    by_request = {t.request_id: t for t in transitions}
    assert (by_request["c"].discount, by_request["c"].next_state, by_request["c"].ending) == (1.0, state("d"), None)
    assert cut.steps[-1].reward == by_request["c"].reward == -0.25  # no leave, no penalty for one


def test_a_page_that_was_never_shown_is_in_no_episode() -> None:
    rules = structs.replace(RULES, deferred=True)
    shown = [page("a", 100, 0), heard("a", 101, SHOWN), page("c", 120, 2), heard("c", 121, SHOWN)]
    transitions, episodes = run(*shown, page("b", 110, 1), heard("b", 111, LEAVE), rules=rules)
    assert chains(episodes) == [("a c", INFERRED)]
    assert transitions[0].next_state == state("c")


# When decisions are made -------------------------------------------------------------------------------------------


def after(turn: Turn, watermark_ms: int) -> Turn:
    assert turn.state is not None
    return on_watermark(RULES, turn.state, watermark_ms)


def test_a_transition_is_made_when_the_next_page_settles() -> None:
    turn = after(on_events(RULES, None, records(page("a", 100, 0), page("b", 120, 1))), 132)
    assert [type(o) for o in turn.outputs] == [Page, Page]
    turn = after(turn, 133)
    assert [type(o) for o in turn.outputs] == [Transition]


def test_a_leave_is_inferred_when_no_successor_can_settle_any_more() -> None:
    turn = after(on_events(RULES, None, records(page("a", 100, 0))), 162)
    assert [type(o) for o in turn.outputs] == [Page]
    assert turn.wake_at_ms == 163
    turn = after(turn, 163)
    assert [type(o) for o in turn.outputs] == [Transition, Episode]
    assert turn.state is None


def test_a_successor_at_the_end_of_the_gap_settles_before_the_leave_is_inferred() -> None:
    turn = after(on_events(RULES, None, records(page("a", 100, 0), page("b", 150, 1))), 163)
    (made,) = [o for o in turn.outputs if isinstance(o, Transition)]
    assert made.next_state == state("b")


def test_one_large_step_decides_in_time_order() -> None:
    turn = on_events(RULES, None, records(page("a", 100, 0), page("b", 200, 1)))
    outputs = after(turn, 10**6).outputs
    assert [output_id(o).partition("@")[0] for o in outputs] == ["a", "a", "a", "b", "b", "b"]
    assert [topic_of(o) for o in outputs] == [topics.SAMPLES, topics.TRANSITIONS, topics.EPISODES] * 2
