"""`python -m cluster up`, `down`, `hold`, `release`, `drill`; `make up` and `make down` call it.

The overlay `prod-flink` of the manifests as processes of this machine: the same commands, environments, ConfigMaps,
certificates, topics and rights. Other than in a cluster: one of each, addresses and ports on the loopback, volumes in
folders, the feed of the simulated users, no jobs of the clock, and the stand-in where no tensorflow_model_server is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from cluster import drill as drills
from cluster import holding, leftovers
from cluster.record import ShapeError, read_record
from cluster.shape import ROOT, Wanted, running
from pageturn.options import FILE, FOLDER, Commands, stop_signal
from pipeline import durable

_UP, _UP_S, _DOWN_S = "up: ", 900.0, 600.0
_LOOK_S = 0.2
_FOLDER = click.option("--folder", type=FOLDER, default=ROOT / ".cluster" / "up", help="Where all of it is kept.")


@click.group(cls=Commands, context_settings={"show_default": True})
def main() -> None:
    """The production shape on this machine."""


@main.command()
@_FOLDER
@click.option("--overlay", default="prod-flink", help="Of k8s/overlays; with kafka, tls and monitoring.")
@click.option("--config", type=FILE, default=ROOT / "feature_configs" / "simulated.yaml", help="Of a feed to simulate.")
@click.option("--factor", default=0.02, type=click.FloatRange(0.001, 1), help="On what alerts wait until they fire.")
@click.option("--visits-per-s", default=5.0, type=click.FloatRange(0.1), help="How many users come.")
@click.option("--foreground", is_flag=True, help="Stay, until Ctrl-C.")
def up(folder: Path, overlay: str, config: Path, factor: float, visits_per_s: float, foreground: bool) -> None:
    """Start it; return once users turn pages."""
    folder = folder.resolve()
    if foreground:
        _stay(folder, Wanted(overlay, config, factor, visits_per_s))
        return
    if durable.holder(folder) is not None:
        message = f"{folder}: is up already; `make down` ends it"
        raise ShapeError(message)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["--overlay", overlay, "--config", config, "--factor", factor, "--visits-per-s", visits_per_s]
    click.echo(_launched(folder, ["up", "--foreground", "--folder", str(folder), *map(str, words)]))


def _stay(folder: Path, wanted: Wanted) -> None:
    stop = stop_signal()
    with running(folder, wanted, stop, click.echo) as (supervisor, record):
        click.echo(f"{_UP}{folder}; Prometheus at http://127.0.0.1:{record.prometheus}, pages at {record.agent}")
        held = holding.Follower(folder, supervisor)
        while not supervisor.watch(stop, _LOOK_S):
            held.look()


def _launched(folder: Path, words: list[str]) -> str:
    """The line that says that it is up. Whatever keeps it from that, nothing is left running."""
    log = folder / "up.log"
    command = [sys.executable, "-u", "-m", "cluster", *words]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return _line(child, log)
    except BaseException:
        child.terminate()
        child.wait()
        leftovers.end(folder)
        raise


def _line(child: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s, said = time.monotonic() + _UP_S, 0
    while time.monotonic() < deadline_s:
        ended, lines = child.poll() is not None, log.read_text().splitlines()
        for line in lines[said:]:
            if line.startswith(_UP):
                return line
            click.echo(f"  {line}")
        said = len(lines)
        if ended:
            break
        time.sleep(_LOOK_S)
    message = f"it did not come up; its folder is {log.parent}"
    raise ShapeError(message)


@main.command()
@_FOLDER
@click.option("--keep", is_flag=True, help="Leave the folder, with its logs.")
def down(folder: Path, keep: bool) -> None:
    """End it, and leave nothing behind."""
    folder = folder.resolve()
    pid, deadline_s = durable.holder(folder), time.monotonic() + _DOWN_S
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
    while durable.holder(folder) is not None and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    leftovers.end(folder)
    while leftovers.left(folder) and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo("down; nothing of it is left" if not leftovers.left(folder) else f"left: {leftovers.left(folder)}")


@main.command()
@_FOLDER
@click.argument("part")
def hold(folder: Path, part: str) -> None:
    """Stop PART, and do not start it again until `release`."""
    holding.hold(folder.resolve(), part)


@main.command()
@_FOLDER
@click.argument("part")
def release(folder: Path, part: str) -> None:
    """Start PART again."""
    holding.release(folder.resolve(), part)


@main.command()
@_FOLDER
def drill(folder: Path) -> None:
    """Stop the trainer, see its alert fire, start it, see it resolved."""
    folder = folder.resolve()
    drills.run(folder, read_record(folder), click.echo)


if __name__ == "__main__":
    main()
