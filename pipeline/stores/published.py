"""What the version controller publishes and the agent follows, as typed records over the key-value seam.

Keys, all under the config's `kv_prefix`:
  p:<sha256>                parameter snapshot, immutable, named by its content
  v:<policy>:<version>      what a published version consists of
  ptr:<policy>              the pointer: the only record that changes
  verdict:<policy>:<id>     every verdict on a candidate, with all its numbers and reasons
  agent:<agent id>          which versions an agent uses, and when it said so
  e:<table>:<epoch>:<id>    one embedding vector, little-endian; immutable within its epoch
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from pipeline.stores.store import KeyValueStore


class Served(Struct, frozen=True):
    """A model version and the parameters its features must be encoded with: never used apart."""

    version: int
    parameters: str  # sha256 of the snapshot


class Pointer(Struct, frozen=True, omit_defaults=True):
    """What agents serve for one policy. Written by compare-and-set only."""

    stable: Served | None = None
    canary: Served | None = None
    share: float = 0.0  # of the bucket that is on the canary
    epoch: int = 0
    off: bool = False  # the kill switch: everyone on the baseline
    fence: int = 0  # the lease token of the controller that wrote it


class VersionRecord(Struct, frozen=True, omit_defaults=True):
    policy: str
    version: int
    model_name: str
    parameters: str
    config_sha: str
    candidate: str
    created_ms: int


class Heartbeat(Struct, frozen=True):
    agent: str
    time_ms: int
    versions: dict[str, int]  # policy -> version in use


def parameters_key(prefix: str, sha256: str) -> str:
    return f"{prefix}:p:{sha256}"


def version_key(prefix: str, policy: str, version: int) -> str:
    return f"{prefix}:v:{policy}:{version}"


def pointer_key(prefix: str, policy: str) -> str:
    return f"{prefix}:ptr:{policy}"


def verdict_key(prefix: str, policy: str, candidate: str) -> str:
    return f"{prefix}:verdict:{policy}:{candidate}"


def agent_key(prefix: str, agent: str) -> str:
    return f"{prefix}:agent:{agent}"


def vector_key(prefix: str, table: str, epoch: str, item_id: str) -> str:
    return f"{prefix}:e:{table}:{epoch}:{item_id}"


def read_pointers(store: KeyValueStore, prefix: str, policies: tuple[str, ...]) -> dict[str, Pointer]:
    """The pointer of each policy, in one round trip; an empty one where nothing was published yet."""
    values = store.get_many([pointer_key(prefix, policy) for policy in policies])
    return {
        policy: Pointer() if value is None else msgspec.json.decode(value, type=Pointer)
        for policy, value in zip(policies, values, strict=True)
    }
