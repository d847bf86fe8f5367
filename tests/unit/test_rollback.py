"""A rollback to any version that is kept: what serves, what the trainer is asked for, what is published afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from model_export.switches import SwitchError, release, roll_back
from pipeline.stores.published import BOOTSTRAP, GoBack, Served, must_go_back, read_candidates

NAMES = {version: f"{40 * version:012d}" for version in (2, 3, 4)}


@pytest.fixture
def served(world: Any) -> Any:
    """Four versions: the baseline and three others."""
    world.bootstrap()
    for version in NAMES:
        world.candidate(40 * version, bias=1.0 + version / 10)
        assert world.run().accepted == 1
    return world


def test_it_goes_to_the_version_that_is_named_and_the_trainer_with_it(served: Any) -> None:
    left, now = roll_back(served.store, "fd", "rl", to=2)
    assert (left.version, now.version) == (4, 2)
    pointer = served.pointer()
    assert (pointer.stable, pointer.previous, pointer.frozen) == (now, left, True)
    assert pointer.back == GoBack(1, NAMES[2])


def test_its_parameters_are_those_of_that_version(served: Any) -> None:
    parameters = {entry.version: entry.parameters for entry in served.desired().policies["rl"].loaded}
    assert roll_back(served.store, "fd", "rl", to=3)[1] == Served(3, parameters[3])


def test_a_version_that_was_unloaded_is_loaded_again(served: Any) -> None:
    served.now_ms += 1_000_000  # what is not named any more has drained
    served.run()
    assert served.served_versions() == (1, 3, 4)
    roll_back(served.store, "fd", "rl", to=2)
    served.run()
    assert 2 in served.served_versions()


def test_a_version_that_is_not_kept_is_refused_with_those_that_are(served: Any) -> None:
    with pytest.raises(SwitchError, match=r"one of 1, 2, 3, 4; found 9"):
        roll_back(served.store, "fd", "rl", to=9)
    assert served.pointer().back is None


def test_the_trainer_is_told_which_candidates_may_be_asked_for(served: Any) -> None:
    assert read_candidates(served.store, "fd", ("rl",)) == {"rl": {1: BOOTSTRAP, **NAMES}}
    roll_back(served.store, "fd", "rl", to=1)
    assert served.pointer().back == GoBack(1, BOOTSTRAP)


def test_what_was_made_before_the_trainer_went_back_is_not_published(served: Any) -> None:
    roll_back(served.store, "fd", "rl", to=2)
    release(served.store, "fd", "rl")
    served.candidate(200, bias=1.3)
    assert served.run().kept == {"before_rollback": 1}
    served.candidate(220, bias=1.3, gone_back=1)
    assert served.run().accepted == 1
    assert served.pointer().stable.version == 5


def test_one_that_loads_meanwhile_is_not_published_either(served: Any) -> None:
    def operator(policy: str, step: str) -> None:
        if step == "probed":
            roll_back(served.store, "fd", "rl", to=2)
            release(served.store, "fd", "rl")

    served.on_step = operator
    served.candidate(200, bias=1.3)
    assert served.run().kept == {"before_rollback": 1}
    assert served.pointer().stable.version == 2


def test_each_rollback_is_a_request_of_its_own(served: Any) -> None:
    roll_back(served.store, "fd", "rl", to=2)
    roll_back(served.store, "fd", "rl", to=2)
    pointer = served.pointer()
    assert (pointer.stable.version, pointer.previous.version) == (2, 4)
    assert pointer.back == GoBack(2, NAMES[2])
    release(served.store, "fd", "rl")
    served.candidate(200, bias=1.3, gone_back=1)
    assert served.run().kept == {"before_rollback": 1}


def test_a_trainer_that_cannot_go_back_is_let_out_as_it_is(served: Any) -> None:
    roll_back(served.store, "fd", "rl", to=2)
    release(served.store, "fd", "rl", as_it_is=True)
    assert not must_go_back(served.pointer(), 0)
    served.candidate(200, bias=1.3)
    assert served.run().accepted == 1


def test_a_request_survives_the_loss_of_the_store(served: Any) -> None:
    roll_back(served.store, "fd", "rl", to=2)
    served.run()
    served.store.delete_prefix("fd:")
    served.run("two")
    assert served.pointer().back == GoBack(1, NAMES[2])
    assert read_candidates(served.store, "fd", ("rl",))["rl"][2] == NAMES[2]


def test_publishing_does_not_take_a_request_back(served: Any) -> None:
    roll_back(served.store, "fd", "rl", to=2)
    release(served.store, "fd", "rl")
    served.candidate(200, bias=1.3, gone_back=1)
    served.run()
    assert served.pointer().back == GoBack(1, NAMES[2])
