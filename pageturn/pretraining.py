"""`pageturn pretrain`: what `pageturn train` starts from instead of nothing."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path

import click

from pageturn.options import options, stop_signal

_VECTORS_IN_MEMORY = 1_000_000
_LOG = logging.getLogger("pageturn")


@click.command()
@options("config", "log", "store", "state")
@click.option(
    "--returns",
    default="td",
    type=click.Choice(["td", "mc"]),
    help="What V is regressed on: reward and next value of transitions, or what episodes brought from a page on.",
)
@click.option(
    "--updates-per-transition",
    type=click.FloatRange(0, min_open=True),
    help="Instead of the config's.",
)
def pretrain(
    config_path: Path, log_url: str, store_url: str, state: Path, returns: str, updates_per_transition: float | None
) -> None:
    """Learn the state tower and V from the baseline's pages in a log.

    Into an empty --state, which `pageturn train` then starts from, with this log or another. Policies are not touched:
    they start exactly at the baseline.
    """
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import StoredVectors
    from pipeline.stores.opening import open_store

    feature_config, stop = load_config(config_path), stop_signal()
    with closing(open_store(store_url)) as store:
        from pipeline.learning.pretraining import pretrain as run  # TensorFlow, after the rest was checked

        vectors = StoredVectors(store, feature_config.kv_prefix, capacity=_VECTORS_IN_MEMORY, monotonic=time.monotonic)
        _LOG.info("learning V from %s", log_url)
        done = run(
            feature_config, log_url, state,
            returns=returns, updates_per_transition=updates_per_transition, vectors=vectors, stop=stop,
        )  # fmt: skip
    loss, value = (done.losses[name] for name in ("value_loss", "value_covered"))
    pages = f"{done.progress.ingested} pages, {done.progress.updates} updates"
    click.echo(f"{state}: V from {pages}; its mean is {value:.4g}, its loss {loss:.4g}")
