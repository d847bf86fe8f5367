"""Rows that were put away: a checkpoint finds those of its own past, and no others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.learning.errors import CheckpointError
from pipeline.learning.shelf import EDITIONS, FILE, Shelf, Spans

LARGE = 2**64 - 1  # as an id's hash may be


@contextmanager
def opened(folder: Path, spans: Spans = ()) -> Iterator[Shelf]:
    with closing(Shelf(folder / FILE)) as shelf:
        shelf.go_on(spans)
        yield shelf


def test_what_was_put_away_is_found_before_and_after_it_is_written(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        shelf.put("shops", [7, LARGE], [b"seven", b"large"])
        assert shelf.get("shops", [7, 8, LARGE]) == [b"seven", None, b"large"]
        assert shelf.get("cities", [7]) == [None]
        spans = shelf.keep()
        assert shelf.get("shops", [7, 8, LARGE]) == [b"seven", None, b"large"]
        assert shelf.keep() == spans  # there was nothing new
    with opened(tmp_path, spans) as shelf:
        assert shelf.get("shops", [LARGE, 7]) == [b"large", b"seven"]
        shelf.put("shops", [7], [b"again"])
        assert shelf.get("shops", [7]) == [b"again"]


def test_what_was_not_written_is_lost_with_the_process(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        shelf.put("shops", [7], [b"seven"])
    with opened(tmp_path) as shelf:
        assert shelf.get("shops", [7]) == [None]


def test_what_belongs_to_no_checkpoint_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """A kill between the rows and the checkpoint: the trainer does the same again, and comes to the same."""
    with opened(tmp_path) as shelf:
        shelf.put("shops", [7], [b"first"])
        spans = shelf.keep()
        shelf.put("shops", [7, 8], [b"second", b"eight"])
        after = shelf.keep()
    with opened(tmp_path, spans) as shelf:
        assert shelf.get("shops", [7, 8]) == [b"first", None]
        shelf.put("shops", [7], [b"other"])
        assert shelf.keep() == after
        assert shelf.get("shops", [7, 8]) == [b"other", None]
    with opened(tmp_path) as shelf:
        assert shelf.get("shops", [7]) == [None]


def test_going_back_is_to_the_rows_of_then_and_what_follows_is_another_line(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        spans = []
        for row in (b"first", b"second", b"third"):
            shelf.put("shops", [7], [row])
            spans.append(shelf.keep())
        shelf.put("shops", [9], [b"not written yet"])
        shelf.go_back(spans[0])
        assert shelf.get("shops", [7, 9]) == [b"first", None]
        shelf.put("shops", [8], [b"eight"])
        branch = shelf.keep()
        assert shelf.get("shops", [7, 8]) == [b"first", b"eight"]
        shelf.put("shops", [8], [b"eight again"])
        later = shelf.keep()
    with opened(tmp_path, later) as shelf:
        assert shelf.get("shops", [7, 8]) == [b"first", b"eight again"]
        shelf.go_back(branch)
        assert shelf.get("shops", [7, 8]) == [b"first", b"eight"]
        shelf.go_back(spans[2])
        assert shelf.get("shops", [7, 8]) == [b"third", None]


def test_a_row_has_few_editions_and_the_newest_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        shelf.put("shops", [8], [b"eight"])
        spans = [shelf.keep()]
        for i in range(1, 3 * EDITIONS):
            shelf.put("shops", [7], [b"%d" % i])
            spans.append(shelf.keep())
        for back in range(1, EDITIONS + 1):
            shelf.go_back(spans[-back])
            assert shelf.get("shops", [7, 8]) == [b"%d" % (3 * EDITIONS - back), b"eight"]
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT count(*) FROM rows WHERE id = 7").fetchone() == (EDITIONS,)


def test_the_file_says_how_far_it_goes_without_being_looked_through(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        shelf.put("shops", [7], [b"seven"])
        spans = shelf.keep()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        file.execute("PRAGMA user_version = 5")
    with closing(Shelf(tmp_path / FILE)) as shelf:
        shelf.go_back(spans)
        shelf.put("shops", [8], [b"eight"])
        assert shelf.keep() == ((1, 1), (6, 6))


def test_a_file_that_does_not_say_so_yet_is_looked_through(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        for row in (b"seven", b"again"):
            shelf.put("shops", [7], [row])
            spans = shelf.keep()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        file.execute("PRAGMA user_version = 0")
    with opened(tmp_path, ((1, 1),)) as shelf:
        assert shelf.get("shops", [7]) == [b"seven"]
        shelf.go_back(spans)
        assert shelf.get("shops", [7]) == [b"seven"]  # the other belonged to no checkpoint


def test_a_write_that_fails_leaves_nothing_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as shelf:
        shelf.put("shops", [7], [b"seven"])
        shelf.put("shops", [8], [None])  # type: ignore[list-item]
        with pytest.raises(CheckpointError, match="expected to read and write the rows"):
            shelf.keep()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 100)
    with pytest.raises(CheckpointError, match=f"{FILE}: expected to read and write the rows .* not a database"):
        Shelf(tmp_path / FILE)
