"""From a share of a policy's buckets to all of them."""

from __future__ import annotations

from msgspec.structs import replace

from model_export import volume
from model_export.candidate import CandidateError
from model_export.checks import Check, Verdict
from model_export.desired import DesiredState, PolicyState, follow
from model_export.publisher import record
from model_export.sending_back import tell_candidates
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline.stores.published import Pointer, Served, change_pointer


def tried_since_ms(policy: PolicyState) -> int | None:
    return next((entry.since_ms for entry in policy.loaded if entry.role == "canary"), None)


def promote(
    site: Site, verdicts: VerdictLog, state: DesiredState, name: str, detail: str, checks: tuple[Check, ...] = ()
) -> tuple[DesiredState, Verdict | None]:
    """The pointer first: users do not wait for the verdict. None where an operator was quicker, or has frozen it.

    Raises: LeaseLost, StoreError.
    """
    policy = state.policies[name]
    canary = policy.pointer.canary
    assert canary is not None
    since_ms, before = tried_since_ms(policy), policy.pointer.stable
    pointer = _promoted(site, name, canary)
    state = site.write(state, name, follow(policy, pointer, site.clock_ms()))
    if pointer.stable != canary:
        return state, None
    site.on_step(name, "promoted")
    tell_candidates(site, name, state.policies[name])
    _observe(site, name, policy.model_name, canary, since_ms)
    verdict = Verdict(
        candidate=f"canary-{canary.version}",
        policy=name,
        tier="live",
        outcome="promoted",
        reason="",
        detail=detail,
        version=canary.version,
        accepted_before=before.version if before else None,
        certified=policy.certified.version if policy.certified else None,
        checks=checks,
    )
    return state, record(site, verdicts, verdict)


def promote_all(site: Site, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, tuple[Verdict, ...]]:
    """Where the config asks for no canaries any more: what is being tried has passed all that it asks for."""
    drawn: list[Verdict] = []
    for name, policy in state.policies.items():
        if policy.pointer.canary is not None and policy.pending is None:
            state, verdict = promote(site, verdicts, state, name, "publish.canary is no longer in the config")
            drawn += [verdict] if verdict else []
    return state, tuple(drawn)


def _promoted(site: Site, name: str, canary: Served) -> Pointer:
    def promoted(now: Pointer) -> Pointer:
        if now.fence > site.lease.token:
            site.lease.lost()
        if now.canary != canary or now.frozen:
            return now
        return replace(now, stable=canary, previous=now.stable, canary=None, share=0.0, fence=site.lease.token)

    site.lease.check()
    return change_pointer(site.store, site.prefix, name, promoted)[1]


def _observe(site: Site, name: str, model: str, canary: Served, since_ms: int | None) -> None:
    now_ms = site.clock_ms()
    if since_ms is not None:
        site.metrics.observe("stage_seconds", (now_ms - since_ms) / 1000, policy=name, stage="canary")
    try:
        created_ms = volume.read_version(site.models, model, canary.version).created_ms
    except CandidateError:  # its folder is gone: that is said elsewhere, and no reason not to serve it
        return
    site.metrics.observe("candidate_to_served_seconds", (now_ms - created_ms) / 1000, policy=name)
