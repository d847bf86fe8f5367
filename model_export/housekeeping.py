"""Cleaning up behind a publish: old versions are unloaded once nobody uses them, then forgotten."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from model_export import volume
from model_export.candidate import BOOTSTRAP, list_candidates
from model_export.desired import DesiredState, drained, drop
from model_export.forgetting import forget_version, parameters_of
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline import durable
from pipeline.stores.published import Heartbeat, forget_agents, read_heartbeats

KEEP = 3  # unloaded versions, refused versions, judged candidates
HEARTBEAT_MS = 30_000  # an agent that was silent for longer uses nothing
LEAST_DRAIN_MS = 5_000  # agents follow a pointer within a second or two
MOST_DRAIN_MS = 120_000  # an agent that still uses a version then falls back to the baseline
_FORGET_AGENT_MS = 3_600_000
_LOG = logging.getLogger(__name__)


def tidy(site: Site, verdicts: VerdictLog, state: DesiredState, staging: Path) -> DesiredState:
    """One round. Does nothing to a policy with a pending publish."""
    state = _unload(site, state)
    for name, policy in state.policies.items():
        if policy.pending is None:
            _forget_versions(site, state, name)
            _forget_candidates(verdicts, staging, name)
    return state


def in_use(heartbeats: tuple[Heartbeat, ...], policy: str, now_ms: int) -> frozenset[int]:
    """Versions that agents with a recent sign of life use."""
    alive = [beat for beat in heartbeats if now_ms - beat.time_ms < HEARTBEAT_MS]
    return frozenset(used[policy] for beat in alive for used in (beat.versions, beat.canaries) if policy in used)


def _unload(site: Site, state: DesiredState) -> DesiredState:
    if not any(entry.role == "draining" for policy in state.policies.values() for entry in policy.loaded):
        return state
    heartbeats, now_ms = read_heartbeats(site.store, site.prefix), site.clock_ms()
    gone = [beat.agent for beat in heartbeats if now_ms - beat.time_ms > _FORGET_AGENT_MS]
    forget_agents(site.store, site.prefix, gone)
    for name, policy in state.policies.items():
        unused = drained(policy, in_use(heartbeats, name, now_ms), now_ms, LEAST_DRAIN_MS, MOST_DRAIN_MS)
        if unused:
            _LOG.info("%s: unloading %s", policy.model_name, ", ".join(map(str, sorted(unused))))
            state = site.write(state, name, drop(policy, unused))
    return state


def _forget_versions(site: Site, state: DesiredState, name: str) -> None:
    policy = state.policies[name]
    unloaded = [v for v in volume.versions_on(site.models, policy.model_name) if v not in policy.versions()]
    volume.remove_leftovers(site.models, policy.model_name, KEEP)
    for version in unloaded[:-KEEP]:
        site.lease.check()
        parameters = parameters_of(site, policy, version)
        volume.remove(site.models, policy.model_name, version)
        forget_version(site, state, name, version, parameters)


def _forget_candidates(verdicts: VerdictLog, staging: Path, policy: str) -> None:
    """Judged candidates but the newest few. The bootstrap stays: it is what a new model volume starts from."""
    judged = [p for p in list_candidates(staging, policy) if verdicts.verdict_on(policy, p.name) is not None]
    for path in [p for p in judged if p.name != BOOTSTRAP][:-KEEP]:
        with suppress(FileNotFoundError):  # the trainer clears away, too
            durable.remove_folder(path)
