"""A model volume that is lost, or comes back as it was once, while the store still knows what was served."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from model_export.switches import release, roll_back, set_off
from pipeline.stores.published import candidates_key, read_candidates, read_pointers
from tests.unit.test_publisher import assert_nothing_half


@pytest.fixture
def served(world: Any) -> Any:
    """Version 4 serves, and the controller has forgotten nothing."""
    world.bootstrap()
    for transitions, bias in ((50, 1.1), (80, 1.2), (110, 1.3)):
        publish(world, transitions, bias)
    assert world.pointer().stable.version == 4
    return world


def publish(world: Any, transitions: int, bias: float) -> None:
    world.candidate(transitions, bias=bias)
    assert world.run().accepted == 1


def lose(world: Any) -> None:
    shutil.rmtree(world.models)
    world.models.mkdir()


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_new_volume_begins_with_the_baseline_under_a_new_number(served: Any, by_hand: bool) -> None:
    lose(served)
    if by_hand:
        served.bootstrap()
    served.run()
    served.run()
    assert served.pointer().stable.version >= 5
    assert served.served_versions()[0] >= 5
    assert_nothing_half(served)
    publish(served, 140, 1.1)
    assert served.pointer().previous.version >= 5


def test_the_kill_switch_stays(served: Any) -> None:
    set_off(served.store, "fd", ("rl",), True)
    lose(served)
    served.bootstrap()
    assert served.pointer().off
    assert served.pointer().stable.version == 5


def test_a_copy_of_the_volume_serves_what_it_served_then(served: Any, tmp_path: Any) -> None:
    shutil.copytree(served.models, tmp_path / "copy")
    for transitions in (140, 170, 200, 230, 260):
        publish(served, transitions, 1.3)
    assert served.pointer().stable.version == 9
    lose(served)
    shutil.copytree(tmp_path / "copy", served.models, dirs_exist_ok=True)
    served.run()
    served.run()
    assert served.pointer().stable.version in (4, 10)
    assert_nothing_half(served)
    publish(served, 300, 1.3)
    assert served.pointer().stable.version >= 10


def test_a_publish_that_was_under_way_in_the_copy_begins_anew(served: Any, tmp_path: Any) -> None:
    """Its number is another version's since then."""

    def copy(policy: str, step: str) -> None:
        if step == "reserved":
            served.on_step = lambda policy, step: None
            shutil.copytree(served.models, tmp_path / "copy")

    served.on_step = copy
    for transitions in (140, 170, 200):
        publish(served, transitions, 1.3)
    lose(served)
    shutil.copytree(tmp_path / "copy", served.models, dirs_exist_ok=True)
    served.run()
    assert not {"5", "6", "7"} & {path.name for path in (served.models / "feed_rl").iterdir()}
    assert_nothing_half(served)


def test_what_is_not_there_is_neither_asked_for_nor_compared_with(served: Any) -> None:
    for version in ("1", "2", "4"):
        shutil.rmtree(served.models / "feed_rl" / version)
    served.site("two")
    policy = served.desired().policies["rl"]
    assert (policy.certified.version, policy.pointer.stable.version, served.served_versions()) == (3, 3, (3,))
    publish(served, 140, 1.3)


def test_without_its_list_too(served: Any, tmp_path: Any) -> None:
    """Only what was served last is gone."""
    shutil.rmtree(served.models / "feed_rl" / "4")
    (served.models / "desired.json").unlink()
    served.run()
    assert served.pointer().stable.version == 3
    assert read_pointers(served.store, "fd", ("rl",))["rl"].previous is None
    assert served.desired().policies["rl"].next_version == 5
    assert_nothing_half(served)


def test_numbers_are_not_used_again_where_the_copy_has_what_serves(served: Any, tmp_path: Any) -> None:
    """Servers may still have the versions that were loaded under them, and `rollback` would go there."""
    shutil.copytree(served.models, tmp_path / "copy")
    for transitions in (140, 170):
        publish(served, transitions, 1.3)
    roll_back(served.store, "fd", "rl")
    roll_back(served.store, "fd", "rl", to=4)
    served.run()
    assert (served.pointer().stable.version, served.pointer().previous.version) == (4, 5)
    lose(served)
    shutil.copytree(tmp_path / "copy", served.models, dirs_exist_ok=True)
    served.run()
    assert (served.pointer().stable.version, served.pointer().previous) == (4, None)
    assert_nothing_half(served)
    release(served.store, "fd", "rl", as_it_is=True)
    publish(served, 300, 1.3)
    assert served.pointer().stable.version == 7


def test_a_kill_switch_that_the_store_has_lost_as_well_stays(served: Any) -> None:
    set_off(served.store, "fd", ("rl",), True)
    served.run()
    shutil.rmtree(served.models / "feed_rl" / "4")
    served.store.delete_many(served.store.keys(""))
    served.run()
    assert (served.pointer().stable.version, served.pointer().off) == (3, True)


def test_a_list_of_versions_that_is_none_is_written_anew(served: Any) -> None:
    served.store.put(candidates_key("fd", "rl"), b"?")
    served.run()
    assert 4 in read_candidates(served.store, "fd", ("rl",))["rl"]
