"""Back to an earlier version: to which ones that is possible, and doing it because the controller says so. What follows
then is up to an operator."""

from __future__ import annotations

import logging

import msgspec
from msgspec.structs import replace

from model_export import volume
from model_export.candidate import CandidateError
from model_export.desired import PolicyState
from model_export.site import Site
from pipeline.stores.published import (
    Pointer,
    Served,
    VersionRecord,
    candidates_key,
    change_pointer,
    decode_record,
    sent_back,
    version_key,
)

_LOG = logging.getLogger(__name__)


def tell_candidates(site: Site, name: str, policy: PolicyState) -> None:
    """The trainer keeps what it was when it made these: a rollback may go to any version whose folder is there."""
    loading = {entry.version for entry in policy.loaded if entry.role == "loading"}
    versions = [v for v in volume.versions_on(site.models, policy.model_name) if v not in loading]
    keys = [version_key(site.prefix, name, version) for version in versions]
    key = candidates_key(site.prefix, name)
    *records, told = site.store.get_many([*keys, key])
    known = zip(versions, keys, records, strict=True)
    found = {v: decode_record(k, value, VersionRecord).candidate for v, k, value in known if value is not None}
    after = msgspec.json.encode(found)
    if told != after:
        site.lease.check()
        site.lease.put(key, after)


def send_back(site: Site, policy: str, last_seen: Pointer, to: Served, left: Served | None = None) -> Pointer:
    """Frozen, and the trainer is to go back with it; unless an operator has pinned a version, or what is `left`, if
    given, serves nobody any more.

    Raises: LeaseLost, StoreError.
    """
    candidate = _candidate(site, policy, to.version)

    def back(now: Pointer) -> Pointer:
        site.own(now, last_seen)
        if now.pinned or (left is not None and left not in (now.stable, now.canary)):
            return now
        after = sent_back(now, to, candidate or "")
        return replace(after, fence=site.lease.token, back=after.back if candidate else now.back)

    site.lease.check()
    return change_pointer(site.store, site.prefix, policy, back)[1]


def _candidate(site: Site, policy: str, version: int) -> str | None:
    try:
        return volume.read_version(site.models, site.config.model_name(policy), version).id
    except CandidateError as error:
        _LOG.warning("%s version %d: its trainer is not told to go back: %s", policy, version, error)
        return None
