"""Item vectors that live in the key-value store: tens of millions of them, immutable within an epoch.

One value per id, raw little-endian numbers, under `published.vector_key`. Beside them a `!meta` record says what the
table is; it is written last, so a table without one is incomplete.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        """`capacity`: of ids in memory; the half of it that was used last stays for certain. `fetched` hears how
        many vectors of a table the store was asked for."""
        self._store = store
        self._prefix = kv_prefix
        self._monotonic = monotonic
        self._absent_s = absent_s
        self._fetched = fetched
        self._known = _Recent(capacity)

    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        """The vectors of the ids, None where there is none. At most one round trip. Raises StoreError."""
        found = self._known.recall((table, epoch), ids)
        missing = self._missing(table, epoch, ids, found)
        if missing:
            fetched = self._fetch(table, epoch, missing)
            found = [fetched.get(each) if value is None else value for each, value in zip(ids, found, strict=True)]
        return found

    def cached(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None] | None:
        """The same without asking the store; None if it would have to be asked."""
        found = self._known.recall((table, epoch), ids)
        return None if self._missing(table, epoch, ids, found) else found

    def _missing(self, table: str, epoch: str, ids: Sequence[str], found: list[bytes | None]) -> list[str]:
        """Those of which it is not known whether they have a vector, each once."""
        if None not in found:
            return []
        unknown = dict.fromkeys([each for each, value in zip(ids, found, strict=True) if value is None])
        unknown.pop(_META, None)
        return self._known.unsettled((table, epoch), unknown, self._monotonic() - self._absent_s)

    def _fetch(self, table: str, epoch: str, ids: list[str]) -> dict[str, bytes | None]:
        stem = vector_key(self._prefix, table, epoch, "")
        fetched = dict(zip(ids, self._store.get_many([stem + each for each in ids]), strict=True))
        self._known.keep((table, epoch), fetched, self._monotonic())
        self._fetched(table, len(ids))
        return fetched


_Part = tuple[str, str]  # table, epoch


class _Recent:
    """The vectors used last, in two generations: what is used moves into the younger one, and where that would have
    more than half of the capacity it takes the place of the older one first, which is forgotten.

    A list in the order of use would have to be mended for each id of each page, and the memory that this touches is
    most of what a page waits for. Reading takes no lock: a dict's own operations are safe for threads.
    """

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._lock = threading.Lock()
        self._size = 0  # of the younger generation
        self._young: dict[_Part, dict[str, bytes]] = {}
        self._old: dict[_Part, dict[str, bytes]] = {}
        self._absent: dict[_Part, dict[str, float]] = {}  # when the store said so

    def recall(self, part: _Part, ids: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = list(map(self._young.get(part, _NOTHING).get, ids))
        if None in found and (old := self._old.get(part)):
            moved = {}
            for place, each in enumerate(ids):
                if found[place] is None and (value := old.get(each)) is not None:
                    found[place] = moved[each] = value
            self._add(part, moved)
        return found

    def unsettled(self, part: _Part, ids: Iterable[str], since_s: float) -> list[str]:
        """Those of which the store has not said since then that it has no vector."""
        absent = self._absent.get(part)
        return [each for each in ids if absent.get(each, -math.inf) < since_s] if absent else list(ids)

    def keep(self, part: _Part, values: Mapping[str, bytes | None], now_s: float) -> None:
        self._add(part, {each: value for each, value in values.items() if value is not None})
        absent = [each for each, value in values.items() if value is None]
        if absent:
            with self._lock:
                if sum(map(len, self._absent.values())) > self._half:
                    self._absent = {}  # they would soon be asked for again
                self._absent.setdefault(part, {}).update(dict.fromkeys(absent, now_s))

    def _add(self, part: _Part, values: Mapping[str, bytes]) -> None:
        if not values or not self._half:
            return
        with self._lock:
            young = self._young.get(part, _NOTHING)
            new = [(each, value) for each, value in values.items() if each not in young][-self._half :]
            if self._size + len(new) > self._half:
                self._old, self._young, self._size = self._young, {}, 0
            self._young.setdefault(part, {}).update(new)
            self._size += len(new)


_NOTHING: dict[str, bytes] = {}


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
