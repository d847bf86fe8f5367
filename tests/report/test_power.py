"""How much traffic a lift needs, from what a run has measured."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from pageturn.__main__ import main
from pageturn.powering import PowerError, Traffic, rows, traffic
from pageturn.traffic_log import read_visits
from pipeline.config.schema import Certification


def asked(made: Any, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["power", "--run", str(made.run.folder), *arguments])


@pytest.fixture
def seen(made: Any) -> Any:
    """200 users of the baseline, one visit every ten seconds each: 2 or 6; 100 of rl_a; an hour of another bucket."""
    made.visits("control", *([2.0, 6.0] * 100))
    made.visits("rl_a", *([3.0] * 100))
    made.visits("rl_b", *([9.0] * 361))
    return made


def measured(made: Any, **certification: Any) -> Traffic:
    rules = Certification(**{"unit_reward": (-10.0, 10.0), "horizon": 1_000, **certification})
    config = replace(made.config, publish=replace(made.config.publish, certification=rules))
    return traffic(config, "rl_a", list(read_visits(made.run.traffic)))


def test_what_a_draw_brings_and_how_many_there_are(seen: Any) -> None:
    found = measured(seen)
    assert found.share == pytest.approx(33 / 67)
    assert (found.visits.draws, found.visits.mean) == (200, pytest.approx(4.0))
    assert found.visits.variance == pytest.approx(4.0, rel=0.01)
    assert found.visits.per_hour == pytest.approx(300)
    assert (found.users.draws, found.users.mean) == (200, pytest.approx(4.0))
    assert (found.reward, found.rules is None) == ((-10.0, 10.0), False)


def test_users_bring_what_came_within_the_horizon_of_their_first_visit(made: Any) -> None:
    made.visits("control", *([1.0] * 60), every_s=1)
    visits = list(read_visits(made.run.traffic))
    for visit in visits[:40]:
        made.visit(visit.outcome, visit.time_ms + 5_000)
        made.visit(visit.outcome, visit.time_ms + 500_000)
    found = measured(made, horizon=5_001)
    assert (found.users.draws, found.users.mean) == (60, pytest.approx((40 * 2 + 20) / 60))
    assert found.visits.draws == 140
    assert measured(made, horizon=5_000).users.mean == pytest.approx(1.0)
    late = measured(made, horizon=490_000)  # over for those who came in the first 50 s only
    assert late.users.draws == 50


def test_visits_of_one_user_are_worth_less_than_as_many_users(made: Any) -> None:
    made.visits("control", *([0.0, 4.0] * 40))
    alone = measured(made).visits.variance
    for visit in list(read_visits(made.run.traffic)):
        for more in range(1, 5):
            made.visit(visit.outcome, visit.time_ms + more)
    assert measured(made).visits.variance == pytest.approx(5 * alone, rel=0.02)


def test_users_are_new_once_and_those_who_never_look_are_none(made: Any) -> None:
    """An hour with 60 users of the baseline in its first half, who all come again in the second, and 20 in that only;
    as many others never look at the feed."""
    made.visits("control", *([1.0] * 60), every_s=20)
    for visit in list(read_visits(made.run.traffic)):
        made.visit(visit.outcome, visit.time_ms + 2_300_000)
    made.visits("control", *([3.0, None] * 20), first_s=1_900, every_s=43.589)
    found = measured(made).users
    assert (found.first, found.first_hours) == (80, pytest.approx(1, rel=0.001))
    assert found.per_hour == pytest.approx(40, rel=0.001)
    assert found.wait_hours > 1 / 3_600  # the horizon, and what the stream takes
    assert found.hours(40) - found.wait_hours == pytest.approx(0.5, rel=0.001)
    assert found.hours(120) - found.wait_hours == pytest.approx(2, rel=0.001)


def test_where_no_new_users_come_there_is_no_time_for_more(made: Any) -> None:
    made.visits("control", *([1.0, 3.0] * 30), every_s=1)
    for visit in list(read_visits(made.run.traffic)):
        made.visit(visit.outcome, visit.time_ms + 3_600_000)
    (*_, (_, visits, *users)) = rows(measured(made), [1.0], 0.8, 0.05)
    assert [str(each).endswith("users: no more come") for each in users] == [True, True, True]
    assert "no more come" not in str(visits)


def test_a_certificate_takes_what_its_rules_say(seen: Any) -> None:
    def needed(alpha: float | None = None, **rules: Any) -> tuple[float, float]:
        found = measured(seen, **({"alpha": alpha} if alpha else {}), **rules)
        (*_, (_, _, once, always, _)) = rows(found, [5.0], 0.8, found.alpha)
        return tuple(math.inf if x == "never" else float(x.split()[0].replace(",", "")) for x in (once, always))

    once, always = needed()
    assert needed(certify_above=0.025) == (once, pytest.approx(3.5 * always, rel=0.1))
    assert needed(certify_above=0.05) == (once, math.inf)
    assert needed(click_budget=0.1, exposure_budget=0.1) == (once, pytest.approx(needed(0.05 / 3)[1], rel=1e-9))
    assert needed(alpha=0.01)[1] > 1.2 * always
    assert needed(alpha=0.01)[0] > once
    assert measured(seen, alpha=0.01).alpha == 0.01


def test_the_second_epoch_has_a_third_of_alpha_and_halves_it_between_means_and_totals(seen: Any) -> None:
    found = measured(seen)
    (*_, (_, _, _, first, second)) = rows(found, [5.0], 0.8, 0.06)
    (*_, (_, _, _, with_less, _)) = rows(found, [5.0], 0.8, 0.06 / 6)
    assert second == with_less
    assert first != second


def test_the_command_prints_a_row_for_each_lift(seen: Any) -> None:
    done = asked(seen, "--lift", "5", "--lift", "10")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("a lift of")]
    assert [line.split()[3] for line in lines] == ["5", "10"]
    needed = [int(line.split()[5].replace(",", "")) for line in lines]
    assert needed[0] == pytest.approx(4 * needed[1], rel=0.01)
    assert "no publish.certification" in done.output


def test_smaller_lifts_and_more_certainty_take_more(seen: Any) -> None:
    table = [asked(seen, "--lift", "5", "--power", p).output.splitlines()[-1].split() for p in ("0.5", "0.8", "0.95")]
    for column in (5, 9, 13):
        numbers = [float(row[column].replace(",", "")) for row in table]
        assert all(a < b for a, b in pairwise(numbers))


def test_an_unknown_policy_is_named(seen: Any) -> None:
    done = asked(seen, "--policy", "rl_z")
    assert done.exit_code == 1
    assert "no learned policy 'rl_z'; expected one of rl_a, rl_b" in done.output


def test_too_few_visits_are_a_message(made: Any) -> None:
    made.visits("control", 1.0, 2.0)
    done = asked(made)
    assert done.exit_code == 1
    assert "at least 30 users" in done.output
    made.visits("control", *([1.0] * 60))
    with pytest.raises(PowerError, match="expected 30 users of the baseline seen for a horizon"):
        measured(made, horizon=10_000_000)
