"""A key-value store that loses what it had, or comes back with what it had once, at the worst moment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from model_export.candidate import PARAMETERS
from model_export.lease import LeaseLost
from model_export.sending_back import send_back
from pipeline.stores.store import StoreError
from tests.unit.test_canary import TURNS, later, state_of, tried
from tests.unit.test_publisher import STEPS, assert_nothing_half, verdict_lines

__all__ = ["tried"]


def empty(world: Any) -> None:
    world.store.delete_many(world.store.keys(""))


def at(world: Any, step: str, what: Any) -> None:
    """Once."""

    def on_step(policy: str, done: str) -> None:
        if done == step:
            world.on_step = lambda policy, step: None
            what()

    world.on_step = on_step


def go_on(world: Any) -> None:
    """A controller that is not told to end when it is idle begins another term by itself."""
    for _ in range(2):
        with suppress(LeaseLost, StoreError):
            world.run()


# Emptied while a version is published ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_store_that_is_emptied_while_a_version_goes_out_does_not_stop_it(world: Any, step: str) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    at(world, step, lambda: empty(world))
    go_on(world)
    assert [v["outcome"] for v in verdict_lines(world)] == ["accepted", "accepted"]
    assert (world.pointer().stable.version, world.pointer().previous.version) == (2, 1)
    assert_nothing_half(world)


def test_what_can_no_longer_be_put_there_is_refused(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)

    def lose() -> None:
        (world.models / "feed_rl" / "2" / PARAMETERS).unlink()
        raise StoreError("away")

    at(world, "placed", lose)
    go_on(world)
    assert verdict_lines(world)[-1]["reason"] == "unusable"
    assert world.pointer().stable.version == 1


# Emptied while a pointer is turned -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["decided", "turned", "recorded", "followed"])
@pytest.mark.parametrize(("canary", "after_ms", "expected", "served"), TURNS)
def test_what_live_pages_decided_is_done_on_the_pointer_that_was_lost(
    tried: Any, step: str, canary: Any, after_ms: int, expected: tuple[Any, ...], served: tuple[Any, ...]
) -> None:
    tried.run()
    at(tried, step, lambda: empty(tried))
    with suppress(LeaseLost):
        later(tried, canary=canary, after_ms=after_ms)
    go_on(tried)
    assert state_of(tried) == served
    assert [v["outcome"] for v in verdict_lines(tried) if v["tier"] == "live"] == [expected[1]]
    assert_nothing_half(tried)


def test_nothing_is_sent_back_on_a_pointer_that_was_lost(world: Any) -> None:
    """It would come back without what operators have switched: the kill switch."""
    world.bootstrap()
    site, _, state = world.site("one")
    empty(world)
    with pytest.raises(LeaseLost):
        send_back(site, "rl", state.policies["rl"].certified)
    assert world.pointer().stable is None
