"""The controller's loop: which candidate, which verdict, what is cleaned up, who may write."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from model_export.checks import Verdict
from model_export.controller import ControllerError, run_controller
from model_export.housekeeping import HEARTBEAT_MS, LEAST_DRAIN_MS, MOST_DRAIN_MS
from model_export.lease import Lease, LeaseLost
from model_export.recovery import _claimed, keep_in_step
from model_export.status import status
from model_export.switches import SwitchError, roll_back, set_off
from model_export.verdicts import read_verdicts
from model_export.volume import versions_on
from pipeline.config.schema import Dense, Publish, ZScore
from pipeline.features.inputs import config_sha
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.published import Heartbeat, parameters_key, read_heartbeats, version_key, write_heartbeat
from pipeline.stores.sqlite import SqliteStore
from pipeline.stores.store import StoreError


def last_verdict(world: Any) -> Verdict:
    line = (world.models / "verdicts.jsonl").read_bytes().splitlines()[-1]
    return msgspec.json.decode(line, type=Verdict)


def publish_each(world: Any, *transitions: int) -> None:
    for count in transitions:
        world.candidate(count, bias=1.1)
        assert world.run().accepted == 1, last_verdict(world)


# Judging ---------------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_done_at_once(world: Any) -> None:
    world.bootstrap()
    summary = world.run()
    assert (summary.accepted, summary.refused, summary.kept, summary.superseded) == (0, {}, {}, 0)


def test_only_the_newest_candidate_is_looked_at(world: Any) -> None:
    world.bootstrap()
    for transitions in (50, 60, 70):
        world.candidate(transitions, bias=1.1)
    summary = world.run()
    assert (summary.accepted, summary.superseded) == (1, 2)
    assert summary.evidence == {"not_enough_evidence": 1}
    verdict = msgspec.json.decode(world.store.get("fd:verdict:rl:000000000050"), type=Verdict)
    assert (verdict.outcome, verdict.evidence) == ("superseded", None)


def test_prometheus_sees_verdicts_and_what_is_served_since_when(world: Any) -> None:
    world.bootstrap()
    for transitions, bias in ((50, 1.1), (60, 1.2)):
        world.candidate(transitions, bias=bias)
    metrics = Metrics(CONTROLLER)
    world.run(metrics=metrics)
    assert metrics.total("verdicts", policy="rl", outcome="accepted") == 1
    assert metrics.total("verdicts", policy="rl", outcome="superseded") == 1
    [served] = [x for x in world.desired().policies["rl"].loaded if x.version == world.pointer().stable.version]
    assert metrics.total("served_version", policy="rl") == served.version == 2
    assert metrics.total("served_since_timestamp_seconds", policy="rl") == served.since_ms / 1000
    assert metrics.total("holds_lease") == 1


def test_a_verdict_names_every_check_and_what_it_was_compared_with(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.run()
    verdict = last_verdict(world)
    assert verdict == msgspec.json.decode(world.store.get("fd:verdict:rl:000000000050"), type=Verdict)
    assert (verdict.outcome, verdict.version, verdict.accepted_before, verdict.certified) == ("accepted", 2, 1, 1)
    assert verdict.last_transition == "p50@1"
    names = [check.name for check in verdict.checks]
    assert names[0] == "config"
    assert names[-1] == "served_probes"
    assert {"step_change", "total_change", "drift", "fallback_share"} < set(names)


def test_a_step_too_far_is_refused_with_its_numbers(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=2.2)
    summary = world.run()
    assert summary.refused == {"step_change": 1}
    assert last_verdict(world).detail == "step_change: expected <= 0.2, found 0.3 (n = 3); against version 1"
    assert world.pointer().stable.version == 1
    assert not (world.models / "feed_rl" / "2").exists()


def test_steps_are_measured_from_the_accepted_version_as_the_server_answers_it(world: Any) -> None:
    world.bootstrap()
    for transitions, bias in ((50, 1.7), (80, 2.4)):
        world.candidate(transitions, bias=bias)
        assert world.run().accepted == 1, last_verdict(world)
    world.candidate(110, bias=3.1)  # a step of .175, a sum of .525
    assert world.run().refused == {"total_change": 1}
    assert last_verdict(world).accepted_before == 3


def test_too_few_new_transitions_since_the_accepted_version(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50)
    world.candidate(59, bias=1.1)
    assert world.run().refused == {"new_transitions": 1}


def test_a_candidate_of_another_feature_config_is_refused(world: Any) -> None:
    world.bootstrap()
    other = replace(world.config, features=(*world.config.features, Dense(name="new", source="user.new")))
    path = world.candidate(50, bias=1.1)
    record = json.loads((path / "candidate.json").read_text())
    record["config_sha"] = Snapshot.initial(other).config_sha
    (path / "candidate.json").write_text(json.dumps(record))
    assert world.run().refused == {"config": 1}


def test_a_new_feature_config_takes_over_a_running_policy(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50)
    features = (Dense(name="age", source="user.age", zscore=ZScore(min_count=10, clip=4.0)),)
    world.config = replace(world.config, features=features)
    world.candidate(80, bias=1.3)
    assert world.run().accepted == 1, last_verdict(world)
    checks = {check.name: check for check in last_verdict(world).checks}
    assert checks["step_change"].n == 0
    assert "another feature config" in checks["step_change"].note
    assert checks["total_change"].value == pytest.approx(0.3 / 4)


def test_raw_states_that_cannot_be_encoded_are_a_refusal(world: Any) -> None:
    world.bootstrap()
    path = world.candidate(50, bias=1.1)
    record = json.loads((path / "candidate.json").read_text())
    record["probes"][0]["state"]["user"]["age"] = "old"
    (path / "candidate.json").write_text(json.dumps(record))
    assert world.run().refused == {"probe_encoding": 1}
    assert "user.age" in last_verdict(world).detail


def test_a_verdict_tells_what_the_candidate_had_learned_and_how_far_it_had_moved(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, updates=7)
    world.run()
    found = last_verdict(world)
    assert (found.outcome, found.last_transition, found.updates, found.moved) == ("accepted", "p50@1", 7, 0.0)
    world.candidate(80, bias=1.2, updates=19)
    world.run()
    found = last_verdict(world)
    assert (found.outcome, found.updates, found.moved) == ("accepted", 19, pytest.approx(0.2 / 4))


def test_before_any_baseline_page_the_evidence_says_so(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.1, value_mean=None, advantage_mean=None)
    summary = world.run()
    assert (summary.accepted, summary.evidence) == (1, {"no_baseline_yet": 1})


def test_a_policy_without_its_first_version_waits_for_the_bootstrap(world: Any) -> None:
    world.candidate(50, bias=1.1)
    assert world.run().accepted == 0
    world.candidate(0)
    assert world.run().accepted == 1
    assert world.pointer().stable.version == 2


# Who may write ---------------------------------------------------------------------------------------------------


def test_a_second_controller_stands_by(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.1)

    def clock() -> int:
        """The first controller is alive: it renews its lease all the time."""
        world.now_ms += 1_000
        world.store.acquire_lease("fd:controller", "first", 15_000)
        return int(world.now_ms)

    world.clock = clock
    with pytest.raises(ControllerError, match="held by another controller"):
        world.run("second")
    assert world.pointer().stable.version == 1


def test_a_crashed_controllers_lease_is_waited_for(world: Any) -> None:
    world.bootstrap()
    world.site("crashed")
    world.candidate(50, bias=1.1)
    assert world.run("second").accepted == 1


def test_a_lease_that_was_somebody_elses_in_between_is_lost(world: Any) -> None:
    site, _, _ = world.site("one")
    world.now_ms += site.lease.ttl_ms
    world.store.acquire_lease("fd:controller", "two", 1_000)
    world.store.release_lease("fd:controller", "two")
    with pytest.raises(LeaseLost):
        site.lease.check()
    with pytest.raises(LeaseLost):
        site.lease.check()


def test_a_store_that_was_emptied_is_filled_again_whole(world: Any) -> None:
    """Not half of it, under a lease that the store has forgotten: the rest would not look lost any more."""
    world.bootstrap()
    publish_each(world, 50)
    site, verdicts, state = world.site("two")
    before = sorted(world.store.keys("fd:"))
    world.store.delete_many(before)
    site.lease.release()
    assert Lease(world.store, "fd", "somebody", world.clock).take(above=0)
    site.lease._renewed_ms = world.now_ms
    with pytest.raises(LeaseLost):
        keep_in_step(site, verdicts, state)
    assert world.store.keys("fd:") == []


def test_spoilt_parameters_are_restored_when_they_are_looked_at(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50)
    site, verdicts, state = world.site("two")
    key = parameters_key("fd", world.pointer().stable.parameters)
    whole = world.store.get(key)
    world.store.put(key, b"other bytes")
    keep_in_step(site, verdicts, state)
    assert world.store.get(key) == b"other bytes"
    keep_in_step(site, verdicts, state, thorough=True)
    assert world.store.get(key) == whole
    assert site.metrics.total("records_restored", policy="rl") == 1


def test_what_cannot_be_restored_is_not_told_to_be(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    world.bootstrap()
    publish_each(world, 50)
    site, verdicts, state = world.site("two")
    world.store.delete_many([version_key("fd", "rl", 2)])
    shutil.rmtree(world.models / "feed_rl" / "2")
    keep_in_step(site, verdicts, state)
    assert caplog.text == ""
    keep_in_step(site, verdicts, state, thorough=True)
    assert "rl version 2: lost to the store, and so is its folder" in caplog.text
    assert site.metrics.total("records_restored", policy="rl") == 0


def test_a_clock_that_is_put_back_does_not_keep_the_lease_from_being_renewed(world: Any) -> None:
    lease = Lease(world.store, "fd", "one", world.clock)
    assert lease.take(above=0)
    world.now_ms += lease.ttl_ms // 2
    lease.check()
    world.now_ms -= 10 * lease.ttl_ms
    asked: list[str] = []
    acquire = world.store.acquire_lease
    world.store.acquire_lease = lambda *a, **k: asked.append("renew") or acquire(*a, **k)
    lease.check()
    assert asked == ["renew"]


def test_the_lease_is_given_back(world: Any) -> None:
    world.bootstrap()
    world.run("one")
    assert world.store.acquire_lease("fd:controller", "two", 1_000) is not None


def test_a_stop_interrupts_a_publish_that_the_next_run_finishes(world: Any) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.1)
    world.server.loading.add(2)
    stop = threading.Event()
    world.on_step = lambda policy, step: stop.set() if step == "requested" else None
    assert world.run(stop=stop).accepted == 0
    assert world.desired().policies["rl"].pending.version == 2
    assert world.pointer().stable.version == 1
    world.server.loading.clear()
    world.on_step = lambda policy, step: None
    assert world.run().accepted == 1
    assert world.pointer().stable.version == 2


def test_a_store_out_of_reach_is_waited_for(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    world.bootstrap()
    world.candidate(50, bias=1.1)
    stop, failures = threading.Event(), iter([StoreError("redis store redis://host: cannot be reached")])

    def on_step(policy: str, step: str) -> None:
        for failure in failures if step == "placed" else ():
            raise failure
        if step == "settled":
            stop.set()

    summary = run_controller(
        world.config,
        world.store,
        world.servers,
        world.staging,
        world.models,
        holder="one",
        clock_ms=world.clock,
        stop=stop,
        poll_s=0.0,
        on_step=on_step,
    )
    assert summary.accepted == 1
    assert "cannot be reached; trying again" in caplog.text


def test_without_servers_it_does_not_start(world: Any) -> None:
    world.servers.clear()
    with pytest.raises(ControllerError, match="expected at least one model server"):
        world.run()


# Housekeeping ----------------------------------------------------------------------------------------------------


def test_old_versions_are_unloaded_once_no_agent_uses_them(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50, 80, 110)  # 1 is certified, 3 is previous, 4 is stable
    assert world.served_versions() == (1, 2, 3, 4)
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms + LEAST_DRAIN_MS, {"rl": 2}))
    world.now_ms += LEAST_DRAIN_MS
    world.run()
    assert world.served_versions() == (1, 2, 3, 4)
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 4}))
    world.run()
    assert world.served_versions() == (1, 3, 4)


def test_a_silent_agent_holds_nothing_back(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50, 80, 110)
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 2}))
    world.now_ms += HEARTBEAT_MS
    world.run()
    assert world.served_versions() == (1, 3, 4)


def test_a_drain_is_bounded(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50, 80, 110)
    world.now_ms += MOST_DRAIN_MS
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 2}))
    world.run()
    assert world.served_versions() == (1, 3, 4)


def test_folders_parameters_and_candidates_are_kept_for_a_while(world: Any) -> None:
    world.bootstrap()
    for i, transitions in enumerate(range(50, 350, 30)):
        moments = {"age": Moments(1_000 + i % 4, 40.0, 100_000.0)}  # versions 2, 6 and 10 share theirs, and so on
        snapshot = Snapshot(Snapshot.initial(world.config).config_sha, moments, {}, {})
        world.candidate(transitions, bias=1.1, snapshot=snapshot)
        assert world.run().accepted == 1
        world.now_ms += MOST_DRAIN_MS
    world.run()
    folder = world.models / "feed_rl"
    assert sorted(int(p.name) for p in folder.iterdir()) == [1, 7, 8, 9, 10, 11]  # loaded: 1, 10, 11
    assert len(world.store.keys("fd:p:")) == 5
    assert world.store.keys("fd:v:") == sorted(f"fd:v:rl:{v}" for v in (1, 7, 8, 9, 10, 11))
    left = sorted(p.name for p in (world.staging / "rl").iterdir())
    assert left == [f"{t:012d}" for t in (0, 260, 290, 320)]
    assert world.run().accepted == 0


def test_broken_off_copies_are_removed(world: Any) -> None:
    world.bootstrap()
    (world.models / "feed_rl" / ".tmp-9").mkdir()
    world.run()
    assert not (world.models / "feed_rl" / ".tmp-9").exists()
    (world.models / "feed_rl" / "12").mkdir()
    publish_each(world, 50)
    assert world.pointer().stable.version == 13  # above every number on the volume


def test_folders_that_somebody_has_left_there_are_left_alone(world: Any) -> None:
    world.bootstrap()
    names = (".bad-2-kept", ".bad-copy", "007", "1.old", "notes")
    for name in names:
        (world.models / "feed_rl" / name).mkdir()
    for number in range(5):
        publish_each(world, 50 + 20 * number)
    assert world.pointer().stable.version == 12
    assert versions_on(world.models, "feed_rl") == (1, 8, 9, 10, 11, 12)
    assert all((world.models / "feed_rl" / name).is_dir() for name in names)


def test_a_volume_where_no_folder_can_be_made_is_waited_for(world: Any) -> None:
    world.candidate(0)
    (world.models / "feed_rl").write_bytes(b"in the way")
    stop, asked = threading.Event(), []

    def pause(seconds: float) -> bool:
        asked.append(seconds)
        if len(asked) == 3:
            (world.models / "feed_rl").unlink()
        return len(asked) > 20

    stop.wait = pause
    run_controller(
        world.config, world.store, world.servers, world.staging, world.models,
        holder="one", clock_ms=world.clock, stop=stop, poll_s=0.0,
    )  # fmt: skip
    assert world.pointer().stable.version == 1


def test_agents_without_a_list_are_found_by_their_keys(world: Any) -> None:
    beat = Heartbeat("agent", 5, {"rl": 2})
    world.store.put("fd:agent:agent", msgspec.json.encode(beat))
    assert read_heartbeats(world.store, "fd") == (beat,)


# Operators -------------------------------------------------------------------------------------------------------


def test_there_is_nothing_to_roll_back_to_at_first(world: Any) -> None:
    world.bootstrap()
    with pytest.raises(SwitchError, match="expected a previous version"):
        roll_back(world.store, "fd", "rl")


def test_the_status_says_what_is_served_and_why(world: Any) -> None:
    world.bootstrap()
    publish_each(world, 50)
    world.candidate(80, bias=3.0)
    world.run()
    set_off(world.store, "fd", ["rl"], True)
    write_heartbeat(world.store, "fd", Heartbeat("agent", world.now_ms, {"rl": 2}))
    down = type(world.server)(world.models, "down:8500")
    down.up = False
    (policy,) = status(world.config, world.store, [world.server, down], world.models, now_ms=world.now_ms).policies
    assert (policy.policy, policy.pointer.off, policy.pointer.stable.version) == ("rl", True, 2)
    assert [(entry.version, entry.role) for entry in policy.loaded] == [(1, "previous"), (2, "stable")]
    assert policy.servers[0].versions == {1: "AVAILABLE", 2: "AVAILABLE"}
    assert "down:8500" in policy.servers[1].trouble
    assert policy.agents == {2: 1}
    assert policy.last_verdict.reason == "step_change"
    assert policy.served_ms > 0


def test_the_status_of_an_empty_place_is_empty(world: Any) -> None:
    (policy,) = status(world.config, world.store, [], world.models, now_ms=0).policies
    assert (policy.loaded, policy.last_verdict, policy.pointer.stable) == ((), None, None)


def test_publishing_is_logged(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.bootstrap()
    publish_each(world, 50)
    assert "rl candidate 000000000050: accepted as version 2" in caplog.text


def test_the_bounds_come_from_the_config(world: Any) -> None:
    world.config = replace(world.config, publish=Publish(min_transitions=10, max_step_change=0.01))
    world.bootstrap()
    world.candidate(50, bias=1.1)
    assert world.run().refused == {"step_change": 1}


def test_no_framework_is_loaded() -> None:
    program = "import sys, model_export.controller, model_export.status\n"
    program += "print(sorted(set(sys.modules) & {'tensorflow', 'keras', 'apache_beam', 'redis'}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_accepted_version_is_asked_with_its_own_parameters(world: Any) -> None:
    """The same weights behind other statistics are another policy; with the candidate's own it would look the same."""
    world.bootstrap()
    world.candidate(50, slope=0.2)
    assert world.run().accepted == 1
    moved = Snapshot(config_sha(world.config), {"age": Moments(1_000, 45.0, 100_000.0)}, {}, {})  # half a std on
    world.candidate(100, slope=0.2, snapshot=moved)
    assert world.run().accepted == 1
    last = list(read_verdicts(world.models))[-1]
    changes = {check.name: check.value for check in last.checks}
    assert changes["step_change"] == pytest.approx(0.2 * 0.5 / 4.0)
    assert changes["drift"] == pytest.approx(0.5)


def test_parameters_that_read_back_otherwise_are_not_published(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.bootstrap()
    world.candidate(50)
    put = SqliteStore.fenced_put

    def garbling(self: SqliteStore, lease: str, token: int, key: str, value: bytes) -> bool:
        return put(self, lease, token, key, value[:-1] if ":p:" in key else value)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "fenced_put", garbling)
        with pytest.raises(StoreError, match="read back something else than was written"):
            world.run()
    assert world.pointer().stable.version == 1
    world.now_ms += 3_600_000
    assert world.run().accepted == 1  # and nothing is stuck


def test_a_pointer_of_a_later_controller_is_not_claimed(world: Any) -> None:
    world.bootstrap()
    site, _, _ = world.site()
    later = replace(world.pointer(), fence=site.lease.token + 1)
    with pytest.raises(LeaseLost):
        _claimed(site, later)
