"""Which policy decides for whom: a pure function of the config and the unit (a user or a session)."""

from __future__ import annotations

import xxhash

from pipeline.config.schema import Bucket, Buckets

_FRACTIONS = 2**53  # every one of them a float


def _hash(*parts: str) -> int:
    return xxhash.xxh3_64_intdigest("\x1f".join(parts).encode())


def slot_of(buckets: Buckets, unit: str) -> int:
    return _hash(buckets.salt, unit) % buckets.slots


def bucket_table(buckets: Buckets) -> tuple[Bucket, ...]:
    """The bucket of each slot. ValueError where a slot has none or two."""
    table: dict[int, Bucket] = {}
    for bucket in buckets.assign:
        first, last = bucket.slots
        for slot in range(first, last + 1):
            if slot in table:
                msg = f"buckets.assign: slot {slot} belongs to {table[slot].name} and to {bucket.name}"
                raise ValueError(msg)
            table[slot] = bucket
    if sorted(table) != list(range(buckets.slots)):
        wrong = sorted(set(table) ^ set(range(buckets.slots)))
        msg = f"buckets.assign: expected slots 0 to {buckets.slots - 1}, each once; missing or outside: {wrong}"
        raise ValueError(msg)
    return tuple(table[slot] for slot in range(buckets.slots))


def on_canary(buckets: Buckets, policy: str, unit: str, share: float) -> bool:
    """Whether this unit is among the `share` of a policy's units that try the canary.

    Independent of its slot. A growing share only adds units, so nobody goes back and forth.
    """
    return (_hash(buckets.salt, "canary", policy, unit) >> 11) / _FRACTIONS < share
