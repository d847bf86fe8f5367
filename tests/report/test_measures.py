"""What a run has come to: every figure against one that is known by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from model_export.checks import CANARY, Check, Trace
from pageturn.measures import measure, rows
from pageturn.measuring.buckets import PER_SESSION, PER_VISIT, SECOND_HALF, WHOLE
from pageturn.measuring.parts import Life
from pageturn.measuring.rows import verdict
from pageturn.supervisor import PartEvent
from pageturn.table import render
from pageturn.traffic_log import AskedPage
from pipeline.durable import exclusive
from pipeline.logs.log import DEAD_LETTERS, EVENTS, LATE, TRANSITIONS
from pipeline.records import DeadLetter, Fate, SetAside
from pipeline.simulation.outcomes import Outcome, clustered


def page(number: int, by: str | None, **fields: Any) -> AskedPage:
    values = {"time_ms": 1_700_000_000_000 + 1000 * number, "request_id": f"r{number}", "wait_ms": 5.0}
    return AskedPage(**(values | {"decided_by": by} | fields))


def test_a_folder_with_nothing_in_it_measures_nothing(made: Any):
    found = measure(made.run)
    absent = (found.comparison, found.asked, found.counts, found.accounting)
    assert absent == (None,) * 4
    for each in (found.verdicts, found.freshness, found.actions, found.learning, found.parts):
        assert each == ()
    assert found.began_ms == found.ended_ms == made.run.record.created_ms
    assert render(rows(found)).startswith("versions of rl_a")
    assert verdict(found.comparison) == "There is nothing to compare yet."


# Buckets ---------------------------------------------------------------------------------------------------------


def test_buckets_are_compared_over_the_whole_run_and_its_second_half(made: Any):
    made.visits("control", 1.0, 2.0, None, 3.0)  # at 0, 10, 20, 30 s; the middle of the run is at 20 s
    made.visits("rl_a", 5.0, 5.5, 6.0, 7.0, 8.0)  # at 0 ... 40 s
    made.visits("rl_b", 4.0)
    found = measure(made.run).comparison
    control, rl_a, _ = found.buckets
    assert (control.learned, rl_a.learned) == (False, True)
    assert (control.users, control.whole.visits, control.whole.sessions) == (4, 4, 3)
    assert control.whole.visit_reward.mean == 1.5
    assert (control.whole.reward.mean, control.whole.exposure.mean) == (2.0, 0.75)
    assert control.second_half.reward.mean == 3.0
    assert rl_a.second_half.reward == clustered([6.0, 7.0, 8.0], list("abc"))
    lifts = {(lift.policy, lift.period, lift.measure): lift for lift in found.lifts}
    assert lifts[None, WHOLE, PER_VISIT].absolute.mean == pytest.approx((31.5 + 4) / 6 - 1.5)
    assert lifts[None, WHOLE, PER_SESSION].absolute.mean == pytest.approx((31.5 + 4) / 6 - 2)
    assert lifts["rl_a", SECOND_HALF, PER_SESSION].absolute.mean == 7.0 - 3.0
    assert (lifts[None, WHOLE, PER_VISIT].users, lifts[None, WHOLE, PER_SESSION].users) == (4, 3)


SOME = (1.0, 1.2, 0.8, 1.1, 0.9)


def test_one_comparison_carries_the_conclusion(made: Any):
    made.visits("control", *SOME * 8)
    made.visits("rl_a", *[reward + 3 for reward in SOME * 4])
    made.visits("rl_b", *[reward + 2 for reward in SOME * 4])
    found = measure(made.run).comparison
    primary = found.lifts[0]
    assert primary is found.primary
    assert (primary.policy, primary.period, primary.measure, primary.users) == (None, WHOLE, PER_VISIT, 40)
    assert primary.absolute.mean == pytest.approx(2.5)
    assert primary.relative.mean == pytest.approx(2.5)
    assert [lift.conclusion for lift in found.lifts if lift.conclusion] == ["better: the interval leaves zero out"]
    assert verdict(found).startswith("The learned buckets are ahead of the baseline: +2.50 [")
    assert "+2.50" in verdict(found)
    assert "reward per visit" in verdict(found)


def test_sessions_without_an_end_are_told_by_bucket(made: Any):
    made.visits("control", 1.0, 2.0)
    made.visits("rl_a", 5.0, None)
    users = [
        made.user(bucket).removeprefix("user-") for bucket in ("control", "control", "rl_a", "rl_a", "rl_a", "rl_b")
    ]
    requests = [f"sim-7-{user}-0-0" for user in users] + [f"sim-7-{users[0]}-0-1", f"sim-7-{users[0]}-0-10", "r-0"]
    made.asked(*(AskedPage(made.start_ms, name, 5.0) for name in requests))
    told = render(rows(measure(made.run)))
    assert re.search(r"sessions without an end, not counted +0 +2 +1\n", told), told


def test_a_policy_that_drives_users_away_is_not_ahead(made: Any):
    """Those who are left bring more per session; but there are half as many sessions."""
    made.visits("control", *SOME * 8)
    made.visits("rl_a", *[each for reward in SOME * 4 for each in (reward + 0.5, None)])
    measures = measure(made.run)
    lifts = {(lift.policy, lift.period, lift.measure): lift for lift in measures.comparison.lifts}
    assert lifts[None, WHOLE, PER_SESSION].absolute.low > 0.3
    assert lifts[None, WHOLE, PER_VISIT].absolute.mean == pytest.approx(1.5 / 2 - 1)
    assert lifts[None, WHOLE, PER_VISIT].absolute.high < 0
    assert measures.comparison.primary.finding == "worse"
    assert verdict(measures.comparison).startswith("The learned buckets are behind the baseline: -0.25 [")
    table = render(rows(measures))
    assert "worse: the interval leaves zero out" in table
    assert "better" not in table


def test_a_difference_that_may_be_none_is_called_so(made: Any):
    made.visits("control", *[1.0, 9.0, 2.0, 8.0] * 10)
    made.visits("rl_a", *[2.0, 9.5, 2.0, 8.0] * 10)
    lift = measure(made.run).comparison.primary
    assert lift.conclusion == "not shown yet: the interval covers zero"


@pytest.mark.parametrize(("users", "conclusion"), [(29, "too few users to tell"), (30, "better: the")])
def test_nothing_is_concluded_from_few_users(made: Any, users: int, conclusion: str):
    made.visits("control", *(SOME * 8)[:users])
    made.visits("rl_a", *[reward + 9 for reward in SOME * 8])
    lift = measure(made.run).comparison.primary
    assert lift.absolute.low > 0
    assert lift.conclusion.startswith(conclusion)


def test_a_run_that_is_up_is_told_from_one_that_is_over(made: Any):
    made.visits("control", *SOME * 8)
    made.visits("rl_a", *SOME * 8)
    over = measure(made.run)
    with exclusive(made.run.folder):
        up = measure(made.run)
    assert (over.up, up.up) == (False, True)
    assert "in progress" not in render(rows(over)) + verdict(over.comparison, over.up)
    assert "in progress" in render(rows(up))
    assert "in progress" in verdict(up.comparison, up.up)


def test_visits_of_one_user_are_one_draw(made: Any):
    made.visits("control", 1.0, 2.0)
    user = made.user("rl_a")
    for number in range(4):
        made.visit(Outcome(user, True, True, 1, 1, 0, 1.0, 5.0 + number), made.start_ms)
    made.visits("rl_b", *SOME * 8)
    made.visits("control", *SOME * 8)
    found = measure(made.run).comparison
    assert found.primary.users == 41
    (lift,) = [each for each in found.lifts if (each.policy, each.measure) == ("rl_a", PER_VISIT)][:1]
    assert (lift.users, lift.finding) == (1, "unknown")


def test_reward_over_time_is_binned_by_the_end_of_visits(made: Any):
    made.visits("control", *[1.0] * 10, *[2.0] * 10, every_s=15)
    found = measure(made.run).comparison.buckets[0].over_time
    assert found.bins.width_ms == 10_000
    means = [each.mean for each in found.reward]
    assert (means[0], means[-1]) == (1.0, 2.0)
    assert means[2] != means[2]  # nobody left between 20 and 30 s


# Pages as asked for ----------------------------------------------------------------------------------------------


def test_who_decided_and_how_long_it_took(made: Any):
    made.asked(
        page(0, "policy", bucket="rl_a", wait_ms=2.0),
        page(1, "fallback", bucket="rl_b", reason="unavailable", wait_ms=4.0),
        page(2, "baseline", bucket="control", wait_ms=3.0),
        page(7, None, trouble="UNAVAILABLE", wait_ms=250.0, user_id=made.user("control")),
    )
    found = measure(made.run).asked
    assert (found.pages, found.answered, found.unanswered) == (4, 3, 1)
    assert found.decided_by == {"policy": 1, "fallback": 1, "baseline": 1}
    assert (found.reasons, found.troubles) == ({"unavailable": 1}, {"UNAVAILABLE": 1})
    assert found.policy_share == 0.5
    assert (found.wait_ms.n, found.wait_ms.p50) == (3, 3.0)
    assert found.deciders.pages["fallback: unavailable"] == (1, 0)
    assert found.deciders.pages["no answer"] == (0, 1)
    assert found.deciders.p50_ms == (3.0, None)


def test_an_outage_shows_in_the_share_of_the_policy(made: Any):
    """Nobody says of an unanswered page in which bucket it would have been: its user does."""
    numbers = {name: made.user(name).removeprefix("user-") for name in ("control", "rl_b")}
    made.asked(
        page(0, "policy", bucket="rl_a"),
        page(1, "policy", bucket="rl_b"),
        page(2, "baseline", bucket="control"),
        page(3, None, user_id=made.user("rl_a")),
        page(4, None, user_id=made.user("control")),
        page(5, None, request_id=f"sim-x-{numbers['rl_b']}-0-3"),  # of a record that does not name its user
        page(6, None, request_id=f"sim-x-{numbers['control']}-0-3"),
        page(7, None, request_id="nobody's"),
    )
    found = measure(made.run).asked
    assert (found.learned, found.learned_by_policy, found.policy_share) == (5, 2, 0.4)


# The log ---------------------------------------------------------------------------------------------------------


def test_every_acknowledged_event_is_found_wherever_it_is(made: Any):
    events = [made.feedback("p", f"e{number}", 1) for number in range(6)]
    made.asked(page(0, "policy", request_id="p"), page(1, "policy", request_id="q"))
    made.append(EVENTS, *events[:5], made.impression("q"))
    made.closed(made.page(made.impression("p"), events[0]))
    made.append(LATE, SetAside("0:1", Fate.LATE, "transport", 1, events[1]))
    made.append(DEAD_LETTERS, DeadLetter("0:2", "schema_version", "", 1, "s", made_raw(events[2])))
    made.snapshot(4, events[3])
    made.acknowledged(*events[:5])
    found = measure(made.run).accounting
    assert (found.acknowledged, found.missing) == (5, 0)
    assert (found.answered, found.lost) == (2, 0)


def test_what_is_nowhere_is_missing(made: Any):
    events = [made.feedback("p", f"e{number}", 1) for number in range(3)]
    made.asked(page(0, "policy", request_id="p"), page(1, "policy", request_id="q"), page(2, None, request_id="r"))
    made.append(EVENTS, *events)
    made.closed(made.page(made.impression("p"), events[0]))
    made.append(DEAD_LETTERS, DeadLetter("0:2", "malformed", "", 1, "s", b"\xff{"))
    made.snapshot(2, made.feedback("s", "another", 1))
    made.acknowledged(*events)
    found = measure(made.run)
    assert (found.accounting.acknowledged, found.accounting.missing) == (3, 1)  # e0 joined, e2 not read yet
    assert (found.accounting.answered, found.accounting.lost) == (2, 1)
    assert "they should be somewhere" in render(rows(found))


def made_raw(event: Any) -> bytes:
    from pipeline.events import encode

    return encode(event).replace(b'"schema_version":1', b'"schema_version":99')


def test_actions_are_shares_of_the_pages_of_a_time(made: Any):
    pages = [made.page(made.impression(f"p{n}", n, action)) for n, action in enumerate([0.5, 0.5, 1.5, 1.5])]
    made.closed(*pages, made.page(made.impression("b", 9, None, "baseline")))
    (found,) = measure(made.run).actions
    assert (found.policy, found.dimension, found.baseline, found.pages) == ("rl_a", "a", 1.0, 4)
    assert found.executed.median == (1.0,)
    assert found.mean.median == (1.0,)
    assert sum(found.executed.shares[0]) == pytest.approx(1.0)
    assert max(found.executed.shares[0]) == 0.5


def rounds_of(made: Any, size: int, *, first: int = 1) -> None:
    """The trainer's: four updates after each, from the first on that has enough for a batch."""
    for number in range(1, 9):
        updates = 4 * max(number - first + 1, 0)
        made.learned({"time_ms": number, "transitions": number * size, "updates": updates})


# Freshness -------------------------------------------------------------------------------------------------------


def test_freshness_goes_to_the_first_version_that_learned_from_a_page(made: Any):
    """Pages close at 5, 15, 25 and 35 s."""
    shown = [made.impression(f"p{n}", 10 * n, 1.0) for n in range(4)]
    made.closed(*(made.page(each, made.feedback(each.request_id, f"c{n}", 10 * n + 1)) for n, each in enumerate(shown)))
    made.verdict(0, "accepted", tier="bootstrap", version=1)
    made.verdict(20, "accepted", version=2, last_transition="p1@1", updates=8)
    made.verdict(24, "refused", reason="drift", last_transition="p2@1", updates=12)
    made.verdict(30, "accepted", version=3, last_transition="p2@1", updates=12)
    rounds_of(made, 1)
    (found,) = measure(made.run).freshness
    assert (found.policy, found.page_s.n, found.click_s.n, found.waiting) == ("rl_a", 3, 3, 1)
    assert found.page_s.p50 == 5.0  # 15, 5 and 5 s
    assert found.click_s.p50 == 9.0  # 19, 9 and 9 s
    assert sum(found.pages.counts) >= 2


def test_the_time_until_served_is_split_by_what_it_went_to(made: Any):
    """A page at 0 s, clicked on at 1 s, closes at 5 s; its version is exported at 12 s and served at 20 s."""
    shown = made.impression("p0", 0, 1.0)
    made.closed(made.page(shown, made.feedback("p0", "c0", 1)))
    at = [made.start_ms + 1000 * second for second in (12, 13, 15, 18)]
    made.verdict(20, "accepted", version=2, last_transition="p0@1", updates=4, trace=Trace(*at))
    rounds_of(made, 1)
    (found,) = measure(made.run).freshness
    spent = {stage: quantiles.p50 for stage, quantiles in found.stages_s.items()}
    joined_s = spent["join"]
    split = {"window": 4.0, "join": joined_s, "train": 7.0 - joined_s, "check": 1.0, "publish": 4.0, "load": 3.0}
    assert spent == pytest.approx(split)
    assert sum(spent.values()) == pytest.approx(found.click_s.p50) == 19.0
    assert "  load                " in render(rows(measure(made.run)))


def test_what_is_tried_on_a_share_is_served_when_it_is_promoted(made: Any):
    shown_at_once(made, 2)
    rounds_of(made, 1)
    at = [made.start_ms + 1000 * second for second in (12, 13, 15, 18)]
    made.verdict(20, "accepted", version=2, last_transition="p1@1", updates=8, trace=Trace(*at), reason=CANARY)
    assert measure(made.run).freshness == ()
    made.verdict(50, "promoted", version=2, tier="live")
    (found,) = measure(made.run).freshness
    assert (found.page_s.p50, found.stages_s["publish"].p50, found.stages_s["canary"].p50) == (45.0, 4.0, 30.0)


def shown_at_once(made: Any, count: int) -> None:
    """Pages that close at 5 s."""
    made.closed(*(made.page(made.impression(f"p{n}", 0, 1.0)) for n in range(count)))


def test_a_page_that_came_after_the_last_round_is_in_the_next_version(made: Any):
    """Rounds of two: the version at 20 s had ingested three pages and learned from two."""
    shown_at_once(made, 5)
    made.verdict(20, "accepted", version=2, last_transition="p2@1", updates=4)
    made.verdict(30, "accepted", version=3, last_transition="p4@1", updates=8)
    rounds_of(made, 2)
    (found,) = measure(made.run).freshness
    assert (found.page_s.n, found.waiting) == (4, 1)
    assert (found.page_s.p50, found.page_s.p90) == (20.0, 25.0)  # 15, 15, 25 and 25 s


@pytest.mark.parametrize("updates", [0, None])
def test_a_version_without_an_update_has_learned_from_nothing(made: Any, updates: int | None):
    """Whether its verdict says so, or was written before verdicts did."""
    shown_at_once(made, 4)
    made.verdict(20, "accepted", version=2, last_transition="p1@1", updates=updates)
    rounds_of(made, 1, first=3)
    assert measure(made.run).freshness == ()
    made.verdict(40, "accepted", version=3, last_transition="p3@1", updates=8 if updates == 0 else None)
    (found,) = measure(made.run).freshness
    assert (found.page_s.n, found.page_s.p50, found.waiting) == (4, 35.0, 0)


def test_a_version_of_whose_updates_nothing_is_known_is_in_no_figure(made: Any):
    shown_at_once(made, 2)
    made.verdict(20, "accepted", version=2, last_transition="p1@1", updates=8)
    assert measure(made.run).freshness == ()


def test_a_transition_that_the_trainer_cannot_learn_from_waits_for_nothing(made: Any):
    shown = [made.impression("p0", 0, 1.0), made.impression("p1", 1, None, "fallback"), made.impression("p2", 2, 1.0)]
    made.closed(*(made.page(each) for each in shown))
    made.append(TRANSITIONS, made.transition(shown[2]))  # a copy
    made.append(DEAD_LETTERS, DeadLetter("transitions/0:0", "feature", "", 1, "s", b"x"))
    made.verdict(20, "accepted", version=2, last_transition="p2@1", updates=4)
    rounds_of(made, 1)
    (found,) = measure(made.run).freshness
    assert (found.page_s.n, found.page_s.p50, found.waiting) == (1, 13.0, 0)


def test_a_trainer_that_began_anew_is_behind_for_a_while(made: Any):
    shown_at_once(made, 3)
    rounds_of(made, 1)
    for time_s, last, updates in ((10, "p1@1", 8), (20, "p0@1", 4), (30, "p2@1", 12)):
        made.verdict(time_s, "accepted", version=2, last_transition=last, updates=updates)
    (found,) = measure(made.run).freshness
    assert (found.page_s.n, found.page_s.p50) == (3, 5.0)  # 5, 5 and 25 s


# The rest --------------------------------------------------------------------------------------------------------


def test_versions_on_insufficient_evidence_are_counted_apart(made: Any):
    made.verdict(0, "accepted", tier="bootstrap", version=1)
    made.verdict(1, "accepted", version=2, evidence="no_baseline_yet")
    made.verdict(2, "accepted", version=3)
    made.verdict(3, "accepted", version=4)
    made.verdict(4, "refused", reason="drift")
    made.verdict(5, "kept", reason="frozen")
    made.verdict(6, "superseded", reason="superseded", evidence=None)
    rl_a, rl_b = measure(made.run).versions
    assert (rl_a.accepted, rl_a.on_insufficient_evidence) == (3, 3)
    assert rl_a.evidence == {"no_baseline_yet": 1, "not_enough_evidence": 2}
    assert (rl_a.refused, rl_a.kept, rl_a.superseded) == ({"drift": 1}, {"frozen": 1}, 1)
    assert rl_b.accepted == 0


def test_versions_that_learned_nothing_and_policies_that_have_not_moved_are_told(made: Any):
    made.verdict(0, "accepted", tier="bootstrap", version=1)
    for number, (updates, moved) in enumerate(
        [(0, 0.0), (0, 0.0), (16, 0.0), (16, 0.0), (32, 0.04), (4, 0.0), (8, 0.1)]
    ):
        made.verdict(1 + number, "accepted", version=2 + number, updates=updates, moved=moved)
    made.verdict(20, "refused", reason="drift", updates=90, moved=0.5)
    measures = measure(made.run)
    rl_a, rl_b = measures.versions
    assert (rl_a.accepted, rl_a.updated, rl_a.moved, rl_a.distance) == (7, 4, 2, 0.1)
    assert (rl_b.updated, rl_b.moved, rl_b.distance) == (0, 0, None)
    assert "2 (the last by 10.0% of the range, on average)" in render(rows(measures))


def test_older_verdicts_say_how_far_a_policy_is_from_the_first_version(made: Any):
    def verdict_with(time_s: int, value: float, certified: int) -> None:
        check = Check("total_change", value, 0.5, True, 32, "<= 0.5")
        made.verdict(time_s, "accepted", version=time_s, certified=certified, checks=(check,))

    verdict_with(2, 0.0, 1)
    verdict_with(3, 0.02, 1)
    rl_a, _ = measure(made.run).versions
    assert (rl_a.accepted, rl_a.updated, rl_a.moved, rl_a.distance) == (2, None, 1, 0.02)
    verdict_with(4, 0.3, 3)  # from another version: of the baseline it says nothing
    rl_a, _ = measure(made.run).versions
    assert (rl_a.moved, rl_a.distance) == (None, 0.02)


def test_rounds_done_again_after_a_kill_are_one_row(made: Any):
    made.learned(*({"time_ms": t, "transitions": n, "updates": n // 4} for t, n in [(1, 64), (2, 128), (9, 128)]))
    with (made.run.trainer / "metrics.jsonl").open("ab") as file:
        file.write(b'{"time_ms": 10, "transitions": 19')  # on its way to the disk
    found = measure(made.run)
    assert [(row["time_ms"], row["transitions"]) for row in found.learning] == [(1, 64), (2, 128)]
    assert found.updates == 32


def test_parts_live_until_they_end_or_start_again(made: Any):
    made.parts(
        PartEvent(1, "agent", "started", 11),
        PartEvent(5, "agent", "ended", 11, -9),
        PartEvent(6, "agent", "started", 12),
        PartEvent(7, "stream", "started", 13),
    )
    assert measure(made.run).parts == (
        Life("agent", 1, 5, -9),
        Life("agent", 6, None),
        Life("stream", 7, None),
    )
