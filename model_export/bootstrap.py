"""Version 1 of every learned policy: the constant baseline, in place before any model server starts (TF-Serving opens
its port only after a first model has loaded)."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model_export.candidate import Candidate, CandidateError, list_candidates, read_candidate
from model_export.checks import Verdict
from model_export.desired import DesiredState
from model_export.lease import Lease, LeaseLost
from model_export.publisher import publish, resume
from model_export.recovery import highest_fence, take_over
from model_export.site import Site, VolumeError
from model_export.verdicts import VerdictLog
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.stores.store import KeyValueStore

_TOLERANCE = 1e-5
_LOG = logging.getLogger(__name__)


def bootstrap(
    config: FeatureConfig,
    staging: Path,
    models: Path,
    store: KeyValueStore,
    *,
    clock_ms: Callable[[], int],
    served_models: str | None = None,
    on_step: Callable[[str, str], None] | None = None,
) -> DesiredState:
    """Publish version 1 of every learned policy that has none, with models.config and pointers. Can be repeated.

    Takes the bootstrap candidates (0 transitions) from staging. Raises: CandidateError where one is missing or is
    not the baseline, LeaseLost while a controller is at work, StoreError.
    """
    try:
        state = _bootstrap(config, staging, models, store, clock_ms, served_models, on_step or _log_step)
    except OSError as error:
        message = f"model volume {models} or staging {staging}: {error}"
        raise VolumeError(message) from error
    lacking = [name for name, policy in state.policies.items() if policy.pointer.stable is None]
    if lacking:
        message = f"{staging}: expected a bootstrap candidate (0 transitions) of {', '.join(lacking)}; found none"
        raise CandidateError(message)
    return state


def _bootstrap(
    config: FeatureConfig,
    staging: Path,
    models: Path,
    store: KeyValueStore,
    clock_ms: Callable[[], int],
    served_models: str | None,
    on_step: Callable[[str, str], None],
) -> DesiredState:
    models.mkdir(parents=True, exist_ok=True)
    lease = Lease(store, config.kv_prefix, f"bootstrap-{uuid.uuid4().hex}", clock_ms)
    site = Site(
        config=config,
        store=store,
        servers=(),
        models=models,
        served_models=served_models or str(models.absolute()),
        encoder=Encoder(config),
        lease=lease,
        clock_ms=clock_ms,
        pause=lambda: None,
        on_step=on_step,
    )
    if not lease.take(above=highest_fence(site)):
        message = f"lease {lease.name!r}: held by a version controller, which is at work"
        raise LeaseLost(message)
    try:
        verdicts = VerdictLog(models, store, config.kv_prefix)
        return bootstrap_missing(site, verdicts, take_over(site, verdicts), staging)
    finally:
        lease.release()


def _log_step(policy: str, step: str) -> None:
    _LOG.debug("%s: %s", policy, step)


def bootstrap_missing(site: Site, verdicts: VerdictLog, state: DesiredState, staging: Path) -> DesiredState:
    """Publish the baseline of every policy without a version for which staging has it. No server is waited for."""
    without_servers = replace(site, servers=())
    for name, policy in state.policies.items():
        if policy.pending is not None and policy.pending.draft.tier == "bootstrap":
            state, _ = resume(without_servers, verdicts, state, name, staging / name / policy.pending.candidate)
            continue
        if policy.pointer.stable is not None:
            continue
        source = _bootstrap_candidate(site, staging, name)
        if source is not None:
            draft = Verdict(source.name, name, "bootstrap", "accepted", "", "", "no_baseline_yet")
            state, _ = publish(without_servers, verdicts, state, name, source, draft)
    return state


def _bootstrap_candidate(site: Site, staging: Path, policy: str) -> Path | None:
    for path in list_candidates(staging, policy)[:1]:
        candidate = read_candidate(path)
        if candidate.transitions == 0:
            _check(site, path, candidate)
            return path
    return None


def _check(site: Site, path: Path, candidate: Candidate) -> None:
    expected = (site.config.model_name(candidate.policy), site.encoder.config_sha)
    if (candidate.model_name, candidate.config_sha) != expected:
        found = f"{candidate.model_name} of config {candidate.config_sha[:12]}"
        message = f"{path}: expected a model {expected[0]} of config {expected[1][:12]}, found {found}"
        raise CandidateError(message)
    for probe in candidate.probes:
        if len(set(probe.q)) > 1:
            message = f"{path}: expected Q alike for all candidates, found {min(probe.q)} to {max(probe.q)}"
            raise CandidateError(message)
        for action, dimension in zip(probe.action, site.config.action, strict=True):
            if action is None or abs(action - dimension.baseline) > _TOLERANCE * max(1.0, abs(dimension.baseline)):
                message = f"{path}: expected the constant baseline {dimension.baseline}, found action {action}"
                raise CandidateError(message)
