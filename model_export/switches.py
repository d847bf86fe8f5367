"""What operators do to a pointer. Agents follow within a second; the controller takes note and never undoes it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pipeline.errors import PageturnError
from pipeline.stores.published import Pointer, Served, change_pointer
from pipeline.stores.store import KeyValueStore


class SwitchError(PageturnError):
    """The pointer does not allow what was asked for."""


def set_off(store: KeyValueStore, prefix: str, policies: Sequence[str], off: bool) -> None:
    """The kill switch: put the buckets of policies on the baseline, or back. Raises: StoreError."""
    for policy in policies:
        change_pointer(store, prefix, policy, lambda pointer: replace(pointer, off=off))


def roll_back(store: KeyValueStore, prefix: str, policy: str) -> tuple[Served, Served]:
    """Back to the previous version, which is still loaded; nothing is published until `release`.

    Returns: the version left, the version served now. Raises: SwitchError, StoreError.
    """

    def back(pointer: Pointer) -> Pointer:
        if pointer.stable is None or pointer.previous is None:
            message = f"policy {policy!r}: expected a previous version to go back to, found none"
            raise SwitchError(message)
        return replace(pointer, stable=pointer.previous, previous=pointer.stable, canary=None, share=0.0, frozen=True)

    before, after = change_pointer(store, prefix, policy, back)
    assert before.stable is not None
    assert after.stable is not None
    return before.stable, after.stable


def freeze(store: KeyValueStore, prefix: str, policy: str) -> None:
    """Keep the version in use; candidates get the verdict `kept`."""
    change_pointer(store, prefix, policy, lambda pointer: replace(pointer, frozen=True))


def release(store: KeyValueStore, prefix: str, policy: str) -> None:
    """Let the next candidate be considered again."""
    change_pointer(store, prefix, policy, lambda pointer: replace(pointer, frozen=False))
