"""The desired state: its transitions are pure; its file is whole; it can be built again from the folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from model_export.checks import Verdict
from model_export.desired import (
    DesiredState,
    Loaded,
    Pending,
    PolicyState,
    drained,
    drop,
    follow,
    read_desired,
    request_load,
    reserve,
    settle,
    withdraw,
    write_desired,
)
from model_export.lease import LeaseLost
from model_export.site import VolumeError
from model_export.verdicts import read_verdicts
from pipeline.durable import append_line, copy, remove_folder, write
from pipeline.serving.models_config import ServedModel, parse
from pipeline.stores.published import Pointer, Served

DRAFT = Verdict("c", "rl", "every_version", "accepted", "", "")


def served(version: int) -> Served:
    return Served(version, f"sha{version}")


def published(*versions: int) -> PolicyState:
    policy, pointer = PolicyState("feed_rl"), Pointer()
    for version in versions:
        pending = Pending(f"c{version}", version, f"sha{version}", DRAFT)
        policy = request_load(reserve(policy, pending), version * 100)
        pointer = replace(pointer, stable=served(version), previous=pointer.stable)
        policy = settle(follow(policy, pointer, version * 100))
    return policy


def roles(policy: PolicyState) -> dict[int, str]:
    return {entry.version: entry.role for entry in policy.loaded}


# Transitions -----------------------------------------------------------------------------------------------------


def test_the_first_version_is_certified_and_stays_loaded() -> None:
    assert roles(published(1)) == {1: "stable"}
    assert roles(published(1, 2)) == {1: "previous", 2: "stable"}
    assert roles(published(1, 2, 3, 4)) == {1: "certified", 2: "draining", 3: "previous", 4: "stable"}


def test_a_reserved_version_is_not_loaded_before_its_folder_is_in_place() -> None:
    policy = reserve(published(1), Pending("c2", 2, "sha2", DRAFT))
    assert follow(policy, policy.pointer, 5).versions() == (1,)
    policy = request_load(policy, 200)
    assert roles(policy) == {1: "stable", 2: "loading"}
    assert policy.next_version == 3


def test_a_withdrawn_version_leaves_every_list_but_not_its_number() -> None:
    policy = withdraw(request_load(reserve(published(1), Pending("c2", 2, "sha2", DRAFT)), 200))
    assert (policy.versions(), policy.pending, policy.next_version) == ((1,), None, 3)


def test_following_a_rollback_swaps_the_roles() -> None:
    back = follow(published(1, 2, 3), Pointer(stable=served(2), previous=served(3)), 900)
    assert roles(back) == {1: "certified", 2: "stable", 3: "previous"}


def test_a_canary_is_loaded() -> None:
    policy = published(1, 2)
    assert roles(follow(policy, replace(policy.pointer, canary=served(9)), 900))[9] == "canary"


def test_a_role_keeps_its_since_until_it_changes() -> None:
    policy = published(1, 2, 3, 4)
    later = follow(policy, policy.pointer, 999)
    assert later == policy
    assert next(entry for entry in policy.loaded if entry.version == 2) == Loaded(2, "draining", "sha2", 400)


@pytest.mark.parametrize(
    ("now_ms", "in_use", "expected"),
    [(449, (), ()), (450, (), (2,)), (450, (2,), ()), (1399, (2,), ()), (1400, (2,), (2,)), (1400, (1, 3, 4), (2,))],
)
def test_draining_ends_when_unused_or_after_its_bound(now_ms: int, in_use: Any, expected: Any) -> None:
    policy = published(1, 2, 3, 4)  # 2 drains since 400
    gone = drained(policy, frozenset(in_use), now_ms, least_ms=50, most_ms=1000)
    assert gone == frozenset(expected)
    assert set(drop(policy, gone).versions()) == {1, 2, 3, 4} - set(expected)


# The file --------------------------------------------------------------------------------------------------------


def test_the_servers_config_follows_from_the_state(tmp_path: Path) -> None:
    state = DesiredState(3, {"rl": published(1, 2), "new": PolicyState("feed_new")})
    write_desired(tmp_path, state, "/models")
    assert read_desired(tmp_path) == state
    text = (tmp_path / "models.config").read_text()
    assert parse(text) == (ServedModel("feed_rl", "/models/feed_rl", (1, 2)),)


def test_an_older_token_cannot_write(tmp_path: Path) -> None:
    write_desired(tmp_path, DesiredState(3, {"rl": published(1, 2)}), "/models")
    with pytest.raises(LeaseLost, match="token 3, newer than ours, 2"):
        write_desired(tmp_path, DesiredState(2, {"rl": published(1)}), "/models")
    assert "2" in (tmp_path / "models.config").read_text()


def test_a_lost_models_config_is_written_again_and_an_equal_one_left_alone(tmp_path: Path) -> None:
    state = DesiredState(3, {"rl": published(1)})
    write_desired(tmp_path, state, "/models")
    before = (tmp_path / "models.config").stat().st_mtime_ns
    write_desired(tmp_path, state, "/models")
    assert (tmp_path / "models.config").stat().st_mtime_ns == before
    (tmp_path / "models.config").unlink()
    write_desired(tmp_path, state, "/models")
    assert (tmp_path / "models.config").exists()


def test_nothing_and_nonsense_are_no_state(tmp_path: Path) -> None:
    assert read_desired(tmp_path) is None
    (tmp_path / "desired.json").write_text('{"fence": 1')
    assert read_desired(tmp_path) is None


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_torn_line_is_closed_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(b'{"candidate": "torn')
    append_line(path, b'{"candidate":"c","policy":"rl","tier":"bootstrap","outcome":"kept","reason":"r","detail":""}')
    assert [verdict.candidate for verdict in read_verdicts(tmp_path)] == ["c"]
    assert "verdicts.jsonl:1: not a verdict" in caplog.text


def test_folders_are_copied_whole_and_removed_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(b"x")
    copy(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "file").read_bytes() == b"x"
    remove_folder(tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


# Built again -----------------------------------------------------------------------------------------------------


def two_versions(world: Any) -> None:
    world.bootstrap()
    for transitions in (50, 80):
        world.candidate(transitions, bias=1.1)
        assert world.run().accepted == 1


def lose(world: Any, *what: str) -> None:
    if "desired" in what:
        (world.models / "desired.json").unlink()
        (world.models / "models.config").unlink()
    if "store" in what:
        world.store.delete_many(world.store.keys(""))
    if "verdicts" in what:
        (world.models / "verdicts.jsonl").unlink()
    if "staging" in what:
        shutil.rmtree(world.staging)


@pytest.mark.parametrize("what", [("desired",), ("store",), ("desired", "store"), ("desired", "store", "staging")])
def test_what_was_lost_is_built_again(world: Any, what: tuple[str, ...]) -> None:
    two_versions(world)
    before = world.pointer()
    records = {key: world.store.get(key) for key in world.store.keys("fd:p:") + world.store.keys("fd:v:rl:3")}
    lose(world, *what)
    world.run("two")
    assert world.pointer().stable == before.stable
    assert world.desired().policies["rl"].certified.version == 1
    assert 3 in world.served_versions()
    assert {key: world.store.get(key) for key in records} == records
    assert world.store.get("fd:verdict:rl:000000000080") is not None
    world.candidate(200, bias=1.2)
    assert world.run("three").accepted == 1
    assert world.pointer().stable.version == 4


def test_with_nothing_on_record_the_oldest_version_is_taken(world: Any) -> None:
    two_versions(world)
    lose(world, "desired", "store", "verdicts", "staging")
    world.run("two")
    assert world.pointer().stable.version == 1
    assert world.desired().policies["rl"].next_version == 4


def test_an_emptied_store_does_not_hand_out_old_tokens(world: Any) -> None:
    two_versions(world)
    fence = world.desired().fence
    world.store.close()
    for path in world.url.parent.glob("store.sqlite*"):
        path.unlink()
    world.store = type(world.store)(world.url, clock_ms=lambda: world.now_ms)
    world.run("two")
    assert world.desired().fence > fence
    assert world.pointer().stable.version == 3


def test_a_volume_of_another_config_is_left_alone(world: Any) -> None:
    world.bootstrap()
    before = (world.models / "desired.json").read_bytes()
    world.config = replace(world.config, name="news")
    with pytest.raises(VolumeError, match="holds 'feed_rl', expected 'news_rl': one model volume per config"):
        world.run()
    assert (world.models / "desired.json").read_bytes() == before


def test_a_candidates_record_is_inside_its_version(world: Any) -> None:
    world.bootstrap()
    record = world.models / "feed_rl" / "1" / "assets.extra" / "candidate.json"
    assert json.loads(record.read_text())["id"] == "000000000000"
