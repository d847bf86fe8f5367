"""What the version controller publishes and the agent follows, as typed records over the key-value seam.

Keys, all under the config's `kv_prefix`:
  p:<sha256>                parameter snapshot, immutable, named by its content
  v:<policy>:<version>      what a published version consists of
  ptr:<policy>              the pointer: the only record that changes
  candidates:<policy>       of each version that a rollback may go to, the candidate that became it
  verdict:<policy>:<id>     every verdict on a candidate, with all its numbers and reasons
  agent:<agent id>          which versions an agent uses, and when it said so
  agents                    the ids of those agents: listing keys would walk over every embedding vector
  e:<table>:<epoch>:<id>    one embedding vector, little-endian; immutable within its epoch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pipeline.stores.store import KeyValueStore, StoreError

BOOTSTRAP = f"{0:012d}"  # the id of every candidate that has learned nothing: the baseline
_Record = TypeVar("_Record")
_ATTEMPTS = 50  # of a compare-and-set that others win


class Served(Struct, frozen=True):
    """A model version and the parameters its features must be encoded with: never used apart."""

    version: int
    parameters: str  # sha256 of the snapshot


class GoBack(Struct, frozen=True):
    """The trainer is to go on from what it was when it handed out a candidate: what it learned since is given up."""

    number: int  # rising: the how manieth time
    candidate: str | None  # None: the request before was withdrawn


class Pointer(Struct, frozen=True, omit_defaults=True):
    """What agents serve for one policy. Written by compare-and-set only."""

    stable: Served | None = None
    canary: Served | None = None
    share: float = 0.0  # of the bucket that is on the canary
    epoch: int = 0
    off: bool = False  # the kill switch: everyone on the baseline
    fence: int = 0  # the lease token of the controller that wrote it
    previous: Served | None = None  # stays loaded: where a rollback goes
    frozen: bool = False  # nothing is published until an operator releases the policy
    back: GoBack | None = None  # the last one
    pinned: bool = False  # and frozen: nothing but an operator gives the policy another version
    changes: int = 0  # rising, but for the fence: a store that lost some is found out; 0: by builds that did not count


class VersionRecord(Struct, frozen=True, omit_defaults=True):
    policy: str
    version: int
    model_name: str
    parameters: str
    config_sha: str
    candidate: str
    created_ms: int


class Usage(Struct, frozen=True, array_like=True):
    """What an agent has seen of a version since it began to use it."""

    pages: int = 0  # of the policy's buckets
    faults: int = 0  # of these, pages that fell back for something that the version may be at fault for
    calls: int = 0  # Predict calls that were answered, or for which there was no time left; once per page asked for
    slow: int = 0  # of these, those that took too long


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    agent: str
    time_ms: int
    versions: dict[str, int]  # policy -> version in use
    usage: dict[str, Usage] = {}  # policy -> of that version; none where no `publish.guard` asks for it
    canaries: dict[str, int] = {}  # policy -> version in use beside that
    canary_usage: dict[str, Usage] = {}  # policy -> of the canary


def candidate_id(transitions: int, run: str) -> str:
    """Sorts by age within a run, and is no other run's: a verdict on that one's candidate says nothing about this."""
    return f"{transitions:012d}-{run}" if transitions else BOOTSTRAP


def parameters_key(prefix: str, sha256: str) -> str:
    return f"{prefix}:p:{sha256}"


def version_key(prefix: str, policy: str, version: int) -> str:
    return f"{prefix}:v:{policy}:{version}"


def pointer_key(prefix: str, policy: str) -> str:
    return f"{prefix}:ptr:{policy}"


def candidates_key(prefix: str, policy: str) -> str:
    return f"{prefix}:candidates:{policy}"


def verdict_key(prefix: str, policy: str, candidate: str) -> str:
    return f"{prefix}:verdict:{policy}:{candidate}"


def agent_key(prefix: str, agent: str) -> str:
    return f"{prefix}:agent:{agent}"


def agents_key(prefix: str) -> str:
    return f"{prefix}:agents"


def vector_key(prefix: str, table: str, epoch: str, item_id: str) -> str:
    return f"{prefix}:e:{table}:{epoch}:{item_id}"


def decode_record(key: str, value: bytes, type_: type[_Record]) -> _Record:
    """Raises: StoreError naming the key when something else than such a record is there."""
    try:
        return msgspec.json.decode(value, type=type_)
    except msgspec.DecodeError as error:
        message = f"key {key!r}: expected a {type_.__name__} record; found {value[:60]!r} ({error})"
        raise StoreError(message) from error


def read_pointers(store: KeyValueStore, prefix: str, policies: tuple[str, ...]) -> dict[str, Pointer]:
    """The pointer of each policy, in one round trip; an empty one where nothing was published yet."""
    keys = [pointer_key(prefix, policy) for policy in policies]
    return {
        policy: Pointer() if value is None else decode_record(key, value, Pointer)
        for policy, key, value in zip(policies, keys, store.get_many(keys), strict=True)
    }


def readable_pointers(
    store: KeyValueStore, prefix: str, policies: tuple[str, ...], spoilt: Callable[[StoreError], None]
) -> dict[str, Pointer]:
    """The same of those policies whose pointers can be read; `spoilt` hears of the others."""
    keys = [pointer_key(prefix, policy) for policy in policies]
    found = {}
    for policy, key, value in zip(policies, keys, store.get_many(keys), strict=True):
        try:
            found[policy] = Pointer() if value is None else decode_record(key, value, Pointer)
        except StoreError as error:
            spoilt(error)
    return found


def change_pointer(
    store: KeyValueStore, prefix: str, policy: str, change: Callable[[Pointer], Pointer]
) -> tuple[Pointer, Pointer]:
    """Apply a pure change to the pointer as it now is, again when somebody else was faster: (before, after)."""
    return _change(store, pointer_key(prefix, policy), Pointer, Pointer(), lambda now: _counted(now, change(now)))


def _counted(before: Pointer, after: Pointer) -> Pointer:
    """Who claims a pointer does not change what it says."""
    if replace(after, fence=before.fence) == before:
        return after
    return replace(after, changes=max(before.changes, after.changes) + 1)


def turned_to(pointer: Pointer, to: Served) -> Pointer:
    """Serves `to`, all of its buckets, and nothing newer until the policy is released."""
    previous = pointer.previous if pointer.stable == to else pointer.stable
    return replace(pointer, stable=to, previous=previous, canary=None, share=0.0, frozen=True, pinned=False)


def sent_back(pointer: Pointer, to: Served, candidate: str) -> Pointer:
    """Serves `to`, which the candidate became; whatever is made of what the trainer learned since then is not published
    at all."""
    number = pointer.back.number + 1 if pointer.back else 1
    return replace(turned_to(pointer, to), back=GoBack(number, candidate))


def must_go_back(pointer: Pointer, gone_back: int) -> bool:
    """`gone_back`: the number of the last request that a trainer, or a candidate's, has followed."""
    return pointer.back is not None and pointer.back.candidate is not None and pointer.back.number > gone_back


def read_candidates(store: KeyValueStore, prefix: str, policies: Sequence[str]) -> dict[str, dict[int, str]]:
    """Of each policy: version -> candidate."""
    keys = [candidates_key(prefix, policy) for policy in policies]
    return {
        policy: {} if value is None else decode_record(key, value, dict[int, str])
        for policy, key, value in zip(policies, keys, store.get_many(keys), strict=True)
    }


def read_version(store: KeyValueStore, prefix: str, policy: str, version: int) -> VersionRecord | None:
    key = version_key(prefix, policy, version)
    value = store.get(key)
    return None if value is None else decode_record(key, value, VersionRecord)


def write_heartbeat(store: KeyValueStore, prefix: str, heartbeat: Heartbeat) -> None:
    """Say which versions an agent uses, and enter it in the list of agents when it is not there yet."""
    store.put(agent_key(prefix, heartbeat.agent), msgspec.json.encode(heartbeat))
    _change(store, agents_key(prefix), frozenset[str], frozenset(), lambda listed: listed | {heartbeat.agent})


def read_heartbeats(store: KeyValueStore, prefix: str) -> tuple[Heartbeat, ...]:
    """The last sign of life of every listed agent, by agent id. Without a list all keys are looked through."""
    listed = store.get(agents_key(prefix))
    keys = store.keys(agent_key(prefix, "")) if listed is None else _agent_keys(prefix, listed)
    values = store.get_many(keys)
    return tuple(decode_record(k, v, Heartbeat) for k, v in zip(keys, values, strict=True) if v is not None)


def forget_agents(store: KeyValueStore, prefix: str, agents: Sequence[str]) -> None:
    """Take agents that are gone off the list. One that comes back enters itself again with its next heartbeat."""
    if agents:
        _change(store, agents_key(prefix), frozenset[str], frozenset(), lambda listed: listed - set(agents))
        store.delete_many([agent_key(prefix, agent) for agent in agents])


def _agent_keys(prefix: str, listed: bytes) -> list[str]:
    return [agent_key(prefix, agent) for agent in sorted(decode_record(agents_key(prefix), listed, frozenset[str]))]


def _change(
    store: KeyValueStore, key: str, type_: type[_Record], empty: _Record, change: Callable[[_Record], _Record]
) -> tuple[_Record, _Record]:
    for _ in range(_ATTEMPTS):
        value = store.get(key)
        before = empty if value is None else decode_record(key, value, type_)
        after = change(before)
        if after == before or store.compare_and_set(key, value, msgspec.json.encode(after, order="deterministic")):
            return before, after
    message = f"key {key!r}: changed by others {_ATTEMPTS} times in a row; not written"
    raise StoreError(message)
