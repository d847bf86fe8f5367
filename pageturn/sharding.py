"""`pageturn stream --shards N`: the stream in several processes of this machine; `--shard I/N`: one of them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pageturn.operating import count_events
from pageturn.processes import Process, pageturn

if TYPE_CHECKING:
    from pipeline.config.schema import FeatureConfig
    from pipeline.streaming.counts import Counts

_LOOK_S = 0.1
_END_S = 110.0  # for a snapshot of all open sessions on a busy machine; Kubernetes has 120


class _Share(click.ParamType):
    name = "I/N"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        index, _, count = value.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            self.fail(f"expected I/N with I from 0 to N - 1, such as 0/4; found {value!r}", param, ctx)
        return int(index), int(count)


class Sharding(NamedTuple):
    shards: int  # processes to start
    shard: tuple[int, int]  # that this process is: which one, of how many

    @property
    def asked(self) -> bool:
        return self.shards > 1 or self.shard[1] > 1


_OPTIONS = (
    click.option("--shards", default=1, type=click.IntRange(1), help="Processes; sessions are spread over them."),
    click.option("--shard", default="0/1", type=_Share(), help="Be only this one of N processes, started elsewhere."),
)


def shard_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options above, given to the command as `sharding`."""

    @functools.wraps(command)
    def gathered(*, shards: int, shard: tuple[int, int], **others: Any) -> None:
        command(sharding=Sharding(shards, shard), **others)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def check_sharding(sharding: Sharding, embedded: bool, metrics_address: str | None) -> None:
    """UsageError for options that do not go together."""
    if metrics_address and (sharding.shards > 1 or not embedded):
        message = "--metrics is for one process: start shards with --shard, and ask Flink for its own metrics"
        raise click.UsageError(message)
    if sharding.asked and not embedded:
        message = "--shards and --shard are for a live stream on the embedded runner: Flink has --parallelism"
        raise click.UsageError(message)
    if sharding.shards > 1 and sharding.shard[1] > 1:
        message = "expected --shards, to start all processes here, or --shard, to be one of them; not both"
        raise click.UsageError(message)


class Live(NamedTuple):
    """What a live stream is asked to do."""

    config_path: Path
    log_url: str
    state: Path
    until_idle: bool
    partitions: int
    metrics_address: str | None = None


def run_live(live: Live, config: FeatureConfig, sharding: Sharding, stop: threading.Event) -> Counts | None:
    """Follow the events, here or in processes of their own. Counts, where all were handled and can be counted."""
    if sharding.shards > 1:
        return count_events(live.log_url, live.state) if run_shards(sharding.shards, live, stop) else None
    from pipeline.monitoring.catalogue import STREAM
    from pipeline.monitoring.metrics import Metrics, exposed
    from pipeline.streaming.run import run_stream  # after the config was checked: Beam takes seconds to load
    from pipeline.streaming.shards import Shard

    metrics = Metrics(STREAM)
    with exposed(metrics, live.metrics_address):
        return run_stream(
            config, live.log_url, live.state, until_idle=live.until_idle, partitions=live.partitions, stop=stop,
            shard=Shard(*sharding.shard), metrics=metrics,
        )  # fmt: skip


def run_shards(count: int, live: Live, stop: threading.Event) -> bool:
    """Start them, and wait for all to be done (True) or for `stop`. When one fails, all end: ProcessError.

    What they say goes to <state>/logs.
    """
    from pipeline.streaming.shards import Shard

    Shard(0, count).folder(live.state)  # SnapshotError where there were others: said here, and not in a file
    running: list[Process] = []
    try:
        for index in range(count):
            name = f"shard-{index}-of-{count}"
            running.append(Process(name, _command(live, f"{index}/{count}"), live.state / "logs"))
        left = list(running)
        while left and not stop.wait(_LOOK_S):
            for process in left:
                if process.status:
                    process.check()
            left = [process for process in left if process.status is None]
        return not left
    finally:
        for process in running:
            process.ask_to_end()
        for process in running:
            process.stop(_END_S)


def _command(live: Live, shard: str) -> list[str]:
    given = {
        "--config": live.config_path,
        "--log": live.log_url,
        "--state": live.state,
        "--partitions": live.partitions,
        "--shard": shard,
        "--shards": 1,  # PAGETURN_STREAM_SHARDS, if it is set, is for us
    }
    arguments = [str(word) for option in given.items() for word in option]
    return pageturn("stream", *arguments, *(["--until-idle"] if live.until_idle else []))
