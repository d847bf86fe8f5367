"""Taking over as the one writer, and filling again what was lost: the desired state from the version folders, the
key-value store from the desired state and the folders."""

from __future__ import annotations

import hashlib
import logging

import msgspec
from msgspec.structs import replace

from model_export import volume
from model_export.candidate import PARAMETERS, Candidate, CandidateError
from model_export.desired import DesiredState, PolicyState, follow, read_desired, without_epoch, write_desired
from model_export.publisher import version_record
from model_export.sending_back import tell_candidates
from model_export.site import Site, VolumeError, was_lost
from model_export.verdicts import VerdictLog
from pipeline.stores.published import (
    Pointer,
    Served,
    candidates_key,
    change_pointer,
    decode_record,
    parameters_key,
    pointer_key,
    read_pointers,
    version_key,
)

_LOG = logging.getLogger(__name__)


def highest_fence(site: Site) -> int:
    """The highest token that was ever written where we are going to write."""
    desired = read_desired(site.models)
    pointers = read_pointers(site.store, site.prefix, site.config.learned_policies())
    return max([desired.fence if desired else 0, *(pointer.fence for pointer in pointers.values())])


def take_over(site: Site, verdicts: VerdictLog) -> DesiredState:
    """The desired state under our fencing token; every pointer carries it too, so older holders can change neither."""
    found = read_desired(site.models)
    state = _rebuilt(site, verdicts) if found is None else _of_this_config(site, found)
    state = replace(state, fence=site.lease.token)
    site.lease.check()
    write_desired(site.models, state, site.served_models)
    for policy in state.policies:
        change_pointer(site.store, site.prefix, policy, lambda pointer: _claimed(site, pointer))
    return keep_in_step(site, verdicts, _of_this_volume(site, verdicts, state), thorough=True)


def keep_in_step(site: Site, verdicts: VerdictLog, state: DesiredState, *, thorough: bool = False) -> DesiredState:
    """Follow what operators did to the pointers; fill the store again where it was emptied, or has an old copy.

    `thorough` also looks whether the parameters are what their name says (big values, so not every time).
    """
    lost = []
    for name, policy in state.policies.items():
        pointer = _pointer(site, name)
        if was_lost(pointer, policy.pointer):
            site.lease.confirm()  # all or nothing is filled again: half of it would no longer look lost
            lost.append(name)
            pointer = _restore_pointer(site, name, policy.pointer)
        state = site.write(state, name, follow(state.policies[name], pointer or Pointer(), site.clock_ms()))
        _restore_records(site, name, state.policies[name], thorough=thorough or bool(lost))
        if thorough or lost:
            tell_candidates(site, name, state.policies[name])
    if lost:
        _LOG.warning("the key-value store had lost the pointers of %s; filled again", ", ".join(lost))
        site.metrics.count("store_refilled")
        verdicts.refill(site.lease)
    return state


def _of_this_config(site: Site, state: DesiredState) -> DesiredState:
    learned = site.config.learned_policies()
    for name, policy in state.policies.items():
        if name in learned and policy.model_name != site.config.model_name(name):
            expected = site.config.model_name(name)
            message = f"{site.models}: holds {policy.model_name!r}, expected {expected!r}: one model volume per config"
            raise VolumeError(message)
    gone = sorted(state.policies.keys() - set(learned))
    if gone:
        _LOG.warning("policies %s are no longer in the config; their models are unloaded", ", ".join(gone))
    policies = {name: state.policies.get(name) or PolicyState(site.config.model_name(name)) for name in learned}
    return replace(state, policies=policies)


def _of_this_volume(site: Site, verdicts: VerdictLog, state: DesiredState) -> DesiredState:
    """Without pointers to what the volume does not have: it is new, or a copy of before. No server could load that, and
    no candidate could be compared with it. What operators have switched stays; numbers are not used again."""
    pointers = read_pointers(site.store, site.prefix, tuple(state.policies))
    for name, policy in state.policies.items():
        now, seen = pointers[name], policy.pointer
        pointer = seen if was_lost(now, seen) else now
        named = [served for served in (pointer.stable, pointer.previous, pointer.canary) if served]
        used = [*_told(site, name), *(served.version for served in named)]
        policy = replace(policy, next_version=max(policy.next_version, 1 + max(used, default=0)))
        if not all(_is_there(site, policy, served) for served in named):
            policy = _without_what_is_gone(site, verdicts, name, policy, pointer)
        state = site.write(state, name, policy)
    return state


def _without_what_is_gone(
    site: Site, verdicts: VerdictLog, name: str, policy: PolicyState, pointer: Pointer
) -> PolicyState:
    known = _readable(site, policy.model_name)
    policy = replace(policy, loaded=tuple(entry for entry in policy.loaded if entry.version in known))
    instead, stable = pointer.stable, pointer.stable
    if stable is not None and not _is_there(site, policy, stable):
        instead = _last_served(verdicts, name, known)
        _LOG.error("%s: version %d is not on this volume; instead: %s", name, stable.version, instead)
        certified = policy.certified if policy.certified and _is_there(site, policy, policy.certified) else instead
        policy = replace(policy, certified=certified, pending=None, turn=None)
        policy = policy if certified else without_epoch(policy)  # which has no version to end in
    return follow(policy, _repointed(site, name, policy, instead), site.clock_ms())


def _told(site: Site, name: str) -> list[int]:
    """Versions that were kept when operators were last told of them: also those that the pointer names no more."""
    value = site.store.get(candidates_key(site.prefix, name))
    try:
        return [] if value is None else list(msgspec.json.decode(value, type=dict[int, str]))
    except msgspec.DecodeError:
        return []  # it is written anew


def _is_there(site: Site, policy: PolicyState, served: Served) -> bool:
    return volume.folder_of(site.models, policy.model_name, served.version).exists()


def _repointed(site: Site, name: str, policy: PolicyState, to: Served | None) -> Pointer:
    def there(served: Served | None) -> Served | None:
        return served if served and _is_there(site, policy, served) else None

    def repointed(now: Pointer) -> Pointer:
        kept = _restored(site, _claimed(site, now), policy.pointer)
        if there(kept.stable) is None:
            return replace(kept, stable=to, previous=None, canary=None, share=0.0, pinned=False)
        canary = there(kept.canary)
        return replace(kept, previous=there(kept.previous), canary=canary, share=kept.share if canary else 0.0)

    return change_pointer(site.store, site.prefix, name, repointed)[1]


def _last_served(verdicts: VerdictLog, name: str, known: dict[int, Candidate]) -> Served | None:
    """Of the readable versions the last whose acceptance is on record; else the oldest, for nothing says that a later
    one was ever served and probed."""
    if not known:
        return None
    version = verdicts.last_accepted(name, known) or min(known)
    return Served(version, known[version].parameters)


def _rebuilt(site: Site, verdicts: VerdictLog) -> DesiredState:
    learned = site.config.learned_policies()
    pointers = read_pointers(site.store, site.prefix, learned)
    policies = {name: _rebuilt_policy(site, verdicts, name, pointers[name]) for name in learned}
    return DesiredState(site.lease.token, policies)


def _rebuilt_policy(site: Site, verdicts: VerdictLog, name: str, pointer: Pointer) -> PolicyState:
    """The pointer decides; without one what was served last."""
    model = site.config.model_name(name)
    known = _readable(site, model)
    policy = PolicyState(model, next_version=volume.first_free_version(site.models, model, 1))
    if not known:
        return policy
    if pointer.stable is None:
        pointer = replace(pointer, stable=_last_served(verdicts, name, known))
    first = min(known)
    baseline = Served(first, known[first].parameters) if known[first].transitions == 0 else pointer.stable
    _LOG.warning("%s: desired state rebuilt from the version folders; stable is %s", model, pointer.stable)
    return follow(replace(policy, certified=baseline), pointer, site.clock_ms())


def _readable(site: Site, model: str) -> dict[int, Candidate]:
    known = {}
    for version in volume.versions_on(site.models, model):
        try:
            known[version] = volume.read_version(site.models, model, version)
        except CandidateError as error:
            _LOG.warning("%s", error)
    return known


def _claimed(site: Site, pointer: Pointer) -> Pointer:
    if pointer.fence > site.lease.token:
        site.lease.lost()
    return replace(pointer, fence=site.lease.token)


def _pointer(site: Site, policy: str) -> Pointer | None:
    key = pointer_key(site.prefix, policy)
    value = site.store.get(key)
    return None if value is None else decode_record(key, value, Pointer)


def _restore_pointer(site: Site, policy: str, last_seen: Pointer) -> Pointer:
    site.lease.check()
    return change_pointer(site.store, site.prefix, policy, lambda now: _restored(site, now, last_seen))[1]


def _restored(site: Site, now: Pointer, last_seen: Pointer) -> Pointer:
    """What operators have switched since then stays switched."""
    if not was_lost(now, last_seen):
        return now
    off, frozen = now.off or last_seen.off, now.frozen or last_seen.frozen
    return replace(last_seen, off=off, frozen=frozen, fence=site.lease.token)


def _restore_records(site: Site, name: str, policy: PolicyState, *, thorough: bool) -> None:
    """The record and the parameters of every version in use, from its folder, where the store lacks them."""
    entries = [entry for entry in policy.loaded if entry.role != "loading"]
    records = site.store.get_many([version_key(site.prefix, name, entry.version) for entry in entries])
    for entry, value in zip(entries, records, strict=True):
        if value is None or (thorough and not _parameters_are_there(site, entry.parameters)):
            try:
                _restore_version(site, name, policy.model_name, entry.version)
            except (CandidateError, OSError) as error:
                if thorough:  # now and then: it stays so until somebody brings one of them back
                    _LOG.error("%s version %d: lost to the store, and so is its folder: %s", name, entry.version, error)
            else:
                site.metrics.count("records_restored", policy=name)


def _parameters_are_there(site: Site, sha256: str) -> bool:
    value = site.store.get(parameters_key(site.prefix, sha256))
    return value is not None and hashlib.sha256(value).hexdigest() == sha256


def _restore_version(site: Site, name: str, model: str, version: int) -> None:
    candidate = volume.read_version(site.models, model, version)
    payload = (volume.folder_of(site.models, model, version) / PARAMETERS).read_bytes()
    site.lease.check()
    site.lease.put(parameters_key(site.prefix, candidate.parameters), payload)
    record = msgspec.json.encode(version_record(candidate, version))
    site.lease.put(version_key(site.prefix, name, version), record)
