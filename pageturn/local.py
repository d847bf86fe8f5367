"""Commands for a loop on one machine: show it, start and stop it, bring it users, report on it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import click

from pageturn.options import FILE, FOLDER, stop_signal

_CONFIGS = Path(__file__).resolve().parents[1] / "feature_configs"
_SIMULATED, _REPLAYED = _CONFIGS / "simulated.yaml", _CONFIGS / "ebnerd.yaml"
_RUN = click.option("--run", "folder", type=FOLDER, help="Folder of the run [default: the newest under runs/].")
_NEW_RUN = click.option("--run", "folder", type=FOLDER, help="Folder of the run [default: runs/<config>-<time>].")
_STORE = click.option(
    "--store", type=click.Choice(["redis", "sqlite"]), help="[default: redis where it is installed, else sqlite]"
)
_DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="EB-NeRD folder [default: ../shared/data/ebnerd, if any]."
)
_UP_S, _DOWN_S = 180.0, 120.0
_UP = "up"  # how the line begins that `up` writes when it is


@click.command()
@_NEW_RUN
@click.option("--config", "config_path", type=FILE, default=_SIMULATED, help="Feature config of the simulated feed.")
@click.option("--minutes", default=3.0, type=click.FloatRange(0.1), help="How long users come.")
@click.option("--seed", default=1, type=click.IntRange(0), help="Of the learner and of the users.")
@click.option("--visits-per-s", default=30.0, type=click.FloatRange(0.1), help="How many users come.")
@_STORE
@_DATA
@click.option("--no-replay", is_flag=True, help="Leave out the replay of the EB-NeRD log.")
def demo(
    folder: Path | None,
    config_path: Path,
    minutes: float,
    seed: int,
    visits_per_s: float,
    store: str | None,
    data: Path | None,
    no_replay: bool,
) -> None:
    """Watch a policy learn.

    A real log through the loop, where it is present; then simulated users, live, and a report.
    """
    from pageturn.demo import check_simulated, run_demo
    from pageturn.replay import excerpt
    from pageturn.run import new_run
    from pipeline.config.reading import load_config

    check_simulated(load_config(config_path))
    run = new_run(folder, config_path, seed=seed, redis=_wants_redis(store))
    replayed = None if no_replay else data or excerpt()
    run_demo(run, stop_signal(), minutes=minutes, visits_per_s=visits_per_s, replayed=replayed, replay_config=_REPLAYED)


@click.command()
@_NEW_RUN
@_DATA
@click.option("--config", "config_path", type=FILE, default=_REPLAYED)
def replay(data: Path | None, folder: Path | None, config_path: Path) -> None:
    """Run a real log through the loop once, or a generated one.

    Through a Beam job, a learner and a publication to a page decided over gRPC.
    """
    from pageturn.replay import run_replay

    run_replay(data, folder, config_path, stop_signal())


@click.command()
@_NEW_RUN
@click.option("--config", "config_path", type=FILE, help="Feature config of a new run [default: the simulated feed's].")
@click.option("--seed", type=click.IntRange(0), help="Of a new run's learner [default: that of the config].")
@_STORE
@click.option("-d", "--detach", is_flag=True, help="Return once it is up; `pageturn down` stops it.")
def up(folder: Path | None, config_path: Path | None, seed: int | None, store: str | None, detach: bool) -> None:
    """Start a loop on this machine.

    Model server, agent, stream, trainer, controller and store; each is started again when it ends. Ctrl-C stops them.
    With the folder of an earlier run it goes on where that one was stopped.
    """
    from pageturn.run import RECORD, new_run, open_run

    if folder is not None and (folder / RECORD).is_file():
        if any(given is not None for given in (config_path, seed, store)):
            message = f"{folder}: is a run already, and goes on with its own config, seed and store; leave these out"
            raise click.UsageError(message)
        run = open_run(folder)
    else:
        run = new_run(folder, config_path or _SIMULATED, seed=seed, redis=_wants_redis(store))
    if detach:
        _detach(run.folder)
        return
    from pageturn.loop import running

    stop = stop_signal()
    with running(run, stop, lambda what: click.echo(f"  {what}")) as supervisor:
        click.echo(f"{_UP}: {run.folder}; deciding pages on {run.agent}")
        supervisor.watch(stop)
    click.echo("down")


@click.command()
@_RUN
def down(folder: Path | None) -> None:
    """Stop a loop on this machine."""
    from pageturn.run import open_run

    run = open_run(folder)
    pid, deadline_s = run.holder, time.monotonic() + _DOWN_S
    if pid is None:
        click.echo(f"{run.folder}: is not up")
        return
    _tell_to_stop(pid)
    while run.holder == pid:
        if time.monotonic() > deadline_s:
            message = f"{run.folder}: process {pid} has not ended after {_DOWN_S:.0f} s; see {run.logs}"
            raise click.ClickException(message)
        time.sleep(0.1)
    click.echo(f"{run.folder}: down")


@click.command()
@_RUN
@click.option("--visits", type=click.IntRange(1), help="How many users come [default: without end].")
@click.option("--minutes", type=click.FloatRange(0), help="How long they come [default: without end].")
@click.option("--until", type=click.FloatRange(0), help="The same, as a Unix time in seconds: for who starts it again.")
@click.option("--visits-per-s", default=30.0, type=click.FloatRange(0.1))
@click.option("--users", type=click.IntRange(1), help="Who take turns [default: 3000].")
@click.option("--seed", type=click.IntRange(0), help="Of the users [default: the seed of the run].")
@click.option(
    "--patience-ms", type=click.IntRange(1), default=250, help="Without an answer a page then shows the feed's order."
)
def simulate(
    folder: Path | None,
    visits: int | None,
    minutes: float | None,
    until: float | None,
    visits_per_s: float,
    users: int | None,
    seed: int | None,
    patience_ms: int,
) -> None:
    """Bring simulated users to a loop that is up.

    When the last has come, those who are there go on to the end of their visits, for a minute at most. Ctrl-C gives
    them four seconds.
    """
    from contextlib import closing

    from pageturn.run import RunError, open_run
    from pageturn.simulating import simulate as run_users
    from pageturn.simulating_news import simulate_news
    from pipeline.simulation.tables import load_items
    from pipeline.simulation.traffic import Flow
    from pipeline.stores.opening import open_store

    if minutes is not None and until is not None:
        message = "expected --minutes or --until, found both"
        raise click.UsageError(message)
    run, stop = open_run(folder), stop_signal()

    def find() -> str:
        """Where the agent is now: a loop that goes down and up gets other ports."""
        now = open_run(run.folder)
        if now.holder is None:
            message = f"{run.folder}: is not up; `pageturn up --run {run.folder}` starts it"
            raise RunError(message)
        return now.agent

    find()
    config = run.config()
    if config.ranking is None:
        with closing(open_store(run.store_url)) as store:
            load_items(config, store)
    seed = run.record.seed if seed is None else seed
    seconds = 60 * minutes if minutes is not None else None if until is None else until - time.time()
    if config.ranking is not None:
        if visits is not None or users is not None:
            message = "--visits and --users are for a feed that is not of news: --visits-per-s says how many come here"
            raise click.UsageError(message)
        limits = {"seconds": seconds, "decide_s": patience_ms / 1000}
        click.echo(simulate_news(config, find, run.traffic, stop, seed=seed, visits_per_s=visits_per_s, **limits))
        return
    flow = Flow(seed=seed, users=users or 3000, visits_per_s=visits_per_s, prefix=f"sim{time.time_ns() // 1_000_000:x}")
    limits = {"visits": visits, "seconds": seconds, "decide_s": patience_ms / 1000}
    click.echo(run_users(config, find, run.traffic, flow, stop, **limits))


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER)
@_RUN
@click.option("--to", type=FOLDER, help="Folder for the comparison [default: the report/ of the first run].")
def report(folders: tuple[Path, ...], folder: Path | None, to: Path | None) -> None:
    """Write the report of a run; with several FOLDERS one that compares their runs."""
    if len(folders) > 1 and folder is None:
        from pageturn.report import write_comparison
        from pageturn.run import open_run

        click.echo(write_comparison([open_run(each) for each in folders], to))
        return
    if (folders and folder is not None) or to is not None:
        message = (
            "expected one run, by --run or as an argument; or several as arguments, to compare, with or without --to"
        )
        raise click.UsageError(message)
    from pageturn.measures import measure
    from pageturn.report import write_report
    from pageturn.run import open_run

    run = open_run(folders[0] if folders else folder)
    click.echo(write_report(run, measure(run)))


def _tell_to_stop(pid: int) -> None:
    """The process that has the run; not one that has come by its number since."""
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"pageturn" not in command.read_bytes():
        message = f"process {pid} is not one of ours; it is left alone"
        raise click.ClickException(message)
    os.kill(pid, signal.SIGTERM)


def _detach(folder: Path) -> None:
    """Returns once the loop is up. Whatever keeps it from that, nothing is left running."""
    from pageturn.processes import pageturn

    log = folder / "logs" / "up.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            pageturn("up", "--run", str(folder)),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        click.echo(_await_line(child, log))
    except BaseException:
        child.terminate()
        child.wait()
        raise


def _await_line(child: subprocess.Popen[bytes], log: Path) -> str:
    """What `up` says when it is."""
    deadline_s = time.monotonic() + _UP_S
    while child.poll() is None and time.monotonic() < deadline_s:
        for line in log.read_text().splitlines():
            if line.startswith(f"{_UP}: "):
                return line
        time.sleep(0.1)
    message = f"it did not come up; {log} says:\n{log.read_text()}"
    raise click.ClickException(message)


def _wants_redis(store: str | None) -> bool:
    from pageturn.loop import redis_is_installed

    if store == "redis" and not redis_is_installed():
        message = "--store redis: expected redis-server on the PATH, found none; install it, or take --store sqlite"
        raise click.ClickException(message)
    return store == "redis" or (store is None and redis_is_installed())
