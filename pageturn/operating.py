"""Commands for people who run a loop: what became of the events, and the switches of a policy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from pageturn.options import options


@click.command()
@options("log", "state")
def counts(log_url: str, state: Path) -> None:
    """Count what became of every event."""
    from pageturn.table import event_rows, render
    from pipeline.logs.opening import open_log
    from pipeline.streaming.counts import count

    with closing(open_log(log_url)) as log:
        done = count(log, state)
    if done.pages and not done.read:
        message = f"{state}: no snapshot of the stream that wrote {log_url}; --state is the folder given to `stream`"
        raise click.ClickException(message)
    click.echo(render(event_rows(done)))


@click.command()
@click.argument("what", type=click.Choice(["off", "on", "freeze", "release", "rollback"]))
@click.argument("policy")
@options("config", "store")
def switch(what: str, policy: str, config_path: Path, store_url: str) -> None:
    """Take a policy off or back, or hold its publishing.

    off: its users get the baseline, within a second or two, until `on`. freeze: no candidate is published until
    `release`. rollback: the version before serves again, frozen; the trainer's own weights are not changed by it.
    """
    from model_export import switches
    from pipeline.config.reading import load_config
    from pipeline.stores.opening import open_store

    feature_config = load_config(config_path)
    learned = feature_config.learned_policies()
    if policy not in learned:
        message = f"{config_path}: no learned policy {policy!r}; expected one of {', '.join(learned)}"
        raise click.ClickException(message)
    prefix, told = feature_config.kv_prefix, what
    with closing(open_store(store_url)) as store:
        if what in ("off", "on"):
            switches.set_off(store, prefix, (policy,), what == "off")
        elif what == "rollback":
            left, now = switches.roll_back(store, prefix, policy)
            told = f"rolled back from version {left.version} to {now.version}, and frozen"
        else:
            (switches.freeze if what == "freeze" else switches.release)(store, prefix, policy)
            told = "frozen" if what == "freeze" else "released"
    click.echo(f"{policy}: {told}")
