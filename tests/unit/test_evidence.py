"""Units from transitions, and what they say about a policy's bucket."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.evaluation.evidence import Epoch, Plan, evidence
from model_export.evaluation.units import SeenDecision, SeenPage, SeenSample, Unit, Units, Window, rate_of
from pipeline.config.schema import (
    ActionDimension,
    Bucket,
    Buckets,
    Certification,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Reward,
    Stream,
)
from pipeline.events import decode, encode
from pipeline.records import DecidedBy, Decision, Ending, Impression, Item, Labels, Page, State, Transition

START_MS = 1_000_000
WINDOW = Window(START_MS, 100_000, 10_000, True, frozenset({"rl", "control"}))


def page(
    user: str, at_s: float, reward: float = 1.0, *, bucket: str = "rl", by: str = "policy", **more: Any
) -> SeenPage:
    fields = {"request_id": f"{user}-{at_s}", "session_id": f"s-{user}", **more}
    time_ms = START_MS + int(1000 * at_s)
    return SeenPage(
        user_id=user, time_ms=time_ms, decision=SeenDecision(DecidedBy(by), bucket), reward=reward, **fields
    )


def settled(pages: list[SeenPage], upto_s: float, window: Window = WINDOW) -> tuple[list[Unit], Units]:
    units = Units(window)
    for seen in pages:
        units.take(0, seen)
    units.take(0, page("somebody", upto_s, bucket="elsewhere"))
    return units.settle(), units


# Units -----------------------------------------------------------------------------------------------------------


def test_a_user_counts_once_with_what_it_earned_within_the_horizon() -> None:
    pages = [page("u", 5, 1.0), page("u", 20, 2.0, session_id="s-2"), page("u", 104.999, 4.0), page("u", 105, 8.0)]
    found, _ = settled(pages, 300)
    assert found == [Unit(START_MS + 5_000, "rl", 7.0, 3, 0)]


def test_a_unit_settles_exactly_when_its_horizon_and_the_delay_are_over() -> None:
    assert settled([page("u", 5)], 114.999)[0] == []
    assert len(settled([page("u", 5)], 115)[0]) == 1


def test_units_settle_in_the_order_of_their_first_pages_however_they_come() -> None:
    pages = [page("a", 30), page("b", 10), page("c", 20), page("a", 5)]
    for order in (pages, pages[::-1]):
        assert [unit.first_ms - START_MS for unit in settled(order, 500)[0]] == [5_000, 10_000, 20_000]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 300)), max_size=30), st.data())
def test_units_are_what_their_pages_say_in_whatever_order_those_come(
    pages: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Settled in several steps as in one, and as by looking at all pages at once."""
    seen = [page(user, at_s, at_s / 7, by="policy" if at_s % 3 else "fallback") for user, at_s in pages]
    units, found = Units(WINDOW), []
    for each in data.draw(st.permutations(seen)):
        units.take(0, each)
    for upto_s in sorted({*data.draw(st.lists(st.integers(300, 500), max_size=3)), 500}):
        units.take(0, page("somebody", upto_s, bucket="elsewhere"))
        found += units.settle()
    expected = []
    for user in {user for user, _ in pages}:
        times = {at_s for name, at_s in pages if name == user}
        counted = [at_s for at_s in times if at_s < min(times) + 100]
        first_ms, odd = START_MS + 1_000 * min(times), sum(at_s % 3 == 0 for at_s in counted)
        expected.append((first_ms, user, len(counted), pytest.approx(sum(counted) / 7), odd))
    expected.sort(key=lambda unit: unit[:2])
    assert [(unit.first_ms, unit.pages, unit.reward, unit.fallbacks) for unit in found] == [
        (first_ms, *rest) for first_ms, _, *rest in expected
    ]
    assert units.late == 0


def test_the_slowest_partition_says_what_must_have_been_seen() -> None:
    units = Units(WINDOW)
    units.take(0, page("u", 5))
    units.take(1, page("v", 50, bucket="elsewhere"))
    units.take(0, page("w", 900, bucket="elsewhere"))
    assert units.settle() == []
    units.take(1, page("x", 200, bucket="elsewhere"))
    assert len(units.settle()) == 1


def test_what_comes_again_changes_nothing() -> None:
    found, units = settled([page("u", 5), page("u", 5)], 300)
    assert (found[0].reward, found[0].pages, units.late) == (1.0, 1, 0)


def test_a_unit_of_very_many_pages_holds_nobody_up() -> None:
    """A crawler, or all who are not signed in: with a look at all of its pages for each it would be a minute."""
    begun_s = time.process_time()
    pages = [page("crawler", 5, request_id=f"p-{n}") for n in range(40_000)]
    found, _ = settled([*pages, *pages], 300)
    assert found == [Unit(START_MS + 5_000, "rl", 40_000.0, 40_000, 0)]
    assert time.process_time() - begun_s < 10


def test_what_comes_too_late_is_counted_and_does_not_change_a_settled_unit() -> None:
    _, units = settled([page("u", 5)], 300)
    units.take(0, page("u", 6))
    units.take(0, page("v", 7))
    units.take(0, page("u", 110))  # beyond its horizon: no loss
    units.take(0, page("w", 600, bucket="elsewhere"))
    assert units.settle() == []
    assert units.late == 2


def test_pages_before_the_epoch_and_of_other_buckets_do_not_count() -> None:
    pages = [page("u", -1), page("v", 5, bucket="rl_b"), page("w", 6, bucket="control")]
    assert [unit.bucket for unit in settled(pages, 300)[0]] == ["control"]


def test_fallbacks_are_counted_and_stay_in() -> None:
    found, _ = settled([page("u", 5, by="fallback"), page("u", 6)], 300)
    assert (found[0].pages, found[0].fallbacks, found[0].reward) == (2, 1, 2.0)


def test_where_sessions_are_hashed_a_session_is_a_unit() -> None:
    window = Window(START_MS, 100_000, 10_000, False, frozenset({"rl"}))
    found, _ = settled([page("u", 5), page("u", 6, session_id="s-2")], 300, window)
    assert len(found) == 2


def test_a_transition_is_read_as_far_as_it_is_needed() -> None:
    decision = Decision(DecidedBy.POLICY, "rl", "rl-bucket")
    made = Transition("r@1", "r", "u", "s", 7, 0, State(), decision, 2.5, "1", 0.0, None, Ending.LEAVE)
    seen = decode(encode(made), SeenPage)
    assert (seen.user_id, seen.reward, seen.decision.bucket, seen.decision.decided_by) == (
        "u", 2.5, "rl-bucket", DecidedBy.POLICY,
    )  # fmt: skip


# Evidence --------------------------------------------------------------------------------------------------------


def make_config(**certification: Any) -> FeatureConfig:
    return FeatureConfig(
        schema_version=1,
        name="feed",
        kv_prefix="fd",
        features=(Dense(name="age", source="user.age"),),
        fusion=PayPlusAPhi(phi=0.1),
        action=(ActionDimension(name="a", baseline=1.0, range=(0.0, 2.0)),),
        reward=Reward(weights={"click": 1.0}),
        algorithm=Ddpg(gamma=0.9),
        policies=(Policy("base", "baseline"), Policy("rl", "learned"), Policy("other", "learned")),
        buckets=Buckets(
            salt="s",
            assign=(Bucket("c", "base", (0, 49)), Bucket("r", "rl", (50, 74)), Bucket("o", "other", (75, 99))),
        ),
    )


def plan(**rules: Any) -> Plan:
    return Plan.of(make_config(), "rl", Certification(**{"unit_reward": (-2.0, 10.0), **rules}))


def crowd(
    ours: float, theirs: float, count: int = 6_000, *, share: float = 1 / 3, fallbacks: int = 0, spread: float = 1.0
) -> list[Unit]:
    rng = np.random.default_rng(3)
    treated = rng.random(count) < share
    rewards = np.where(treated, ours, theirs) + rng.normal(0, spread, count)
    return [
        Unit(i, "r" if t else "c", float(r), 4, fallbacks if t else 0)
        for i, (t, r) in enumerate(zip(treated, rewards, strict=True))
    ]


def test_a_plan_compares_a_policys_slots_with_those_of_the_baseline() -> None:
    made = plan()
    assert (made.ours, made.theirs, made.share) == ({"r"}, {"c"}, pytest.approx(1 / 3))


def test_a_better_bucket_is_certified_with_its_numbers() -> None:
    found = evidence(plan(), Epoch(1, 77), crowd(2.5, 2.0))
    assert (found.conclusion, found.reason) == ("certified", "better")
    assert found.difference.low is not None
    assert found.difference.low > 0
    assert found.difference.mean == pytest.approx(0.5, abs=0.1)
    assert (found.epoch, found.started_ms, found.alpha) == (1, 77, pytest.approx(0.025))
    assert found.policy.mean == pytest.approx(2.5, abs=0.1)
    assert found.policy.units + found.baseline.units == 6_000


def test_a_worse_bucket_ends_its_epoch() -> None:
    assert evidence(plan(), Epoch(), crowd(1.5, 2.0)).conclusion == "ended"


def test_the_same_difference_is_not_enough_among_few_and_in_a_late_epoch() -> None:
    few = evidence(plan(), Epoch(), crowd(2.2, 2.0, 600))
    assert (few.conclusion, few.reason) == ("not_enough", "interval")
    late = evidence(plan(), Epoch(10_000), crowd(2.5, 2.0, 1_500))
    early = evidence(plan(), Epoch(1), crowd(2.5, 2.0, 1_500))
    assert (late.conclusion, early.conclusion) == ("not_enough", "certified")


def test_of_no_units_nothing_is_known() -> None:
    found = evidence(plan(), Epoch(), [])
    assert (found.conclusion, found.reason) == ("not_enough", "no_units")
    assert found.difference.low is None


def test_a_certificate_may_ask_for_more_than_any_gain() -> None:
    assert evidence(plan(certify_above=0.5), Epoch(), crowd(2.5, 2.0)).conclusion == "not_enough"
    assert evidence(plan(certify_above=0.1), Epoch(), crowd(2.5, 2.0)).conclusion == "certified"


def test_exploring_may_cost_its_budget_and_no_more() -> None:
    assert evidence(plan(budget=0.5), Epoch(), crowd(1.5, 2.0)).conclusion == "not_enough"
    assert evidence(plan(budget=0.1), Epoch(), crowd(1.5, 2.0)).conclusion == "ended"


def test_of_a_baseline_that_loses_a_lift_means_nothing() -> None:
    """-0.9 against -1: better, though its mean is below 1.5 times the baseline's, and above 0.5 times."""
    assert evidence(plan(), Epoch(), crowd(-0.5, -1.0, spread=0.2)).conclusion == "certified"
    assert evidence(plan(budget=0.5), Epoch(), crowd(-0.9, -1.0, spread=0.2)).conclusion != "ended"
    assert evidence(plan(certify_above=0.5), Epoch(), crowd(-1.0, -1.0, spread=0.2)).conclusion == "not_enough"


def test_rewards_outside_the_range_are_cut_and_counted() -> None:
    found = evidence(plan(), Epoch(), [Unit(0, "r", 99.0, 1, 0), Unit(1, "c", -99.0, 1, 0), Unit(2, "c", 1.0, 1, 0)])
    assert (found.policy.mean, found.policy.cut) == (10.0, 1)
    assert (found.baseline.mean, found.baseline.cut) == (-0.5, 1)


@pytest.mark.parametrize(
    ("units", "late", "reason"),
    [
        (crowd(2.5, 2.0, share=0.4), 0, "sample_ratio"),
        (crowd(2.5, 2.0, fallbacks=1), 0, "fallbacks"),
        (crowd(2.5, 2.0), 400, "late_pages"),
    ],
    ids=["sample_ratio", "fallbacks", "late_pages"],
)
def test_trouble_with_the_measurement_stands_in_the_way_of_a_certificate(
    units: list[Unit], late: int, reason: str
) -> None:
    found = evidence(plan(), Epoch(), units, late)
    assert (found.conclusion, found.reason) == ("not_enough", reason)


def test_trouble_does_not_stand_in_the_way_of_an_end() -> None:
    assert evidence(plan(), Epoch(), crowd(1.0, 2.0, fallbacks=1), late=9_999).conclusion == "ended"


@pytest.mark.parametrize("epoch", [Epoch(), Epoch(2, served_before=True)], ids=["means", "totals"])
@pytest.mark.parametrize("bucket", ["r", "c"])
def test_where_one_side_has_no_units_nothing_ends(epoch: Epoch, bucket: str) -> None:
    """The contrast of a side with nobody is far from zero: events are lost, or agents do not know the bucket yet."""
    reward, clicked = (-2.0, 0.0) if bucket == "r" else (2.0, 1.0)
    units = [Unit(i, bucket, reward, 4, 0) for i in range(2_000)]
    clicks = [Unit(i, "c", clicked, 4, 0) for i in range(2_000)]
    found = evidence(plan(click_budget=0.1), epoch, units, rated={"clicks": clicks})
    assert found.difference.high < 0
    assert (found.conclusion, found.reason) == ("not_enough", "no_units")


# Who comes at all ------------------------------------------------------------------------------------------------


def kept(more: int, reward: float, *, bucket: str = "r", ours: float = 2.0, spread: float = 1.0) -> list[Unit]:
    """The baseline's bring 2, the policy's `ours`, and in one of the buckets there are so many more who bring this."""
    units = crowd(ours, 2.0, spread=spread) + [Unit(0, bucket, reward, 4, 0)] * more
    return [units[i] for i in np.random.default_rng(4).permutation(len(units))]


SERVED = Epoch(2, served_before=True)


def test_users_whom_the_policy_has_kept_count_for_it_and_not_against() -> None:
    units = kept(1_000, 0.5)
    assert evidence(plan(), Epoch(2), units).conclusion == "ended"
    found = evidence(plan(), SERVED, units)
    assert found.conclusion == "certified"
    assert found.policy.mean is not None
    assert found.baseline.mean is not None
    assert found.policy.mean < found.baseline.mean
    assert found.mismatch > 10  # other shares than the slots': the policy's doing


def test_users_whom_the_policy_has_lost_count_against_it_and_not_for() -> None:
    units = kept(3_000, 1.0, bucket="c")
    assert evidence(plan(), Epoch(2), units).reason == "sample_ratio"
    assert evidence(plan(), SERVED, units).conclusion == "ended"


def test_means_end_nothing_that_totals_do_not_agree_with() -> None:
    units = kept(400, 0.5)
    assert evidence(plan(), Epoch(2), units).conclusion == "ended"
    found = evidence(plan(), SERVED, units)
    assert found.totals is not None
    assert found.difference.high < 0 < found.totals.difference.mean
    assert (found.conclusion, found.reason) == ("not_enough", "sample_ratio")


def test_means_end_nothing_where_more_users_come_to_the_policy_than_are_hashed_to_it() -> None:
    """By luck the totals of a policy that brings as much in all are below the baseline's for a while."""
    units = kept(250, 0.2, ours=1.85, spread=0.1)
    found = evidence(plan(), SERVED, units)
    assert found.totals is not None
    assert found.difference.high < 0
    assert found.budget.high < 0
    assert found.totals.budget.mean < 0 < found.totals.difference.high
    assert (found.conclusion, found.reason) == ("not_enough", "sample_ratio")


def test_nor_do_they_certify_what_totals_do_not_agree_with() -> None:
    units = kept(400, 1.0, bucket="c", spread=0.1)
    assert evidence(plan(), Epoch(2), units).conclusion == "certified"
    found = evidence(plan(), SERVED, units)
    assert found.totals is not None
    assert found.difference.low > 0 > found.totals.difference.mean
    assert (found.conclusion, found.reason) == ("not_enough", "interval")


def test_where_totals_agree_means_are_enough() -> None:
    better, worse = (evidence(plan(), SERVED, crowd(ours, 2.0, 2_000)) for ours in (2.4, 1.6))
    assert [found.conclusion for found in (better, worse)] == ["certified", "ended"]
    assert better.totals.difference.low < 0 < worse.totals.difference.high
    assert better.alpha == pytest.approx(0.05 / 6 / 2)  # of the second epoch; half for means, half for totals


@pytest.mark.parametrize(
    ("rules", "units", "conclusion"),
    [
        ({"certify_above": 0.15}, kept(350, 2.0, bucket="c", ours=2.4, spread=0.1), "certified"),
        ({"budget": 0.1}, kept(180, 1.65, ours=1.65, spread=0.1), "ended"),
    ],
    ids=["the bar", "the budget"],
)
def test_totals_have_to_agree_to_more_than_a_difference(
    rules: dict[str, float], units: list[Unit], conclusion: str
) -> None:
    assert evidence(plan(**rules), Epoch(2), units).conclusion == conclusion
    assert evidence(plan(), SERVED, units).conclusion == conclusion
    assert evidence(plan(**rules), SERVED, units).conclusion == "not_enough"


def test_nor_is_their_own_difference_enough() -> None:
    more, fewer = kept(3_000, 0.5), kept(3_000, 1.0, bucket="c")
    assert evidence(plan(), SERVED, more).conclusion == "certified"
    assert evidence(plan(certify_above=0.5), SERVED, more).conclusion == "not_enough"
    assert evidence(plan(), SERVED, fewer).conclusion == "ended"
    assert evidence(plan(budget=0.9), SERVED, fewer).conclusion == "not_enough"


def test_of_totals_of_a_baseline_that_loses_a_lift_means_nothing_either() -> None:
    """Above half as much more than a loss, or below half of it, is also who does as the baseline, or better."""
    rules = {"unit_reward": (-2.0, 0.0)}
    same = evidence(plan(certify_above=0.5, **rules), SERVED, crowd(-1.0, -1.0, spread=0.2))
    assert same.totals.gain.low > 0 > same.totals.difference.low
    assert same.conclusion == "not_enough"
    better = evidence(plan(budget=0.5, **rules), SERVED, crowd(-0.9, -1.0, spread=0.2))
    assert better.totals.budget.high < 0 < better.totals.difference.mean
    assert better.conclusion != "ended"


def test_nor_does_a_lift_of_such_a_baseline_make_totals_agree() -> None:
    def shuffled(ours: float, bucket: str, more: int) -> list[Unit]:
        units = crowd(ours, -1.0, spread=0.05) + [Unit(0, bucket, -1.0, 4, 0)] * more
        return [units[i] for i in np.random.default_rng(4).permutation(len(units))]

    worse = evidence(plan(unit_reward=(-2.0, 0.0), budget=0.1), SERVED, shuffled(-1.05, "c", 400))
    assert worse.budget.high < worse.difference.high < 0
    assert worse.totals.budget.mean < 0 < worse.totals.difference.mean
    better = evidence(plan(unit_reward=(-2.0, 0.0), certify_above=0.1), SERVED, shuffled(-0.95, "r", 120))
    assert better.gain.low > better.difference.low > 0
    assert better.totals.gain.mean > 0 > better.totals.difference.mean
    assert [worse.conclusion, better.conclusion] == ["not_enough", "not_enough"]


def test_a_rate_has_as_much_of_alpha_as_the_reward() -> None:
    units = [Unit(0, unit.bucket, float(unit.reward > 2), 4, 0) for unit in crowd(2.2, 2.0)]
    found = evidence(plan(unit_reward=(0.0, 1.0), click_budget=0.0), SERVED, units, rated={"clicks": units})
    (clicks,) = found.rates
    assert (clicks.difference, clicks.totals) == (found.difference, found.totals)
    assert found.alpha == pytest.approx(0.05 / 6 / 2 / 2)


def test_clicks_of_those_who_come_end_nothing_where_more_come_than_are_hashed() -> None:
    units = kept(250, 0.2, ours=1.85, spread=0.1)
    clicks = [Unit(0, unit.bucket, unit.reward / 4, 4, 0) for unit in units]
    found = evidence(plan(click_budget=0.0), SERVED, units, rated={"clicks": clicks})
    (rate,) = found.rates
    assert rate.budget.high < 0
    assert rate.totals is not None
    assert rate.totals.budget.mean < 0 < rate.totals.budget.high
    assert (found.conclusion, found.reason) == ("not_enough", "sample_ratio")


def test_no_policy_decides_which_sessions_there_are() -> None:
    config = make_config()
    by_session = msgspec.structs.replace(config, buckets=msgspec.structs.replace(config.buckets, unit="session_id"))
    found = evidence(Plan.of(by_session, "rl", plan().rules), SERVED, kept(1_000, 0.5))
    assert (found.conclusion, found.totals) == ("ended", None)


def test_of_users_who_click_all_count_and_of_what_a_user_is_shown_its_share() -> None:
    """The policy keeps users who never click, and are shown half as many of their pages."""
    rules = plan(click_budget=0.1, exposure_budget=0.1)
    units = [("rc"[i % 3 > 0], False) for i in range(6_000)] + [("r", True)] * 1_000
    units = [units[i] for i in np.random.default_rng(4).permutation(len(units))]
    clicks = [Unit(0, bucket, 0.0 if odd else 1.0, 4, 0) for bucket, odd in units]
    shown = [Unit(0, bucket, 2.0 if odd else 4.0, 4, 0) for bucket, odd in units]
    found = evidence(rules, SERVED, [], rated={"clicks": clicks, "exposure": shown})
    clicked, exposed = found.rates
    assert clicked.difference.mean == pytest.approx(-1 / 3, abs=0.03)
    assert clicked.totals is not None
    assert clicked.totals.difference.mean == pytest.approx(0, abs=0.01)
    assert (exposed.difference.mean, exposed.totals) == (pytest.approx(-1 / 6, abs=0.02), None)
    assert found.reason == "exposure"


def test_the_delay_covers_the_last_page_of_a_visit() -> None:
    window = Window.of(make_config(), 5, 7, ("r",))
    stream = Stream()
    assert window.delay_ms >= stream.attribution.order + stream.session_gap + stream.clock_skew
    assert (window.start_ms, window.horizon_ms, window.by_user, window.buckets) == (5, 7, True, {"r"})


# Rates -----------------------------------------------------------------------------------------------------------


def sample(*, clicks: int = 0, shown: bool = True) -> SeenSample:
    """As the log has it."""
    decision = Decision(DecidedBy.POLICY, "rl", "r")
    impression = Impression(1, "r1", "u", "s", START_MS, 0, (Item("i"), Item("j")), State(), decision)
    page = Page(impression, (Labels(), Labels(clicks=clicks)), (), START_MS + 1, shown)
    return decode(encode(page), SeenSample)


@pytest.mark.parametrize(
    ("page", "clicks", "exposure"),
    [
        (sample(clicks=2), 1.0, 1.0),
        (sample(), 0.0, 1.0),
        (sample(shown=False), 0.0, 0.0),
        (sample(clicks=1, shown=False), 0.0, 0.0),
    ],
)
def test_a_page_is_rated_by_what_was_done_with_it(page: SeenSample, clicks: float, exposure: float) -> None:
    assert (page.rated("clicks").reward, page.rated("exposure").reward) == (clicks, exposure)
    assert page.rated("clicks").decision.bucket == "r"


def test_a_user_clicks_or_does_not_and_sees_a_share_of_the_pages() -> None:
    unit = Unit(START_MS, "rl", reward=3.0, pages=4, fallbacks=0)
    assert (rate_of("clicks", unit), rate_of("exposure", unit)) == (1.0, 0.75)
