"""`pageturn embeddings`: vectors of external tables into the key-value store, and what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageturn.options import FILE, options

if TYPE_CHECKING:
    from pipeline.config.schema import ExternalTable, FeatureConfig
    from pipeline.features.stored_vectors import TableMeta

_SAY_EVERY_S = 10.0
_SIZES = {"float32": 4, "float16": 2}


@click.group()
def embeddings() -> None:
    """Vectors of external embedding tables in the key-value store.

    A table has epochs. Within one vectors never change and ids are only added; retrained vectors are a new epoch,
    loaded beside the one in use and then named in the config.
    """


def _source(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.argument("source", type=click.Path(path_type=Path)),
            options("config", "store"),
            click.option("--table", help="Name under `embeddings` in the config [default: the only external one]."),
            click.option("--epoch", help="[default: the config's]"),
            click.option(
                "--ids", type=FILE, help="Ids of the rows of a .npy file: a .npy of its own, or lines of text."
            ),
            click.option("--id-column", default="id", help="Of a Parquet file."),
            click.option("--vector-column", default="vector", help="Of a Parquet file."),
        )
    ):
        command = option(command)
    return command


@embeddings.command()
@_source
@click.option(
    "--if-missing", is_flag=True, help="Do nothing where the epoch is loaded: to fill an emptied store again."
)
def load(epoch: str | None, if_missing: bool, **given: Any) -> None:
    """Load all vectors of a new epoch from SOURCE: Parquet (a file or a folder), or NumPy (.npy).

    A load that was broken off is finished by the same command. Nothing reads an epoch before the config names it.
    """
    _load(epoch, complete=False, if_missing=if_missing, **given)


@embeddings.command()
@_source
def delta(epoch: str | None, **given: Any) -> None:
    """Add the vectors of new ids from SOURCE to an epoch that is loaded.

    Ids that are there already may be in SOURCE with the same vectors. Agents find new ids within seconds.
    """
    _load(epoch, complete=True, **given)


@embeddings.command()
@options("config", "store")
@click.option("--epoch", help="[default: the config's]")
def stat(config_path: Path, store_url: str, epoch: str | None) -> None:
    """Say what is loaded of each external table."""
    from pageturn.table import render
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import read_table
    from pipeline.stores.opening import open_store

    config = load_config(config_path)
    with closing(open_store(store_url)) as store:
        for name, table in external_tables(config).items():
            shown = epoch or table.epoch
            found = read_table(store, config.kv_prefix, name, shown)
            click.echo(render(_rows(table, found), f"{name}, epoch {shown}") + "\n")


@embeddings.command()
@options("config", "store")
@click.option("--table", help="[default: the only external one]")
@click.option("--epoch", required=True)
def drop(config_path: Path, store_url: str, table: str | None, epoch: str) -> None:
    """Delete an epoch that nothing uses any more.

    The config's own is refused. Versions that were trained on the epoch, to which a rollback may go, need it too, and
    so do agents and trainers that still run with a config that names it.
    """
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import drop_table
    from pipeline.stores.opening import open_store

    config = load_config(config_path)
    name, declared = _chosen(config, table)
    if epoch == declared.epoch:
        message = f"embeddings.{name}: epoch {epoch!r} is the one that {config_path} uses"
        raise click.ClickException(message)
    with closing(open_store(store_url)) as store:
        rows = drop_table(store, config.kv_prefix, name, epoch)
    click.echo(f"{name}, epoch {epoch}: {rows} vectors deleted")


def external_tables(config: FeatureConfig) -> dict[str, ExternalTable]:
    from pipeline.config.schema import ExternalTable

    return {name: table for name, table in config.embeddings.items() if isinstance(table, ExternalTable)}


def _load(
    epoch: str | None,
    *,
    complete: bool,
    source: Path,
    config_path: Path,
    store_url: str,
    table: str | None,
    ids: Path | None,
    id_column: str,
    vector_column: str,
    if_missing: bool = False,
) -> None:
    from pageturn.vector_files import Columns, open_vectors
    from pipeline.config.reading import load_config
    from pipeline.features.stored_vectors import load_portions, read_table
    from pipeline.stores.opening import open_store

    config = load_config(config_path)
    name, declared = _chosen(config, table)
    epoch = epoch or declared.epoch
    with closing(open_store(store_url)) as store:
        found = read_table(store, config.kv_prefix, name, epoch)
        if if_missing and found is not None:
            click.echo(f"{name}, epoch {epoch}: is loaded, {found.rows} vectors")
            return
        _check_epoch(name, epoch, found, complete)
        file = open_vectors(source, ids, Columns(id_column, vector_column), declared.dim, declared.dtype)
        began_s = time.monotonic()
        done = load_portions(store, config.kv_prefix, name, epoch, file.portions, _progress(file.rows))
    took_s = max(time.monotonic() - began_s, 1e-3)
    known = f", {done.known} were there" if done.known else ""
    rate = f"{(done.added + done.known) / took_s:.0f} rows/s"
    click.echo(f"{name}, epoch {epoch}: {done.added} vectors added{known}; {done.meta.rows} in all ({rate})")


def _check_epoch(name: str, epoch: str, found: TableMeta | None, complete: bool) -> None:
    if found is not None and not complete:
        message = (
            f"{name}, epoch {epoch}: is loaded, {found.rows} vectors; `delta` adds to it, a new --epoch replaces it"
        )
        raise click.ClickException(message)
    if found is None and complete:
        message = f"{name}, epoch {epoch}: was never loaded completely; `load` does that"
        raise click.ClickException(message)


def _chosen(config: FeatureConfig, table: str | None) -> tuple[str, ExternalTable]:
    tables = external_tables(config)
    if table is None and len(tables) == 1:
        return next(iter(tables.items()))
    if table is None or table not in tables:
        expected = f"one of {', '.join(tables)}" if tables else "a config with an external table"
        message = f"--table: expected {expected}, found {table or 'none'}"
        raise click.ClickException(message)
    return table, tables[table]


def _rows(table: ExternalTable, found: TableMeta | None) -> Iterator[tuple[str, object]]:
    if found is None:
        yield "vectors", "none, or a load that was broken off"
        return
    held, wanted = f"{found.dim} x {found.dtype}", f"{table.dim} x {table.dtype}"
    yield "vectors", found.rows
    yield "kind", held if held == wanted else f"{held}; the config says {wanted}"
    yield "numbers alone", f"{found.rows * found.dim * _SIZES[found.dtype] / 1e6:.1f} MB"


def _progress(rows: int) -> Callable[[int], None]:
    said_s = time.monotonic()

    def told(done: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= _SAY_EVERY_S:
            said_s = now_s
            click.echo(f"{done} of {rows} rows", err=True)

    return told
