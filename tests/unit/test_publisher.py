"""Publishing: whole or not at all, whatever breaks in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from model_export.bootstrap import bootstrap
from model_export.candidate import CandidateError, list_candidates, read_candidate
from model_export.checks import Verdict
from model_export.lease import LeaseLost
from model_export.publisher import publish
from model_export.switches import freeze, release, roll_back, set_off
from pipeline.serving.errors import Unavailable
from pipeline.stores.published import (
    Pointer,
    Served,
    VersionRecord,
    change_pointer,
    parameters_key,
    read_pointers,
    version_key,
)

STEPS = (
    "parameters",
    "reserved",
    "placed",
    "requested",
    "available",
    "probed",
    "flipped",
    "recorded",
    "settled",
)
FAILED_STEPS = ("parameters", "reserved", "placed", "requested", "recorded", "withdrawn")


class Crash(Exception):
    pass


def crash_after(world: Any, step: str) -> None:
    def on_step(policy: str, done: str) -> None:
        world.steps.append(done)
        assert_nothing_half(world)
        if done == step:
            raise Crash

    world.on_step = on_step


def go_on(world: Any) -> None:
    world.on_step = lambda policy, step: assert_nothing_half(world)


def assert_nothing_half(world: Any) -> None:
    """What an agent sees: the pointer's version is served, and its record and parameters are in the store."""
    served = world.pointer().stable
    record = world.store.get(version_key("fd", "rl", served.version))
    assert msgspec.json.decode(record, type=VersionRecord).parameters == served.parameters
    assert world.store.get(parameters_key("fd", served.parameters)) is not None
    assert served.version in [s.version for s in world.server.status("feed_rl", 1) if s.state == "AVAILABLE"]


def outcome(world: Any) -> dict[str, Any]:
    """Everything that a publish leaves behind, but for times and tokens."""
    pointer, policy = world.pointer(), world.desired().policies["rl"]
    folder = world.models / "feed_rl"
    return {
        "pointer": (pointer.stable, pointer.previous, pointer.off, pointer.frozen),
        "loaded": [(entry.version, entry.role) for entry in policy.loaded],
        "pending": policy.pending,
        "next": policy.next_version,
        "folders": sorted(str(p.relative_to(folder)) for p in folder.rglob("*")),
        "served": world.served_versions(),
        "verdicts": [(v["candidate"], v["outcome"], v["reason"], v["version"]) for v in verdict_lines(world)],
    }


def verdict_lines(world: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.models / "verdicts.jsonl").read_text().splitlines()]


# Bootstrap -------------------------------------------------------------------------------------------------------


def test_the_first_version_is_the_baseline_and_needs_no_server(world: Any) -> None:
    world.server.up = False
    state = world.bootstrap()
    served = Served(1, read_candidate(world.staging / "rl" / f"{0:012d}").parameters)
    assert world.pointer().stable == served
    assert state.policies["rl"].certified == served
    assert world.served_versions() == (1,)
    assert (world.models / "feed_rl" / "1" / "variables" / "variables.index").is_file()
    assert verdict_lines(world)[0]["tier"] == "bootstrap"


def test_the_bootstrap_can_be_repeated_and_fills_an_emptied_store(world: Any) -> None:
    world.bootstrap()
    before = outcome(world)
    world.store.delete_many(world.store.keys(""))
    world.bootstrap()
    assert outcome(world) == before
    assert_nothing_half(world)


@pytest.mark.parametrize("step", STEPS)
def test_a_bootstrap_that_crashed_is_finished_by_the_next(world: Any, step: str) -> None:
    def crashing(policy: str, done: str) -> None:
        if done == step:
            raise Crash

    with pytest.raises(Crash):
        world.bootstrap(on_step=crashing)
    world.bootstrap()
    assert world.pointer().stable.version == 1
    assert world.served_versions() == (1,)
    assert world.desired().policies["rl"].pending is None
    assert_nothing_half(world)


def test_a_bootstrap_candidate_that_is_not_the_baseline_is_refused(world: Any) -> None:
    world.candidate(0, bias=1.5)
    with pytest.raises(CandidateError, match=r"expected the constant baseline 1.0, found action 1.5"):
        world.bootstrap()


def test_a_missing_bootstrap_candidate_is_named(world: Any) -> None:
    world.candidate(50)
    with pytest.raises(CandidateError, match=r"expected a bootstrap candidate \(0 transitions\) of rl; found none"):
        bootstrap(world.config, world.staging, world.models, world.store, clock_ms=world.clock)


# Publishing ------------------------------------------------------------------------------------------------------


def test_a_version_goes_out_step_by_step(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2, slope=0.1)
    summary = world.run()
    assert (summary.accepted, summary.refused) == (1, {})
    assert [s for s in world.steps if s in STEPS] == list(STEPS)
    assert outcome(world)["loaded"] == [(1, "previous"), (2, "stable")]
    assert world.pointer().previous.version == 1
    assert_nothing_half(world)
    verdict = verdict_lines(world)[-1]
    trace = [verdict["trace"][each] for each in ("exported_ms", "checked_ms", "asked_ms", "loaded_ms")]
    assert trace == sorted(set(trace))
    assert trace[-1] < verdict["time_ms"]


@pytest.mark.parametrize("step", STEPS)
def test_after_a_crash_at_any_step_the_outcome_is_the_same(world: Any, tmp_path: Path, step: str) -> None:
    twin = type(world)(_made(tmp_path / "twin"))
    for each in (world, twin):
        each.bootstrap()
        each.candidate(50, bias=1.2, slope=0.1)
    twin.run()
    crash_after(world, step)
    with pytest.raises(Crash):
        world.run()
    assert_nothing_half(world)
    go_on(world)
    world.run(holder="two")
    assert outcome(world) == outcome(twin)
    twin.store.close()


@pytest.mark.parametrize("step", FAILED_STEPS)
def test_a_refusal_that_crashed_is_finished_too(world: Any, step: str) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.server.broken = {2: "DATA_LOSS", 3: "DATA_LOSS"}
    crash_after(world, step)
    with pytest.raises(Crash):
        world.run()
    if step in ("recorded", "withdrawn"):
        world.server.broken.clear()  # too late: the verdict stands
    go_on(world)
    world.run(holder="two")
    assert world.pointer().stable.version == 1
    assert world.served_versions() == (1,)
    assert [v["reason"] for v in verdict_lines(world)] == ["", "load_failed"]
    assert world.desired().policies["rl"].pending is None


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_version_that_does_not_load_is_refused_and_set_aside(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.server.broken[2] = "DATA_LOSS: truncated"
    assert world.run().refused == {"load_failed": 1}
    assert world.served_versions() == (1,)
    assert (world.models / "feed_rl" / ".bad-2").is_dir()
    assert not (world.models / "feed_rl" / "2").exists()
    assert "DATA_LOSS: truncated" in verdict_lines(world)[-1]["detail"]
    world.candidate(60, bias=1.2)
    assert world.run().accepted == 1
    assert world.pointer().stable.version == 3  # a number is never used twice


def test_a_version_that_keeps_loading_is_refused_after_the_time_limit(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.server.loading.add(2)
    assert world.run().refused == {"load_timeout": 1}


def test_a_server_out_of_reach_keeps_the_version_and_blames_nobody(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    second = type(world.server)(world.models, "second:8500")
    second.up = False
    world.servers.append(second)
    summary = world.run()
    assert (summary.refused, summary.kept) == ({}, {"server_unreachable": 1})
    assert world.served_versions() == (1,)
    assert not (world.models / "feed_rl" / "2").exists()


def test_every_server_has_to_answer_the_probes_as_the_trainer_did(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    second = type(world.server)(world.models, "second:8500")
    second.shift = 1e-3
    world.servers.append(second)
    assert world.run().refused == {"served_probes": 1}
    verdict = verdict_lines(world)[-1]
    assert "second:8500" in verdict["detail"]
    assert verdict["checks"][-1]["name"] == "served_probes"
    assert world.pointer().stable.version == 1


def test_every_server_has_to_load_the_version(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    second = type(world.server)(world.models, "second:8500")
    second.broken[2] = "its disk is full"
    world.servers.append(second)
    assert world.run().refused == {"load_failed": 1}
    assert "second:8500" in verdict_lines(world)[-1]["detail"]


def test_nothing_of_a_version_that_did_not_go_out_stays_in_the_store(world: Any) -> None:
    """Or a fault that refuses every version would fill it with a snapshot a minute."""
    world.bootstrap()
    before = world.store.keys("fd:p:"), world.store.keys("fd:v:")
    world.server.shift = 1e-3
    world.candidate(50, bias=1.2)
    assert world.run().refused == {"served_probes": 1}
    assert (world.store.keys("fd:p:"), world.store.keys("fd:v:")) == before
    world.server.shift = 0.0
    world.candidate(90, bias=1.2)
    assert world.run().accepted == 1
    accepted = world.store.keys("fd:p:"), world.store.keys("fd:v:")
    world.candidate(150, bias=1.2)  # with the parameters of the one before it
    world.server.broken[4] = "damaged"
    assert world.run().refused == {"load_failed": 1}
    assert (world.store.keys("fd:p:"), world.store.keys("fd:v:")) == accepted


def test_probes_are_compared_with_the_candidates_own_parameters(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2, slope=0.3)  # with the bootstrap's parameters every input would be 0
    summary = world.run()
    assert summary.accepted == 1, verdict_lines(world)[-1]


def test_publishing_again_goes_on_with_the_same_number(world: Any) -> None:
    world.bootstrap()
    source = world.candidate(50, bias=1.2)
    site, verdicts, _ = world.site()
    draft = Verdict(source.name, "rl", "every_version", "accepted", "", "")
    crash_after(world, "reserved")
    with pytest.raises(Crash):
        publish(site, verdicts, world.desired(), "rl", source, draft)
    go_on(world)
    _, verdict = publish(site, verdicts, world.desired(), "rl", source, draft)
    assert verdict.version == world.pointer().stable.version == 2


def test_a_copy_that_was_broken_off_is_made_anew(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)

    def leave_half_a_copy(policy: str, done: str) -> None:
        if done == "reserved":
            (world.models / "feed_rl" / ".tmp-2" / "half").mkdir(parents=True)

    world.on_step = leave_half_a_copy
    assert world.run().accepted == 1
    assert not (world.models / "feed_rl" / "2" / "half").exists()


def test_a_pointer_of_a_newer_holder_is_not_touched(world: Any) -> None:
    world.bootstrap()
    source = world.candidate(50, bias=1.2)
    site, verdicts, state = world.site()
    change_pointer(world.store, "fd", "rl", lambda pointer: replace(pointer, fence=99))
    draft = Verdict(source.name, "rl", "every_version", "accepted", "", "")
    with pytest.raises(LeaseLost):
        publish(site, verdicts, state, "rl", source, draft)
    assert world.pointer().stable.version == 1
    world.store.release_lease("fd:controller", "one")
    world.run("next")
    assert world.pointer().fence == 100


def test_an_old_holder_can_write_nothing(world: Any) -> None:
    world.bootstrap()
    source = world.candidate(50, bias=1.2)
    site, verdicts, state = world.site("old")
    world.now_ms += site.lease.ttl_ms + 1
    world.site("new")
    draft = Verdict(source.name, "rl", "every_version", "accepted", "", "")
    before = outcome(world)
    with pytest.raises(LeaseLost):
        publish(site, verdicts, state, "rl", source, draft)
    site.lease._renewed_ms = 10**15  # it has not noticed yet
    with pytest.raises(LeaseLost):
        publish(site, verdicts, state, "rl", source, draft)
    with pytest.raises(LeaseLost):
        site.write(state, "rl", state.policies["rl"].__class__("other"))
    assert outcome(world) == before


def test_an_old_holder_cannot_flip_the_pointer(world: Any) -> None:
    world.bootstrap()
    source = world.candidate(50, bias=1.2)
    site, verdicts, state = world.site("old")

    def overtaken(policy: str, done: str) -> None:
        if done == "probed":
            world.now_ms += site.lease.ttl_ms + 1
            world.site("new")
            site.lease._renewed_ms = 10**15

    world.on_step = overtaken
    draft = Verdict(source.name, "rl", "every_version", "accepted", "", "")
    with pytest.raises(LeaseLost):
        publish(site, verdicts, state, "rl", source, draft)
    assert world.pointer().stable.version == 1
    world.on_step = lambda policy, step: None
    world.store.release_lease("fd:controller", "new")
    world.run("third")
    assert world.pointer().stable.version == 2


# Operators -------------------------------------------------------------------------------------------------------


def test_the_kill_switch_stays_through_a_publish_and_through_an_emptied_store(world: Any) -> None:
    world.bootstrap()
    set_off(world.store, "fd", ["rl"], True)
    world.candidate(50, bias=1.2)
    world.run()
    assert (world.pointer().off, world.pointer().stable.version) == (True, 2)
    world.store.delete_many(world.store.keys(""))
    assert world.pointer() == Pointer()
    world.run("two")
    assert (world.pointer().off, world.pointer().stable.version) == (True, 2)
    set_off(world.store, "fd", ["rl"], False)
    world.run("three")
    assert not world.pointer().off


def test_a_rollback_goes_to_the_previous_version_and_freezes(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.run()
    left, served = roll_back(world.store, "fd", "rl")
    assert (left.version, served.version) == (2, 1)
    world.candidate(70, bias=1.3, gone_back=1)
    assert world.run().kept == {"frozen": 1}
    assert outcome(world)["loaded"] == [(1, "stable"), (2, "previous")]
    release(world.store, "fd", "rl")
    world.candidate(90, bias=1.1, gone_back=1)
    assert world.run().accepted == 1
    assert world.pointer().stable.version == 3


def test_a_freeze_while_a_version_loads_keeps_it_back(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.on_step = lambda policy, step: freeze(world.store, "fd", "rl") if step == "probed" else None
    assert world.run().kept == {"frozen": 1}
    assert world.pointer().stable.version == 1
    assert world.served_versions() == (1,)


def test_a_rollback_after_a_crash_is_not_undone(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    crash_after(world, "flipped")
    with pytest.raises(Crash):
        world.run()
    roll_back(world.store, "fd", "rl")
    go_on(world)
    world.run("two")
    assert world.pointer().stable.version == 1
    assert outcome(world)["loaded"] == [(1, "stable"), (2, "previous")]


def test_a_crash_after_the_flip_is_finished_without_any_server(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    crash_after(world, "flipped")
    with pytest.raises(Crash):
        world.run()
    world.on_step = lambda policy, step: None
    world.server.up = False
    world.run("two")
    assert world.pointer().stable.version == 2
    assert world.served_versions() == (1, 2)


# Candidates ------------------------------------------------------------------------------------------------------


def test_candidates_are_listed_by_age_without_those_being_written(world: Any) -> None:
    later, earlier = world.candidate(100), world.candidate(20)
    (world.staging / "rl" / ".tmp-000000000200").mkdir()
    assert list_candidates(world.staging, "rl") == [earlier, later]
    assert list_candidates(world.staging, "other") == []


def test_a_candidate_survives_its_file(world: Any) -> None:
    path = world.candidate(50, losses={"value": float("nan"), "actor": 0.1})
    assert read_candidate(path).losses == {"value": None, "actor": 0.1}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p / "candidate.json").unlink(), "candidate.json: cannot be read"),
        (lambda p: (p / "candidate.json").write_text("{}"), "expected a candidate record"),
        (lambda p: (p / "model" / "saved_model.pb").unlink(), "missing saved_model.pb$"),
        (lambda p: (p / "model" / "variables" / "variables.index").unlink(), "missing variables/variables.index$"),
        (lambda p: (p / "model/assets.extra/parameters.msgpack").write_bytes(b"x"), "parameters.msgpack: expected sha"),
        (lambda p: (p / "model/assets.extra/tf_serving_warmup_requests").unlink(), "missing .*warmup_requests$"),
        (lambda p: p.rename(p.with_name("000000000051")), "expected policy and id of its folder, found rl/0*50"),
    ],
)
def test_what_is_wrong_with_a_candidate_is_named(world: Any, spoil: Any, says: str) -> None:
    world.bootstrap()
    spoil(world.candidate(50))
    with pytest.raises(CandidateError, match=says):
        read_candidate(list_candidates(world.staging, "rl")[-1])
    assert world.run().refused == {"unusable": 1}
    assert read_pointers(world.store, "fd", ("rl",))["rl"].stable.version == 1


class Replicas:
    """A fleet whose members come and go: the look with nobody there raises."""

    def __init__(self, looks: list[list[Any]]) -> None:
        self.looks = looks

    def __iter__(self) -> Any:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if not found:
            raise Unavailable("nobody is there")
        return iter(found)


def test_servers_are_looked_for_at_every_publish(world: Any) -> None:
    """None there is waited for; one that came since the controller started has to answer, too."""
    world.bootstrap()
    world.candidate(50, bias=1.2)
    second = type(world.server)(world.models, "second:8500")
    second.shift = 1e-3
    world.servers = Replicas([[world.server], [], [world.server, second]])
    assert world.run().refused == {"served_probes": 1}
    assert "second:8500" in verdict_lines(world)[-1]["detail"]


def test_without_a_server_in_time_nothing_is_published(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.servers = Replicas([[world.server], []])
    assert world.run().kept == {"server_unreachable": 1}
    assert world.pointer().stable.version == 1
