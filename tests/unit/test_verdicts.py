"""The record of verdicts: whole after a restart, bounded by size, read while it is put aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from model_export import verdicts as module
from model_export.checks import Verdict
from model_export.lease import Lease
from model_export.verdicts import VerdictLog, read_verdicts
from pipeline.stores.opening import open_store
from pipeline.stores.store import KeyValueStore

LINE_BYTES = len(msgspec.json.encode(Verdict("000", "rl", "every_version", "accepted", "", ""))) + 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyValueStore]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.db'}")) as store:
        yield store


@pytest.fixture
def lease(store: KeyValueStore) -> Lease:
    lease = Lease(store, "p", "one", lambda: 0)
    assert lease.take(0)
    return lease


def record(models: Path, store: KeyValueStore, lease: Lease, *numbers: int) -> None:
    log = VerdictLog(models, store, "p")
    for number in numbers:
        log.record(Verdict(f"{number:03}", "rl", "every_version", "accepted", "", "", version=None), lease)


def read(models: Path) -> list[int]:
    return [int(verdict.candidate) for verdict in read_verdicts(models)]


def test_a_full_file_is_put_aside_and_the_one_before_it_goes(
    tmp_path: Path, store: KeyValueStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT_BYTES", 3 * LINE_BYTES)
    assert read(tmp_path) == []
    record(tmp_path, store, lease, *range(5))
    assert (tmp_path / "verdicts.jsonl").stat().st_size == 2 * LINE_BYTES
    assert read(tmp_path) == [0, 1, 2, 3, 4]
    record(tmp_path, store, lease, *range(3, 8))  # repeated ones are no news, from either file
    assert read(tmp_path) == [3, 4, 5, 6, 7]
    assert VerdictLog(tmp_path, store, "p").verdict_on("rl", "003") is not None
    assert sorted(path.name for path in tmp_path.glob("verdicts*")) == ["verdicts.jsonl", "verdicts.jsonl.1"]


def test_a_file_that_is_put_aside_just_now_is_read_once(
    tmp_path: Path, store: KeyValueStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, store, lease, 1, 2)
    usual = Path.open

    def opened(path: Path, *words: str):  # type: ignore[no-untyped-def]
        file = usual(path, *words)
        if path.name == "verdicts.jsonl":
            path.replace(tmp_path / "verdicts.jsonl.1")
        return file

    monkeypatch.setattr(Path, "open", opened)
    assert read(tmp_path) == [1, 2]
