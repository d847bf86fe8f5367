"""What operators do to a pointer. Agents follow within a second; the controller takes note and never undoes it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pipeline.errors import PageturnError
from pipeline.stores.published import (
    GoBack,
    Pointer,
    Served,
    VersionRecord,
    change_pointer,
    read_candidates,
    read_pointers,
    read_version,
    sent_back,
    turned_to,
)
from pipeline.stores.store import KeyValueStore


class SwitchError(PageturnError):
    """The pointer does not allow what was asked for."""


def set_off(store: KeyValueStore, prefix: str, policies: Sequence[str], off: bool) -> None:
    """The kill switch: put the buckets of policies on the baseline, or back. Raises: StoreError."""
    for policy in policies:
        change_pointer(store, prefix, policy, lambda pointer: replace(pointer, off=off))


def roll_back(store: KeyValueStore, prefix: str, policy: str, to: int | None = None) -> tuple[Served, Served]:
    """Back to the version before (from a canary: the version beside it), or to one that is named; nothing is published
    until `release`, and the trainer goes on from what it was then. Agents follow once the model servers have that
    version: at once, if it is still loaded.

    Returns: the version left, the version served now. Raises: SwitchError, StoreError.
    """
    version = _previous(store, prefix, policy) if to is None else to
    record = _published(store, prefix, policy, version)
    target = Served(version, record.parameters)

    def back(pointer: Pointer) -> Pointer:
        if pointer.stable is None or (to is None and _before(pointer) != target):
            message = f"policy {policy!r}: its versions changed at the same moment; look at them, and roll back again"
            raise SwitchError(message)
        return sent_back(pointer, target, record.candidate)

    before, after = change_pointer(store, prefix, policy, back)
    assert before.stable is not None
    assert after.stable is not None
    return before.canary or before.stable, after.stable


def pin(store: KeyValueStore, prefix: str, policy: str, to: int | None = None) -> Served:
    """Hold a policy to this version (None: the one in use) until `release`, whatever live pages and evidence say of it.
    The trainer goes on learning, and what it makes is checked, and kept.

    Returns: the version served now. Raises: SwitchError, StoreError.
    """
    named = None if to is None else Served(to, _published(store, prefix, policy, to).parameters)

    def pinned(pointer: Pointer) -> Pointer:
        if pointer.stable is None:
            message = f"policy {policy!r}: expected a version to pin, found none published"
            raise SwitchError(message)
        return replace(turned_to(pointer, named or pointer.stable), pinned=True)

    after = change_pointer(store, prefix, policy, pinned)[1]
    assert after.stable is not None
    return after.stable


def _before(pointer: Pointer) -> Served | None:
    return pointer.stable if pointer.canary is not None else pointer.previous


def _previous(store: KeyValueStore, prefix: str, policy: str) -> int:
    previous = _before(read_pointers(store, prefix, (policy,))[policy])
    if previous is None:
        message = f"policy {policy!r}: expected a previous version to go back to, found none"
        raise SwitchError(message)
    return previous.version


def _published(store: KeyValueStore, prefix: str, policy: str, version: int) -> VersionRecord:
    record = read_version(store, prefix, policy, version)
    if record is None:
        kept = ", ".join(map(str, sorted(read_candidates(store, prefix, (policy,))[policy]))) or "none"
        message = f"policy {policy!r}: expected a version that is kept, one of {kept}; found {version}"
        raise SwitchError(message)
    return record


def freeze(store: KeyValueStore, prefix: str, policy: str) -> None:
    """Keep the version in use; candidates get the verdict `kept`."""
    change_pointer(store, prefix, policy, lambda pointer: replace(pointer, frozen=True))


def release(store: KeyValueStore, prefix: str, policy: str, *, as_it_is: bool = False) -> None:
    """Let the next candidate be considered again; `as_it_is`, also one of a trainer that has not gone back."""

    def released(pointer: Pointer) -> Pointer:
        back = GoBack(pointer.back.number + 1, None) if as_it_is and pointer.back else pointer.back
        return replace(pointer, frozen=False, pinned=False, back=back)

    change_pointer(store, prefix, policy, released)
