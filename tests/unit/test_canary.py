"""A new version on a share of its policy's buckets first: when it goes to all of them, when back, and what a crash in
between leaves."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from model_export.live import KNOWN_MS
from model_export.status import status
from model_export.switches import freeze, pin, release, roll_back, set_off
from model_export.verdicts import VerdictLog, read_verdicts
from pipeline.config.schema import Canary, Guard
from pipeline.stores.published import GoBack, Heartbeat, Usage, write_heartbeat

RULES = Guard(min_pages=100)
HOLD_MS = 60_000
FINE, BAD = Usage(200, 0, 200, 2), Usage(200, 100, 100, 0)


class Crash(Exception):
    pass


@pytest.fixture
def tried(world: Any) -> Any:
    """Version 1 serves, and a candidate is waiting."""
    configure(world, Canary(share=0.2, hold=HOLD_MS))
    world.bootstrap()
    world.candidate(50, bias=1.2)
    return world


def configure(world: Any, canary: Canary | None) -> None:
    world.config = replace(world.config, publish=replace(world.config.publish, guard=RULES, canary=canary))


def say(world: Any, stable: Usage, canary: Usage) -> None:
    """The controller hears it if it looks within half a minute."""
    beat = Heartbeat("agent", world.now_ms, {"rl": 1}, {"rl": stable}, {"rl": 2}, {"rl": canary})
    write_heartbeat(world.store, "fd", beat)


def later(world: Any, stable: Usage = FINE, canary: Usage = FINE, *, after_ms: int = HOLD_MS) -> Any:
    world.now_ms += after_ms
    say(world, stable, canary)
    return world.run()


def state_of(world: Any) -> tuple[int | None, int | None, float]:
    pointer = world.pointer()
    return pointer.stable.version, pointer.canary and pointer.canary.version, pointer.share


def test_a_new_version_is_on_its_share_first(tried: Any) -> None:
    assert tried.run().accepted == 1
    assert state_of(tried) == (1, 2, 0.2)
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.outcome, verdict.reason, verdict.version) == ("accepted", "canary", 2)
    assert [(entry.version, entry.role) for entry in tried.desired().policies["rl"].loaded] == [
        (1, "stable"),
        (2, "canary"),
    ]
    say(tried, FINE, FINE)
    [found] = status(tried.config, tried.store, [tried.server], tried.models, now_ms=tried.now_ms).policies
    assert (found.pointer.canary.version, found.pointer.share, found.agents, found.trying) == (2, 0.2, {1: 1}, 1)
    assert found.served_ms < verdict.time_ms  # when version 1 went out


def test_within_its_bounds_it_goes_to_all(tried: Any) -> None:
    tried.run()
    assert later(tried).concluded == {"promoted": 1}
    assert state_of(tried) == (2, None, 0.0)
    assert (tried.pointer().previous.version, tried.pointer().frozen) == (1, False)
    assert tried.desired().policies["rl"].pointer == tried.pointer()
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.candidate, verdict.tier, verdict.outcome, verdict.version) == ("canary-2", "live", "promoted", 2)
    assert {check.name for check in verdict.checks} == {"live_fallbacks", "live_latency"}


def test_beyond_them_it_goes_back_and_its_trainer_with_it(tried: Any) -> None:
    tried.run()
    assert later(tried, canary=BAD, after_ms=2_000).concluded == {"sent_back": 1}  # nobody waits for that
    assert state_of(tried) == (1, None, 0.0)
    assert (tried.pointer().frozen, tried.pointer().back) == (True, GoBack(1, f"{0:012d}"))
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.candidate, verdict.reason, verdict.version) == ("live-2-1", "live_fallbacks", 2)


def test_it_is_compared_with_what_serves_the_rest_at_the_same_time(tried: Any) -> None:
    tried.run()
    slow = Usage(200, 0, 200, 40)
    assert later(tried, stable=slow, canary=slow).concluded == {"promoted": 1}


LONG = 500_000


@pytest.mark.parametrize(
    ("before", "since", "canary", "outcome"),
    [
        pytest.param((0, 0), (0, 60), Usage(200, 0, 200, 60), "promoted", id="a bad minute for both"),
        pytest.param((0, 200_000), (0, 2), Usage(200, 0, 200, 60), "sent_back", id="a bad hour before is no excuse"),
    ],
)
def test_what_was_before_the_trial_is_not_compared_with(
    tried: Any, before: tuple[int, int], since: tuple[int, int], canary: Usage, outcome: str
) -> None:
    write_heartbeat(
        tried.store, "fd", Heartbeat("agent", tried.now_ms, {"rl": 1}, {"rl": Usage(LONG, before[0], LONG, before[1])})
    )
    tried.run()
    after = Usage(LONG + 200, before[0] + since[0], LONG + 200, before[1] + since[1])
    assert later(tried, stable=after, canary=canary).concluded == {outcome: 1}


def silent(world: Any, pages: int) -> Any:
    """An agent that does not use the canary, as a controller hears of it."""
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 1}, {"rl": Usage(pages, 0, pages, 0)}))
    return world.run()


def test_a_version_that_no_agent_can_use_is_sent_back(tried: Any) -> None:
    tried.run()
    tried.now_ms += HOLD_MS
    assert silent(tried, 499).concluded == {}  # 100 would have been due of 500
    assert silent(tried, 500).concluded == {"sent_back": 1}
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.candidate, verdict.reason) == ("live-2-1", "live_pages")


def test_an_agent_that_could_not_know_of_it_yet_says_nothing_against_it(tried: Any) -> None:
    """Pages of between the heartbeat before the trial and the first that knows of it are many on a fast machine."""
    configure(tried, Canary(share=0.2, hold=1_000))
    tried.run()
    tried.now_ms += 2_000
    assert silent(tried, 10_000).concluded == {}
    tried.now_ms += KNOWN_MS - 3_000
    assert silent(tried, 20_000).concluded == {}
    tried.now_ms += 5_000
    assert tried.run().concluded == {}  # the last that was said is of too early
    assert silent(tried, 30_000).concluded == {"sent_back": 1}


def test_one_that_agents_use_waits_for_its_pages(tried: Any) -> None:
    tried.run()
    assert later(tried, stable=Usage(90_000, 0, 90_000, 0), canary=Usage()).concluded == {}
    assert state_of(tried) == (1, 2, 0.2)


def test_where_no_agent_is_up_nobody_is_waited_for(tried: Any) -> None:
    tried.run()
    tried.now_ms += HOLD_MS - 5_000
    assert tried.run().concluded == {}
    tried.now_ms += 5_000
    assert tried.run().concluded == {"promoted": 1}
    assert state_of(tried) == (2, None, 0.0)


def test_an_agent_that_begins_has_the_time_to_say_so(tried: Any) -> None:
    configure(tried, Canary(share=0.2, hold=1_000))
    tried.run()
    tried.now_ms += KNOWN_MS - 3_000
    assert tried.run().concluded == {}
    tried.now_ms += 5_000
    assert tried.run().concluded == {"promoted": 1}


def test_agents_that_leave_and_come_take_nothing_back(tried: Any) -> None:
    """What those said that are gone is far more than what the new ones can say for a long time."""
    gone = Heartbeat("gone", tried.now_ms, {"rl": 1}, {"rl": Usage(LONG, 0, LONG, 0)})
    write_heartbeat(tried.store, "fd", gone)
    tried.run()
    assert later(tried, Usage(100, 0, 100, 0), Usage(100, 0, 100, 0), after_ms=HOLD_MS - 5_000).concluded == {}
    assert later(tried, Usage(60, 0, 60, 0), Usage(60, 0, 60, 0), after_ms=8_000).concluded == {"promoted": 1}


@pytest.mark.parametrize(
    ("stable", "canary", "after_ms"),
    [
        pytest.param(FINE, FINE, HOLD_MS - 5_000, id="too early"),
        pytest.param(FINE, Usage(99, 0, 99, 0), HOLD_MS, id="too few pages"),
        pytest.param(Usage(99, 0, 99, 0), FINE, HOLD_MS, id="too few pages to compare with"),
    ],
)
def test_until_enough_is_known_it_stays_as_it_is(tried: Any, stable: Usage, canary: Usage, after_ms: int) -> None:
    tried.run()
    assert later(tried, stable, canary, after_ms=after_ms).concluded == {}
    assert state_of(tried) == (1, 2, 0.2)
    assert later(tried).concluded == {"promoted": 1}


def test_further_candidates_wait(tried: Any) -> None:
    tried.run()
    tried.candidate(70, bias=1.3)
    tried.candidate(90, bias=1.4)
    assert tried.run().accepted == 0
    done = later(tried)
    assert (done.concluded, done.accepted, done.superseded) == ({"promoted": 1}, 1, 1)
    assert state_of(tried) == (2, 3, 0.2)


def test_while_the_policy_is_off_nothing_follows(tried: Any) -> None:
    tried.run()
    set_off(tried.store, "fd", ["rl"], True)
    assert later(tried, canary=BAD).concluded == {}
    set_off(tried.store, "fd", ["rl"], False)
    assert later(tried).concluded == {"promoted": 1}


def test_a_frozen_policy_stays_as_it_is_and_lets_candidates_know(tried: Any) -> None:
    tried.run()
    freeze(tried.store, "fd", "rl")
    tried.candidate(70, bias=1.3)
    done = later(tried)
    assert (done.concluded, done.kept) == ({}, {"frozen": 1})
    assert state_of(tried) == (1, 2, 0.2)
    release(tried.store, "fd", "rl")
    assert later(tried).concluded == {"promoted": 1}


def test_an_operator_goes_back_from_it_to_what_serves_the_rest(tried: Any) -> None:
    tried.run()
    left, served = roll_back(tried.store, "fd", "rl")
    assert (left.version, served.version) == (2, 1)
    assert state_of(tried) == (1, None, 0.0)
    assert later(tried).concluded == {}
    assert tried.pointer().frozen


@pytest.mark.parametrize(("to", "served"), [(None, 1), (2, 2)])
def test_a_pin_ends_the_trial(tried: Any, to: int | None, served: int) -> None:
    tried.run()
    assert pin(tried.store, "fd", "rl", to).version == served
    assert later(tried, canary=BAD).concluded == {}
    assert state_of(tried) == (served, None, 0.0)


def test_a_config_that_asks_for_none_any_more_has_it_promoted(tried: Any) -> None:
    tried.run()
    configure(tried, None)
    assert later(tried, after_ms=2_000).concluded == {"promoted": 1}
    tried.candidate(70, bias=1.3)
    assert tried.run().accepted == 1
    assert state_of(tried) == (3, None, 0.0)


def test_without_a_guard_too(tried: Any) -> None:
    tried.run()
    tried.config = replace(tried.config, publish=replace(tried.config.publish, guard=None, canary=None))
    assert tried.run().concluded == {"promoted": 1}
    assert state_of(tried) == (2, None, 0.0)


# What breaks in between ------------------------------------------------------------------------------------------


def crash_after(world: Any, step: str) -> None:
    def on_step(policy: str, done: str) -> None:
        if done == step:
            raise Crash

    world.on_step = on_step


@pytest.mark.parametrize("step", ["parameters", "reserved", "placed", "probed", "flipped", "recorded", "settled"])
def test_a_controller_that_dies_leaves_it_on_its_share(tried: Any, step: str) -> None:
    crash_after(tried, step)
    with pytest.raises(Crash):
        tried.run()
    tried.on_step = lambda policy, step: None
    tried.run("two")
    assert state_of(tried) == (1, 2, 0.2)
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.outcome, verdict.reason) == ("accepted", "canary")


def test_what_is_on_its_share_already_is_accepted_whatever_was_switched_meanwhile(tried: Any) -> None:
    crash_after(tried, "flipped")
    with pytest.raises(Crash):
        tried.run()
    freeze(tried.store, "fd", "rl")
    tried.on_step = lambda policy, step: None
    assert tried.run("two").accepted == 1
    assert state_of(tried) == (1, 2, 0.2)


TURNS = [
    pytest.param(FINE, HOLD_MS, ("canary-2", "promoted", 2, 1), (2, None, 0.0), id="promoted"),
    pytest.param(BAD, 2_000, ("live-2-1", "sent_back", 2, 1), (1, None, 0.0), id="sent back"),
]


def breaks_off(world: Any, step: str, canary: Usage, after_ms: int) -> None:
    world.run()
    crash_after(world, step)
    with pytest.raises(Crash):
        later(world, canary=canary, after_ms=after_ms)
    world.on_step = lambda policy, step: None


@pytest.mark.parametrize("step", ["decided", "turned", "recorded"])
@pytest.mark.parametrize(("canary", "after_ms", "expected", "served"), TURNS)
def test_a_controller_that_dies_while_it_turns_the_pointer_has_turned_it_and_says_so(
    tried: Any, step: str, canary: Usage, after_ms: int, expected: tuple[Any, ...], served: tuple[Any, ...]
) -> None:
    breaks_off(tried, step, canary, after_ms)
    tried.now_ms += 3_600_000  # what agents said is long out of date
    assert tried.run("two").concluded == {expected[1]: 1}
    assert state_of(tried) == served
    drawn = [v for v in read_verdicts(tried.models) if v.tier == "live"]
    assert [(v.candidate, v.outcome, v.version, v.accepted_before) for v in drawn] == [expected]
    assert drawn[0].checks
    assert tried.pointer().back == (GoBack(1, f"{0:012d}") if expected[1] == "sent_back" else None)
    assert (tried.desired().policies["rl"].turn, tried.desired().policies["rl"].pointer) == (None, tried.pointer())
    assert tried.run("three").concluded == {}


def test_what_an_operator_did_meanwhile_stands(tried: Any) -> None:
    breaks_off(tried, "decided", FINE, HOLD_MS)
    roll_back(tried.store, "fd", "rl")
    assert tried.run("two").concluded == {}
    assert state_of(tried) == (1, None, 0.0)
    assert tried.pointer().frozen


def test_a_pin_in_between_stands_too(tried: Any) -> None:
    breaks_off(tried, "decided", BAD, 2_000)
    pin(tried.store, "fd", "rl", to=2)
    assert tried.run("two").concluded == {}
    assert state_of(tried) == (2, None, 0.0)
    assert (tried.pointer().pinned, tried.pointer().back) == (True, None)


def test_and_what_was_done_before_that_is_on_record(tried: Any) -> None:
    breaks_off(tried, "turned", FINE, HOLD_MS)
    roll_back(tried.store, "fd", "rl")
    assert tried.run("two").concluded == {"promoted": 1}
    assert state_of(tried) == (1, None, 0.0)
    assert tried.pointer().frozen


def test_a_store_that_was_emptied_has_it_on_its_share_again(tried: Any) -> None:
    tried.run()
    tried.store.delete_many(tried.store.keys(""))
    tried.run()
    assert state_of(tried) == (1, 2, 0.2)
    assert later(tried).concluded == {"promoted": 1}


def test_with_store_and_desired_state_lost_what_was_only_tried_does_not_serve(tried: Any) -> None:
    tried.run()
    lose_everything(tried)
    tried.run()
    assert state_of(tried) == (1, None, 0.0)


def test_nor_what_was_sent_back(tried: Any) -> None:
    tried.run()
    later(tried)
    tried.candidate(70, bias=1.3)
    tried.run()
    beat = Heartbeat("agent", tried.now_ms + 5_000, {"rl": 2}, {"rl": FINE}, {"rl": 3}, {"rl": BAD})
    write_heartbeat(tried.store, "fd", beat)
    tried.now_ms += 5_000
    assert tried.run().concluded == {"sent_back": 1}
    lose_everything(tried)
    tried.run()
    assert tried.pointer().stable.version == 2


def lose_everything(world: Any) -> None:
    world.store.delete_many(world.store.keys(""))
    (world.models / "desired.json").unlink()


def test_the_last_accepted_is_what_went_to_all(tried: Any) -> None:
    def last() -> int | None:
        return VerdictLog(tried.models, tried.store, "fd").last_accepted("rl")

    tried.run()
    assert last() in (None, 1)
    later(tried)
    assert last() == 2


def test_a_version_on_its_share_is_not_unloaded_while_agents_use_it(tried: Any) -> None:
    tried.run()
    later(tried, canary=BAD, after_ms=2_000)
    assert tried.pointer().canary is None
    for _ in range(3):
        tried.now_ms += 20_000
        say(tried, FINE, BAD)
        tried.run()
    assert 2 in tried.served_versions()
    write_heartbeat(tried.store, "fd", Heartbeat("agent", tried.now_ms, {"rl": 1}, {"rl": FINE}))
    tried.run()
    assert 2 not in tried.served_versions()
