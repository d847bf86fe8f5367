"""A key-value store that loses what it had, or comes back with what it had once, at the worst moment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from model_export.candidate import PARAMETERS
from model_export.lease import LeaseLost
from model_export.recovery import keep_in_step
from model_export.sending_back import send_back
from model_export.switches import freeze, roll_back, set_off
from pipeline.stores.published import Pointer, change_pointer, pointer_key
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
        send_back(site, "rl", state.policies["rl"].pointer, state.policies["rl"].certified)
    assert world.pointer().stable is None


# With what it had once -------------------------------------------------------------------------------------------

POINTER = pointer_key("fd", "rl")


def published(world: Any, transitions: int, bias: float) -> None:
    world.candidate(transitions, bias=bias)
    assert world.run().accepted == 1


def test_the_pointer_of_a_backup_is_put_right(world: Any) -> None:
    """Its versions may be gone from the volume; and servers would unload those that are served."""
    world.bootstrap()
    published(world, 50, 1.1)
    backup = {key: world.store.get(key) for key in world.store.keys("")}
    published(world, 80, 1.2)
    published(world, 110, 1.3)
    before = world.pointer()
    empty(world)
    world.store.put_many(backup)
    world.run()
    assert (world.pointer().stable, world.pointer().previous) == (before.stable, before.previous)
    assert world.desired().policies["rl"].pointer == world.pointer()
    assert_nothing_half(world)


def forgetting_a_switch(world: Any) -> tuple[Any, Any, Any]:
    """A controller that has seen the policy off, and a store that has not any more: its site, verdicts and state."""
    world.bootstrap()
    site, verdicts, state = world.site("one")
    forgotten = world.store.get(POINTER)
    set_off(world.store, "fd", ("rl",), True)
    state = keep_in_step(site, verdicts, state)
    world.store.put(POINTER, forgotten)
    assert not world.pointer().off
    return site, verdicts, state


def test_a_switch_that_a_restarted_store_forgot_is_switched_again(world: Any) -> None:
    site, verdicts, state = forgetting_a_switch(world)
    keep_in_step(site, verdicts, state)
    assert world.pointer().off
    assert site.metrics.total("store_refilled") == 1


def test_and_by_the_next_controller_too(world: Any) -> None:
    site, _, _ = forgetting_a_switch(world)
    site.lease.release()
    world.run("two")
    assert world.pointer().off


def test_what_is_switched_on_an_old_pointer_stays_switched(world: Any) -> None:
    world.bootstrap()
    published(world, 50, 1.1)
    backup = world.store.get(POINTER)
    published(world, 80, 1.2)
    published(world, 110, 1.3)
    world.store.put(POINTER, backup)
    set_off(world.store, "fd", ("rl",), True)
    world.run()
    assert (world.pointer().stable.version, world.pointer().off) == (4, True)


def test_so_it_does_where_as_many_changes_were_made_as_were_lost(world: Any) -> None:
    site, verdicts, state = forgetting_a_switch(world)
    freeze(world.store, "fd", "rl")
    keep_in_step(site, verdicts, state)
    assert (world.pointer().off, world.pointer().frozen) == (True, True)


def test_nothing_goes_out_on_a_pointer_that_a_restarted_store_has_put_back(world: Any) -> None:
    """In the same term: it has the same fence. The kill switch would be forgotten."""
    world.bootstrap()
    forgotten = world.store.get(POINTER)

    def forget() -> None:
        old = replace(msgspec.json.decode(forgotten, type=Pointer), fence=world.pointer().fence)
        world.store.put(POINTER, msgspec.json.encode(old))

    set_off(world.store, "fd", ("rl",), True)
    world.candidate(50, bias=1.2)
    at(world, "probed", forget)
    go_on(world)
    assert (world.pointer().stable.version, world.pointer().off) == (2, True)


def test_an_operator_is_not_taken_for_a_backup(world: Any) -> None:
    world.bootstrap()
    published(world, 50, 1.1)
    set_off(world.store, "fd", ("rl",), True)
    world.run()
    set_off(world.store, "fd", ("rl",), False)
    freeze(world.store, "fd", "rl")
    roll_back(world.store, "fd", "rl")
    world.run()
    assert (world.pointer().stable.version, world.pointer().off) == (1, False)


def test_nor_is_one_with_a_build_that_does_not_count_changes(world: Any) -> None:
    world.bootstrap()
    published(world, 50, 1.1)
    pointer = world.pointer()
    uncounted = Pointer(pointer.previous, fence=pointer.fence, previous=pointer.stable, frozen=True)
    world.store.put(POINTER, msgspec.json.encode(uncounted))
    world.run()
    assert world.pointer().stable.version == 1


def test_changes_of_a_pointer_are_counted_and_claims_are_not(world: Any) -> None:
    world.bootstrap()
    counted = world.pointer().changes
    world.site("one")
    assert world.pointer().changes == counted
    for off in (True, True, False):
        change_pointer(world.store, "fd", "rl", lambda pointer, off=off: replace(pointer, off=off))
    assert world.pointer().changes == counted + 2
