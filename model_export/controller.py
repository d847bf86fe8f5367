"""The version controller: watches staging, judges candidates, publishes them or says why not. No TensorFlow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct, field

from model_export.bootstrap import bootstrap_missing
from model_export.candidate import list_candidates
from model_export.certifying import Certifier
from model_export.checks import Verdict
from model_export.clock import ClockWatch
from model_export.desired import DesiredState
from model_export.housekeeping import tidy
from model_export.judging import judge
from model_export.lease import Lease, LeaseLost
from model_export.live import LiveWatch
from model_export.promoting import promote_all
from model_export.publisher import publish, record, resume
from model_export.recovery import highest_fence, keep_in_step, take_over
from model_export.showing import begin, show
from model_export.site import Server, Site, Stopping, VolumeError
from model_export.turning import finish_all
from model_export.verdicts import VerdictLog
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.features.encoder import Encoder, VectorSource
from pipeline.features.stored_vectors import StoredVectors
from pipeline.logs.log import EventLog
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.store import KeyValueStore, StoreError

_VECTORS_KEPT = 10_000
_THOROUGH_EVERY_S = 5.0  # looks at the parameters themselves: megabytes, if there are large vocabularies
_LOG = logging.getLogger(__name__)


class ControllerError(PageturnError):
    """The controller cannot work as it was started."""


class Summary(Struct):
    """What became of the candidates of one run."""

    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    kept: dict[str, int] = field(default_factory=dict)  # by reason
    superseded: int = 0
    evidence: dict[str, int] = field(default_factory=dict)  # by state of the second tier
    concluded: dict[str, int] = field(default_factory=dict)  # by outcome: epochs; versions that users met

    def count(self, verdict: Verdict) -> None:
        if verdict.outcome == "accepted":
            self.accepted += 1
        elif verdict.tier in ("bucket", "live") and verdict.outcome != "kept":
            self.concluded[verdict.outcome] = self.concluded.get(verdict.outcome, 0) + 1
        elif verdict.outcome == "superseded":
            self.superseded += 1
        else:
            reasons = self.refused if verdict.outcome == "refused" else self.kept
            reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
        if verdict.evidence is not None:
            self.evidence[verdict.evidence] = self.evidence.get(verdict.evidence, 0) + 1


def run_controller(
    config: FeatureConfig,
    store: KeyValueStore,
    servers: Iterable[Server],
    staging: Path,
    models: Path,
    *,
    holder: str,
    clock_ms: Callable[[], int],
    stop: threading.Event,
    until_idle: bool = False,
    served_models: str | None = None,
    vectors: VectorSource | None = None,
    poll_s: float = 0.2,
    on_step: Callable[[str, str], None] | None = None,
    metrics: Metrics | None = None,
    log: EventLog | None = None,
    lease_ms: int = 15_000,
) -> Summary:
    """Publish until `stop` is set, or (`until_idle`) until no candidate is left to judge.

    `holder` names this process in the lease: unique. `served_models` is where the model servers see `models`, if
    elsewhere. A lost lease, and a store or a volume out of reach, are waited for; with `until_idle` they are raised.
    `log` is where the transitions are, for a config with `publish.certification`. `lease_ms`: for how long nobody takes
    over from a holder that is silent.

    Raises: ControllerError, VolumeError, StoreError, LeaseLost.
    """
    if not servers:
        message = "expected at least one model server: without one no candidate can be probed"
        raise ControllerError(message)
    if config.publish.certification is not None and log is None:
        message = "publish.certification: expected the event log to gather evidence from, found none; give --log"
        raise ControllerError(message)

    def pause() -> None:
        if stop.wait(poll_s):
            raise Stopping

    lease = Lease(store, config.kv_prefix, holder, clock_ms, lease_ms)
    source = vectors or StoredVectors(store, config.kv_prefix, capacity=_VECTORS_KEPT, monotonic=time.monotonic)
    site = Site(
        config=config,
        store=store,
        servers=servers,
        models=models,
        served_models=served_models or str(models.absolute()),
        encoder=Encoder(config, source),
        lease=lease,
        clock_ms=clock_ms,
        pause=pause,
        on_step=on_step or _log_step,
        metrics=metrics or Metrics(CONTROLLER),
        log=log,
    )
    summary = Summary()
    begin(site.metrics, config.learned_policies())
    try:
        _terms(site, staging, summary, until_idle)
    except Stopping:
        _LOG.info("stopped")
    finally:
        _release(lease)
    return summary


def _terms(site: Site, staging: Path, summary: Summary, until_idle: bool) -> None:
    """One term as holder of the lease after another; a new one starts from what is on the volume and in the store."""
    while True:
        try:
            _term(site, staging, summary, until_idle)
            return
        except (LeaseLost, StoreError, OSError) as error:
            trouble = _named(site, error)
            if until_idle:
                raise trouble from error
            site.metrics.gauge("holds_lease", 0)
            site.metrics.count("terms_ended", cause=_cause(error))
            _LOG.warning("%s; trying again", trouble)
        site.pause()


def _named(site: Site, error: Exception) -> PageturnError:
    if isinstance(error, PageturnError):
        return error
    return VolumeError(f"model volume {site.models} or staging: {error}")


def _cause(error: Exception) -> str:
    if isinstance(error, LeaseLost):
        return "lease"
    return "store" if isinstance(error, StoreError) else "volume"


def _term(site: Site, staging: Path, summary: Summary, until_idle: bool) -> None:
    site.metrics.gauge("holds_lease", 0)
    _await_lease(site, until_idle)
    site.metrics.gauge("holds_lease", 1)
    verdicts = VerdictLog(site.models, site.store, site.prefix)
    state, drawn = finish_all(site, verdicts, take_over(site, verdicts))
    certifier = _certifier(site)
    guard = site.config.publish.guard
    looked_s, clock, live = time.monotonic(), ClockWatch(site), LiveWatch(site, guard) if guard else None
    for verdict in drawn:
        _count(site, summary, verdict)
    while True:
        clock.look()
        thorough = time.monotonic() - looked_s >= _THOROUGH_EVERY_S
        if thorough:
            looked_s = time.monotonic()
        state, drawn = live.look(verdicts, state) if live else promote_all(site, verdicts, state)
        for verdict in drawn:
            _count(site, summary, verdict)
        state, busy = _round(site, verdicts, state, staging, summary, thorough=thorough)
        if certifier is not None:
            looked = certifier.look(verdicts, state)
            state, busy = looked.state, busy or looked.busy
            for verdict in looked.drawn:
                _count(site, summary, verdict)
        if until_idle and not busy:
            return
        site.pause()


def _certifier(site: Site) -> Certifier | None:
    rules = site.config.publish.certification
    return None if rules is None or site.log is None else Certifier(site, site.log, rules)


def _await_lease(site: Site, until_idle: bool) -> None:
    """Stand by until the lease is ours. A run until idle outwaits a crashed holder, but not a living one."""
    site.models.mkdir(parents=True, exist_ok=True)
    deadline_ms = site.clock_ms() + 2 * site.lease.ttl_ms
    while True:
        if site.lease.take(above=highest_fence(site)):
            return
        if until_idle and site.clock_ms() > deadline_ms:
            message = f"lease {site.lease.name!r}: held by another controller, which is at work"
            raise ControllerError(message)
        site.pause()


def _round(
    site: Site, verdicts: VerdictLog, state: DesiredState, staging: Path, summary: Summary, *, thorough: bool
) -> tuple[DesiredState, bool]:
    """One look at everything; and whether a candidate was judged."""
    site.lease.check()
    state = keep_in_step(site, verdicts, state, thorough=thorough)
    state = bootstrap_missing(site, verdicts, state, staging)
    judged = False
    for policy in state.policies:
        for step in (_finish, _supersede, _consider):
            state, verdict_count = step(site, verdicts, state, policy, staging, summary)
            judged = judged or verdict_count > 0
    show(site.metrics, state)
    return tidy(site, verdicts, state, staging), judged


def _count(site: Site, summary: Summary, verdict: Verdict) -> None:
    summary.count(verdict)
    site.metrics.count("verdicts", policy=verdict.policy, outcome=verdict.outcome, reason=verdict.reason)


def _finish(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, staging: Path, summary: Summary
) -> tuple[DesiredState, int]:
    """Go on with a publish that a crash, or a stop, has interrupted."""
    pending = state.policies[policy].pending
    if pending is None:
        return state, 0
    _LOG.info("%s candidate %s: going on as version %d", policy, pending.candidate, pending.version)
    site.metrics.count("resumed", policy=policy)
    state, verdict = resume(site, verdicts, state, policy, staging / policy / pending.candidate)
    _count(site, summary, verdict)
    return state, 1


def _supersede(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, staging: Path, summary: Summary
) -> tuple[DesiredState, int]:
    older = _waiting(verdicts, state, staging, policy)[:-1]
    for path in older:
        detail = "a newer candidate was there"
        verdict = Verdict(path.name, policy, "every_version", "superseded", "superseded", detail)
        _count(site, summary, record(site, verdicts, verdict))
    return state, len(older)


def _consider(
    site: Site, verdicts: VerdictLog, state: DesiredState, policy: str, staging: Path, summary: Summary
) -> tuple[DesiredState, int]:
    newest = _waiting(verdicts, state, staging, policy)[-1:]
    for path in newest:
        verdict = judge(site, state.policies[policy], policy, path)
        if verdict.outcome == "accepted":
            state, verdict = publish(site, verdicts, state, policy, path, verdict)
        else:
            verdict = record(site, verdicts, verdict)
        _count(site, summary, verdict)
    return state, len(newest)


def _waiting(verdicts: VerdictLog, state: DesiredState, staging: Path, policy: str) -> list[Path]:
    """Candidates without a verdict; none before the policy has its version 1, and while one is being tried."""
    pointer = state.policies[policy].pointer
    if pointer.stable is None or (pointer.canary is not None and not pointer.frozen):
        return []
    return [p for p in list_candidates(staging, policy) if verdicts.verdict_on(policy, p.name) is None]


def _log_step(policy: str, step: str) -> None:
    _LOG.debug("%s: %s", policy, step)


def _release(lease: Lease) -> None:
    try:
        if lease.held:
            lease.release()
    except StoreError as error:
        _LOG.warning("the lease was not released and will expire: %s", error)
