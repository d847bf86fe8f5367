"""The `pageturn` command: wires the parts into processes. Each option can be given as an environment variable, too.

TensorFlow and Beam are imported by the commands that need them, so that the others start at once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pageturn.backfilling import Past, check_past, fill, past_options
from pageturn.deadletters import deadletters
from pageturn.embeddings import embeddings
from pageturn.evaluating import evaluate
from pageturn.forgetting import forget
from pageturn.judged import verdict, versions
from pageturn.local import demo, down, replay, report, simulate, up
from pageturn.monitor import monitor
from pageturn.on_flink import Engine, check_engine, engine_options, follow
from pageturn.operating import counts, dashboard, status, switch
from pageturn.options import FILE, FOLDER, TARGET, Commands, options, partitions, stop_signal
from pageturn.powering import power
from pageturn.pretraining import pretrain
from pageturn.sharding import Live, Sharding, check_sharding, run_live, shard_options

if TYPE_CHECKING:
    from model_export.controller import Summary

_VECTORS_IN_MEMORY = 1_000_000
_SHARE = 0.5  # of the time, for the replica that is asked first
_LOG = logging.getLogger("pageturn")


@click.group(cls=Commands, context_settings={"auto_envvar_prefix": "PAGETURN", "show_default": True})
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
    """Print the JSON Schema of the events, for producers."""
    from pipeline.events import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.group("import")
def import_() -> None:
    """Turn a log from elsewhere into events."""


@import_.command()
@click.argument("directory", type=click.Path(path_type=Path))
@options("config", "log", "store")
@partitions(4)
def ebnerd(directory: Path, config_path: Path, log_url: str, store_url: str, partitions: int) -> None:
    """Import the EB-NeRD log in DIRECTORY (behaviors.parquet and history.parquet)."""
    from pageturn.ebnerd import import_ebnerd
    from pipeline.config.reading import load_config
    from pipeline.logs.log import EVENTS, ensure_topic
    from pipeline.logs.opening import open_log
    from pipeline.stores.opening import open_store

    feature_config = load_config(config_path)
    with closing(open_log(log_url)) as log, closing(open_store(store_url)) as store:
        ensure_topic(log, EVENTS, partitions)
        done = import_ebnerd(directory, feature_config, log, store)
    click.echo(f"{done.impressions} impressions, {done.feedback} feedback events, {done.vectors} article vectors")


# The processes of the loop ---------------------------------------------------------------------------------------


@main.command()
@options("config")
@click.option("--log", "log_url", help="Event log: file:///folder.")
@click.option("--state", type=FOLDER, help="Where the process keeps what it resumes from.")
@options("until_idle", "metrics")
@partitions(1)
@shard_options
@engine_options
@past_options
def stream(
    config_path: Path,
    log_url: str | None,
    state: Path | None,
    until_idle: bool,
    metrics_address: str | None,
    partitions: int,
    past: Past,
    engine: Engine,
    sharding: Sharding,
) -> None:
    """Join events to pages, transitions, episodes.

    In this process, in several (--shards), or as a job of Flink. With --from and --to only for pages of that range, as
    a live stream would have: a back-fill, in this process.
    """
    from pageturn.table import event_rows, render
    from pipeline.config.reading import load_config

    check_engine(engine, until_idle, past.asked)
    check_sharding(sharding, not engine.is_flink and not past.asked, metrics_address)
    if past.asked:
        check_past(past, log_url, state, until_idle)
        fill(load_config(config_path), past, log_url, partitions, stop_signal())
        return
    if log_url is None or state is None:
        message = "expected --log and --state; or, for a range of the past, --from, --to and --output"
        raise click.UsageError(message)
    feature_config, stop = load_config(config_path), stop_signal()
    if engine.is_flink:
        follow(engine, feature_config, log_url, state, partitions, stop)
        return
    _LOG.info("following the events in %s", log_url)
    live = Live(config_path, log_url, state, until_idle, partitions, metrics_address)
    done = run_live(live, feature_config, sharding, stop)
    if done is not None:
        click.echo(render(event_rows(done)))


@main.command()
@options("log", "until_idle")
@click.option("--to", "directory", type=FOLDER, required=True, help="Where the Parquet files go.")
def archive(log_url: str, until_idle: bool, directory: Path) -> None:
    """Keep the logs as Parquet files."""
    from pipeline.streaming.archiver import archive as run_archive

    _LOG.info("following %s", log_url)
    records = run_archive(log_url, directory, until_idle=until_idle, stop=stop_signal())
    click.echo(f"{records} records archived to {directory}")


@main.command()
@options("config", "log", "store", "state", "staging", "until_idle", "metrics")
@click.option("--tensorboard", type=FOLDER, help="Where to write the numbers of each round for TensorBoard.")
def train(
    config_path: Path,
    log_url: str,
    store_url: str,
    state: Path,
    staging: Path,
    until_idle: bool,
    metrics_address: str | None,
    tensorboard: Path | None,
) -> None:
    """Learn from transitions as they come; write candidates.

    With TF_CONFIG set, as tf.distribute has it, this is one of several workers that learn together.
    """
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import StoredVectors
    from pipeline.monitoring.catalogue import TRAINER
    from pipeline.monitoring.metrics import Metrics, exposed
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), stop_signal()
    with closing(open_store(store_url)) as store:
        from model_export.exporting import exporter_of  # after the rest was checked: TensorFlow takes seconds to load
        from pipeline.learning.together import team_of
        from pipeline.learning.trainer import train as run_trainer

        team = team_of(feature_config, os.environ.get("TF_CONFIG"))
        leads = team is None or team.is_chief
        vectors = StoredVectors(store, feature_config.kv_prefix, capacity=_VECTORS_IN_MEMORY, monotonic=time.monotonic)
        export = exporter_of(feature_config, staging) if leads else None
        _LOG.info("following the transitions in %s", log_url)
        metrics = Metrics(TRAINER)
        with exposed(metrics, metrics_address if leads else None):
            done = run_trainer(
                feature_config, log_url, state,
                vectors=vectors, export=export, until_idle=until_idle, stop=stop, metrics=metrics,
                tensorboard=tensorboard, store=store, team=team,
            )  # fmt: skip
    explored = ", ".join(f"{name} explored {n}" for name, n in done.explored.items()) or "none explored"
    click.echo(f"{done.ingested} transitions ({explored}), {done.updates} updates")


@main.command()
@options("config", "staging")
@click.option("--store", "store_url", help="Key-value store: sqlite:///file or redis://...")
@click.option("--models", type=FOLDER, help="Model volume that the servers read.")
def bootstrap(config_path: Path, store_url: str | None, staging: Path, models: Path | None) -> None:
    """Publish the baseline as version 1.

    Of every learned policy that has no version yet; before any model server starts. Without --store and --models the
    baselines are only put into staging, from where `control` publishes them. With TF_CONFIG set, of several workers the
    first does it, and the others have nothing to do.
    """
    from model_export.bootstrap import bootstrap as publish_baselines
    from pipeline.config.reading import load_config
    from pipeline.stores.opening import open_store

    if (store_url is None) != (models is None):
        message = "expected --store and --models, to publish; or neither, to leave that to `control`"
        raise click.UsageError(message)
    feature_config = load_config(config_path)
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url))) if store_url else None
        from model_export.exporting import bootstrap as export_baselines  # TensorFlow, after the rest was checked
        from pipeline.learning.together import place_of

        place = place_of(os.environ.get("TF_CONFIG"))
        if place is not None and place.rank > 0:
            click.echo(f"left to the first of {place.workers} workers")
            return
        export_baselines(feature_config, staging, _now_ms())
        if store is None or models is None:
            click.echo(f"{staging}: the baseline of {', '.join(feature_config.learned_policies())}")
            return
        publish_baselines(feature_config, staging, models, store, clock_ms=_now_ms)
    click.echo(f"{models}: version 1 of {', '.join(feature_config.learned_policies())}")


@main.command()
@options("config", "store", "staging", "models", "until_idle", "metrics")
@click.option(
    "--server",
    "servers",
    type=TARGET,
    multiple=True,
    required=True,
    help="HOST:PORT of each model server, or dns:///NAME:PORT for all that have the name at the time.",
)
@options("server_tls")
@click.option("--log", "log_url", help="Event log; for a config with publish.certification, whose evidence is there.")
def control(
    config_path: Path,
    log_url: str | None,
    store_url: str,
    staging: Path,
    models: Path,
    servers: tuple[str, ...],
    until_idle: bool,
    metrics_address: str | None,
    server_tls: Path | None,
) -> None:
    """Publish good candidates, and say why others were refused."""
    from model_export.controller import run_controller
    from pipeline.config.reading import load_config
    from pipeline.logs.opening import open_log
    from pipeline.monitoring.catalogue import CONTROLLER
    from pipeline.monitoring.metrics import Metrics, exposed
    from pipeline.serving.fleet import Fleet, connector
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), stop_signal()
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url)))
        log = stack.enter_context(closing(open_log(log_url))) if log_url else None
        fleet = stack.enter_context(closing(Fleet(servers, connect=connector(server_tls))))
        metrics = Metrics(CONTROLLER)
        stack.enter_context(exposed(metrics, metrics_address))
        _LOG.info("following the candidates in %s", staging)
        done = run_controller(
            feature_config, store, fleet, staging, models,
            holder=_process_name("controller"), clock_ms=_now_ms, stop=stop, until_idle=until_idle, metrics=metrics,
            log=log,
        )  # fmt: skip
    click.echo(_verdicts(done))


@main.command("model-server")
@options("models")
@click.option("--port", default=8500, type=click.IntRange(1, 65535))
def model_server(models: Path, port: int) -> None:
    """Serve the model volume.

    With the tensorflow_model_server that PAGETURN_MODEL_SERVER names, else with a stand-in for laptops and tests.
    """
    from pipeline.serving.launch import become_server

    file = models.resolve() / "models.config"
    if not file.is_file():
        message = f"{file}: no such file; `pageturn bootstrap` makes it, and `pageturn control` keeps it up to date"
        raise click.ClickException(message)
    become_server(port, file)


@main.command()
@options("config", "log", "store", "metrics")
@click.option(
    "--server", type=TARGET, required=True, help="HOST:PORT of the model server, or dns:///name:port for several."
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 or [::] in a container.")
@click.option("--port", default=8600, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--mode", default="live", type=click.Choice(["live", "shadow", "off"]))
@click.option("--drain-s", default=5.0, type=click.FloatRange(0), help="How long to answer on after SIGTERM.")
@click.option("--tls", type=FOLDER, help="Folder of tls.crt and tls.key; with ca.crt callers need a certificate of it.")
@click.option("--token-file", type=FILE, help="Callers send `authorization: Bearer` and one of its lines; needs --tls.")
@options("server_tls")
@partitions(1)
def agent(
    config_path: Path,
    log_url: str,
    store_url: str,
    metrics_address: str | None,
    server: str,
    host: str,
    port: int,
    mode: str,
    drain_s: float,
    tls: Path | None,
    token_file: Path | None,
    server_tls: Path | None,
    partitions: int,
) -> None:
    """Decide pages over gRPC."""
    if token_file and not tls:
        message = "--token-file needs --tls: a token on an open line is no secret"
        raise click.UsageError(message)
    from pipeline.agent.access import TokenGate
    from pipeline.agent.agent import Agent, AgentSettings
    from pipeline.agent.service import serve_until
    from pipeline.config.reading import load_config
    from pipeline.logs.log import EVENTS, ensure_topic
    from pipeline.logs.opening import open_log
    from pipeline.monitoring.metrics import exposed
    from pipeline.serving.client import ModelServer
    from pipeline.serving.tls import client_credentials, server_credentials
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), stop_signal()
    credentials, gates = server_credentials(tls) if tls else None, [TokenGate(token_file)] if token_file else []
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url)))
        log = stack.enter_context(closing(open_log(log_url)))
        ensure_topic(log, EVENTS, partitions)
        to_server = client_credentials(server_tls) if server_tls else None
        client = stack.enter_context(ModelServer(server, credentials=to_server))
        settings = AgentSettings(first_attempt=_SHARE if server.startswith("dns:") else 1.0)
        decider = stack.enter_context(
            Agent(feature_config, store, client, log, agent_id=_process_name("agent"), mode=mode, settings=settings)
        )
        stack.enter_context(exposed(decider.metrics, metrics_address))
        serve_until(
            stop, decider, port, host=host, drain_s=drain_s, credentials=credentials, gates=gates,
            started=lambda bound: click.echo(f"deciding pages on {host}:{bound}"),
        )  # fmt: skip


for command in (
    demo,
    replay,
    up,
    down,
    simulate,
    pretrain,
    report,
    status,
    dashboard,
    counts,
    deadletters,
    forget,
    embeddings,
    switch,
    versions,
    verdict,
    monitor,
    power,
    evaluate,
):
    main.add_command(command)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _verdicts(done: Summary) -> str:
    """How many candidates became what, with the reasons of those that did not go out."""
    parts = [f"{done.accepted} accepted"]
    for outcome, reasons in (("refused", done.refused), ("kept back", done.kept)):
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        parts.append(f"{sum(reasons.values())} {outcome}" + (f" ({why})" if why else ""))
    parts += [
        f"{done.superseded} superseded",
        *(f"{n} {name.replace('_', ' ')}" for name, n in sorted(done.concluded.items())),
    ]
    return ", ".join(parts)


def _process_name(part: str) -> str:
    """Unique among living processes: it names the holder of a lease, or an agent."""
    return f"{part}-{socket.gethostname()}-{os.getpid()}"


if __name__ == "__main__":
    sys.exit(main())
