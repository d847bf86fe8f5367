"""Sequences: ids -> vectors from outside the graph, as bytes. Live look-ups report hits; logged ones are obeyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.features.errors import FeatureError, MissingVector, shown
from pipeline.features.layout import SequenceSlot
from pipeline.features.values import canonical_id, raw_reader
from pipeline.records import Lookup, State

# Last bytes, little-endian, of what is infinite, NaN or about as large, by the size of the type.
_LARGE = {4: b"\x7f\xff", 2: bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)])}


class VectorSource(Protocol):
    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        """One little-endian vector of the table's dtype per id, in order; None for an id it does not have."""


class Plan(NamedTuple):
    """What a sequence wants to know."""

    slot: SequenceSlot
    ids: list[str]  # truncated, oldest first
    epoch: str
    logged: tuple[bool, ...] | None  # which of the ids were found when the page was decided

    @property
    def table(self) -> tuple[str, str]:
        return self.slot.feature.embedding, self.epoch

    @property
    def wanted(self) -> list[str]:
        if self.logged is None:
            return self.ids
        return [i for i, hit in zip(self.ids, self.logged, strict=True) if hit]


def planner(slot: SequenceSlot) -> Callable[[State], Plan]:
    feature = slot.feature
    raw = raw_reader(feature)
    kept = slice(-feature.max_len, None) if feature.keep == "newest" else slice(feature.max_len)

    def plan(state: State) -> Plan:
        value = raw(state)
        if value is None:
            value = ()
        elif not isinstance(value, tuple | list):
            raise FeatureError(feature.name, feature.source, "a list of ids", shown(value))
        ids = [canonical_id(feature, i) for i in value[kept]]
        lookup = state.lookups.get(feature.name)
        if lookup is None:
            return Plan(slot, ids, slot.table.epoch, None)
        if len(lookup.hits) != len(ids):
            expected = f"{len(ids)} logged hits, one per id after truncation"
            raise FeatureError(feature.name, feature.source, expected, str(len(lookup.hits)))
        return Plan(slot, ids, lookup.epoch, lookup.hits)

    return plan


def fetch(plans: Sequence[Plan], source: VectorSource | None) -> list[list[bytes | None]]:
    """The vectors of each plan's ids, in one question per table and epoch."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for plan in plans:
        wanted.setdefault(plan.table, []).extend(plan.wanted)
    answers = {table: iter(_ask(source, *table, ids)) for table, ids in wanted.items()}
    return [_answer(plan, answers[plan.table]) for plan in plans]


def _ask(source: VectorSource | None, table: str, epoch: str, ids: list[str]) -> list[bytes | None]:
    if not ids:
        return []
    if source is None:
        msg = f"embeddings[{table}]: this encoder has no vector source, and was asked to look up {len(ids)} ids"
        raise LookupError(msg)
    found = source.vectors(table, epoch, ids)
    if len(found) != len(ids):
        msg = f"embeddings[{table}]: the vector source gave {len(found)} answers for {len(ids)} ids"
        raise LookupError(msg)
    return found


def _answer(plan: Plan, answers: Iterator[bytes | None]) -> list[bytes | None]:
    if plan.logged is None:
        vectors = list(islice(answers, len(plan.ids)))
    else:
        vectors = [next(answers) if hit else None for hit in plan.logged]
    expected = plan.slot.vector_bytes
    for i, vector in enumerate(vectors):
        if vector is None or len(vector) != expected:
            _check(plan, i, vector)
    return vectors


def _check(plan: Plan, i: int, vector: bytes | None) -> None:
    feature = plan.slot.feature
    where = f"{feature.embedding}, epoch {plan.epoch}"
    if vector is None:
        if plan.logged is not None and plan.logged[i]:
            expected = f"a vector for id {plan.ids[i]!r} in {where}: it was used when the page was decided"
            raise MissingVector(feature.name, feature.source, expected, "none")
    elif len(vector) != plan.slot.vector_bytes:
        expected = f"{plan.slot.vector_bytes} bytes for id {plan.ids[i]!r} in {where}"
        raise FeatureError(feature.name, feature.source, expected, f"{len(vector)} bytes")


def block(plan: Plan, vectors: list[bytes | None]) -> bytes:
    """The vectors one after another, padded with zeros at the end."""
    zero = bytes(plan.slot.vector_bytes)
    joined = b"".join([zero if v is None else v for v in vectors])
    if not _finite(joined, plan.slot.dtype):
        feature = plan.slot.feature
        where = f"table {feature.embedding}, epoch {plan.epoch}, ids {shown(plan.ids)}"
        raise FeatureError(feature.name, feature.source, "finite vectors", f"others in {where}")
    return joined.ljust(plan.slot.block_bytes, b"\0")


def _finite(numbers: bytes, dtype: np.dtype) -> bool:
    """First by the exponents alone, of which each number's last byte has the most: only a page with one near the end of
    what the type can hold, if ever, waits for NumPy to look at the numbers."""
    last = numbers[dtype.itemsize - 1 :: dtype.itemsize]
    if len(last.translate(None, _LARGE[dtype.itemsize])) == len(last):
        return True
    return bool(np.isfinite(np.frombuffer(numbers, dtype)).all())


def lookup(plan: Plan, vectors: list[bytes | None]) -> Lookup:
    return Lookup(plan.epoch, tuple(v is not None for v in vectors))
