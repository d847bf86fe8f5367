"""`pageturn evaluate`: what a version would have brought, from what the policy's versions so far have logged."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import click

from pageturn.options import TARGET, options


@click.command()
@click.argument("policy")
@options("config", "log", "store")
@click.option("--server", type=TARGET, required=True, help="HOST:PORT of a model server that has the version loaded.")
@options("server_tls")
@click.option("--version", type=click.IntRange(1), help="To evaluate [default: the one that is served].")
@click.option("--sessions", default=2_000, type=click.IntRange(2), help="How many of the newest to look at.")
@click.option(
    "--episodes",
    default=200_000,
    type=click.IntRange(1),
    help="How many of the newest on the log, of all policies, to look through for them.",
)
@click.option("--held-out", is_flag=True, help="Only sessions that nothing is learned from (algorithm.holdout).")
def evaluate(
    policy: str,
    config_path: Path,
    log_url: str,
    store_url: str,
    server: str,
    server_tls: Path | None,
    version: int | None,
    sessions: int,
    episodes: int,
    held_out: bool,
) -> None:
    """Say what a version of POLICY would have brought, from sessions that other versions of it decided.

    Exploration makes that possible: each logged action has a density. Read the effective sample size first.
    """
    from pageturn.table import render
    from pageturn.valued import check, look_back, rows, warnings
    from pipeline.config.reading import load_config
    from pipeline.logs.opening import open_log
    from pipeline.serving.client import ModelServer
    from pipeline.serving.tls import client_credentials
    from pipeline.stores.opening import open_store

    config = load_config(config_path)
    check(config, policy, held_out)
    with ExitStack() as stack:
        log = stack.enter_context(closing(open_log(log_url)))
        store = stack.enter_context(closing(open_store(store_url)))
        credentials = client_credentials(server_tls) if server_tls else None
        client = stack.enter_context(ModelServer(server, credentials=credentials))
        found = look_back(config, log, store, client, policy, version, count=sessions, most=episodes, held_out=held_out)
    click.echo(render(rows(found), f"{policy} version {found.version}, from {found.sessions_said}"))
    for warning in warnings(found):
        click.echo(f"warning: {warning}")
