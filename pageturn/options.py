"""What the commands share: their options, and how a user's mistake reaches the user."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import PageturnError
from pipeline.signals import handle_signals


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
HEARTBEAT = "PAGETURN_HEARTBEAT"

_OPTIONS: dict[str, Any] = {
    "run": click.option(
        "--run", "folder", type=FOLDER, help="Folder of a run on this machine [default: the newest under runs/]."
    ),
    "config": click.option("--config", "config_path", type=FILE, required=True, help="Feature config (YAML)."),
    "log": click.option("--log", "log_url", required=True, help="Event log: file:///folder or kafka://hosts/prefix."),
    "store": click.option("--store", "store_url", required=True, help="Key-value store: sqlite:///file or redis://..."),
    "staging": click.option("--staging", type=FOLDER, required=True, help="Where candidates wait to be checked."),
    "models": click.option("--models", type=FOLDER, required=True, help="Model volume that the servers read."),
    "state": click.option("--state", type=FOLDER, required=True, help="Where the process keeps what it resumes from."),
    "metrics": click.option("--metrics", "metrics_address", help="HOST:PORT for Prometheus [default: none]."),
    "server_tls": click.option(
        "--server-tls",
        type=FOLDER,
        help="Folder of ca.crt to know model servers by; with tls.crt, tls.key: mutual TLS.",
    ),
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


class _Heart(threading.Event):
    """Loops ask at every turn whether to stop: that they ask is a sign of life, and leaves its time on a file."""

    _EVERY_S = 1.0

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file, self._beaten_s = file, -self._EVERY_S
        try:
            file.unlink(missing_ok=True)  # a process before us may have left it
        except OSError as error:
            message = f"{HEARTBEAT}: expected a file that can be made, found {file}: {error.strerror}"
            raise click.ClickException(message) from error

    def is_set(self) -> bool:
        self._beat()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        self._beat()
        return super().wait(timeout)

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s - self._beaten_s >= self._EVERY_S:
            self._file.touch()
            self._beaten_s = now_s


def stop_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C; a process then ends in order. It leaves its signs of life in PAGETURN_HEARTBEAT, a
    file, if that is set: from the first turn of its loop on."""
    file = os.environ.get(HEARTBEAT)
    stop = _Heart(Path(file)) if file else threading.Event()
    handle_signals(stop)
    return stop
