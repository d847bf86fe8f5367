"""A real log through the loop, once: from events to a decided page, each part a process of its own."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import click
import grpc

from model_export.status import PolicyStatus, status
from pageturn.generated import generate
from pageturn.loop import command, serve
from pageturn.processes import Process, Stopped, pageturn
from pageturn.run import Run, new_run
from pageturn.supervisor import Supervisor
from pageturn.table import event_rows, render
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.client import AgentClient
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.events import decode
from pipeline.logs.log import SAMPLES
from pipeline.logs.opening import open_log
from pipeline.records import Impression, Page
from pipeline.serving.launch import free_ports
from pipeline.stores.opening import open_store
from pipeline.stores.store import KeyValueStore
from pipeline.streaming.counts import count
from pipeline.streaming.outputs import read_all

_EXCERPT = Path("../shared/data/ebnerd")
_STEP_S = 300.0
_DECIDE_S = 1.0
_FOLLOW_S = 30.0
_STEPS = (
    ("stream", "stream", "pages, episodes and transitions, by the Beam job"),
    ("archive", "archive", "the logs to Parquet"),
    ("train", "trainer", "a policy per learned bucket"),
    ("control", "controller", "candidates checked, published or refused"),
)


class ReplayError(PageturnError):
    """The replay cannot go on; says where."""


def run_replay(data: Path | None, folder: Path | None, config_path: Path, stop: threading.Event) -> None:
    """From nothing to a decided page, or until `stop` is set (Stopped)."""
    started = time.monotonic()
    run = new_run(folder, config_path)
    click.echo(f"Everything this run makes is in {run.folder}")
    with _source(data) as (directory, what):
        click.echo(f"The log is {what}.")
        _step("import", "events from the log", run, stop, _import(run, directory))
    answer = _loop(run, stop)
    click.echo("\n" + _report(run, answer, time.monotonic() - started))


def excerpt() -> Path | None:
    """The EB-NeRD excerpt, where it is."""
    return _EXCERPT if _EXCERPT.is_dir() else None


def _loop(run: Run, stop: threading.Event) -> pb.DecideResponse:
    _step("bootstrap", "version 1 of every policy: the baseline", run, stop, command(run, "bootstrap"))
    server_port, agent_port = free_ports(2)
    run.save(server_port=server_port, agent_port=agent_port)
    supervisor = Supervisor(run.logs, run.journal)
    try:
        serve(run, supervisor, stop, lambda what: click.echo(f"  {what}"))
        for name, part, what in _STEPS:
            _step(name, what, run, stop, [*command(run, part), "--until-idle"])
        config = run.config()
        _await_followed(config, run, stop)
        answer = _decide(config, run)
        supervisor.check()
    finally:
        supervisor.stop()
    _step(
        "stream", "once more: the page just decided is now open", run, stop, [*command(run, "stream"), "--until-idle"]
    )
    return answer


# Steps -----------------------------------------------------------------------------------------------------------


@contextmanager
def _source(data: Path | None) -> Iterator[tuple[Path, str]]:
    """The folder to import, and what to call it."""
    if directory := data or excerpt():
        yield directory, f"the EB-NeRD excerpt in {directory}"
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        yield Path(folder), "generated (no EB-NeRD excerpt here)"


def _import(run: Run, directory: Path) -> list[str]:
    places = ("--config", str(run.config_path), "--log", run.log_url, "--store", run.store_url)
    return pageturn("import", "ebnerd", str(directory), *places)


def _step(name: str, what: str, run: Run, stop: threading.Event, command: Sequence[str]) -> None:
    click.echo(f"  {name:<13}{what} ...", nl=False)
    began = time.monotonic()
    try:
        Process(name, command, run.logs).wait(_STEP_S, stop)
    except BaseException:
        click.echo()  # whatever comes next begins a line
        raise
    click.echo(f" {time.monotonic() - began:.1f} s")


# A decision ------------------------------------------------------------------------------------------------------


def _decide(config: FeatureConfig, run: Run) -> pb.DecideResponse:
    """The next page of somebody whose bucket a learned policy decides, over gRPC."""
    request = _request(_page_of_a_learned_bucket(config, run))
    with AgentClient(run.agent) as client:
        try:
            return client.decide(request, _DECIDE_S)
        except grpc.RpcError as error:
            message = f"the agent at {run.agent} did not answer: {error}; see {run.logs / 'agent.log'}"
            raise ReplayError(message) from error


def _await_followed(config: FeatureConfig, run: Run, stop: threading.Event) -> None:
    """Wait until the agent says that it uses what was published last."""
    began = time.monotonic()
    with closing(open_store(run.store_url)) as store:
        while not all(_followed(policy) for policy in _policies(config, run, store)):
            if stop.wait(0.2):
                message = "stopped while the agent was taking up the published versions"
                raise Stopped(message)
            if time.monotonic() - began > _FOLLOW_S:
                message = f"the agent did not take up the published versions within {_FOLLOW_S:.0f} s; see {run.logs}"
                raise ReplayError(message)


def _policies(config: FeatureConfig, run: Run, store: KeyValueStore) -> tuple[PolicyStatus, ...]:
    return status(config, store, (), run.models, now_ms=time.time_ns() // 1_000_000).policies


def _followed(policy: PolicyStatus) -> bool:
    return policy.pointer.stable is not None and set(policy.agents) == {policy.pointer.stable.version}


def _request(page: Impression) -> PageRequest:
    """The page again, as the first of a new session."""
    state = page.state
    return PageRequest("replay-1", page.user_id, "replay-1", 0, page.items, state.user, state.context, state.page)


def _page_of_a_learned_bucket(config: FeatureConfig, run: Run) -> Impression:
    """The longest, for there the order is most likely to change."""
    table, learned = bucket_table(config.buckets), config.learned_policies()
    with closing(open_log(run.log_url)) as log:
        pages = [decode(record.payload, Page).impression for record in read_all(log, SAMPLES)]
    theirs = [page for page in pages if table[slot_of(config.buckets, page.user_id)].policy in learned]
    if not theirs:
        message = "no user of the log is in a learned bucket"
        raise ReplayError(message)
    return max(theirs, key=lambda page: (len(page.items), page.request_id))


# The table -------------------------------------------------------------------------------------------------------


def _report(run: Run, answer: pb.DecideResponse, seconds: float) -> str:
    with closing(open_log(run.log_url)) as log:
        counts = count(log, run.stream)
    rows = [*event_rows(counts), (), *_training_rows(run), (), *_decision_rows(answer)]
    return "\n".join(
        [
            render(rows, f"The loop, end to end, in {seconds:.0f} s"),
            "",
            "This log proves that the loop is whole. It is far too small to prove a policy, and all of its pages were",
            "decided by the baseline: the policies have explored nothing and stay at the baseline, a = 1, plus noise.",
        ]
    )


def _training_rows(run: Run) -> list[tuple[str, object]]:
    metrics = (run.trainer / "metrics.jsonl").read_text().splitlines()
    updates = json.loads(metrics[-1])["updates"] if metrics else 0
    return [("updates", updates), *_verdict_rows(run)]


def _verdict_rows(run: Run) -> Iterator[tuple[str, object]]:
    from model_export.verdicts import read_verdicts

    evidence: Counter[str] = Counter()
    for verdict in read_verdicts(run.models):
        version = f"version {verdict.version}" if verdict.version else "no version"
        reason = f" ({verdict.reason}: {verdict.detail})" if verdict.reason else ""
        known = (verdict.evidence or "not looked at").replace("_", " ")
        yield f"policy {verdict.policy}", f"{version}: {verdict.outcome}{reason}; is it better? {known}"
        evidence[known] += 1
    yield "verdicts", ", ".join(f"{n} with {known}" for known, n in evidence.items())


def _decision_rows(answer: pb.DecideResponse) -> list[tuple[str, object]]:
    actions = ", ".join(f"{action.name} = {action.value:.4f}" for action in answer.actions)
    by = pb.DecidedBy.Name(answer.decided_by).removeprefix("DECIDED_BY_").lower()
    why = f" ({answer.fallback_reason})" if answer.HasField("fallback_reason") else ""
    return [
        ("a page over gRPC", f"{len(answer.item_ids)} items re-ranked, {actions}"),
        ("  decided by", f"{by}{why}: policy {answer.policy}, bucket {answer.bucket}, version {answer.model_version}"),
        ("  order", " ".join(str(position) for position in answer.order)),
    ]
