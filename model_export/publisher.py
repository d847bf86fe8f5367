"""Two-phase publish of one candidate. Agents see a version only when all it needs is in place and was probed.

  parameters   to the store under their content hash, read back
  reserved     version number and verdict draft in the desired state: from here on a crash is picked up
  placed       the model's folder, by rename
  requested    in the desired state and models.config
  available    on every server
  probed       on every server
  flipped      the pointer, by compare-and-set
  recorded     the verdict
  settled      the desired state
Every step can be run again after it was done, so `publish` is its own recovery.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec.structs import replace

from model_export import volume
from model_export.candidate import MODEL, Candidate, CandidateError, read_candidate, read_parameters
from model_export.checks import CANARY, Trace, Verdict, stages
from model_export.desired import DesiredState, Pending, PolicyState, follow, request_load, reserve, settle, withdraw
from model_export.forgetting import forget_version
from model_export.readiness import Kept, NotPublished, Refused, serve_and_probe
from model_export.sending_back import tell_candidates
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline.stores.published import (
    Pointer,
    Served,
    VersionRecord,
    change_pointer,
    must_go_back,
    parameters_key,
    read_pointers,
    version_key,
)
from pipeline.stores.store import StoreError

_LOG = logging.getLogger(__name__)


def publish(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, source: Path, draft: Verdict
) -> tuple[DesiredState, Verdict]:
    """Publish the candidate in `source`; the new desired state and the final verdict, which is recorded.

    `draft` is the verdict if all goes well. Raises: LeaseLost, StoreError, Stopping, OSError: then a part of the
    steps is done, and `resume` or another `publish` of the same candidate does the others.
    """
    checked_ms = site.clock_ms()
    try:
        candidate = read_candidate(source)
        put_parameters(site, source / MODEL, candidate)
    except CandidateError as error:
        return state, record(site, verdicts, replace(draft, outcome="refused", reason="unusable", detail=str(error)))
    site.on_step(policy, "parameters")
    draft = replace(draft, trace=Trace(candidate.created_ms, checked_ms))
    state = site.write(state, policy, _reserved(site, state.policies[policy], candidate, draft))
    site.on_step(policy, "reserved")
    return resume(site, verdicts, state, policy, source)


def resume(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, source: Path
) -> tuple[DesiredState, Verdict]:
    """Finish the pending publish of a policy."""
    pending = _pending(state, policy)
    judged = verdicts.verdict_on(policy, pending.candidate)
    if judged is not None and judged.outcome != "accepted":  # a crash between the verdict and what follows from it
        verdict = replace(pending.draft, outcome=judged.outcome, reason=judged.reason, detail=judged.detail)
        return _out_of_the_lists(site, state, policy, verdict), verdict
    draft, pointer = pending.draft, _flipped_pointer(site, policy, pending)
    try:
        if pointer is None:
            candidate = _placed(site, policy, state.policies[policy].model_name, pending, source)
            _keep_parameters(site, state.policies[policy].model_name, pending, candidate)
            state = _requested(site, state, policy)
            asked_ms = site.clock_ms()
            checks = serve_and_probe(site, state.policies[policy].model_name, pending, candidate, policy)
            trace = _traced(draft.trace, asked_ms, site.clock_ms())
            draft = replace(draft, checks=(*draft.checks, *checks), trace=trace)
            pointer = _flip(site, policy, state.policies[policy].pointer, pending, candidate)
            _observe(site, policy, candidate, trace, tried=pointer.canary is not None)
    except NotPublished as why:
        return _withdrawn(site, verdicts, state, policy, why)
    if pointer.canary is not None and pointer.canary.version == pending.version:
        draft = replace(draft, reason=CANARY, detail=f"tried on {pointer.share:.0%} of its buckets first")
    verdict = record(site, verdicts, draft)
    site.on_step(policy, "recorded")
    state = site.write(state, policy, settle(follow(state.policies[policy], pointer, site.clock_ms())))
    site.on_step(policy, "settled")
    tell_candidates(site, policy, state.policies[policy])
    return state, verdict


def record(site: Site, verdicts: VerdictLog, verdict: Verdict) -> Verdict:
    """Record a verdict, stamped with the present time."""
    stamped = replace(verdict, time_ms=site.clock_ms())
    site.lease.check()
    verdicts.record(stamped, site.lease)
    _LOG.info(
        "%s candidate %s: %s%s",
        stamped.policy,
        stamped.candidate,
        stamped.outcome,
        f" as version {stamped.version}" if stamped.outcome == "accepted" else f": {stamped.detail}",
    )
    return stamped


def _traced(trace: Trace | None, asked_ms: int, loaded_ms: int) -> Trace | None:
    """A draft of before there were traces has none."""
    return None if trace is None else replace(trace, asked_ms=asked_ms, loaded_ms=loaded_ms)


def _observe(site: Site, policy: str, candidate: Candidate, trace: Trace | None, *, tried: bool) -> None:
    """What is tried on a share first is served when it is promoted."""
    now_ms = site.clock_ms()
    if not tried:
        site.metrics.observe("candidate_to_served_seconds", (now_ms - candidate.created_ms) / 1000, policy=policy)
    for stage, duration_ms in stages(trace, now_ms).items():
        site.metrics.observe("stage_seconds", duration_ms / 1000, policy=policy, stage=stage)


# Steps -----------------------------------------------------------------------------------------------------------


def put_parameters(site: Site, model: Path, candidate: Candidate) -> None:
    """The snapshot to the store, read back and compared. Raises: CandidateError, StoreError."""
    payload = read_parameters(model, candidate)
    key = parameters_key(site.prefix, candidate.parameters)
    site.lease.check()
    site.lease.put(key, payload)
    if site.store.get(key) != payload:
        message = f"key {key!r}: read back something else than was written"
        raise StoreError(message)


def _reserved(site: Site, policy: PolicyState, candidate: Candidate, draft: Verdict) -> PolicyState:
    if policy.pending is not None and policy.pending.candidate == candidate.id:
        return policy
    version = volume.first_free_version(site.models, policy.model_name, policy.next_version)
    return reserve(policy, Pending(candidate.id, version, candidate.parameters, replace(draft, version=version)))


def _placed(site: Site, policy: str, model: str, pending: Pending, source: Path) -> Candidate:
    site.lease.check()
    try:
        if not volume.folder_of(site.models, model, pending.version).exists():
            volume.place(site.models, model, pending.version, source, read_candidate(source))
        candidate = volume.read_version(site.models, model, pending.version)
    except CandidateError as error:
        raise Refused(str(error), "unusable") from error
    site.on_step(policy, "placed")
    return candidate


def _keep_parameters(site: Site, model: str, pending: Pending, candidate: Candidate) -> None:
    """Put them again, from the version's folder, where the store was emptied since: nobody else would, for a version
    that is not served yet."""
    folder = volume.folder_of(site.models, model, pending.version)
    try:
        payload = read_parameters(folder, candidate)
        if site.store.get(parameters_key(site.prefix, candidate.parameters)) != payload:
            put_parameters(site, folder, candidate)
    except (CandidateError, FileNotFoundError) as error:
        raise Refused(str(error), "unusable") from error


def _requested(site: Site, state: DesiredState, policy: str) -> DesiredState:
    entry = state.policies[policy]
    if _pending(state, policy).version in entry.versions():
        return state
    state = site.write(state, policy, request_load(entry, site.clock_ms()))
    site.on_step(policy, "requested")
    return state


def _flipped_pointer(site: Site, policy: str, pending: Pending) -> Pointer | None:
    """The pointer, if it was flipped before a crash. Operators may have rolled it back since: that stands."""
    served = Served(pending.version, pending.parameters)
    pointer = read_pointers(site.store, site.prefix, (policy,))[policy]
    return pointer if served in (pointer.stable, pointer.previous, pointer.canary) else None


def _flip(site: Site, policy: str, last_seen: Pointer, pending: Pending, candidate: Candidate) -> Pointer:
    """The version's record, then the pointer; what operators have set on it stays. Raises: Kept, LeaseLost."""
    served = Served(pending.version, pending.parameters)
    site.lease.check()
    record_key = version_key(site.prefix, policy, pending.version)
    site.lease.put(record_key, msgspec.json.encode(version_record(candidate, pending.version)))

    def point(now: Pointer) -> Pointer:
        site.own(now, last_seen)
        if now.frozen and now.stable is not None:
            held = "pinned" if now.pinned else "frozen"
            message = f"the policy was {held} while the version was loading"
            raise Kept(message, held)
        if must_go_back(now, candidate.gone_back) and now.stable is not None:
            message = "the policy was rolled back, and released, while the version was loading"
            raise Kept(message, "before_rollback")
        rules = site.config.publish.canary
        if rules is not None and now.stable is not None:
            return replace(now, canary=served, share=rules.share, fence=site.lease.token)
        return replace(now, stable=served, previous=now.stable, fence=site.lease.token)

    pointer = change_pointer(site.store, site.prefix, policy, point)[1]
    site.on_step(policy, "flipped")
    return pointer


def version_record(candidate: Candidate, version: int) -> VersionRecord:
    return VersionRecord(
        candidate.policy,
        version,
        candidate.model_name,
        candidate.parameters,
        candidate.config_sha,
        candidate.id,
        candidate.created_ms,
    )


def _withdrawn(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, why: NotPublished
) -> tuple[DesiredState, Verdict]:
    """The verdict first, so that a crash after it does not try the candidate again; then out of every list."""
    pending = _pending(state, policy)
    checks = (*pending.draft.checks, why.check) if why.check else pending.draft.checks
    draft = replace(pending.draft, outcome=why.outcome, reason=why.reason, detail=str(why), checks=checks)
    verdict = record(site, verdicts, draft)
    site.on_step(policy, "recorded")
    return _out_of_the_lists(site, state, policy, verdict), verdict


def _out_of_the_lists(site: Site, state: DesiredState, policy: str, verdict: Verdict) -> DesiredState:
    """The servers are told first; then the folder goes where none of them looks, and what the store has of it."""
    pending, model = _pending(state, policy), state.policies[policy].model_name
    state = site.write(state, policy, withdraw(state.policies[policy]))
    site.on_step(policy, "withdrawn")
    away = volume.set_aside if verdict.outcome == "refused" else volume.remove
    away(site.models, model, pending.version)
    forget_version(site, state, policy, pending.version, pending.parameters)
    return state


def _pending(state: DesiredState, policy: str) -> Pending:
    pending = state.policies[policy].pending
    assert pending is not None
    return pending
