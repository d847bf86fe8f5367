"""Item vectors that live in the key-value store: tens of millions of them, immutable within an epoch.

One value per id, raw little-endian numbers, under `published.vector_key`. Beside them a `!meta` record says what the
table is; it is written last, so a table without one is incomplete.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.stores.published import decode_record, vector_key
from pipeline.stores.store import KeyValueStore

_META = "!meta"  # no id can be called so
_CHUNK = 2_000  # vectors written at once


class VectorError(PageturnError):
    """Vectors cannot be added to a table; says which table, what was expected and what was found."""


class TableMeta(Struct, frozen=True):
    dim: int
    dtype: str
    rows: int


class Portion(NamedTuple):
    ids: Sequence[str]
    matrix: np.ndarray  # [n, dim] float32 or float16


class Loaded(NamedTuple):
    meta: TableMeta
    added: int
    known: int  # rows that were there, the same


class StoredVectors:
    """A `VectorSource` over a key-value store, with the vectors used last kept in memory. Safe for threads.

    Vectors never change, so nothing needs to be invalidated; that an id has none is remembered for `absent_s` only,
    as ids are added while a table is in use.
    """

    def __init__(
        self,
        store: KeyValueStore,
        kv_prefix: str,
        *,
        capacity: int,
        monotonic: Callable[[], float],
        absent_s: float = 5.0,
        fetched: Callable[[str, int], None] = lambda table, ids: None,
    ) -> None:
        """`fetched` hears how many vectors of a table the store was asked for."""
        self._store = store
        self._prefix = kv_prefix
        self._capacity = capacity
        self._monotonic = monotonic
        self._absent_s = absent_s
        self._fetched = fetched
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[bytes | None, float]] = OrderedDict()  # key -> value, when it was read

    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        """The vectors of the ids, None where there is none. At most one round trip. Raises StoreError."""
        keys = self._keys(table, epoch, ids)
        found, missing = self._recall(table, epoch, keys)
        if missing:
            found.update(self._fetch(missing))
            self._fetched(table, len(missing))
        return [found[key] for key in keys]

    def cached(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None] | None:
        """The same without asking the store; None if it would have to be asked."""
        keys = self._keys(table, epoch, ids)
        found, missing = self._recall(table, epoch, keys)
        return None if missing else [found[key] for key in keys]

    def _keys(self, table: str, epoch: str, ids: Sequence[str]) -> list[str]:
        stem = vector_key(self._prefix, table, epoch, "")
        return [stem + each for each in ids]

    def _recall(self, table: str, epoch: str, keys: Sequence[str]) -> tuple[dict[str, bytes | None], list[str]]:
        """Called for every page, with all of its ids: a few of these lines are most of what a page waits for."""
        found: dict[str, bytes | None] = {}
        missing: dict[str, None] = {}  # an ordered set
        stale_s = self._monotonic() - self._absent_s
        known = self._known
        with self._lock:
            for key in keys:
                entry = known.get(key)
                if entry is None or (entry[0] is None and entry[1] < stale_s):
                    missing[key] = None
                else:
                    known.move_to_end(key)
                    found[key] = entry[0]
        meta = vector_key(self._prefix, table, epoch, _META)
        if meta in missing:
            del missing[meta]
            found[meta] = None
        return found, list(missing)

    def _fetch(self, keys: list[str]) -> dict[str, bytes | None]:
        fetched = dict(zip(keys, self._store.get_many(keys), strict=True))
        now_s = self._monotonic()
        with self._lock:
            for key, value in fetched.items():
                self._known[key] = value, now_s
            for _ in range(len(self._known) - self._capacity):
                self._known.popitem(last=False)
        return fetched


def read_table(store: KeyValueStore, kv_prefix: str, table: str, epoch: str) -> TableMeta | None:
    """What a table is; None while it was never loaded completely. Raises: StoreError."""
    key = vector_key(kv_prefix, table, epoch, _META)
    value = store.get(key)
    return None if value is None else decode_record(key, value, TableMeta)


def load_vectors(
    store: KeyValueStore, kv_prefix: str, table: str, epoch: str, ids: Sequence[str], matrix: np.ndarray
) -> TableMeta:
    """Add vectors ([n, dim] float32 or float16) to a table. Can be repeated; never changes a vector (VectorError)."""
    return load_portions(store, kv_prefix, table, epoch, [Portion(ids, matrix)]).meta


def load_portions(
    store: KeyValueStore,
    kv_prefix: str,
    table: str,
    epoch: str,
    portions: Iterable[Portion],
    told: Callable[[int], None] = lambda rows: None,
) -> Loaded:
    """As `load_vectors`, of tables that do not fit into memory; ids are distinct over all portions.

    The table's record is written last: a load that was broken off is finished by doing it again. `told` hears how many
    rows were handled so far.
    """
    where = f"{kv_prefix}:{table}:{epoch}"
    before = read_table(store, kv_prefix, table, epoch)
    kind = None if before is None else (before.dim, before.dtype)
    rows = added = 0
    for portion in portions:
        kind = _checked(where, portion, kind)
        added += _add_all(store, [vector_key(kv_prefix, table, epoch, each) for each in portion.ids], portion.matrix)
        rows += len(portion.ids)
        told(rows)
    if kind is None:
        msg = f"{where}: expected vectors, found none"
        raise VectorError(msg)
    meta = TableMeta(*kind, rows if before is None else before.rows + added)
    store.put(vector_key(kv_prefix, table, epoch, _META), msgspec.json.encode(meta))
    return Loaded(meta, added, rows - added)


def drop_table(store: KeyValueStore, kv_prefix: str, table: str, epoch: str) -> int:
    """Delete an epoch; how many vectors it had."""
    store.delete_many([vector_key(kv_prefix, table, epoch, _META)])
    return store.delete_prefix(vector_key(kv_prefix, table, epoch, ""))


def _checked(where: str, portion: Portion, kind: tuple[int, str] | None) -> tuple[int, str]:
    """The portion's (dim, dtype). Raises: VectorError."""
    ids, matrix = portion
    if matrix.ndim != 2 or len(ids) != len(matrix) or matrix.dtype.name not in ("float32", "float16"):
        msg = f"{where}: expected [{len(ids)}, dim] of float32 or float16, found {list(matrix.shape)} {matrix.dtype}"
        raise VectorError(msg)
    if not np.isfinite(matrix).all():
        msg = f"{where}: expected finite numbers, found others"
        raise VectorError(msg)
    if _META in ids or len(set(ids)) < len(ids):
        msg = f"{where}: expected distinct ids, none of them {_META!r}, found others"
        raise VectorError(msg)
    found = int(matrix.shape[1]), matrix.dtype.name
    if kind is not None and kind != found:
        msg = f"{where}: expected {kind[0]} x {kind[1]} as the table holds, found {found[0]} x {found[1]}"
        raise VectorError(msg)
    return found


def _add_all(store: KeyValueStore, keys: list[str], matrix: np.ndarray) -> int:
    little_endian = np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("<"))
    pairs = ((key, row.tobytes()) for key, row in zip(keys, little_endian, strict=True))
    added = 0
    while chunk := dict(islice(pairs, _CHUNK)):
        added += _add(store, chunk)
    return added


def _add(store: KeyValueStore, chunk: dict[str, bytes]) -> int:
    there = dict(zip(chunk, store.get_many(list(chunk)), strict=True))
    for key, value in there.items():
        if value is not None and value != chunk[key]:
            msg = f"{key} holds another vector: within an epoch vectors do not change; load them under a new epoch"
            raise VectorError(msg)
    new = {key: value for key, value in chunk.items() if there[key] is None}
    if new:
        store.put_many(new)
    return len(new)
