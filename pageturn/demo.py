"""The loop on show: a real log through it once, then simulated users, live, and a report."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import click

from pageturn.loop import running
from pageturn.processes import ProcessError, Stopped, pageturn
from pageturn.progress import Progress
from pageturn.replay import run_replay
from pageturn.run import Run
from pageturn.supervisor import Part
from pipeline.config.schema import FeatureConfig
from pipeline.simulation.news import asking
from pipeline.simulation.news.params import Params
from pipeline.simulation.params import World

_USERS = "traffic"
_OVERTIME_S = 120.0  # for the last visits and their events: twice what `simulate` gives them


def run_demo(
    run: Run,
    stop: threading.Event,
    *,
    minutes: float,
    visits_per_s: float,
    replayed: Path | None,
    replay_config: Path,
    every_s: float = 10.0,
) -> None:
    """`replayed`: the folder of the real log, if there is one. Raises: ProcessError, Stopped."""
    began = time.monotonic()
    click.echo(f"Everything this demo makes is in {run.folder}\n")
    if replayed is not None:
        click.echo("A real log through the loop, once:")
        run_replay(replayed, run.replay, replay_config, stop)
        click.echo()
    click.echo(f"Simulated users on a live loop, for {minutes:g} minutes:")
    _live(run, stop, minutes, visits_per_s, every_s)
    _conclude(run, time.monotonic() - began)


def _live(run: Run, stop: threading.Event, minutes: float, visits_per_s: float, every_s: float) -> None:
    """Until the last user has left: a visit that is broken off counts for no bucket, and long ones would be."""
    with running(run, stop, lambda what: click.echo(f"  {what}")) as supervisor:
        supervisor.add(_users(run, time.time() + 60 * minutes, visits_per_s))
        began = time.monotonic()
        progress = Progress(run)
        while not supervisor.is_done(_USERS):
            if supervisor.watch(stop, every_s, lambda: supervisor.is_done(_USERS)):
                message = f"stopped; `pageturn report --run {run.folder}` reports on what there is"
                raise Stopped(message)
            supervisor.check_settled()
            click.echo(f"  {_clock(time.monotonic() - began)}  {progress.line()}")
            if time.monotonic() - began > 60 * minutes + _OVERTIME_S:  # a machine that is too slow for so many users
                click.echo("  Some users have not left; their visits are broken off. Let fewer come per second.")
                break


def check_simulated(config: FeatureConfig) -> None:
    """Raises SimulationError where there are no simulated users for a config."""
    if config.ranking is not None:
        asking.check(config, Params())
    else:
        World.of(config)


def _users(run: Run, until_s: float, visits_per_s: float) -> Part:
    """Started again after a kill, they still come until then."""
    words = ("--run", str(run.folder), "--visits-per-s", str(visits_per_s), "--until", f"{until_s:.3f}")
    return Part(_USERS, pageturn("simulate", *words), has_end=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _conclude(run: Run, seconds: float) -> None:
    """The table and the report. Raises ProcessError where the run proves nothing, or has lost something."""
    from pageturn.measures import measure, rows
    from pageturn.report import write_report
    from pageturn.table import render

    measures = measure(run)
    click.echo("\n" + render(rows(measures), f"The live loop; in all {seconds:.0f} s"))
    click.echo(f"\nReport: {write_report(run, measures)}")
    if measures.comparison is None:
        message = f"no user came to the end of a visit; see {run.logs / _USERS}.log"
        raise ProcessError(message)
    if measures.accounting and measures.accounting.missing:
        message = (
            f"{measures.accounting.missing} acknowledged events are nowhere; keep {run.folder}, it is a defect of ours"
        )
        raise ProcessError(message)
