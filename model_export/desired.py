"""The desired state of the model servers: which versions of which models are to be loaded, and why.

It is a file on the model volume, written by the holder of the controller's lease only, whole or not at all. From it
follow `models.config`, which every model server polls, and, when they were lost, the records in the key-value store.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from model_export.checks import Verdict
from model_export.evaluation.evidence import Epoch
from model_export.lease import LeaseLost
from pipeline import durable
from pipeline.serving.models_config import ServedModel, render
from pipeline.stores.published import Pointer, Served

DESIRED = "desired.json"
MODELS_CONFIG = "models.config"
_LOG = logging.getLogger(__name__)

# "pinned" is "certified", as it was called before policies could be pinned.
Role = Literal["stable", "canary", "previous", "certified", "pinned", "loading", "draining"]


class Loaded(Struct, frozen=True):
    """A version that model servers are to have loaded."""

    version: int
    role: Role
    parameters: str  # sha256
    since_ms: int  # in this role


class Pending(Struct, frozen=True):
    """A publish that has begun: enough to go on with it after a crash. `draft` is the verdict if all goes well."""

    candidate: str
    version: int
    parameters: str
    draft: Verdict


class Turn(Struct, frozen=True):
    """What live pages have decided about a pointer: enough to do it, and to say so, after a crash."""

    draft: Verdict  # promoted, sent_back, or kept: tried no longer
    left: Served
    to: Served


class PolicyState(Struct, frozen=True, omit_defaults=True):
    model_name: str
    next_version: int = 1  # never reused
    certified: Served | None = None
    pointer: Pointer = Pointer()  # as last seen in the store, to fill it again
    loaded: tuple[Loaded, ...] = ()  # by version
    pending: Pending | None = None
    epoch: Epoch | None = None  # of the second tier; None: no evidence was gathered yet, or it rests after an end
    spent: int = 0  # without an epoch, the number of the last: what it had of alpha is not given out again
    turn: Turn | None = None  # decided, and not yet both done and on record

    def versions(self) -> tuple[int, ...]:
        return tuple(entry.version for entry in self.loaded)


class DesiredState(Struct, frozen=True):
    fence: int  # the lease token of who wrote it
    policies: dict[str, PolicyState]
    schema_version: Literal[1] = 1

    def with_policy(self, name: str, policy: PolicyState) -> DesiredState:
        return replace(self, policies={**self.policies, name: policy})


# Transitions (pure) ----------------------------------------------------------------------------------------------


def reserve(policy: PolicyState, pending: Pending) -> PolicyState:
    return replace(policy, pending=pending, next_version=pending.version + 1)


def request_load(policy: PolicyState, now_ms: int) -> PolicyState:
    """Add the pending version to what is to be loaded. Its folder must be in place."""
    assert policy.pending is not None
    entry = Loaded(policy.pending.version, "loading", policy.pending.parameters, now_ms)
    return _with_roles(replace(policy, loaded=(*policy.loaded, entry)), now_ms)


def withdraw(policy: PolicyState) -> PolicyState:
    """Give up the pending version: the servers are to unload it."""
    assert policy.pending is not None
    version = policy.pending.version
    return replace(policy, pending=None, loaded=tuple(e for e in policy.loaded if e.version != version))


def settle(policy: PolicyState) -> PolicyState:
    """The pending version is published and its verdict recorded."""
    return replace(policy, pending=None)


def follow(policy: PolicyState, pointer: Pointer, now_ms: int) -> PolicyState:
    """Take over the pointer and give every loaded version the role that follows from it.

    The first version ever published, the constant baseline, is certified by construction.
    """
    certified = policy.certified or pointer.stable
    return _with_roles(replace(policy, pointer=pointer, certified=certified), now_ms)


def without_epoch(policy: PolicyState) -> PolicyState:
    return replace(policy, epoch=None, spent=policy.epoch.number if policy.epoch else policy.spent)


def drop(policy: PolicyState, versions: frozenset[int]) -> PolicyState:
    return replace(policy, loaded=tuple(e for e in policy.loaded if e.version not in versions))


def drained(policy: PolicyState, in_use: frozenset[int], now_ms: int, least_ms: int, most_ms: int) -> frozenset[int]:
    """Draining versions that no agent uses any more, or that have drained for long enough."""
    return frozenset(
        entry.version
        for entry in policy.loaded
        if entry.role == "draining" and now_ms - entry.since_ms >= (most_ms if entry.version in in_use else least_ms)
    )


def _with_roles(policy: PolicyState, now_ms: int) -> PolicyState:
    """A role that began in the future begins now: the clock was put back, and trials and drains do not wait for it."""
    roles: dict[Served, Role] = {}
    if policy.certified:
        roles[policy.certified] = "certified"
    if policy.pointer.previous:
        roles[policy.pointer.previous] = "previous"
    if policy.pointer.canary:
        roles[policy.pointer.canary] = "canary"
    if policy.pointer.stable:
        roles[policy.pointer.stable] = "stable"
    named = {served.version: (served.parameters, role) for served, role in roles.items()}
    before = {entry.version: entry for entry in policy.loaded}
    loaded = []
    for version in sorted(before.keys() | named.keys()):
        old = before.get(version)
        parameters, role = named.get(version, (old.parameters if old else "", _unnamed_role(policy, version)))
        if old and old.role == role:
            loaded.append(replace(old, since_ms=min(old.since_ms, now_ms)))
        else:
            loaded.append(Loaded(version, role, parameters, now_ms))
    return replace(policy, loaded=tuple(loaded))


def _unnamed_role(policy: PolicyState, version: int) -> Role:
    return "loading" if policy.pending and policy.pending.version == version else "draining"


# Files -----------------------------------------------------------------------------------------------------------


def read_desired(models: Path) -> DesiredState | None:
    """None when it is not there, or is no desired state: then it is built again from the version folders."""
    try:
        return msgspec.json.decode((models / DESIRED).read_bytes(), type=DesiredState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        _LOG.warning("%s: not a desired state (%s); building it again", models / DESIRED, error)
        return None


def write_desired(models: Path, state: DesiredState, served_models: str) -> None:
    """Write the desired state and the models.config that follows from it.

    `served_models` is where the model servers see the model volume. Raises: LeaseLost when a newer holder wrote.
    """
    with _locked(models):
        there = read_desired(models)
        if there is not None and there.fence > state.fence:
            message = f"{models / DESIRED}: written with token {there.fence}, newer than ours, {state.fence}"
            raise LeaseLost(message)
        if there != state:
            durable.write(models / DESIRED, msgspec.json.format(msgspec.json.encode(state), indent=1))
        text = models_config(state, served_models).encode()
        path = models / MODELS_CONFIG
        if not path.exists() or path.read_bytes() != text:
            durable.write(path, text)


def models_config(state: DesiredState, served_models: str) -> str:
    """Text for the model servers; a policy without a version in place is left out (servers would wait for it)."""
    return render(
        [
            ServedModel(policy.model_name, f"{served_models.rstrip('/')}/{policy.model_name}", policy.versions())
            for _, policy in sorted(state.policies.items())
            if policy.loaded
        ]
    )


@contextmanager
def _locked(models: Path) -> Iterator[None]:
    """Between reading the fence and writing, nobody else writes. Released by the system if we die."""
    with (models / f".{DESIRED}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
