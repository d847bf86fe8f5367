"""The loop once, from a log to a decided page, each part a process of its own, as in production but for its size."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import grpc

from pageturn.generated import generate
from pageturn.processes import Process, pageturn
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

_EXCERPT = Path("../shared/data/ebnerd")
_STEP_S = 300.0
_START_S = 120.0
_DECIDE_S = 1.0


class DemoError(PageturnError):
    """The demo cannot go on; says where."""


class Paths:
    """Where one run keeps what."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder.resolve(), config.resolve()
        self.log = f"file://{self.folder}/log"
        self.store = f"sqlite:///{self.folder}/store.db"
        self.logs = self.folder / "logs"

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def run_demo(data: Path | None, folder: Path | None, config_path: Path) -> None:
    started = time.monotonic()
    config = load_config(config_path)
    paths = Paths(folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"), config_path)
    _make(paths.folder)
    click.echo(f"Everything this run makes is in {paths.folder}")
    with _source(data) as (directory, what):
        click.echo(f"The log is {what}.")
        _step("import", "events from the log", paths, "import", "ebnerd", str(directory), *_shared(paths, "log"))
    _loop(config, paths, started)


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


def _loop(config: FeatureConfig, paths: Paths, started: float) -> None:
    volume = ("--staging", paths["staging"], "--models", paths["models"])
    _step("bootstrap", "version 1 of every policy: the baseline", paths, "bootstrap", *_shared(paths), *volume)
    server, port = f"127.0.0.1:{free_port()}", free_port()
    commands = {
        "model-server": ("model-server", "--models", paths["models"], "--port", server.rpartition(":")[2]),
        "agent": ("agent", *_shared(paths, "log"), "--server", server, "--port", str(port), "--drain-s", "0"),
    }
    with _serving(paths, commands, {"model-server": lambda: _await_server(server)}):
        _step("stream", "pages, episodes and transitions, by the Beam job", paths, *_stream(paths))
        _step("archive", "the logs to Parquet", paths, "archive", "--log", paths.log, "--to", paths["archive"],
              "--until-idle")  # fmt: skip
        _step("train", "a policy per learned bucket", paths, "train", *_shared(paths, "log"), "--state",
              paths["trainer"], "--staging", paths["staging"], "--until-idle")  # fmt: skip
        _step("control", "candidates checked, published or refused", paths, "control", *_shared(paths), *volume,
              "--server", server, "--until-idle")  # fmt: skip
        answer = _decide(config, paths, port)
    _step("stream", "once more: the page just decided is now open", paths, *_stream(paths))
    click.echo("\n" + _report(paths, answer, time.monotonic() - started))


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


def _shared(paths: Paths, *more: str) -> tuple[str, ...]:
    log = ("--log", paths.log) if "log" in more else ()
    return ("--config", str(paths.config), "--store", paths.store, *log)


def _stream(paths: Paths) -> tuple[str, ...]:
    return ("stream", "--config", str(paths.config), "--log", paths.log, "--state", paths["stream"], "--until-idle")


def _step(name: str, what: str, paths: Paths, *arguments: str) -> None:
    click.echo(f"  {name:<13}{what} ...", nl=False)
    began = time.monotonic()
    try:
        Process(name, pageturn(*arguments), paths.logs).wait(_STEP_S)
    except BaseException:
        click.echo()  # whatever comes next begins a line
        raise
    click.echo(f" {time.monotonic() - began:.1f} s")


@contextmanager
def _serving(
    paths: Paths, commands: dict[str, tuple[str, ...]], ready: dict[str, Callable[[], bool]]
) -> Iterator[None]:
    """The commands running, each ready; stopped at the end, the last first."""
    running: list[Process] = []
    try:
        for name, command in commands.items():
            running.append(Process(name, pageturn(*command), paths.logs))
            _await(running[-1], ready.get(name, lambda: True))
        yield
        for process in running:
            process.check()
    finally:
        for process in reversed(running):
            process.stop()


def _await(process: Process, ready: Callable[[], bool]) -> None:
    click.echo(f"  {process.name:<13}starting ...", nl=False)
    began = time.monotonic()
    while not ready():
        process.check()
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


def _decide(config: FeatureConfig, paths: Paths, port: int) -> pb.DecideResponse:
    """The next page of somebody whose bucket a learned policy decides, over gRPC."""
    request = _request(_page_of_a_learned_bucket(config, paths))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        try:
            return stub.Decide(request, timeout=_DECIDE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            message = f"the agent on port {port} did not answer: {error}; see {paths.logs / 'agent.log'}"
            raise DemoError(message) from error


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


def _page_of_a_learned_bucket(config: FeatureConfig, paths: Paths) -> Impression:
    table, learned = bucket_table(config.buckets), config.learned_policies()
    for record in open_log(paths.log).read(SAMPLES, 0, 0, 1_000_000):
        impression = decode(record.payload, Page).impression
        if table[slot_of(config.buckets, impression.user_id)].policy in learned:
            return impression
    message = "no user of the log is in a learned bucket"
    raise DemoError(message)


# The table -------------------------------------------------------------------------------------------------------


def _report(paths: Paths, answer: pb.DecideResponse, seconds: float) -> str:
    from pipeline.streaming.counts import count

    counts = count(open_log(paths.log), Path(paths["stream"]))
    rows = [*event_rows(counts), (), *_training_rows(paths), (), *_decision_rows(answer)]
    return "\n".join(
        [
            render(rows, f"The loop, end to end, in {seconds:.0f} s"),
            "",
            "This log proves that the loop is whole. It is far too small to prove a policy, and all of its pages were",
            "decided by the baseline: the policies have explored nothing and stay at the baseline, a = 1, plus noise.",
        ]
    )


def _training_rows(paths: Paths) -> list[tuple[str, object]]:
    metrics = Path(paths["trainer"], "metrics.jsonl").read_text().splitlines()
    updates = json.loads(metrics[-1])["updates"] if metrics else 0
    return [("updates", updates), *_verdict_rows(paths)]


def _verdict_rows(paths: Paths) -> Iterator[tuple[str, object]]:
    from model_export.verdicts import read_verdicts

    evidence: Counter[str] = Counter()
    for verdict in read_verdicts(Path(paths["models"])):
        version = f"version {verdict.version}" if verdict.version else "no version"
        reason = f" ({verdict.reason}: {verdict.detail})" if verdict.reason else ""
        yield f"{verdict.policy}", f"{version}: {verdict.outcome}{reason}, {verdict.evidence or 'not looked at'}"
        evidence[verdict.evidence or "not looked at"] += 1
    yield "verdicts", ", ".join(f"{n} with {what.replace('_', ' ')}" for what, n in evidence.items())


def _decision_rows(answer: pb.DecideResponse) -> list[tuple[str, object]]:
    actions = ", ".join(f"{action.name} = {action.value:.4f}" for action in answer.actions)
    by = pb.DecidedBy.Name(answer.decided_by).removeprefix("DECIDED_BY_").lower()
    why = f" ({answer.fallback_reason})" if answer.HasField("fallback_reason") else ""
    return [
        ("a page over gRPC", f"{len(answer.item_ids)} items re-ranked, {actions}"),
        ("  decided by", f"{by}{why}: policy {answer.policy}, bucket {answer.bucket}, version {answer.model_version}"),
        ("  order", " ".join(str(position) for position in answer.order)),
    ]
