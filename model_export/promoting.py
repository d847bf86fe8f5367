"""From a share of a policy's buckets to all of them."""

from __future__ import annotations

from model_export.checks import Check, Verdict
from model_export.desired import DesiredState, Turn
from model_export.site import Site
from model_export.turning import turn
from model_export.verdicts import VerdictLog


def promote(
    site: Site, verdicts: VerdictLog, state: DesiredState, name: str, detail: str, checks: tuple[Check, ...] = ()
) -> tuple[DesiredState, Verdict | None]:
    """None where an operator was quicker, or has frozen it. Raises: LeaseLost, StoreError, OSError."""
    policy = state.policies[name]
    stable, canary = policy.pointer.stable, policy.pointer.canary
    if policy.pointer.frozen:
        return state, None
    assert stable is not None
    assert canary is not None
    draft = Verdict(
        candidate=f"canary-{canary.version}",
        policy=name,
        tier="live",
        outcome="promoted",
        reason="",
        detail=detail,
        version=canary.version,
        accepted_before=stable.version,
        certified=policy.certified.version if policy.certified else None,
        checks=checks,
    )
    return turn(site, verdicts, state, name, Turn(draft, left=stable, to=canary))


def promote_all(site: Site, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, tuple[Verdict, ...]]:
    """Where the config asks for no canaries any more: what is being tried has passed all that it asks for."""
    drawn: list[Verdict] = []
    for name, policy in state.policies.items():
        if policy.pointer.canary is not None and policy.pending is None:
            state, verdict = promote(site, verdicts, state, name, "publish.canary is no longer in the config")
            drawn += [verdict] if verdict else []
    return state, tuple(drawn)
