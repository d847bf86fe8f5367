"""The Online Joiner at its boundaries: tables of events to fates.

Windows: click 10, order (and all other kinds) 20; lateness 5; skew 2; remembered 30. The page is at 100: clicks count
until 110, it closes at 120, takes stamps until 125 and owns its request id until stamp 155.
"""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec import structs

from pipeline.config.schema import Reward
from pipeline.records import (
    DecidedBy,
    Decision,
    Event,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Labels,
    Page,
    SetAside,
    Stamp,
    State,
)
from pipeline.transitions.rewards import reward_version
from pipeline.transitions.session import Output, Rules, Stamped, Turn, on_events, on_watermark, open_events

CLICK, ORDER, DWELL, SHOWN = FeedbackKind.CLICK, FeedbackKind.ORDER, FeedbackKind.DWELL, FeedbackKind.SHOWN
REWARD = Reward({"click": 1.0})
RULES = Rules(
    windows_ms={**dict.fromkeys(FeedbackKind, 20), CLICK: 10},
    longest_window_ms=20,
    lateness_ms=5,
    skew_ms=2,
    gap_ms=1000,
    remember_ms=30,
    max_events=1000,
    intake_ms=20,
    max_pages=10,
    deferred=False,
    reward=REWARD,
    reward_version=reward_version(REWARD),
)


def page(time_ms: int = 100, request: str = "r", user: str = "u") -> Impression:
    decision = Decision(DecidedBy.BASELINE, "baseline", "all")
    return Impression(1, request, user, "s", time_ms, 0, (Item("a"), Item("b")), State({"x": time_ms}), decision)


def heard(
    kind: FeedbackKind = CLICK,
    time_ms: int = 105,
    *,
    event: str = "e",
    item: str | None = "a",
    user: str = "u",
    value: float = 1.0,
) -> Feedback:
    return Feedback(1, event, "r", user, "s", time_ms, kind, item, value)


def at(stamp_ms: int, event: Event, partition: int = 0, offset: int | None = None) -> Stamped:
    return Stamped(Stamp(stamp_ms, partition, stamp_ms if offset is None else offset), event)


def run(log: list[Stamped], rules: Rules = RULES) -> list[Output]:
    """All outputs, checked to be the same in every order of reading (of small logs; some orders of larger ones)."""
    orders = (
        list(itertools.permutations(log))
        if len(log) < 5
        else [random.Random(i).sample(log, len(log)) for i in range(20)]
    )
    results = []
    for order in orders:
        turn = on_events(rules, None, order)
        outputs = list(turn.outputs)
        if turn.state is not None:
            turn = on_watermark(rules, turn.state, 10**6)
            outputs += turn.outputs
        assert turn.state is None
        results.append(sorted(outputs, key=lambda o: (type(o).__name__, o.id)))
    assert all(result == results[0] for result in results)
    return results[0]


def pages(outputs: list[Output]) -> list[Page]:
    return [o for o in outputs if isinstance(o, Page)]


def fates(outputs: list[Output]) -> dict[str, str]:
    return {o.id: f"{o.fate.value} {o.reason}" for o in outputs if isinstance(o, SetAside)}


FEEDBACK = {
    "click": (at(106, heard()), "joined"),
    "click_exactly_at_its_window": (at(111, heard(time_ms=110)), "joined"),
    "click_one_ms_beyond_its_window": (at(112, heard(time_ms=111)), "late outside_window"),
    "order_exactly_at_its_window": (at(121, heard(ORDER, 120)), "joined"),
    "order_one_ms_beyond_its_window": (at(121, heard(ORDER, 121)), "late outside_window"),
    "dwell_has_the_longer_window": (at(121, heard(DWELL, 120)), "joined"),
    "exactly_the_skew_before_its_page": (at(106, heard(time_ms=98)), "joined"),
    "one_ms_more_than_the_skew_before": (at(106, heard(time_ms=97)), "late outside_window"),
    "stamped_exactly_at_close_plus_lateness": (at(125, heard()), "joined"),
    "stamped_one_ms_beyond_close_plus_lateness": (at(126, heard()), "late transport"),
    "transport_is_tested_before_window": (at(126, heard(time_ms=90)), "late transport"),
    "stamped_exactly_at_the_end_of_memory": (at(155, heard()), "late transport"),
    "stamped_one_ms_beyond_memory": (at(156, heard()), "orphan no_page"),
    "stamped_before_its_page": (at(50, heard()), "joined"),
    "stamped_long_before_but_page_still_possible": (at(50, heard(time_ms=98)), "joined"),
    "an_item_not_on_the_page": (at(106, heard(item="c")), "orphan unknown_item"),
    "about_the_page_as_a_whole": (at(106, heard(item=None)), "joined"),
    "another_user": (at(106, heard(user="v")), "orphan other_user"),
}


@pytest.mark.parametrize("case", FEEDBACK)
def test_fate_of_feedback(case: str) -> None:
    record, fate = FEEDBACK[case]
    outputs = run([at(101, page(), partition=1), record])
    record_id = f"0:{record.stamp.offset}"
    assert fates(outputs) == ({} if fate == "joined" else {record_id: fate})
    assert pages(outputs)[0].feedback == ((record.event,) if fate == "joined" else ())


IMPRESSIONS = {
    "on_time": (at(101, page()), None),
    "stamped_exactly_at_close_plus_lateness": (at(125, page()), None),
    "stamped_one_ms_beyond_close_plus_lateness": (at(126, page()), "late transport"),
}


@pytest.mark.parametrize("case", IMPRESSIONS)
def test_fate_of_an_impression(case: str) -> None:
    record, fate = IMPRESSIONS[case]
    outputs = run([record])
    assert len(pages(outputs)) == (fate is None)
    assert list(fates(outputs).values()) == ([] if fate is None else [fate])


def test_feedback_for_a_page_that_came_too_late_is_an_orphan() -> None:
    assert fates(run([at(126, page()), at(106, heard())])) == {"0:126": "late transport", "0:106": "orphan no_page"}


def test_a_page_stamped_one_ms_after_feedback_gave_up_on_it() -> None:
    """Feedback at 90 could belong to a page that closes at 90 + 2 + 20, stamped until 117."""
    possible = run([at(117, page(time_ms=100), partition=1), at(95, heard(time_ms=90))])
    assert fates(possible) == {"0:95": "late outside_window"}
    too_late = run([at(118, page(time_ms=100), partition=1), at(95, heard(time_ms=90))])
    assert fates(too_late) == {"0:95": "orphan no_page"}


def test_of_two_copies_the_first_stamped_is_the_page() -> None:
    outputs = run([at(103, page(101), partition=0, offset=7), at(102, page(100), partition=1, offset=9)])
    assert [p.impression.time_ms for p in pages(outputs)] == [100]
    assert fates(outputs) == {"0:7": "duplicate request_id"}


def test_of_two_copies_with_one_stamp_the_lower_partition_is_the_page() -> None:
    outputs = run([at(102, page(101), partition=1, offset=0), at(102, page(100), partition=0, offset=5)])
    assert fates(outputs) == {"1:0": "duplicate request_id"}


def test_a_late_copy_is_late_not_duplicate() -> None:
    assert fates(run([at(101, page()), at(126, page())])) == {"0:126": "late transport"}


def test_a_copy_with_a_later_time_is_a_duplicate_exactly_until_memory_ends() -> None:
    assert fates(run([at(101, page()), at(155, page(150))])) == {"0:155": "duplicate request_id"}
    reused = run([at(101, page()), at(156, page(150))])
    assert [p.impression.time_ms for p in pages(reused)] == [100, 150]


def test_a_retried_event_is_a_duplicate_and_its_first_copy_is_joined() -> None:
    first, retry = heard(value=1.0), heard(value=2.0)
    outputs = run([at(101, page()), at(106, first, offset=1), at(107, retry, partition=1, offset=0)])
    assert pages(outputs)[0].feedback == (first,)
    assert fates(outputs) == {"1:0": "duplicate event_id"}


def test_a_retry_that_is_late_is_late_not_duplicate() -> None:
    assert fates(run([at(101, page()), at(106, heard()), at(126, heard())])) == {"0:126": "late transport"}


def test_an_event_that_was_not_joined_does_not_take_its_id() -> None:
    outputs = run([at(101, page()), at(106, heard(item="c")), at(107, heard(item="a"))])
    assert fates(outputs) == {"0:106": "orphan unknown_item"}
    assert len(pages(outputs)[0].feedback) == 1


def test_labels_and_order_of_feedback() -> None:
    log = [
        at(101, page()),
        at(110, heard(ORDER, 109, event="a4", item="b", value=5.0)),
        at(111, heard(ORDER, 108, event="e3", item="b", value=2.5)),
        at(112, heard(CLICK, 108, event="e2", item="b")),
        at(113, heard(DWELL, 107, event="e1", item="b", value=3.0)),
        at(114, heard(SHOWN, 100, event="e0", item=None)),
    ]
    (closed,) = pages(run(log))
    assert [f.event_id for f in closed.feedback] == ["e0", "e1", "e2", "e3", "a4"]
    assert closed.labels == (Labels(), Labels(clicks=1, orders=2, order_value=7.5, dwell_s=3.0))
    assert closed.closed_ms == 120


def test_an_item_that_is_on_the_page_twice_is_labelled_at_its_first_place() -> None:
    twice = structs.replace(page(), items=(Item("a"), Item("a")))
    (closed,) = pages(run([at(101, twice), at(106, heard())]))
    assert [label.clicks for label in closed.labels] == [1, 0]


@pytest.mark.parametrize(("kind", "stamp_ms", "shown"), [(SHOWN, 125, True), (SHOWN, 126, False), (CLICK, 106, False)])
def test_deferred_pages_count_if_reported_as_shown_in_time(kind: FeedbackKind, stamp_ms: int, shown: bool) -> None:
    outputs = run([at(101, page()), at(stamp_ms, heard(kind), partition=1)], structs.replace(RULES, deferred=True))
    assert [p.shown for p in pages(outputs)] == [shown]
    assert len([o for o in outputs if not isinstance(o, Page | SetAside)]) == (2 if shown else 0)


# What a session takes in -------------------------------------------------------------------------------------------

FEW = structs.replace(RULES, max_events=2)  # in a slot: stamps 100 to 119, 120 to 139 ...


def in_order(log: list[Stamped], rules: Rules = FEW) -> list[Output]:
    turn = on_events(rules, None, log)
    assert turn.state is not None
    return [*turn.outputs, *on_watermark(rules, turn.state, 10**6).outputs]


def test_of_a_slot_the_first_events_are_taken_and_the_others_counted() -> None:
    clicks = [at(stamp, heard(event=f"e{stamp}")) for stamp in (101, 102, 119, 120, 121, 122)]
    outputs = in_order([at(100, page()), *clicks])
    assert fates(outputs) == dict.fromkeys(["0:102", "0:119", "0:122"], "orphan session_full")
    assert [f.event_id for f in pages(outputs)[0].feedback] == ["e101", "e120", "e121"]


def test_feedback_of_a_page_that_was_not_taken_has_no_page() -> None:
    log = [at(100, heard(event="e1")), at(101, heard(event="e2")), at(102, page()), at(120, heard(event="e3"))]
    assert fates(in_order(log)) == {
        "0:100": "orphan no_page",
        "0:101": "orphan no_page",
        "0:102": "orphan session_full",
        "0:120": "orphan no_page",
    }


def test_an_impression_that_is_late_takes_no_room() -> None:
    outputs = in_order([at(100, page(50)), at(101, page(51)), at(102, page()), at(103, heard())])
    assert fates(outputs) == dict.fromkeys(["0:100", "0:101"], "late transport")


def test_each_partition_is_counted_by_itself_in_whatever_order_they_are_read() -> None:
    first = [at(100 + i, heard(event=f"p{i}"), partition=0) for i in range(3)]
    second = [at(100, page(), partition=1), *(at(101 + i, heard(event=f"q{i}"), partition=1) for i in range(2))]
    for log in ([*first, *second], [*second, *first], [second[0], first[0], second[1], first[1], second[2], first[2]]):
        assert fates(in_order(log)) == {"0:102": "orphan session_full", "1:102": "orphan session_full"}


def test_a_full_slot_is_remembered_until_no_stamp_in_it_can_come() -> None:
    log = [at(100, page()), at(101, heard(event="e1"))]
    rules = structs.replace(FEW, remember_ms=0, intake_ms=1_000_000, gap_ms=0)
    turn = on_events(rules, None, log)
    while turn.wake_at_ms is not None and turn.wake_at_ms < 10_000:
        assert turn.state is not None
        turn = on_watermark(rules, turn.state, turn.wake_at_ms)
    assert turn.wake_at_ms == 1_000_000 - rules.lateness_ms
    assert turn.state is not None
    assert fates(on_events(rules, turn.state, [at(999_999, heard())]).outputs) == {"0:999999": "orphan session_full"}
    assert on_watermark(rules, turn.state, turn.wake_at_ms).state is None


# When decisions are made -------------------------------------------------------------------------------------------


def step(log: list[Stamped], watermark_ms: int) -> Turn:
    turn = on_events(RULES, None, log)
    assert turn.state is not None
    return on_watermark(RULES, turn.state, watermark_ms)


def test_a_page_is_closed_one_ms_after_its_windows_and_not_before() -> None:
    assert step([at(101, page())], 120).outputs == []
    assert step([at(101, page())], 120).wake_at_ms == 121
    assert [o.id for o in step([at(101, page())], 121).outputs] == ["r"]


def test_feedback_read_ahead_does_not_sway_the_page_it_is_too_late_for() -> None:
    turn = step([at(101, page()), at(126, heard(), partition=1)], 121)
    assert pages(turn.outputs)[0].feedback == ()


def test_feedback_without_a_page_is_given_up_when_none_can_come() -> None:
    log = [at(95, heard(time_ms=90))]
    waiting = step(log, 112)
    assert waiting.outputs == []
    assert waiting.wake_at_ms == 113
    assert open_events(waiting.state) == ["0:95"]
    given_up = step(log, 113)
    assert fates(given_up.outputs) == {"0:95": "orphan no_page"}
    assert given_up.state is None
    assert given_up.wake_at_ms is None


def test_feedback_without_a_page_waits_for_its_own_stamp() -> None:
    assert step([at(200, heard())], 195).outputs == []
    assert fates(step([at(200, heard())], 196).outputs) == {"0:200": "orphan no_page"}


def test_a_closed_page_is_remembered_until_its_last_stamp_has_been_read() -> None:
    rules = structs.replace(RULES, gap_ms=0)
    turn = on_events(rules, None, [at(101, page())])
    while turn.wake_at_ms is not None and turn.wake_at_ms < 151:
        assert turn.state is not None
        turn = on_watermark(rules, turn.state, turn.wake_at_ms)
    assert turn.wake_at_ms == 151  # stamps until 155 have been read then
    assert turn.state is not None
    assert open_events(turn.state) == []
    assert fates(on_events(rules, turn.state, [at(155, heard())]).outputs) == {"0:155": "late transport"}
    assert on_watermark(rules, turn.state, 151).state is None


def test_a_late_impression_alone_leaves_no_state() -> None:
    turn = on_events(RULES, None, [at(126, page())])
    assert (turn.state, turn.wake_at_ms) == (None, None)
