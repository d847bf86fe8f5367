"""From a candidate's folder to the draft of its verdict: gathers what the pure checks need."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from model_export import volume
from model_export.candidate import MODEL, Candidate, CandidateError, read_candidate, read_parameters
from model_export.checks import (
    Actions,
    Check,
    Reference,
    Verdict,
    every_version,
    evidence,
    explain,
    first_failure,
    moved,
)
from model_export.clock import Deadline
from model_export.desired import PolicyState
from model_export.probing import Unreachable, WrongAnswer, answers, patiently
from model_export.ranking_checks import every_ranking, moved_pages
from model_export.site import Site
from pipeline.config.schema import FeatureConfig
from pipeline.features.errors import FeatureError, SnapshotError
from pipeline.features.snapshot import Snapshot
from pipeline.serving.errors import ServingError, Unavailable
from pipeline.stores.published import Pointer, Served, must_go_back, parameters_key
from pipeline.stores.store import StoreError


def judge(site: Site, policy: PolicyState, name: str, source: Path) -> Verdict:
    """The verdict if publishing goes well, or a final one. Raises: StoreError, LeaseLost, Stopping."""
    blank = Verdict(
        candidate=source.name,
        policy=name,
        tier="every_version",
        outcome="refused",
        reason="",
        detail="",
        accepted_before=policy.pointer.stable.version if policy.pointer.stable else None,
        certified=policy.certified.version if policy.certified else None,
    )
    try:
        candidate = read_candidate(source)
        blank = _described(blank, candidate, site)
        if must_go_back(policy.pointer, candidate.gone_back):
            return replace(blank, outcome="kept", reason="before_rollback", detail=given_up(policy.pointer))
        if policy.pointer.frozen and not policy.pointer.pinned:
            return replace(blank, outcome="kept", reason="frozen", detail="publishing is frozen until it is released")
        return _kept_if_pinned(policy.pointer, _concluded(blank, _checks(site, policy, source, candidate)))
    except (CandidateError, SnapshotError) as error:
        return replace(blank, reason="unusable", detail=str(error))
    except FeatureError as error:
        return replace(blank, reason="probe_encoding", detail=str(error))
    except Unreachable as error:
        return replace(blank, outcome="kept", reason="server_unreachable", detail=str(error))
    except (ServingError, WrongAnswer, _ReferenceLost) as error:
        return replace(blank, outcome="kept", reason="no_reference", detail=str(error))


def given_up(pointer: Pointer) -> str:
    assert pointer.back is not None
    return f"made of what was learned before its trainer went back to candidate {pointer.back.candidate}"


def _kept_if_pinned(pointer: Pointer, verdict: Verdict) -> Verdict:
    """What it would have been is in its checks: whoever releases the policy knows what comes then."""
    if not pointer.pinned or verdict.outcome != "accepted":
        return verdict
    assert pointer.stable is not None
    detail = f"passed its checks; version {pointer.stable.version} is pinned until the policy is released"
    return replace(verdict, outcome="kept", reason="pinned", detail=detail)


def _described(blank: Verdict, candidate: Candidate, site: Site) -> Verdict:
    return replace(
        blank,
        evidence=evidence(candidate),
        last_transition=candidate.last_transition,
        updates=candidate.updates,
        moved=_moved(site.config, candidate),
    )


def _moved(config: FeatureConfig, candidate: Candidate) -> float | None:
    ranking = config.ranking
    return moved(config.action, candidate) if ranking is None else moved_pages(ranking.page_size, candidate)


class _ReferenceLost(Exception):
    """What is known about a version in use cannot be read, so that nothing can be compared with it."""


def _concluded(blank: Verdict, checks: tuple[Check, ...]) -> Verdict:
    failed = first_failure(checks)
    if failed is None:
        return replace(blank, outcome="accepted", checks=checks)
    return replace(blank, reason=failed.name, detail=explain(failed), checks=checks)


def _checks(site: Site, policy: PolicyState, source: Path, candidate: Candidate) -> tuple[Check, ...]:
    config = _same_config(site, policy, candidate)
    if not config.passed:
        return (config,)
    snapshot = Snapshot.from_bytes(read_parameters(source / MODEL, candidate), site.config)
    accepted = _reference(site, policy, policy.pointer.stable, candidate)
    same = policy.certified == policy.pointer.stable
    certified = accepted if same else _reference(site, policy, policy.certified, candidate)
    if site.config.ranking is not None:
        return (config, *every_ranking(site.config, candidate, snapshot, accepted))
    return (config, *every_version(site.config, candidate, snapshot, accepted, certified))


def _same_config(site: Site, policy: PolicyState, candidate: Candidate) -> Check:
    expected = (policy.model_name, site.encoder.config_sha)
    found = (candidate.model_name, candidate.config_sha)
    wanted = f"model {expected[0]} of config {expected[1][:12]}"
    return Check("config", 1.0, None, found == expected, 1, wanted, f"model {found[0]} of config {found[1][:12]}")


def _reference(site: Site, policy: PolicyState, served: Served | None, candidate: Candidate) -> Reference | None:
    """None where there is no such version, or one that was made for another feature config."""
    if served is None:
        return None
    snapshot = _snapshot(site, served)
    if snapshot.config_sha != site.encoder.config_sha:
        return None
    try:
        transitions = volume.read_version(site.models, policy.model_name, served.version).transitions
    except CandidateError as error:
        raise _ReferenceLost(str(error)) from error
    actions = _answered(site, policy.model_name, served.version, candidate, snapshot)
    return Reference(served.version, transitions, actions, snapshot)


def _snapshot(site: Site, served: Served) -> Snapshot:
    key = parameters_key(site.prefix, served.parameters)
    payload = site.store.get(key)
    if payload is None:
        message = f"key {key!r}: the parameters of version {served.version} are gone"
        raise StoreError(message)
    try:
        return Snapshot.from_bytes(payload)
    except SnapshotError as error:
        raise _ReferenceLost(str(error)) from error


def _answered(site: Site, model: str, version: int, candidate: Candidate, snapshot: Snapshot) -> Actions:
    """What the first server that answers says; the version is pinned."""
    if not candidate.probes:
        return []

    def attempt() -> Actions:
        *others, last = site.servers
        for server in others:
            try:
                return answers(site, server, model, version, candidate.probes, snapshot)
            except Unavailable:
                continue
        return answers(site, last, model, version, candidate.probes, snapshot)

    deadline = Deadline(site, site.config.publish.load_timeout)
    return patiently(site, f"actions of {model} version {version}", deadline, attempt)
