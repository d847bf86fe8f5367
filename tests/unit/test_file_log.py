"""Of the file log alone: crashes, corrupt lines, segments, and what stands in its way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import durable
from pipeline.logs.files import FileLog, partition_of
from pipeline.logs.lines import decode_line, encode_line
from pipeline.logs.log import Entry, LogError, Record
from pipeline.logs.opening import open_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def make(folder: Path, **options: object) -> FileLog:
    log = FileLog(folder, **options)
    log.create("t", 1)
    return log


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "t" / "partition-0000").glob("*.jsonl"))


def read(folder: Path, offset: int = 0) -> list[Record]:
    return FileLog(folder).read("t", 0, offset, 10_000)


# Lines -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**53), st.text(), st.binary())
def test_a_line_gives_back_what_was_put_in(at: int, key: str, payload: bytes) -> None:
    line = encode_line(at, key, payload)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == (at, key, payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.sampled_from([None, 1]), st.booleans())
def test_json_gives_back_its_own_spelling(value: object, indent: int | None, ascii_only: bool) -> None:
    payload = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    line = decode_line(encode_line(1, "k", payload)[:-1])
    assert line is not None
    assert line.payload == payload


def test_json_can_be_read_with_json_tools(folder: Path) -> None:
    make(folder).append("t", [Entry("k", b'{"a": 1.50}', 7)])
    assert segments(folder)[0].read_bytes() == b'{"at":7,"key":"k","value":{"a": 1.50}}\n'


def test_partitions_are_the_same_in_every_release() -> None:
    assert [partition_of(key, 7) for key in ("", "a", "session-1", "é")] == [4, 1, 3, 6]


# Crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"{", b'{"at":9,"key":"k","value":{}}', b'{"at":9,"key":"k","va'])
def test_a_torn_last_line_is_invisible_and_cut_off_by_the_next_writer(folder: Path, torn: bytes) -> None:
    log = make(folder)
    log.append("t", [Entry("k", b"1")])
    with segments(folder)[0].open("ab") as file:
        file.write(torn)
    assert [r.payload for r in read(folder)] == [b"1"]
    assert FileLog(folder).end_offset("t", 0) == 1
    for writer, payload in ((log, b"2"), (FileLog(folder), b"3")):
        writer.append("t", [Entry("k", payload)])
    assert [(r.offset, r.payload) for r in read(folder)] == [(0, b"1"), (1, b"2"), (2, b"3")]


def test_a_reader_at_a_torn_line_sees_what_replaces_it(folder: Path) -> None:
    log, reader = make(folder), FileLog(folder)
    log.append("t", [Entry("k", b"1")])
    with segments(folder)[0].open("ab") as file:
        file.write(b'{"at":9,"key":"torn')
    assert len(reader.read("t", 0, 0, 10)) == 1
    assert reader.read("t", 0, 1, 10) == []
    log.append("t", [Entry("k", b'"a longer line than the torn one"')])
    assert [r.payload for r in reader.read("t", 0, 1, 10)] == [b'"a longer line than the torn one"']


@pytest.mark.parametrize(
    "corrupt", [b"", b"garbage", b"\xff\x00", b'{"at":-1,"key":"k","value":1}', b'{"at":5,"key":"k"}', b"{" * 5_000]
)
def test_a_corrupt_line_is_a_record_with_the_stamp_before_it(folder: Path, corrupt: bytes) -> None:
    make(folder).append("t", [Entry("k", b"1", 10)])
    with segments(folder)[0].open("ab") as file:
        file.write(corrupt + b"\n")
    FileLog(folder).append("t", [Entry("k", b"2", 20)])
    assert read(folder) == [Record(0, 0, 10, "k", b"1"), Record(0, 1, 10, "", corrupt), Record(0, 2, 20, "k", b"2")]
    assert read(folder, 1)[0] == Record(0, 1, 10, "", corrupt)


def test_a_corrupt_first_line_of_a_segment_has_the_stamp_of_the_segment_before(folder: Path) -> None:
    log = make(folder, segment_bytes=1)
    log.append("t", [Entry("k", b"1", 10), Entry("k", b"2", 20), Entry("k", b"3", 30)])
    for segment in segments(folder)[1:]:
        segment.write_bytes(b"x" * (segment.stat().st_size - 1) + b"\n")
    assert [r.appended_at_ms for r in read(folder)] == [10, 10, 10]
    assert read(folder, 2)[0].appended_at_ms == 10
    FileLog(folder).append("t", [Entry("k", b"4", 10)])


def test_stamps_do_not_decrease_even_where_a_line_was_changed(folder: Path) -> None:
    make(folder).append("t", [Entry("k", b"1", 10), Entry("k", b"2", 20), Entry("k", b"3", 30)])
    segment = segments(folder)[0]
    segment.write_bytes(segment.read_bytes().replace(b'"at":20', b'"at": 5'))
    assert [r.appended_at_ms for r in read(folder)][1:] == [10, 30]


def test_a_failed_write_says_why_and_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(folder)
    log.append("t", [Entry("k", b"1")])
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) <= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, bytes(data)[:20])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LogError, match="the disk is full"):
            log.append("t", [Entry("k", b"2")])
    log.append("t", [Entry("k", b"3")])
    assert [r.payload for r in read(folder)] == [b"1", b"3"]


def test_writers_in_several_processes(folder: Path) -> None:
    make(folder, segment_bytes=500)
    code = """
import sys; from pathlib import Path; from pipeline.logs.files import FileLog; from pipeline.logs.log import Entry
log = FileLog(Path(sys.argv[1]), segment_bytes=500)
for i in range(60): log.append("t", [Entry("k", f'"{sys.argv[2]}/{i}"'.encode())])
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(w)]) for w in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    records = read(folder)
    assert sorted(r.payload for r in records) == sorted(b'"%d/%d"' % (w, i) for w in range(3) for i in range(60))
    for writer in range(3):
        mine = [r.payload for r in records if r.payload.startswith(b'"%d/' % writer)]
        assert mine == [b'"%d/%d"' % (writer, i) for i in range(60)]
    assert [r.appended_at_ms for r in records] == sorted(r.appended_at_ms for r in records)


# Segments ----------------------------------------------------------------------------------------------------------


def test_segments_roll_by_size_and_are_named_by_their_first_offset(folder: Path) -> None:
    log = make(folder, segment_bytes=100)
    log.append("t", [Entry("k", b"%d" % i, 1) for i in range(10)])
    names = [int(s.stem) for s in segments(folder)]
    assert len(names) > 2
    assert names[0] == 0
    for segment, base in zip(segments(folder), names, strict=True):
        first = segment.read_bytes().split(b"\n")[0]
        assert first.endswith(b'"value":%d}' % base)
    assert [r.payload for r in read(folder)] == [b"%d" % i for i in range(10)]


def test_a_removed_first_segment_is_named(folder: Path) -> None:
    make(folder, segment_bytes=1).append("t", [Entry("k", b"%d" % i) for i in range(3)])
    segments(folder)[0].unlink()
    assert [r.payload for r in read(folder, 1)] == [b"1", b"2"]
    with pytest.raises(LogError, match="offset 0 is not in the log: it starts at 1"):
        read(folder)


def test_sequential_reads_do_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(folder)
    log.append("t", [Entry("k", b"x" * 1000) for _ in range(1_000)])
    amount, real = 0, os.pread

    def counting(fd: int, size: int, position: int) -> bytes:
        nonlocal amount
        data = real(fd, size, position)
        amount += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    reader = FileLog(folder)
    for offset in range(0, 1_000, 10):
        assert len(reader.read("t", 0, offset, 10)) == 10
    assert amount < 1.5 * segments(folder)[0].stat().st_size


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes that were forced to the disk, in order."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: inodes.append(os.fstat(fd).st_ino))
    return inodes


def test_sync_covers_what_a_writer_that_died_left_in_memory(folder: Path, synced: list[int]) -> None:
    """A snapshot says how far the log goes, whoever wrote it."""
    make(folder).append("t", [Entry("k", b"1")])
    successor = FileLog(folder)
    assert successor.end_offset("t", 0) == 1
    synced.clear()
    successor.sync()
    assert synced == [segments(folder)[0].stat().st_ino]


def test_a_segment_is_on_the_disk_before_the_next_one_appears(
    folder: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make(folder, segment_bytes=10)
    log.append("t", [Entry("k", b"1")])
    (first,) = segments(folder)
    synced.clear()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        log.append("t", [Entry("k", b"2")])
    assert len(segments(folder)) == 2
    assert synced == [first.stat().st_ino]


@pytest.mark.parametrize("policy", ["append", "roll"])
def test_fsync_policies(folder: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    log = make(folder, fsync=policy)
    log.append("t", [Entry("k", b"0")])
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    log.append("t", [Entry("k", b"1")])
    assert len(calls) == (1 if policy == "append" else 0)
    log.sync()
    log.close()
    assert len(calls) == (3 if policy == "append" else 2)


# In its way --------------------------------------------------------------------------------------------------------


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(LogError, match=r"a file is where a folder should be; move it away"):
        FileLog(tmp_path / "log").create("t", 1)


def test_a_file_where_a_topic_should_be(folder: Path) -> None:
    folder.mkdir()
    (folder / "t").write_text("")
    with pytest.raises(LogError, match=r"t: .*a file is where a folder should be"):
        FileLog(folder).create("t", 1)


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(folder)

    def refuse(path: object, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LogError, match=r"partition-0000/lock: Permission denied; give this user the right"):
        log.append("t", [Entry("k", b"1")])


def test_a_topic_with_a_partition_missing(folder: Path) -> None:
    FileLog(folder).create("t", 3)
    (folder / "t" / "partition-0001").rmdir()
    with pytest.raises(LogError, match="expected folders partition-0000, partition-0001 and so on"):
        FileLog(folder).partitions("t")


# Opening -----------------------------------------------------------------------------------------------------------


def test_a_file_url_opens_a_file_log(folder: Path) -> None:
    make(folder).append("t", [Entry("k", b"1")])
    assert [r.payload for r in open_log(folder.as_uri()).read("t", 0, 0, 10)] == [b"1"]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://host", "found scheme 'redis'"),
        ("/a/folder", "found scheme ''"),
        ("file://relative/folder", "three slashes"),
        ("file:", "three slashes"),
        ("file:///a?b=c", "nothing after it"),
    ],
)
def test_urls_that_name_no_log(url: str, found: str) -> None:
    with pytest.raises(LogError, match=found):
        open_log(url)
