"""The key-value seam: parameters, pointers, leases, embedding vectors.

Keys are text, values are bytes; an empty value is a value. Every store is safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pipeline.errors import PageturnError


class StoreError(PageturnError):
    """The store cannot be reached or refused a command; says which store and why."""


class KeyValueStore(Protocol):
    def get(self, key: str) -> bytes | None: ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """One value or None per key, in order, in one round trip."""

    def put(self, key: str, value: bytes) -> None: ...

    def put_many(self, values: Mapping[str, bytes]) -> None: ...

    def delete_many(self, keys: Iterable[str]) -> None: ...

    def delete_prefix(self, prefix: str) -> int:
        """Delete all keys that start with the prefix, however many, in portions; says how many there were."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with the prefix, sorted. For operators and clean-up, not for a request's path."""

    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Write the value if the key holds `expected` (None: if there is no key). Says whether it did.

        After a StoreError it may have been written or not: read before trying again.
        """

    def acquire_lease(self, name: str, holder: str, ttl_ms: int, above: int = 0) -> int | None:
        """Take or renew a lease; the fencing token, or None while another holder has it.

        A renewal keeps its token. Every change of holder, and a return after expiry, gets a higher one, and higher
        than `above` too: that is for a store that was emptied and has forgotten how far its tokens had come.
        """

    def release_lease(self, name: str, holder: str) -> None:
        """Give the lease up. Harmless when it is not held."""

    def fenced_put(self, lease: str, token: int, key: str, value: bytes) -> bool:
        """Write the value if `token` is still the lease's highest. Says whether it did."""

    def close(self) -> None: ...
