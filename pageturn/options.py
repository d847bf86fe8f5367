"""What the commands share: their options, and how a user's mistake reaches the user."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import PageturnError


class Commands(click.Group):
    """A user's mistake is a message and exit status 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PageturnError as error:
            raise click.ClickException(str(error)) from error


class _Target(click.ParamType):
    """What gRPC can resolve. It would take anything else, too, and then never connect."""

    name = "target"
    _SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|xds):\S+")
    _ADDRESS = re.compile(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        address = self._ADDRESS.fullmatch(value)
        if not self._SCHEME.fullmatch(value) and (address is None or int(address[2]) > 65535):
            self.fail(f"expected HOST:PORT, or dns:///NAME:PORT for several servers; found {value!r}", param, ctx)
        return value


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
TARGET = _Target()

_OPTIONS: dict[str, Any] = {
    "config": click.option("--config", "config_path", type=FILE, required=True, help="Feature config (YAML)."),
    "log": click.option("--log", "log_url", required=True, help="Event log: file:///folder or kafka://hosts/prefix."),
    "store": click.option("--store", "store_url", required=True, help="Key-value store: sqlite:///file or redis://..."),
    "staging": click.option("--staging", type=FOLDER, required=True, help="Where candidates wait to be checked."),
    "models": click.option("--models", type=FOLDER, required=True, help="Model volume that the servers read."),
    "state": click.option("--state", type=FOLDER, required=True, help="Where the process keeps what it resumes from."),
    "until_idle": click.option("--until-idle", is_flag=True, help="Stop once everything there is has been handled."),
}


def options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of the table above, in the order in which they are named."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


def partitions(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--partitions", default=default, type=click.IntRange(1), help="Of the topics that are not there yet."
    )


def stop_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C; a process then ends in order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
