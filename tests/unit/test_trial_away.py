"""A trial while model servers are away: no version is blamed for that, none is promoted by it, and it ends."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from model_export.live import KNOWN_MS
from model_export.verdicts import read_verdicts
from pipeline.config.schema import Canary, Guard
from pipeline.stores.published import Heartbeat, Usage, write_heartbeat

HOLD_MS = 60_000
LIMIT_MS = 10 * HOLD_MS
BEFORE = Usage(1_000, 0, 1_000, 10)


class Crash(Exception):
    pass


@pytest.fixture
def tried(world: Any) -> Any:
    """Version 2 on a fifth of the buckets, beside a version 1 that was fine."""
    rules = {"guard": Guard(min_pages=100), "canary": Canary(share=0.2, hold=HOLD_MS)}
    world.config = replace(world.config, publish=replace(world.config.publish, **rules))
    world.bootstrap()
    say(world, BEFORE)
    world.candidate(50, bias=1.2)
    assert world.run().accepted == 1
    say(world, BEFORE)
    world.run()
    return world


def say(world: Any, stable: Usage, canary: Usage | None = None) -> None:
    """An agent that uses the canary, or not."""
    used = {} if canary is None else {"rl": 2}
    usage = {} if canary is None else {"rl": canary}
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 1}, {"rl": stable}, used, usage))


def later(world: Any, stable: Usage, canary: Usage | None = None, after_ms: int = HOLD_MS) -> dict[str, int]:
    """What a controller concludes: each time another one, so what it knows is on the volume."""
    world.now_ms += after_ms
    say(world, stable, canary)
    concluded: dict[str, int] = world.run().concluded
    return concluded


def since(pages: int, calls: int = 0, slow: int = 0) -> Usage:
    return Usage(BEFORE.pages + pages, 0, BEFORE.calls + calls, BEFORE.slow + slow)


def canary_of(world: Any) -> int | None:
    canary = world.pointer().canary
    return canary and canary.version


AWAY = [
    pytest.param(since(1_000), id="out of reach"),
    pytest.param(since(1_000, 1_000, 1_000), id="hanging, with few pages: all are asked for, in vain"),
    pytest.param(since(1_000, 494), id="for half of the time"),
]


@pytest.mark.parametrize("stable", AWAY)
def test_a_version_that_no_agent_could_ask_for_is_not_blamed(tried: Any, stable: Usage) -> None:
    assert later(tried, stable) == {}
    assert canary_of(tried) == 2
    assert later(tried, stable, Usage(200, 0, 200, 2), after_ms=2_000) == {}  # it is held from now on
    fine = replace(stable, pages=stable.pages + 800, calls=stable.calls + 800)
    assert later(tried, fine, Usage(200, 0, 200, 2)) == {"promoted": 1}


def test_once_servers_are_back_it_is(tried: Any) -> None:
    assert later(tried, since(1_000)) == {}
    assert later(tried, since(1_499, 499)) == {}  # 500 would be enough for 100 on its share
    assert later(tried, since(1_500, 500)) == {"sent_back": 1}
    *_, verdict = read_verdicts(tried.models)
    assert verdict.reason == "live_pages"


def test_agents_have_the_time_to_ask_again_then(tried: Any) -> None:
    tried.config = replace(tried.config, publish=replace(tried.config.publish, canary=Canary(share=0.2, hold=1_000)))
    assert later(tried, since(1_000)) == {}
    assert later(tried, since(9_000, 8_000), after_ms=KNOWN_MS - 1_000) == {}
    assert later(tried, since(9_900, 8_900), after_ms=2_000) == {"sent_back": 1}


def test_a_version_whose_pages_nobody_answered_is_not_promoted_by_them(tried: Any) -> None:
    assert later(tried, since(800), Usage(200, 0, 20, 10)) == {}
    assert later(tried, since(1_600, 800), Usage(299, 0, 119, 10)) == {}  # 99 since then
    assert later(tried, since(2_400, 1_600), Usage(300, 0, 120, 10), after_ms=2_000) == {"promoted": 1}


def test_one_that_fails_all_the_same_is_sent_back_at_once(tried: Any) -> None:
    assert later(tried, since(800), Usage(200, 100, 0, 0), after_ms=2_000) == {"sent_back": 1}


def test_it_ends_when_that_lasts_too_long_and_nothing_is_given_up(tried: Any) -> None:
    before, pages = tried.pointer().stable, 0
    tried.now_ms += 30_000
    for _ in range(LIMIT_MS // HOLD_MS - 1):
        pages += 1_000
        assert later(tried, since(pages)) == {}
    tried.now_ms += HOLD_MS
    say(tried, since(pages + 1_000))
    assert tried.run().kept == {"server_unreachable": 1}
    pointer = tried.pointer()
    assert (pointer.stable, pointer.canary, pointer.share) == (before, None, 0.0)
    assert (pointer.frozen, pointer.back) == (False, None)
    *_, verdict = read_verdicts(tried.models)
    assert (verdict.candidate, verdict.outcome, verdict.version) == ("canary-2", "kept", 2)
    assert verdict.detail.startswith("model servers were away too long to try it; live_answered: expected >= 0.495")
    tried.candidate(90, bias=1.2)
    assert tried.run().accepted == 1
    assert canary_of(tried) == 3


@pytest.mark.parametrize("step", ["decided", "turned", "recorded"])
def test_a_controller_that_dies_while_it_ends_it_has_ended_it_once(tried: Any, step: str) -> None:
    def on_step(policy: str, done: str) -> None:
        if done == step:
            raise Crash

    tried.on_step = on_step
    with pytest.raises(Crash):
        later(tried, since(5_000), after_ms=LIMIT_MS)
    tried.on_step = lambda policy, step: None
    tried.now_ms += 3_600_000
    assert tried.run("two").kept == {"server_unreachable": 1}
    assert (canary_of(tried), tried.desired().policies["rl"].turn) == (None, None)
    assert [v.outcome for v in read_verdicts(tried.models) if v.tier == "live"] == ["kept"]


def test_agents_that_begin_while_no_server_answers_are_not_nobody(tried: Any) -> None:
    """They follow nothing yet. That is no reason to give a version to all that nobody has tried."""
    tried.server.up = False
    assert following_nothing(tried, HOLD_MS) == {}
    tried.server.up = True
    assert following_nothing(tried, HOLD_MS - 5_000) == {}
    assert following_nothing(tried, 10_000) == {"promoted": 1}  # another config's, perhaps
    assert tried.pointer().stable.version == 2


def following_nothing(world: Any, after_ms: int) -> dict[str, int]:
    world.now_ms += after_ms
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {}))
    concluded: dict[str, int] = world.run().concluded
    return concluded


def test_where_a_call_is_for_many_pages_that_is_what_is_usual(tried: Any) -> None:
    """Version 3 beside version 2, of which a tenth as many calls as pages were heard."""
    assert later(tried, since(800, 800), Usage(200, 0, 200, 2)) == {"promoted": 1}
    tried.now_ms += 2_000
    write_heartbeat(tried.store, "fd", Heartbeat("agent", tried.now_ms, {"rl": 2}, {"rl": Usage(9_000, 0, 900, 0)}))
    tried.run()
    tried.candidate(90, bias=1.2)
    tried.run()
    tried.now_ms += HOLD_MS
    both = {"rl": Usage(9_900, 0, 990, 0)}, {"rl": 3}, {"rl": Usage(150, 0, 15, 0)}
    write_heartbeat(tried.store, "fd", Heartbeat("agent", tried.now_ms, {"rl": 2}, *both))
    assert tried.run().concluded == {"promoted": 1}
    assert tried.pointer().stable.version == 3
