"""The stand-in's state machine, without TensorFlow, clock or threads."""

from functools import reduce

import pytest

from pipeline.serving.standin.manager import (
    Action,
    Do,
    Failure,
    Fleet,
    State,
    aspire,
    first_reached,
    forget,
    moved,
    next_action,
    wanted,
)

BROKEN = Failure(15, "DATA_LOSS", "broken")


def folders(*versions):
    return {version: f"/m/{version}" for version in versions}


def serving(*versions, model="m", fleet=None):
    """A fleet whose wanted versions are all available."""
    fleet = aspire(fleet or Fleet(), model, folders(*versions))
    return reduce(lambda f, v: moved(f, model, v, State.AVAILABLE), versions, fleet)


def states(fleet, model="m"):
    return {version: report.state for version, report in fleet.reports[model].items()}


def test_a_wanted_version_starts_and_is_to_be_loaded():
    fleet = aspire(Fleet(), "m", folders(3))
    assert states(fleet) == {3: State.START}
    assert next_action(fleet) == Action(Do.LOAD, "m", 3, "/m/3")


def test_the_highest_new_version_is_loaded_first():
    assert next_action(aspire(Fleet(), "m", folders(1, 7, 3))).version == 7


def test_a_version_being_loaded_is_not_loaded_again():
    fleet = moved(aspire(Fleet(), "m", folders(1)), "m", 1, State.LOADING)
    assert next_action(fleet) is None


def test_the_old_version_stays_until_the_new_one_is_available():
    fleet = aspire(serving(1), "m", folders(2))
    assert next_action(fleet) == Action(Do.LOAD, "m", 2, "/m/2")
    fleet = moved(fleet, "m", 2, State.LOADING)
    assert next_action(fleet) is None
    assert next_action(moved(fleet, "m", 2, State.AVAILABLE)) == Action(Do.UNLOAD, "m", 1, "/m/1")


def test_the_old_version_stays_for_good_when_the_new_one_fails():
    fleet = moved(aspire(serving(1), "m", folders(2)), "m", 2, State.END, BROKEN)
    assert next_action(fleet) is None
    assert states(fleet) == {1: State.AVAILABLE, 2: State.END}


def test_with_two_wanted_the_third_pushes_out_the_lowest_before_it_loads():
    fleet = aspire(serving(1, 2), "m", folders(2, 3))
    assert next_action(fleet) == Action(Do.UNLOAD, "m", 1, "/m/1")
    fleet = moved(fleet, "m", 1, State.UNLOADING)
    assert next_action(fleet) == Action(Do.LOAD, "m", 3, "/m/3")


def test_of_several_unwanted_versions_only_one_is_kept_while_nothing_wanted_is_available():
    fleet = aspire(serving(1, 2, 3), "m", folders(4))
    assert next_action(fleet) == Action(Do.UNLOAD, "m", 1, "/m/1")
    fleet = moved(fleet, "m", 1, State.UNLOADING)
    assert next_action(fleet) == Action(Do.UNLOAD, "m", 2, "/m/2")
    fleet = moved(fleet, "m", 2, State.UNLOADING)
    assert next_action(fleet) == Action(Do.LOAD, "m", 4, "/m/4")


def test_an_emptied_folder_unloads_everything():
    fleet = aspire(serving(1), "m", {})
    assert next_action(fleet) == Action(Do.UNLOAD, "m", 1, "/m/1")


def test_an_unload_of_any_model_comes_before_a_load_of_another():
    fleet = aspire(aspire(serving(1, model="z"), "z", {}), "a", folders(1))
    assert next_action(fleet) == Action(Do.UNLOAD, "z", 1, "/m/1")


def test_a_failed_version_is_not_tried_again_while_its_folder_stays():
    failed = moved(aspire(Fleet(), "m", folders(1)), "m", 1, State.END, BROKEN)
    assert next_action(aspire(failed, "m", folders(1))) is None


def test_a_failed_version_is_tried_again_once_its_folder_was_away():
    failed = moved(aspire(Fleet(), "m", folders(1)), "m", 1, State.END, BROKEN)
    back = aspire(aspire(failed, "m", {}), "m", folders(1))
    assert next_action(back) == Action(Do.LOAD, "m", 1, "/m/1")


@pytest.mark.parametrize("state", [State.UNLOADING, State.AVAILABLE])
def test_a_version_that_comes_back_waits_until_it_is_gone(state):
    leaving = moved(aspire(serving(1), "m", {}), "m", 1, state)
    back = aspire(leaving, "m", folders(1))
    assert not wanted(back, "m", 1)
    gone = aspire(moved(back, "m", 1, State.END), "m", folders(1))
    assert next_action(gone) == Action(Do.LOAD, "m", 1, "/m/1")


def test_a_version_dropped_before_its_load_ends_without_an_error():
    fleet = forget(aspire(aspire(Fleet(), "m", folders(1)), "m", {}))
    assert fleet.reports["m"][1][:2] == (State.END, None)
    assert next_action(fleet) is None


def test_reports_are_never_forgotten():
    fleet = forget(moved(aspire(serving(1), "m", {}), "m", 1, State.END))
    assert states(fleet) == {1: State.END}
    assert fleet.managed == {}


def test_a_wait_is_decided_by_the_highest_version_that_is_available_or_ended():
    fleet = aspire(Fleet(), "m", folders(1, 2))
    assert first_reached(fleet, "m", 0) is None
    fleet = moved(fleet, "m", 1, State.AVAILABLE)
    assert first_reached(fleet, "m", 0)[0] == 1
    fleet = moved(fleet, "m", 2, State.END, BROKEN)
    assert first_reached(fleet, "m", 0) == (2, fleet.reports["m"][2])


def test_a_wait_does_not_see_what_happened_before_it():
    fleet = serving(1)
    assert first_reached(fleet, "m", fleet.sequence) is None


def test_fleets_are_values():
    fleet = aspire(Fleet(), "m", folders(1))
    before = (dict(fleet.managed["m"]), dict(fleet.reports["m"]))
    moved(aspire(fleet, "m", {}), "m", 1, State.END)
    assert (fleet.managed["m"], fleet.reports["m"]) == before
