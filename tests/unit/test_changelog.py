"""The state on disk, saved a change at a time: whatever is done to its writer, a reader finds what was saved last."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from pipeline.streaming import changelog, segments
from pipeline.streaming.changelog import Writer
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.segments import HEADER

Model = dict[str, dict[str, bytes]]  # step -> key -> value
SMALL = 3_000  # bytes of a segment


def packed(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


class Saver:
    """A writer, and what it must have saved."""

    def __init__(self, folder: Path, seed: int = 0, dead_allowed: int = 0) -> None:
        self.folder, self.random, self.number = folder / "snapshot", random.Random(seed), 0
        self.model: Model = {"one": {}, "two": {}}
        self.dead_allowed = dead_allowed
        self.open()

    def open(self) -> None:
        found = changelog.read(self.folder)
        self.writer = Writer(self.folder, found, SMALL, self.dead_allowed)

    def save(self, changes: dict[str, dict[str, bytes | None]] | None = None) -> None:
        """Some keys come, some change, some go."""
        changes = self._some() if changes is None else changes
        self.number += 1
        after = {step: dict(keys) for step, keys in self.model.items()}
        for step, keys in changes.items():
            after[step].update({key: value for key, value in keys.items() if value is not None})
            for key in [key for key, value in keys.items() if value is None]:
                after[step].pop(key, None)
        raw = {s: {k: None if v is None else packed(v) for k, v in keys.items()} for s, keys in changes.items()}
        self.writer.save(raw, packed(self.number))
        self.model = after

    def _some(self) -> dict[str, dict[str, bytes | None]]:
        rng = self.random
        changes: dict[str, dict[str, bytes | None]] = {"one": {}, "two": {}}
        for _ in range(rng.randrange(8)):
            step, key = rng.choice(["one", "two"]), f"k{rng.randrange(60)}"
            changes[step][key] = None if rng.random() < 0.3 else rng.randbytes(rng.randrange(1, 120))
        return changes

    def size(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())


Make = Callable[..., Saver]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    savers = []

    def make(seed: int = 0, dead_allowed: int = 0) -> Saver:
        savers.append(Saver(tmp_path, seed, dead_allowed))
        return savers[-1]

    yield make
    for saver in savers:
        saver.writer.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is killed, nothing need be on the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def found_in(folder: Path) -> tuple[int, Model] | None:
    found = changelog.read(folder)
    if found is None:
        return None
    table = {s: {k: msgspec.msgpack.decode(v) for k, v in keys.items()} for s, keys in found.table.items()}
    return msgspec.msgpack.decode(found.note), {"one": {}, "two": {}, **_as_bytes(table)}


def _as_bytes(table: dict[str, dict[str, bytes]]) -> Model:
    return {step: {key: bytes(value) for key, value in keys.items()} for step, keys in table.items()}


def test_nothing_was_saved(tmp_path: Path) -> None:
    assert changelog.read(tmp_path / "snapshot") is None


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(6))
def test_what_was_saved_is_found_after_every_save_and_by_every_new_writer(make: Make, seed: int) -> None:
    saver = make(seed, dead_allowed=seed % 3 * 40)
    for _ in range(150):
        saver.save()
        assert found_in(saver.folder) == (saver.number, saver.model)
        if saver.random.random() < 0.1:
            saver.writer.close()
            saver.open()
    assert len(segments.numbers(saver.folder)) > 1
    assert segments.numbers(saver.folder)[0] > 1


@pytest.mark.usefixtures("hasty")
def test_the_files_do_not_grow_with_the_number_of_saves(make: Make) -> None:
    """Keys that never change lie in the oldest segment, and have to be carried over again and again."""
    saver = make()
    saver.save({"one": {f"old{n}": bytes(100) for n in range(200)}})
    alive = saver.size()
    largest = 0
    for n in range(3_000):
        saver.save({"two": {f"k{n % 20}": saver.random.randbytes(100)}})
        largest = max(largest, saver.size())
    assert largest < 5 * alive
    assert found_in(saver.folder) == (saver.number, saver.model)


@pytest.mark.usefixtures("hasty")
def test_keys_that_come_and_go_leave_nothing(make: Make) -> None:
    saver = make()
    for n in range(3_000):
        saver.save({"one": {f"k{n}": bytes(100), f"k{n - 10}": None}})
    assert saver.size() < 10 * SMALL
    assert len(saver.model["one"]) == 10
    assert found_in(saver.folder) == (saver.number, saver.model)


@pytest.mark.usefixtures("hasty")
def test_a_save_writes_what_changed_and_a_bounded_share_of_the_rest(make: Make) -> None:
    saver = make()
    saver.save({"one": {f"old{n}": bytes(100) for n in range(5_000)}})
    for n in range(300):
        before = {number: segments.path_of(saver.folder, number) for number in segments.numbers(saver.folder)}
        sizes = {path: path.stat().st_size for path in before.values()}
        saver.save({"one": {f"old{n}": bytes(99)}})
        after = [segments.path_of(saver.folder, number) for number in segments.numbers(saver.folder)]
        assert sum(max(0, path.stat().st_size - sizes.get(path, 0)) for path in after) < 100 * 1_000


# Killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(3))
def test_torn_anywhere_in_its_last_save_the_one_before_is_found(tmp_path: Path, make: Make, seed: int) -> None:
    saver = make(seed)
    for _ in range(40):
        before, sizes = (saver.number, saver.model), _sizes(saver.folder)
        saver.save()
        (path,) = [p for p, size in _sizes(saver.folder).items() if size != sizes.get(p, 0)]
        if path not in sizes:
            continue  # came by a rename: nothing of it can be torn
        whole = path.stat().st_size
        for end in {sizes[path], *(saver.random.randrange(sizes[path], whole) for _ in range(8))}:
            copy = tmp_path / "copy"
            shutil.copytree(saver.folder, copy)
            os.truncate(copy / path.name, end)
            assert found_in(copy) == before
            with (copy / path.name).open("ab") as file:
                file.write(bytes(whole - end))  # a file system that knew the length and not the bytes
            assert found_in(copy) == before
            shutil.rmtree(copy)


def _sizes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.iterdir()}


class Death(BaseException):
    """Nothing catches it."""


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(8))
def test_dead_at_any_call_to_the_system_it_goes_on_from_the_last_save_or_the_one_before(
    make: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    saver, rng = make(seed), random.Random(seed)
    left = rng.randrange(30)

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def dying(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0 and rng.random() < 0.5:
                raise Death
            done = call(*args, **options)
            if left < 0:
                raise Death
            return done

        return dying

    for module, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (segments.Segment, "append")):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))
    deaths = 0
    while deaths < 40:
        before = saver.number, saver.model
        changes = saver._some()
        try:
            saver.save(changes)
        except Death:
            deaths += 1
            found = found_in(saver.folder)
            if found is None:
                assert before[0] == 0
            elif found[0] != before[0]:  # the save was whole, though nobody was told
                saver.model = found[1]
                assert found[0] == saver.number
            else:
                assert found == before
                saver.number = before[0]
            left = 10**9  # its successor opens in peace
            saver.writer.close()
            saver.open()
            left = rng.randrange(30)
    assert len(segments.numbers(saver.folder)) > 0


# Read while it is written ------------------------------------------------------------------------------------------


def test_a_segment_that_is_deleted_while_it_is_read_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader then begins anew."""
    saver = make()
    for _ in range(40):
        saver.save()
    numbers = segments.numbers

    def outdated(folder: Path) -> list[int]:
        found = numbers(folder)
        while segments.path_of(folder, found[-1]).exists():
            monkeypatch.undo()
            saver.save()
        return found

    monkeypatch.setattr(segments, "numbers", outdated)
    with pytest.raises(FileNotFoundError):
        changelog.read(saver.folder)
    assert found_in(saver.folder) == (saver.number, saver.model)


# Damage ------------------------------------------------------------------------------------------------------------


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: flip(data, len(HEADER) + 60), "damaged: the checksum at byte"),
        (lambda data: data[: len(HEADER)], "has no commit"),
        (lambda data: data[: len(HEADER) + 40], "has no commit"),
        (lambda data: b"", "no snapshot"),
        (lambda data: b"garbage", "no snapshot"),
        (lambda data: data.replace(b"snapshot 3", b"snapshot 9", 1), "of another format"),
    ],
)
def test_damage_is_an_error_that_names_the_file(make: Make, damage: Callable[[bytes], bytes], message: str) -> None:
    saver = make()
    for _ in range(5):
        saver.save()
    (number,) = segments.numbers(saver.folder)
    path = segments.path_of(saver.folder, number)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SnapshotError, match=message) as caught:
        changelog.read(saver.folder)
    assert str(path) in str(caught.value)


def test_a_segment_before_the_last_cannot_be_torn(make: Make) -> None:
    saver = make()
    while len(segments.numbers(saver.folder)) < 3:
        saver.save()
    middle = segments.path_of(saver.folder, segments.numbers(saver.folder)[1])
    os.truncate(middle, middle.stat().st_size - 1)
    with pytest.raises(SnapshotError, match="damaged"):
        changelog.read(saver.folder)


def test_a_segment_that_is_missing_is_an_error(make: Make) -> None:
    saver = make()
    while len(segments.numbers(saver.folder)) < 3:
        saver.save()
    gone = segments.path_of(saver.folder, segments.numbers(saver.folder)[0])
    gone.unlink()
    with pytest.raises(SnapshotError, match=f"{gone} is missing"):
        changelog.read(saver.folder)


def test_bytes_of_another_layout_are_an_error(make: Make) -> None:
    saver = make()
    saver.save()
    saver.writer.close()
    path = segments.path_of(saver.folder, 1)
    segment = segments.Segment.go_on(path, path.stat().st_size)
    segment.append([b"\x01", b"\x02"])
    segment.close()
    with pytest.raises(SnapshotError, match="not laid out as expected"):
        changelog.read(saver.folder)
