"""Commands for people who run a loop: what became of the events, what is served, and the switches of a policy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pageturn.options import FILE, FOLDER, TARGET, options, stop_signal
from pipeline.errors import PageturnError

if TYPE_CHECKING:
    from model_export.evaluation.evidence import Evidence
    from model_export.status import PolicyStatus
    from pageturn.run import Run
    from pageturn.supervisor import PartEvent
    from pipeline.stores.store import KeyValueStore
    from pipeline.streaming.counts import Counts


def count_events(log_url: str, state: Path) -> Counts:
    """What became of every event."""
    from pipeline.logs.opening import open_log
    from pipeline.streaming.counts import count

    with closing(open_log(log_url)) as log:
        return count(log, state)


@click.command()
@options("log", "state")
def counts(log_url: str, state: Path) -> None:
    """Count what became of every event."""
    from pageturn.table import event_rows, render

    done = count_events(log_url, state)
    if done.pages and not done.read:
        message = f"{state}: no snapshot of the stream that wrote {log_url}; --state is the folder given to `stream`"
        raise click.ClickException(message)
    click.echo(render(event_rows(done)))


@click.command()
@options("run")
@click.option("--config", "config_path", type=FILE, help="Feature config (YAML); with --store and --models, no run.")
@click.option("--store", "store_url", help="Key-value store: sqlite:///file or redis://...")
@click.option("--models", type=FOLDER, help="Model volume that the servers read.")
@click.option("--server", "servers", multiple=True, type=TARGET, help="HOST:PORT of each model server to ask.")
def status(
    folder: Path | None, config_path: Path | None, store_url: str | None, models: Path | None, servers: tuple[str, ...]
) -> None:
    """Say what is served for each policy, who uses it, and what was last decided about a candidate.

    Of a run on this machine also which of its parts are up.
    """
    if config_path is not None and store_url is not None and models is not None:
        _say_policies(config_path, store_url, models, servers)
        return
    if any(given is not None for given in (config_path, store_url, models)):
        message = "expected --config, --store and --models together, or --run"
        raise click.UsageError(message)
    from pageturn.run import open_run

    run = open_run(folder)
    click.echo(f"{run.folder}\n")
    if _say_parts(run):
        _say_policies(run.config_path, run.store_url, run.models, (run.server,))


def _say_parts(run: Run) -> bool:
    """Whether the run is up."""
    from pageturn.supervisor import read_journal
    from pageturn.table import render

    up = run.holder is not None
    parts: dict[str, list[PartEvent]] = {}
    for event in read_journal(run.journal):
        parts.setdefault(event.part, []).append(event)
    rows = [(name, _part_state(events), f"started {_starts(events)} times") for name, events in parts.items()]
    where = f"up; pages are decided on {run.agent}"
    click.echo(render(rows, where if up else "down") + "\n")
    return up


def _part_state(events: list[PartEvent]) -> str:
    last = events[-1]
    return f"pid {last.pid}" if last.event == "started" else f"ended with status {last.status}"


def _starts(events: list[PartEvent]) -> int:
    return sum(event.event == "started" for event in events)


def _say_policies(config_path: Path, store_url: str, models: Path, servers: tuple[str, ...]) -> None:
    from model_export.status import status as look
    from pageturn.table import render
    from pipeline.config.reading import load_config
    from pipeline.serving.client import ModelServer
    from pipeline.stores.opening import open_store

    feature_config = load_config(config_path)
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(store_url)))
        clients = [stack.enter_context(ModelServer(target)) for target in servers]
        found = look(feature_config, store, clients, models, now_ms=time.time_ns() // 1_000_000)
    for policy in found.policies:
        click.echo(render(_policy_rows(policy), f"{policy.policy} ({policy.model_name})") + "\n")


def _policy_rows(policy: PolicyStatus) -> Iterator[tuple[str, str]]:
    pointer, verdict = policy.pointer, policy.last_verdict
    holds = (("off", pointer.off), ("frozen", pointer.frozen and not pointer.pinned), ("pinned", pointer.pinned))
    held = [name for name, is_so in holds if is_so]
    served = "nothing: not bootstrapped" if pointer.stable is None else f"version {pointer.stable.version}"
    yield "serves", ", ".join([served, *held])
    if pointer.canary is not None:
        share = f"on {pointer.share:.0%} of its buckets, used by {policy.trying} agents"
        yield "tries", f"version {pointer.canary.version}, {share}"
    yield "used by", ", ".join(f"{n} agents: version {v}" for v, n in policy.agents.items()) or "no agent"
    yield "loaded", ", ".join(f"{entry.version} ({entry.role})" for entry in policy.loaded) or "nothing"
    for server in policy.servers:
        states = ", ".join(f"{version} {state}" for version, state in server.versions.items())
        yield server.target, server.trouble or states or "does not know the model"
    if verdict is not None:
        because = f": {verdict.detail}" if verdict.detail else ""
        yield "last verdict", f"{verdict.outcome} candidate {verdict.candidate}{because}"
    if policy.evidence is not None:
        yield "evidence", _standing(policy.evidence)


def _standing(found: Evidence) -> str:
    """Of the open epoch, against the baseline."""
    units = f"epoch {found.epoch}, {found.policy.units} units against {found.baseline.units}"
    difference = found.difference
    if difference.mean is None or difference.low is None or difference.high is None:
        return f"{units}: nothing yet"
    bounds = f"{difference.mean:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}] per unit"
    if found.totals is not None:
        in_all = found.totals.difference
        bounds += f", by all that the slots bring {in_all.mean:+.3g} [{in_all.low:+.3g}, {in_all.high:+.3g}]"
    return f"{units}: {bounds}; {found.conclusion.replace('_', ' ')} ({found.reason.replace('_', ' ')})"


@click.command()
@options("run")
@click.option("--port", default=8700, type=click.IntRange(0, 65535), help="0 takes a free one.")
def dashboard(folder: Path | None, port: int) -> None:
    """Watch a run in a browser, live, on this machine."""
    from pageturn.dashboard.live import Live
    from pageturn.dashboard.server import serving
    from pageturn.run import open_run

    run, stop = open_run(folder), stop_signal()
    with serving(Live(run), port) as bound:
        click.echo(f"{run.folder}: http://127.0.0.1:{bound}/  (Ctrl-C ends)")
        stop.wait()


@click.command()
@click.argument("what", type=click.Choice(["off", "on", "freeze", "pin", "release", "rollback"]))
@click.argument("policies", metavar="[POLICY]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="All learned policies of the config.")
@options("run")
@click.option("--config", "config_path", type=FILE, help="Feature config (YAML); with --store, no run.")
@click.option("--store", "store_url", help="Key-value store: sqlite:///file or redis://...")
@click.option(
    "--to",
    "version",
    type=click.IntRange(1),
    help="rollback: to this version [default: the one before]; pin: this one [default: the one in use].",
)
@click.option("--as-it-is", is_flag=True, help="release: also what a trainer makes that could not go back.")
def switch(
    what: str,
    policies: tuple[str, ...],
    everyone: bool,
    folder: Path | None,
    config_path: Path | None,
    store_url: str | None,
    version: int | None,
    as_it_is: bool,
) -> None:
    """Take policies off or back, or hold their publishing.

    off: a policy's users get the baseline, within a second or two, until `on`. freeze: no candidate is published until
    `release`. pin: a version serves, and no other until `release`, whatever is found out about it; the trainer goes on,
    and what it makes is checked and kept. rollback: an earlier version serves again, frozen, and the trainer goes on
    from what it was when it made that one; nothing that it made since is published any more.
    """
    given = (("--to", ("rollback", "pin"), version is not None), ("--as-it-is", ("release",), as_it_is))
    for option, belongs, is_given in given:
        if is_given and what not in belongs:
            message = f"{option} belongs to {' and '.join(belongs)}, found {what}"
            raise click.UsageError(message)
    if everyone == bool(policies):
        message = f"expected policies or --all, found {'both' if everyone else 'neither'}"
        raise click.UsageError(message)
    if version is not None and (everyone or len(policies) > 1):
        message = "--to: versions are counted policy by policy; expected one policy"
        raise click.UsageError(message)
    from pipeline.config.reading import load_config
    from pipeline.stores.opening import open_store

    config_path, store_url = _whose(folder, config_path, store_url)
    feature_config = load_config(config_path)
    learned = feature_config.learned_policies()
    for policy in policies:
        if policy not in learned:
            message = f"{config_path}: no learned policy {policy!r}; expected one of {', '.join(learned)}"
            raise click.ClickException(message)
    failed: list[PageturnError] = []
    with closing(open_store(store_url)) as store:
        for policy in learned if everyone else policies:
            try:
                click.echo(f"{policy}: {_switched(store, feature_config.kv_prefix, what, policy, version, as_it_is)}")
            except PageturnError as error:  # the others are switched all the same
                failed.append(error)
    if failed:
        raise click.ClickException("\n".join(map(str, failed)))


def _switched(store: KeyValueStore, prefix: str, what: str, policy: str, version: int | None, as_it_is: bool) -> str:
    """What was done to it. Raises: SwitchError, StoreError."""
    from model_export import switches

    if what in ("off", "on"):
        switches.set_off(store, prefix, (policy,), what == "off")
        return what
    if what == "rollback":
        left, now = switches.roll_back(store, prefix, policy, version)
        return f"rolled back from version {left.version} to {now.version}, and frozen; its trainer goes back, too"
    if what == "pin":
        return f"pinned to version {switches.pin(store, prefix, policy, version).version}"
    if what == "freeze":
        switches.freeze(store, prefix, policy)
        return "frozen"
    switches.release(store, prefix, policy, as_it_is=as_it_is)
    return "released"


def _whose(folder: Path | None, config_path: Path | None, store_url: str | None) -> tuple[Path, str]:
    """The config and the store of a run, or those that are named. The store of a run is there while it is up."""
    if folder is None and config_path is not None and store_url is not None:
        return config_path, store_url
    if config_path is not None or store_url is not None:
        message = "expected --config and --store together, or --run"
        raise click.UsageError(message)
    from pageturn.run import RunError, open_run

    run = open_run(folder)
    if run.holder is None:
        message = f"{run.folder}: is not up; `pageturn up --run {run.folder}` starts it"
        raise RunError(message)
    return run.config_path, run.store_url
