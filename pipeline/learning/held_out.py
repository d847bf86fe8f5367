"""Which sessions are held out. Pure."""

from __future__ import annotations

import xxhash


def session_hash(session_id: str) -> int:
    """Not that of the buckets, or the seeds would be compared on some buckets only."""
    return xxhash.xxh3_64_intdigest(f"holdout\x1f{session_id}".encode())


def is_held_out(session_id: str, share: float) -> bool:
    """Whether nothing is learned from a session: from all of it, whichever bucket it is in."""
    return session_hash(session_id) < round(share * 2**64)
