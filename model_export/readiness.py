"""From asked-for to trusted: every server has loaded a version, and answers the probes as the trainer's model did."""

from __future__ import annotations

from typing import Literal

from model_export.candidate import Candidate
from model_export.checks import Check, at_most, explain
from model_export.clock import Deadline
from model_export.desired import Pending
from model_export.probing import Unreachable, WrongAnswer, answers, largest_error, patiently
from model_export.site import Server, Site
from pipeline.errors import PageturnError
from pipeline.features.errors import FeatureError, SnapshotError
from pipeline.features.snapshot import Snapshot
from pipeline.serving.client import VersionStatus
from pipeline.serving.errors import NotServed, ServingError
from pipeline.stores.published import parameters_key
from pipeline.stores.store import StoreError

PROBE_TOLERANCE = 1e-4


class NotPublished(PageturnError):
    """The candidate does not go out: one step did not succeed."""

    outcome: Literal["refused", "kept"]

    def __init__(self, detail: str, reason: str, check: Check | None = None) -> None:
        super().__init__(detail)
        self.reason, self.check = reason, check


class Refused(NotPublished):
    """It is the candidate's own fault."""

    outcome = "refused"


class Kept(NotPublished):
    """It is not the candidate's fault; the version in use stays."""

    outcome = "kept"


def serve_and_probe(site: Site, model: str, pending: Pending, candidate: Candidate, policy: str) -> tuple[Check, ...]:
    deadline = Deadline(site, site.config.publish.load_timeout)
    try:
        servers = patiently(site, "looking for the model servers", deadline, lambda: tuple(site.servers))
        for server in servers:
            _await_available(site, server, model, pending.version, deadline)
        site.on_step(policy, "available")
        checks = tuple(_probe(site, server, model, pending, candidate, deadline) for server in servers)
        site.on_step(policy, "probed")
        return checks
    except Unreachable as error:
        raise Kept(str(error), "server_unreachable") from error


def _await_available(site: Site, server: Server, model: str, version: int, deadline: Deadline) -> None:
    while not _is_available(server, model, _status(site, server, model, version, deadline)):
        if deadline.over():
            detail = f"{server.target}: {model} version {version} was not AVAILABLE within the time limit"
            raise Refused(detail, "load_timeout")
        site.lease.check()
        site.pause()


def _status(site: Site, server: Server, model: str, version: int, deadline: Deadline) -> VersionStatus | None:
    """None while the server has not heard of the version."""

    def look() -> tuple[VersionStatus, ...]:
        try:
            return server.status(model, site.rpc_timeout_s)
        except NotServed:  # the model itself is new to it
            return ()

    statuses = patiently(site, "waiting for the new version", deadline, look)
    return next((status for status in statuses if status.version == version), None)


def _is_available(server: Server, model: str, status: VersionStatus | None) -> bool:
    if status is None:
        return False
    if status.state == "END" and status.error_code:
        detail = f"{server.target}: {model} version {status.version} did not load: {status.error_message}"
        raise Refused(detail, "load_failed")
    return status.state == "AVAILABLE"


def _probe(site: Site, server: Server, model: str, pending: Pending, candidate: Candidate, deadline: Deadline) -> Check:
    """The server's actions on the probes against what the trainer's model gave for them."""
    if not candidate.probes:  # only the bootstrap may have none
        return at_most("served_probes", 0.0, PROBE_TOLERANCE, n=0, note=server.target)
    try:
        snapshot, version = _snapshot(site, pending.parameters), pending.version
        served = patiently(
            site, "probing", deadline, lambda: answers(site, server, model, version, candidate.probes, snapshot)
        )
    except (FeatureError, SnapshotError) as error:
        raise Refused(str(error), "probe_encoding") from error
    except (ServingError, WrongAnswer) as error:
        raise Refused(str(error), "probe_failed") from error
    expected = [[float("nan") if a is None else a for a in probe.answer] for probe in candidate.probes]
    error_of = largest_error(served, expected)
    check = at_most("served_probes", error_of, PROBE_TOLERANCE, n=len(expected), note=server.target)
    if not check.passed:
        raise Refused(explain(check), "served_probes", check)
    return check


def _snapshot(site: Site, sha256: str) -> Snapshot:
    payload = site.store.get(parameters_key(site.prefix, sha256))
    if payload is None:
        message = f"key {parameters_key(site.prefix, sha256)!r}: gone since it was written"
        raise StoreError(message)
    return Snapshot.from_bytes(payload)
