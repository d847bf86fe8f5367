"""`pageturn stream --runner flink`: the stream as a job of Flink, on a cluster or inside this machine's job server."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pageturn.options import TARGET

if TYPE_CHECKING:
    from pipeline.config.schema import FeatureConfig


class Engine(NamedTuple):
    runner: str
    flink_master: str | None
    parallelism: int | None
    flink_job_server: Path | None
    flink_worker: str | None
    flink_groups: int | None

    @property
    def is_flink(self) -> bool:
        return self.runner == "flink"


_OPTIONS = (
    click.option(
        "--runner", default="embedded", type=click.Choice(["embedded", "flink"]), help="Engine of the stream."
    ),
    click.option("--flink-master", type=TARGET, help="REST address of a Flink cluster; without it, Flink runs here."),
    click.option("--parallelism", type=click.IntRange(1), help="Of the Flink job; 1 if not given."),
    click.option(
        "--flink-job-server",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="Beam's job server for Flink, a jar; without it, Beam fetches its own from Maven Central.",
    ),
    click.option(
        "--flink-worker", help="Command that starts Python on the task managers: pageturn-flink-worker there."
    ),
    click.option(
        "--flink-groups",
        type=click.IntRange(1),
        help="Groups of sessions, the keys of the job's state; 64 if not given. Savepoints are bound to it.",
    ),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options above, handed to the command as one `engine`."""

    @functools.wraps(command)
    def with_engine(**given: Any) -> None:
        engine = Engine(*(given.pop(name) for name in Engine._fields))
        command(**given, engine=engine)

    for option in reversed(_OPTIONS):
        with_engine = option(with_engine)
    return with_engine


def check_engine(engine: Engine, until_idle: bool, past: bool) -> None:
    """UsageError for options that do not go together."""
    if not engine.is_flink and any(engine[1:]):
        message = "--parallelism and what begins with --flink are for --runner flink"
        raise click.UsageError(message)
    if engine.is_flink and (until_idle or past):
        message = "--until-idle and back-fills are for the embedded runner: a job of Flink goes on until it is stopped"
        raise click.UsageError(message)


def follow(
    engine: Engine, config: FeatureConfig, log_url: str, state: Path, partitions: int, stop: threading.Event
) -> None:
    from pipeline.streaming.flink.launch import run_on_flink
    from pipeline.streaming.flink.options import GROUPS, LOCAL, Settings

    settings = Settings(
        master=engine.flink_master or LOCAL,
        parallelism=engine.parallelism or 1,
        job_server=engine.flink_job_server and str(engine.flink_job_server.resolve()),
        worker=engine.flink_worker,
        groups=engine.flink_groups or GROUPS,
    )
    savepoint = run_on_flink(config, log_url, state, settings, partitions=partitions, stop=stop)
    click.echo(f"stopped; the next start goes on from {savepoint}" if savepoint else "stopped; nothing is kept")
