"""The clock is put back by a day: what is timed by it is timed anew, and nothing waits for that day to come again."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from model_export.housekeeping import LEAST_DRAIN_MS
from model_export.live import KNOWN_MS
from pipeline.config.schema import Canary
from pipeline.stores.published import Usage
from tests.unit.test_canary import BAD, FINE, configure, later, say, state_of

HOLD_MS, DAY_MS = 60_000, 86_400_000


@pytest.fixture
def trying(world: Any) -> Any:
    """Version 2 is on its share."""
    configure(world, Canary(share=0.2, hold=HOLD_MS))
    world.now_ms += 2 * DAY_MS
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.run()
    assert state_of(world) == (1, 2, 0.2)
    return world


def put_back(world: Any) -> None:
    world.now_ms -= DAY_MS


@pytest.mark.parametrize("lives", [True, False])
def test_a_lease_in_a_file_is_not_held_until_the_clock_has_caught_up(world: Any, lives: bool) -> None:
    world.now_ms += 2 * DAY_MS
    token = world.store.acquire_lease("fd:controller", "one", 15_000)
    put_back(world)
    assert world.store.acquire_lease("fd:controller", "two", 15_000) is None
    world.now_ms += 14_000
    if lives:
        assert world.store.acquire_lease("fd:controller", "one", 15_000) == token
    assert world.store.acquire_lease("fd:controller", "two", 15_000) is None
    world.now_ms += 1_000
    assert world.store.acquire_lease("fd:controller", "two", 15_000) == (None if lives else token + 1)


def test_a_trial_ends_after_its_time(trying: Any) -> None:
    put_back(trying)
    assert later(trying, after_ms=2_000).concluded == {}
    assert later(trying).concluded == {"promoted": 1}


def test_so_does_one_that_had_begun_anew(trying: Any) -> None:
    away = Usage(200, 0, 0, 0)
    later(trying, stable=away, canary=away)
    assert state_of(trying) == (1, 2, 0.2)
    put_back(trying)
    later(trying, after_ms=2_000)
    answered = Usage(600, 0, 600, 0)
    assert later(trying, answered, answered, after_ms=HOLD_MS + KNOWN_MS).concluded == {"promoted": 1}


def test_a_version_that_nobody_uses_is_unloaded(trying: Any) -> None:
    later(trying, canary=BAD, after_ms=2_000)
    assert 2 in trying.served_versions()
    put_back(trying)
    for _ in range(2):
        say(trying, FINE, BAD)
        trying.store.delete_many(trying.store.keys("fd:agent"))
        trying.run()
        trying.now_ms += LEAST_DRAIN_MS
    trying.run()
    assert 2 not in trying.served_versions()


def test_a_load_is_waited_for_no_longer(world: Any) -> None:
    """Nothing is published meanwhile, of no policy."""
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.server.loading = {2}
    waited, stop = 0, threading.Event()

    def wait(seconds: float) -> bool:
        nonlocal waited
        waited += 1
        if waited == 3:
            put_back(world)
        return waited > 2_000

    stop.wait = wait
    world.now_ms += 2 * DAY_MS
    assert world.run(stop=stop).refused == {"load_timeout": 1}
