"""Rows of embedding tables whose ids lost their place, kept on disk until they have one again: one SQLite file.

The checkpoint is the truth. What is put away stays in memory until the next checkpoint, and is then durable, under a
number of its own, before the checkpoint is. A checkpoint says which numbers its trainer had written: what it does not
name, because a kill came between the two or because the trainer went back to before it, is as if it were not there.
So a row has several editions, of which the newest few are kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.schema import FeatureConfig
from pipeline.features.inputs import vocabularies
from pipeline.learning.errors import CheckpointError

FILE = "embeddings.sqlite"
EDITIONS = 8  # of a row: more than checkpoints are kept, so one of these always finds its own
_TABLE = """CREATE TABLE IF NOT EXISTS rows
(tab TEXT, id INTEGER, number INTEGER, content BLOB NOT NULL, PRIMARY KEY (tab, id, number)) WITHOUT ROWID"""
_PUT = "INSERT INTO rows VALUES (?, ?, ?, ?)"
_PRUNE = """DELETE FROM rows WHERE tab = ?1 AND id = ?2 AND number <=
(SELECT number FROM rows WHERE tab = ?1 AND id = ?2 ORDER BY number DESC LIMIT 1 OFFSET ?3)"""
_GET = "SELECT number, content FROM rows WHERE tab = ? AND id = ? ORDER BY number DESC"

_CACHE_KIB = 32 * 1024  # a checkpoint's rows lie on as many pages: with fewer in memory these are written twice

Spans = tuple[tuple[int, int], ...]  # numbers from and to, both included, rising


class Shelf:
    """Owns the file, and what is to be written into it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: dict[tuple[str, int], bytes] = {}
        self._spans: Spans = ()
        with self._explained():
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._connection.execute(_TABLE)
            self._last = self._last_written()

    def _last_written(self) -> int:
        """The file says so in its header: with tens of millions of rows, looking for it would take a minute. Only what
        was written before it did is looked through."""
        (number,) = self._connection.execute("PRAGMA user_version").fetchone()
        if not number:
            (number,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM rows").fetchone()
        return int(number)

    def close(self) -> None:
        self._connection.close()

    def put(self, table: str, ids: Iterable[int], rows: Iterable[bytes]) -> None:
        self._pending |= {(table, id_): row for id_, row in zip(ids, rows, strict=True)}

    def get(self, table: str, ids: Sequence[int]) -> list[bytes | None]:
        """As they were put away last; None for ids that never were."""
        with self._explained():
            return [self._pending.get((table, id_)) or self._written(table, id_) for id_ in ids]

    def _written(self, table: str, id_: int) -> bytes | None:
        for number, content in self._connection.execute(_GET, (table, _signed(id_))):
            if any(first <= number <= last for first, last in self._spans):
                return bytes(content)
        return None

    def keep(self) -> Spans:
        """Make durable what was put away. Returns what a checkpoint of now has to say of it."""
        if not self._pending:
            return self._spans
        number = self._last + 1
        rows = sorted((table, _signed(id_), number, row) for (table, id_), row in self._pending.items())
        with self._explained(), self._transaction():
            self._connection.executemany(_PUT, rows)
            self._connection.executemany(_PRUNE, [(table, id_, EDITIONS) for table, id_, _, _ in rows])
            self._connection.execute(f"PRAGMA user_version = {number}")
        self._last = number
        self._pending.clear()
        *before, (first, last) = self._spans or ((number, number),)
        unbroken = last + 1 >= number
        self._spans = (*before, (first, number)) if unbroken else (*self._spans, (number, number))
        return self._spans

    def go_on(self, spans: Spans) -> None:
        """From the newest checkpoint. What was written after it belongs to one that was never complete."""
        newest = spans[-1][1] if spans else 0
        if self._last > newest:
            with self._explained():
                self._connection.execute("DELETE FROM rows WHERE number > ?", (newest,))
        self._last = newest
        self.go_back(spans)

    def go_back(self, spans: Spans) -> None:
        self._pending.clear()
        self._spans = spans

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            msg = f"{self._path}: expected to read and write the rows of tables that were put away, found {error}"
            raise CheckpointError(msg) from error


def _signed(id_: int) -> int:
    """SQLite's integers have 64 bits and a sign."""
    return id_ - 2**64 if id_ >= 2**63 else id_


@contextmanager
def open_shelf(config: FeatureConfig, work_dir: Path) -> Iterator[Shelf | None]:
    """None where no vocabulary asks for it."""
    if not any(vocabulary.remember for vocabulary in vocabularies(config).values()):
        yield None
        return
    shelf = Shelf(work_dir / FILE)
    try:
        yield shelf
    finally:
        shelf.close()
