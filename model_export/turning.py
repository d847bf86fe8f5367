"""What live pages have decided about a version, done and put on record: the decision is durable first, so that a crash
loses neither.

  decided   the verdict's draft, in the desired state
  turned    the pointer, by compare-and-set: agents follow
  recorded  the verdict
  followed  the desired state
Every step can be run again after it was done, so `finish` is its own recovery.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from model_export import volume
from model_export.candidate import CandidateError
from model_export.checks import Verdict
from model_export.desired import DesiredState, PolicyState, Turn, follow
from model_export.publisher import record
from model_export.sending_back import send_back, tell_candidates
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline.stores.published import Pointer, Served, change_pointer

_Change = Callable[[Pointer], Pointer]


def tried_since_ms(policy: PolicyState) -> int | None:
    return next((entry.since_ms for entry in policy.loaded if entry.role == "canary"), None)


def turn(
    site: Site, verdicts: VerdictLog, state: DesiredState, name: str, way: Turn
) -> tuple[DesiredState, Verdict | None]:
    """None where an operator was quicker, or has frozen the policy. Raises: LeaseLost, StoreError, OSError."""
    state = site.write(state, name, replace(state.policies[name], turn=way))
    site.on_step(name, "decided")
    return finish(site, verdicts, state, name)


def finish_all(site: Site, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, tuple[Verdict, ...]]:
    """Those that a crash has broken off."""
    drawn: list[Verdict] = []
    for name, policy in state.policies.items():
        if policy.turn is not None:
            state, verdict = finish(site, verdicts, state, name)
            drawn += [verdict] if verdict else []
    return state, tuple(drawn)


def finish(site: Site, verdicts: VerdictLog, state: DesiredState, name: str) -> tuple[DesiredState, Verdict | None]:
    policy, verdict = state.policies[name], None
    way = policy.turn
    assert way is not None
    pointer = _turned(site, name, policy.pointer, way)
    site.on_step(name, "turned")
    if _so(pointer, way):
        verdict = record(site, verdicts, way.draft)
        site.on_step(name, "recorded")
        if way.draft.outcome == "promoted":
            _observe(site, name, policy.model_name, way.to, tried_since_ms(policy))
    state = site.write(state, name, follow(replace(policy, turn=None), pointer, site.clock_ms()))
    site.on_step(name, "followed")
    tell_candidates(site, name, state.policies[name])
    return state, verdict


def _turned(site: Site, name: str, last_seen: Pointer, way: Turn) -> Pointer:
    if way.draft.outcome == "promoted":
        return _change(site, name, last_seen, lambda now: _promoted(now, way.to))
    if way.draft.outcome == "kept":
        return _change(site, name, last_seen, lambda now: _tried_no_longer(now, way.left))
    return send_back(site, name, last_seen, way.to, left=way.left)


def _so(pointer: Pointer, way: Turn) -> bool:
    """Whether the pointer was turned. Operators may have rolled it back since: that stands."""
    if way.draft.outcome == "promoted":
        return pointer.canary != way.to and way.to in (pointer.stable, pointer.previous)
    return way.left not in (pointer.stable, pointer.canary)


def _promoted(now: Pointer, canary: Served) -> Pointer:
    if now.canary != canary or now.frozen:
        return now
    return replace(now, stable=canary, previous=now.stable, canary=None, share=0.0)


def _tried_no_longer(now: Pointer, canary: Served) -> Pointer:
    return replace(now, canary=None, share=0.0) if now.canary == canary else now


def _change(site: Site, name: str, last_seen: Pointer, change: _Change) -> Pointer:
    def fenced(now: Pointer) -> Pointer:
        site.own(now, last_seen)
        after = change(now)
        return now if after == now else replace(after, fence=site.lease.token)

    site.lease.check()
    return change_pointer(site.store, site.prefix, name, fenced)[1]


def _observe(site: Site, name: str, model: str, canary: Served, since_ms: int | None) -> None:
    now_ms = site.clock_ms()
    if since_ms is not None:
        site.metrics.observe("stage_seconds", (now_ms - since_ms) / 1000, policy=name, stage="canary")
    try:
        created_ms = volume.read_version(site.models, model, canary.version).created_ms
    except CandidateError:  # its folder is gone: that is said elsewhere, and no reason not to serve it
        return
    site.metrics.observe("candidate_to_served_seconds", (now_ms - created_ms) / 1000, policy=name)
