"""The `pageturn` command: wires the parts into processes. Each option can be given as an environment variable, too.

TensorFlow and Beam are imported by the commands that need them, so that the others start at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from pipeline.errors import PageturnError

_VECTORS_IN_MEMORY = 1_000_000


class _Commands(click.Group):
    """A user's mistake is a message and exit status 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PageturnError as error:
            raise click.ClickException(str(error)) from error


def _options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of the table below, in the order in which they are named."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)

_OPTIONS: dict[str, Any] = {
    "config": click.option("--config", "config_path", type=_FILE, required=True, help="Feature config (YAML)."),
    "log": click.option("--log", "log_url", required=True, help="Event log: file:///folder."),
    "store": click.option("--store", "store_url", required=True, help="Key-value store: sqlite:///file or redis://..."),
    "staging": click.option("--staging", type=_FOLDER, required=True, help="Where candidates wait to be checked."),
    "models": click.option("--models", type=_FOLDER, required=True, help="Model volume that the servers read."),
    "state": click.option("--state", type=_FOLDER, required=True, help="Where the process keeps what it resumes from."),
    "until_idle": click.option("--until-idle", is_flag=True, help="Stop once everything there is has been handled."),
}


@click.group(cls=_Commands, context_settings={"auto_envvar_prefix": "PAGETURN", "show_default": True})
def main() -> None:
    """Streaming reinforcement learning for recommender feeds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apache_beam").setLevel(logging.WARNING)  # what it could not import of other clouds
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the GPU that is not there


# Configuration and input -----------------------------------------------------------------------------------------


@main.group()
def config() -> None:
    """Look at a feature config."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check FILE and report all of its mistakes at once."""
    from pipeline.config.reading import load_config
    from pipeline.features.inputs import config_sha, model_inputs

    loaded = load_config(file)
    click.echo(f"{file}: valid; {loaded.name}, {len(loaded.features)} features, config {config_sha(loaded)[:12]}")
    for entry in model_inputs(loaded):
        click.echo(f"  {entry.name}: {entry.dtype} {list(entry.shape)}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the events, for producers in other languages."""
    from pipeline.events import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.group("import")
def import_() -> None:
    """Turn a log from elsewhere into events."""


@import_.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_options("config", "log", "store")
@click.option("--partitions", default=4, type=click.IntRange(1), help="Of the topic, if it is not there yet.")
def ebnerd(directory: Path, config_path: Path, log_url: str, store_url: str, partitions: int) -> None:
    """Import the EB-NeRD log in DIRECTORY (behaviors.parquet and history.parquet)."""
    from pageturn.ebnerd import import_ebnerd
    from pipeline.config.reading import load_config
    from pipeline.logs.log import EVENTS
    from pipeline.logs.opening import open_log
    from pipeline.stores.opening import open_store

    feature_config = load_config(config_path)
    with closing(open_log(log_url)) as log, closing(open_store(store_url)) as store:
        log.create(EVENTS, partitions)
        done = import_ebnerd(directory, feature_config, log, store)
    click.echo(f"{done.impressions} impressions, {done.feedback} feedback events, {done.vectors} article vectors")


# The processes of the loop ---------------------------------------------------------------------------------------


@main.command()
@_options("config", "log", "state", "until_idle")
@click.option("--partitions", default=1, type=click.IntRange(1), help="Of the output topics, if not there yet.")
def stream(config_path: Path, log_url: str, state: Path, until_idle: bool, partitions: int) -> None:
    """Join events to pages, transitions and episodes (Beam, embedded runner)."""
    from pageturn.table import render
    from pipeline.config.reading import load_config
    from pipeline.streaming.run import run_stream

    feature_config, stop = load_config(config_path), _stop_signal()
    done = run_stream(feature_config, log_url, state, until_idle=until_idle, partitions=partitions, stop=stop)
    if done is not None:
        click.echo(render(done.rows()))


@main.command()
@_options("log", "until_idle")
@click.option("--to", "directory", type=_FOLDER, required=True, help="Where the Parquet files go.")
def archive(log_url: str, until_idle: bool, directory: Path) -> None:
    """Archive events, samples, transitions and episodes as Parquet."""
    from pipeline.streaming.archiver import archive as run_archive

    records = run_archive(log_url, directory, until_idle=until_idle, stop=_stop_signal())
    click.echo(f"{records} records archived to {directory}")


@main.command()
@_options("config", "log", "store", "state", "staging", "until_idle")
def train(config_path: Path, log_url: str, store_url: str, state: Path, staging: Path, until_idle: bool) -> None:
    """Learn from transitions as they come, and write candidates for publication."""
    from model_export.export import Exporter
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import StoredVectors
    from pipeline.learning.trainer import train as run_trainer
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), _stop_signal()
    with closing(open_store(store_url)) as store:
        vectors = StoredVectors(store, feature_config.kv_prefix, capacity=_VECTORS_IN_MEMORY, monotonic=time.monotonic)
        export = Exporter(feature_config, staging)
        done = run_trainer(
            feature_config, log_url, state, vectors=vectors, export=export, until_idle=until_idle, stop=stop
        )
    explored = ", ".join(f"{name} explored {n}" for name, n in done.explored.items()) or "none explored"
    click.echo(f"{done.ingested} transitions ({explored}), {done.updates} updates")


@main.command()
@_options("config", "store", "staging", "models")
def bootstrap(config_path: Path, store_url: str, staging: Path, models: Path) -> None:
    """Publish version 1 of every learned policy, the constant baseline; before any model server starts."""
    from model_export.bootstrap import bootstrap as publish_baselines
    from model_export.export import bootstrap as export_baselines
    from pipeline.config.reading import load_config
    from pipeline.stores.opening import open_store

    feature_config = load_config(config_path)
    with closing(open_store(store_url)) as store:
        export_baselines(feature_config, staging, _now_ms())
        publish_baselines(feature_config, staging, models, store, clock_ms=_now_ms)
    click.echo(f"{models}: version 1 of {', '.join(feature_config.learned_policies())}")


@main.command()
@_options("config", "store", "staging", "models", "until_idle")
@click.option("--server", "servers", multiple=True, required=True, help="HOST:PORT of each model server.")
def control(
    config_path: Path, store_url: str, staging: Path, models: Path, servers: tuple[str, ...], until_idle: bool
) -> None:
    """Check candidates, publish the good ones, and say why the others were refused."""
    from model_export.controller import run_controller
    from pipeline.config.reading import load_config
    from pipeline.serving.client import ModelServer
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), _stop_signal()
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url)))
        clients = [stack.enter_context(ModelServer(target)) for target in servers]
        done = run_controller(
            feature_config, store, clients, staging, models,
            holder=_process_name("controller"), clock_ms=_now_ms, stop=stop, until_idle=until_idle,
        )  # fmt: skip
    click.echo(f"{done.accepted} accepted, {sum(done.refused.values())} refused, {done.superseded} superseded")


@main.command("model-server")
@_options("models")
@click.option("--port", default=8500, type=click.IntRange(0, 65535))
def model_server(models: Path, port: int) -> None:
    """Serve the model volume: TF-Serving where PAGETURN_MODEL_SERVER names it, else the stand-in."""
    from pipeline.serving.launch import server_command

    command = server_command(port=port, model_config_file=models.resolve() / "models.config")
    os.execvp(command[0], command)


@main.command()
@_options("config", "log", "store")
@click.option("--server", required=True, help="HOST:PORT of the model server, or dns:///name:port for several.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 or [::] in a container.")
@click.option("--port", default=8600, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--mode", default="live", type=click.Choice(["live", "shadow", "off"]))
@click.option("--drain-s", default=5.0, type=click.FloatRange(0), help="How long to answer on after SIGTERM.")
def agent(
    config_path: Path, log_url: str, store_url: str, server: str, host: str, port: int, mode: str, drain_s: float
) -> None:
    """Decide pages over gRPC."""
    from pipeline.agent.agent import Agent
    from pipeline.agent.service import serve_until
    from pipeline.config.reading import load_config
    from pipeline.logs.opening import open_log
    from pipeline.serving.client import ModelServer
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), _stop_signal()
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url)))
        log = stack.enter_context(closing(open_log(log_url)))
        client = stack.enter_context(ModelServer(server))
        decider = stack.enter_context(
            Agent(feature_config, store, client, log, agent_id=_process_name("agent"), mode=mode)
        )
        serve_until(
            stop, decider, port, host=host, drain_s=drain_s,
            started=lambda bound: click.echo(f"deciding pages on {host}:{bound}"),
        )  # fmt: skip


@main.command()
@_options("log", "state")
def counts(log_url: str, state: Path) -> None:
    """Count what became of every event, by the ids in the outputs."""
    from pageturn.table import render
    from pipeline.logs.opening import open_log
    from pipeline.streaming.counts import count

    with closing(open_log(log_url)) as log:
        click.echo(render(count(log, state).rows()))


@main.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="EB-NeRD folder [default: ../shared/data/ebnerd or generated]."
)
@click.option("--run", "folder", type=_FOLDER, help="Where the run keeps everything [default: runs/demo-<time>].")
@click.option("--config", "config_path", type=_FILE, default=Path("feature_configs/ebnerd.yaml"))
def demo(data: Path | None, folder: Path | None, config_path: Path) -> None:
    """Run the whole loop once: a log, a Beam job, a learner, a publication, and a page decided over gRPC."""
    from pageturn.demo import run_demo

    run_demo(data, folder, config_path)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _process_name(part: str) -> str:
    """Unique among living processes: it names the holder of a lease, or an agent."""
    return f"{part}-{socket.gethostname()}-{os.getpid()}"


def _stop_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C; a process then ends in order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    sys.exit(main())
