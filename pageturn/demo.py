"""The loop once, from a log to a decided page, each part a process of its own, as in production but for its size."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import grpc

from model_export.status import PolicyStatus, status
from pageturn.generated import generate
from pageturn.processes import Process, Stopped, pageturn
from pageturn.table import event_rows, render
from pipeline.agent import agent_pb2 as pb
from pipeline.agent import agent_pb2_grpc
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.translate import from_features
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.events import decode
from pipeline.logs.log import SAMPLES
from pipeline.logs.opening import open_log
from pipeline.records import Impression, Page
from pipeline.serving.client import ModelServer
from pipeline.serving.errors import TooLate
from pipeline.serving.launch import free_port
from pipeline.stores.opening import open_store
from pipeline.stores.store import KeyValueStore
from pipeline.streaming.counts import count
from pipeline.streaming.outputs import read_all

_EXCERPT = Path("../shared/data/ebnerd")
_STEP_S = 300.0
_START_S = 120.0
_DECIDE_S = 1.0
_FOLLOW_S = 30.0


class DemoError(PageturnError):
    """The demo cannot go on; says where."""


class Run:
    """Where one run keeps what, and when it is to end."""

    def __init__(self, folder: Path, config: Path, stop: threading.Event) -> None:
        self.folder, self.config, self.stop = folder.resolve(), config.resolve(), stop
        self.log = f"file://{self.folder}/log"
        self.store = f"sqlite:///{self.folder}/store.db"
        self.logs = self.folder / "logs"

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def run_demo(data: Path | None, folder: Path | None, config_path: Path, stop: threading.Event) -> None:
    """Run the loop once, or until `stop` is set (Stopped)."""
    started = time.monotonic()
    config = load_config(config_path)
    run = Run(folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"), config_path, stop)
    _make(run.folder)
    click.echo(f"Everything this run makes is in {run.folder}")
    with _source(data) as (directory, what):
        click.echo(f"The log is {what}.")
        _step("import", "events from the log", run, "import", "ebnerd", str(directory), *_shared(run, "log"))
    _loop(config, run, started)


def _make(folder: Path) -> None:
    """A run starts from nothing: what an earlier one left behind would be counted with it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        message = f"{folder}: cannot be used for a run: {error.strerror}"
        raise DemoError(message) from error
    if taken:
        message = f"{folder}: expected a new or an empty folder for the run, found one with something in it"
        raise DemoError(message)


def _loop(config: FeatureConfig, run: Run, started: float) -> None:
    volume = ("--staging", run["staging"], "--models", run["models"])
    _step("bootstrap", "version 1 of every policy: the baseline", run, "bootstrap", *_shared(run), *volume)
    server, port = f"127.0.0.1:{free_port()}", free_port()
    commands = {
        "model-server": ("model-server", "--models", run["models"], "--port", server.rpartition(":")[2]),
        "agent": ("agent", *_shared(run, "log"), "--server", server, "--port", str(port), "--drain-s", "0"),
    }
    with _serving(run, commands, {"model-server": lambda: _await_server(server)}):
        _step("stream", "pages, episodes and transitions, by the Beam job", run, *_stream(run))
        _step("archive", "the logs to Parquet", run, "archive", "--log", run.log, "--to", run["archive"],
              "--until-idle")  # fmt: skip
        _step("train", "a policy per learned bucket", run, "train", *_shared(run, "log"), "--state",
              run["trainer"], "--staging", run["staging"], "--until-idle")  # fmt: skip
        _step("control", "candidates checked, published or refused", run, "control", *_shared(run), *volume,
              "--server", server, "--until-idle")  # fmt: skip
        _await_followed(config, run)
        answer = _decide(config, run, port)
    _step("stream", "once more: the page just decided is now open", run, *_stream(run))
    click.echo("\n" + _report(run, answer, time.monotonic() - started))


# Steps -----------------------------------------------------------------------------------------------------------


@contextmanager
def _source(data: Path | None) -> Iterator[tuple[Path, str]]:
    """The folder to import, and what to call it."""
    if data is not None or _EXCERPT.is_dir():
        yield data or _EXCERPT, f"the EB-NeRD excerpt in {data or _EXCERPT}"
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        yield Path(folder), "generated (no EB-NeRD excerpt here)"


def _shared(run: Run, *more: str) -> tuple[str, ...]:
    log = ("--log", run.log) if "log" in more else ()
    return ("--config", str(run.config), "--store", run.store, *log)


def _stream(run: Run) -> tuple[str, ...]:
    return ("stream", "--config", str(run.config), "--log", run.log, "--state", run["stream"], "--until-idle")


def _step(name: str, what: str, run: Run, *arguments: str) -> None:
    click.echo(f"  {name:<13}{what} ...", nl=False)
    began = time.monotonic()
    try:
        Process(name, pageturn(*arguments), run.logs).wait(_STEP_S, run.stop)
    except BaseException:
        click.echo()  # whatever comes next begins a line
        raise
    click.echo(f" {time.monotonic() - began:.1f} s")


@contextmanager
def _serving(run: Run, commands: dict[str, tuple[str, ...]], ready: dict[str, Callable[[], bool]]) -> Iterator[None]:
    """The commands running, each ready; stopped at the end, the last first."""
    running: list[Process] = []
    try:
        for name, command in commands.items():
            running.append(Process(name, pageturn(*command), run.logs))
            _await(running[-1], ready.get(name, lambda: True), run.stop)
        yield
        for process in running:
            process.check()
    finally:
        for process in reversed(running):
            process.stop()


def _await(process: Process, ready: Callable[[], bool], stop: threading.Event) -> None:
    click.echo(f"  {process.name:<13}starting ...", nl=False)
    began = time.monotonic()
    while not ready():
        process.check()
        if stop.is_set():
            message = f"stopped while {process.name} was starting"
            raise Stopped(message)
        if time.monotonic() - began > _START_S:
            message = f"{process.name} was not ready after {_START_S:.0f} s; see {process.log}"
            raise DemoError(message)
    click.echo(f" {time.monotonic() - began:.1f} s")


def _await_server(target: str) -> bool:
    with ModelServer(target) as client:
        try:
            client.wait_until_ready(0.5)
        except TooLate:
            return False
        return True


# A decision ------------------------------------------------------------------------------------------------------


def _decide(config: FeatureConfig, run: Run, port: int) -> pb.DecideResponse:
    """The next page of somebody whose bucket a learned policy decides, over gRPC."""
    request = _request(_page_of_a_learned_bucket(config, run))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        try:
            return stub.Decide(request, timeout=_DECIDE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            message = f"the agent on port {port} did not answer: {error}; see {run.logs / 'agent.log'}"
            raise DemoError(message) from error


def _await_followed(config: FeatureConfig, run: Run) -> None:
    """Wait until the agent says that it uses what was published last."""
    began = time.monotonic()
    with closing(open_store(run.store)) as store:
        while not all(_followed(policy) for policy in _policies(config, run, store)):
            if run.stop.wait(0.2):
                message = "the demo was told to stop"
                raise Stopped(message)
            if time.monotonic() - began > _FOLLOW_S:
                message = f"the agent did not take up the published versions within {_FOLLOW_S:.0f} s; see {run.logs}"
                raise DemoError(message)


def _policies(config: FeatureConfig, run: Run, store: KeyValueStore) -> tuple[PolicyStatus, ...]:
    return status(config, store, (), Path(run["models"]), now_ms=time.time_ns() // 1_000_000).policies


def _followed(policy: PolicyStatus) -> bool:
    return policy.pointer.stable is not None and set(policy.agents) == {policy.pointer.stable.version}


def _request(page: Impression) -> pb.DecideRequest:
    """The page again, as the first of a new session."""
    return pb.DecideRequest(
        request_id="demo-1",
        user_id=page.user_id,
        session_id="demo-1",
        page_index=0,
        items=[pb.Item(item_id=i.item_id, click_score=i.click_score, pay_score=i.pay_score) for i in page.items],
        user=from_features(page.state.user),
        context=from_features(page.state.context),
        page=from_features(page.state.page),
    )


def _page_of_a_learned_bucket(config: FeatureConfig, run: Run) -> Impression:
    """The longest, for there the order is most likely to change."""
    table, learned = bucket_table(config.buckets), config.learned_policies()
    with closing(open_log(run.log)) as log:
        pages = [decode(record.payload, Page).impression for record in read_all(log, SAMPLES)]
    theirs = [page for page in pages if table[slot_of(config.buckets, page.user_id)].policy in learned]
    if not theirs:
        message = "no user of the log is in a learned bucket"
        raise DemoError(message)
    return max(theirs, key=lambda page: (len(page.items), page.request_id))


# The table -------------------------------------------------------------------------------------------------------


def _report(run: Run, answer: pb.DecideResponse, seconds: float) -> str:
    with closing(open_log(run.log)) as log:
        counts = count(log, Path(run["stream"]))
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
    metrics = Path(run["trainer"], "metrics.jsonl").read_text().splitlines()
    updates = json.loads(metrics[-1])["updates"] if metrics else 0
    return [("updates", updates), *_verdict_rows(run)]


def _verdict_rows(run: Run) -> Iterator[tuple[str, object]]:
    from model_export.verdicts import read_verdicts

    evidence: Counter[str] = Counter()
    for verdict in read_verdicts(Path(run["models"])):
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
