"""A policy that is pinned to a version: what serves, what becomes of candidates meanwhile, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from model_export.desired import PolicyState, follow, read_desired
from model_export.status import status
from model_export.switches import SwitchError, freeze, pin, release, roll_back
from model_export.verdicts import read_verdicts
from pageturn.operating import _policy_rows
from pipeline.config.schema import Guard
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.published import Heartbeat, Usage, write_heartbeat


@pytest.fixture
def served(world: Any) -> Any:
    """Three versions: the baseline and two others."""
    world.bootstrap()
    for version in (2, 3):
        world.candidate(40 * version, bias=1.0 + version / 10)
        assert world.run().accepted == 1
    return world


def test_it_serves_that_version_and_the_trainer_goes_on(served: Any) -> None:
    assert pin(served.store, "fd", "rl", to=2).version == 2
    pointer = served.pointer()
    assert (pointer.stable.version, pointer.previous.version) == (2, 3)
    assert (pointer.pinned, pointer.frozen, pointer.back) == (True, True, None)
    served.run()
    assert served.desired().policies["rl"].pointer == served.pointer() == replace(pointer, fence=served.pointer().fence)


def test_without_a_version_it_is_the_one_in_use(served: Any) -> None:
    before = served.pointer()
    assert pin(served.store, "fd", "rl").version == 3
    assert served.pointer() == replace(before, pinned=True, frozen=True, changes=before.changes + 1)


def test_a_version_that_was_unloaded_is_loaded_again(served: Any) -> None:
    served.candidate(160, bias=1.4)
    served.run()
    served.now_ms += 1_000_000  # what is not named any more has drained
    served.run()
    assert served.served_versions() == (1, 3, 4)
    pin(served.store, "fd", "rl", to=2)
    served.run()
    assert 2 in served.served_versions()


def test_what_cannot_be_pinned_is_refused(served: Any) -> None:
    with pytest.raises(SwitchError, match=r"one of 1, 2, 3; found 9"):
        pin(served.store, "fd", "rl", to=9)
    with pytest.raises(SwitchError, match="none published"):
        pin(served.store, "fd", "other")
    assert not served.pointer().pinned


def test_candidates_are_checked_and_kept(served: Any) -> None:
    pin(served.store, "fd", "rl", to=2)
    served.candidate(200, bias=1.3)
    assert served.run().kept == {"pinned": 1}
    served.candidate(240, bias=3.9)
    assert served.run().refused == {"step_change": 1}
    *_, good, bad = read_verdicts(served.models)
    assert (good.outcome, good.reason, good.version) == ("kept", "pinned", None)
    assert good.detail == "passed its checks; version 2 is pinned until the policy is released"
    assert {check.name for check in good.checks} == {check.name for check in bad.checks}
    assert served.pointer().stable.version == 2


def test_one_that_loads_meanwhile_is_kept(served: Any) -> None:
    served.on_step = lambda policy, step: pin(served.store, "fd", "rl", to=2) if step == "probed" else None
    served.candidate(200, bias=1.4)
    assert served.run().kept == {"pinned": 1}
    assert served.pointer().stable.version == 2


def test_released_the_next_one_goes_out(served: Any) -> None:
    pin(served.store, "fd", "rl", to=2)
    release(served.store, "fd", "rl")
    assert (served.pointer().pinned, served.pointer().frozen) == (False, False)
    served.candidate(200, bias=1.3)
    assert served.run().accepted == 1
    assert served.pointer().stable.version == 4


def test_what_agents_say_of_it_does_not_send_it_back(served: Any) -> None:
    served.config = replace(served.config, publish=replace(served.config.publish, guard=Guard(min_pages=100)))
    say(served, 3, Usage(200, 0, 200, 0))
    served.run()
    pin(served.store, "fd", "rl", to=2)
    served.now_ms += 2_000
    say(served, 2, Usage(200, 200, 0, 0))
    assert served.run().concluded == {}
    assert served.pointer().stable.version == 2


def say(world: Any, version: int, usage: Usage) -> None:
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": version}, {"rl": usage}))


def test_it_survives_the_loss_of_the_store(served: Any) -> None:
    pin(served.store, "fd", "rl", to=2)
    served.run()
    served.store.delete_prefix("fd:")
    served.run("two")
    assert (served.pointer().stable.version, served.pointer().pinned) == (2, True)


def test_a_freeze_leaves_it_and_a_rollback_is_the_later_word(served: Any) -> None:
    pin(served.store, "fd", "rl", to=3)
    freeze(served.store, "fd", "rl")
    assert served.pointer().pinned
    roll_back(served.store, "fd", "rl", to=1)
    assert (served.pointer().stable.version, served.pointer().pinned, served.pointer().frozen) == (1, False, True)


def test_status_and_a_gauge_say_so(served: Any) -> None:
    metrics = Metrics(CONTROLLER)
    served.run(metrics=metrics)
    assert metrics.total("pinned_version", policy="rl") == 0
    pin(served.store, "fd", "rl", to=2)
    served.run(metrics=metrics)
    assert (metrics.total("pinned_version", policy="rl"), metrics.total("frozen", policy="rl")) == (2, 1)
    [found] = status(served.config, served.store, [served.server], served.models, now_ms=served.now_ms).policies
    assert dict(_policy_rows(found))["serves"] == "version 2, pinned"


def test_a_desired_state_of_before_there_were_pins_is_understood(served: Any) -> None:
    path = served.models / "desired.json"
    former = path.read_text().replace('"certified",', '"pinned",').replace('"role": "certified"', '"role": "pinned"')
    path.write_text(former)
    state = read_desired(served.models)
    assert state is not None
    assert [entry.role for entry in state.policies["rl"].loaded] == ["pinned", "previous", "stable"]
    policy: PolicyState = follow(state.policies["rl"], state.policies["rl"].pointer, 5)
    assert policy.loaded[0].role == "certified"
