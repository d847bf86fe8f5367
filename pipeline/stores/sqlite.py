"""The key-value seam on one SQLite file: for laptops, tests and single machines; many threads and processes.

The file is in WAL mode, so readers never wait for a writer; WAL needs a local disk (not a network file system).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from pipeline.stores.store import StoreError

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50675475  # "PgTu": a SQLite file of something else is not taken over
_TABLES = (
    "CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE leases (name TEXT PRIMARY KEY, token INTEGER NOT NULL, holder TEXT, until_ms INTEGER NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_CHUNK = 500  # parameters of one statement; old builds of SQLite allow 999
_PUT = "INSERT INTO pairs VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_LEASE = "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET token = excluded.token, "
_LEASE += "holder = excluded.holder, until_ms = excluded.until_ms"


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class SqliteStore:
    """One connection, used by one thread at a time; other processes are waited for up to `busy_timeout_s`."""

    def __init__(
        self, path: Path, *, busy_timeout_s: float = 5.0, clock_ms: Callable[[], int] = _wall_clock_ms
    ) -> None:
        self._path = path
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        with self._errors():
            self._connection = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare(busy_timeout_s)
        except StoreError:
            self._connection.close()
            raise

    def get(self, key: str) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        with self._transaction("BEGIN") as connection:
            for chunk in _chunks(keys):
                marks = ",".join("?" * len(chunk))
                found.update(connection.execute(f"SELECT key, value FROM pairs WHERE key IN ({marks})", chunk))
        return [found.get(key) for key in keys]

    def put(self, key: str, value: bytes) -> None:
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, bytes]) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany(_PUT, values.items())

    def delete_many(self, keys: Iterable[str]) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany("DELETE FROM pairs WHERE key = ?", ((key,) for key in keys))

    def delete_prefix(self, prefix: str) -> int:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            query = "DELETE FROM pairs WHERE key >= ?1 AND (?2 IS NULL OR key < ?2)"
            return connection.execute(query, (prefix, _first_after(prefix))).rowcount

    def keys(self, prefix: str) -> list[str]:
        with self._transaction("BEGIN") as connection:
            query = "SELECT key FROM pairs WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) ORDER BY key"
            return [key for (key,) in connection.execute(query, (prefix, _first_after(prefix)))]

    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
            if (row[0] if row else None) != expected:
                return False
            connection.execute(_PUT, (key, value))
            return True

    def acquire_lease(self, name: str, holder: str, ttl_ms: int, above: int = 0) -> int | None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            now_ms = self._clock_ms()
            row = connection.execute("SELECT token, holder, until_ms FROM leases WHERE name = ?", (name,)).fetchone()
            highest, held_by, until_ms = row or (0, None, 0)
            held = held_by is not None and now_ms < until_ms
            if held and held_by != holder:
                if until_ms > now_ms + ttl_ms:  # the clock was put back; a holder that lives renews it, and goes on
                    connection.execute(_LEASE, (name, highest, held_by, now_ms + ttl_ms))
                return None
            token: int = highest if held and highest > above else max(highest, above) + 1
            connection.execute(_LEASE, (name, token, holder, now_ms + ttl_ms))
            return token

    def release_lease(self, name: str, holder: str) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.execute("UPDATE leases SET holder = NULL WHERE name = ? AND holder = ?", (name, holder))

    def fenced_put(self, lease: str, token: int, key: str, value: bytes) -> bool:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute("SELECT token FROM leases WHERE name = ?", (lease,)).fetchone()
            if row != (token,):
                return False
            connection.execute(_PUT, (key, value))
            return True

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            message = f"sqlite store {self._path}: {_explain(error, self._path)}"
            raise StoreError(message) from error

    def _prepare(self, busy_timeout_s: float) -> None:
        with self._errors():
            self._switch_to_wal(time.monotonic() + busy_timeout_s)
            self._connection.execute("PRAGMA synchronous = FULL")  # a flipped pointer survives a power cut
        with self._transaction("BEGIN IMMEDIATE") as connection:
            application, version = (_pragma(connection, name) for name in ("application_id", "user_version"))
            if (application, version) == (0, 0) and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _TABLES:
                    connection.execute(statement)
            elif application != _APPLICATION_ID:
                message = f"sqlite store {self._path}: a SQLite database, but not a Pageturn store"
                raise StoreError(message)
            elif version != SCHEMA_VERSION:
                message = f"sqlite store {self._path}: schema version {version}, expected {SCHEMA_VERSION}"
                raise StoreError(message)

    def _switch_to_wal(self, deadline_s: float) -> None:
        """The one statement that does not honour the busy timeout while another process makes the same switch."""
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _explain(error: sqlite3.Error, path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    if "not a database" in str(error):
        return "the file exists but is not a SQLite database"
    if "locked" in str(error):
        return "another process kept the file locked for too long"
    return str(error)


def _first_after(prefix: str) -> str | None:
    """The smallest text above every text with the prefix, in SQLite's order (code points); None if there is none."""
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)  # UTF-8 has no surrogates


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
