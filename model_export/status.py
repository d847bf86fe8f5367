"""What is served, what was judged, who uses it: for people. Reads, never writes, and needs no lease."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from model_export.certifying import read_evidence
from model_export.checks import Verdict
from model_export.desired import Loaded, Pending, PolicyState, read_desired
from model_export.evaluation.evidence import Evidence
from model_export.housekeeping import HEARTBEAT_MS
from model_export.served import to_all
from model_export.site import Server
from model_export.verdicts import read_verdicts
from pipeline.config.schema import FeatureConfig
from pipeline.serving.errors import NotServed, ServingError
from pipeline.stores.published import Heartbeat, Pointer, read_heartbeats, read_pointers
from pipeline.stores.store import KeyValueStore


class ServerStatus(Struct, frozen=True):
    target: str
    versions: dict[int, str]  # -> state, of those not unloaded again
    trouble: str = ""


class PolicyStatus(Struct, frozen=True):
    policy: str
    model_name: str
    pointer: Pointer
    loaded: tuple[Loaded, ...]  # as desired
    pending: Pending | None
    servers: tuple[ServerStatus, ...]
    agents: dict[int, int]  # version -> how many agents use it for all of its buckets
    trying: int  # how many agents use the canary for its share
    last_verdict: Verdict | None
    served_ms: int | None  # when the last version went to all of its buckets
    evidence: Evidence | None = None  # of the open epoch, at the controller's last look


class Status(Struct, frozen=True):
    policies: tuple[PolicyStatus, ...]
    fence: int | None


def status(
    config: FeatureConfig,
    store: KeyValueStore,
    servers: Sequence[Server],
    models: Path,
    *,
    now_ms: int,
    timeout_s: float = 2.0,
) -> Status:
    """Of every learned policy. A server that does not answer is reported, not raised. Raises: StoreError."""
    desired = read_desired(models)
    pointers = read_pointers(store, config.kv_prefix, config.learned_policies())
    heartbeats = [beat for beat in read_heartbeats(store, config.kv_prefix) if now_ms - beat.time_ms < HEARTBEAT_MS]
    last, served = _last_verdicts(models)
    evidence = read_evidence(models)
    policies = []
    for name, pointer in pointers.items():
        model = config.model_name(name)
        state = desired.policies.get(name, PolicyState(model)) if desired else PolicyState(model)
        policies.append(
            PolicyStatus(
                policy=name,
                model_name=model,
                pointer=pointer,
                loaded=state.loaded,
                pending=state.pending,
                servers=tuple(_server_status(server, model, timeout_s) for server in servers),
                agents=_agents(heartbeats, name),
                trying=_trying(heartbeats, name, pointer),
                last_verdict=last.get(name),
                served_ms=served.get(name),
                evidence=evidence.get(name),
            )
        )
    return Status(tuple(policies), desired.fence if desired else None)


def _server_status(server: Server, model: str, timeout_s: float) -> ServerStatus:
    try:
        states = {status.version: status.state for status in server.status(model, timeout_s)}
    except NotServed:
        return ServerStatus(server.target, {})
    except ServingError as error:
        return ServerStatus(server.target, {}, f"{server.target}: {error}")
    return ServerStatus(server.target, {v: state for v, state in sorted(states.items()) if state != "END"})


def _agents(heartbeats: Sequence[Heartbeat], policy: str) -> dict[int, int]:
    used = [beat.versions[policy] for beat in heartbeats if policy in beat.versions]
    return {version: used.count(version) for version in sorted(set(used))}


def _trying(heartbeats: Sequence[Heartbeat], policy: str, pointer: Pointer) -> int:
    return sum(pointer.canary is not None and b.canaries.get(policy) == pointer.canary.version for b in heartbeats)


def _last_verdicts(models: Path) -> tuple[dict[str, Verdict], dict[str, int]]:
    last, served = {}, {}
    for verdict in read_verdicts(models):
        last[verdict.policy] = verdict
        if to_all(verdict.outcome, verdict.reason):
            served[verdict.policy] = verdict.time_ms
    return last, served
