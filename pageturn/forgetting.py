"""`pageturn forget`: takes users out of the archive. Topics forget by their retention; see docs/operations.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pageturn.options import FOLDER
from pipeline.durable import sync
from pipeline.errors import PageturnError

if TYPE_CHECKING:
    import pyarrow as pa


class ForgetError(PageturnError):
    """A folder is no archive, or a file of it cannot be read."""


class _Who(msgspec.Struct):
    user_id: str = ""


@click.command()
@click.option("--archive", "directory", type=FOLDER, required=True, help="Folder that `pageturn archive` writes to.")
@click.option("--user", "users", multiple=True, required=True, help="A user_id; may be given several times.")
def forget(directory: Path, users: tuple[str, ...]) -> None:
    """Take users out of the archive.

    Every row of theirs, of every table, raw events included. The archiver may run meanwhile.
    """
    removed = forget_users(directory, users)
    for table, rows in sorted(removed.items()):
        click.echo(f"{table}: {rows} rows removed")
    if not removed.total():
        click.echo(f"{directory}: has nothing of {'this user' if len(users) == 1 else 'these users'}")


def forget_users(directory: Path, users: Sequence[str]) -> Counter[str]:
    """Rows removed, by table. Each file is replaced as a whole: a reader finds the old one or the new one."""
    files = sorted(path for path in directory.glob("*/**/*.parquet") if ".staging" not in path.parts)
    if not files:
        message = (
            f"{directory}: expected the folder of an archive, with <table>/date=.../hour=.../*.parquet; found none"
        )
        raise ForgetError(message)
    removed: Counter[str] = Counter()
    for path in files:
        removed[path.relative_to(directory).parts[0]] += _rewrite(path, set(users))
    return +removed


def _rewrite(path: Path, users: set[str]) -> int:
    """A file that loses all rows stays, empty: the archiver knows it by its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        message = f"{path}: cannot be read: {error}"
        raise ForgetError(message) from error
    theirs = _of_users(table, users)
    if not any(theirs):
        return 0
    aside = path.with_name(f".tmp-{path.name}.forgetting")
    pq.write_table(table.filter(pa.array([not each for each in theirs])), aside, compression="zstd")
    _replace(aside, path)
    return sum(theirs)


def _of_users(table: pa.Table, users: set[str]) -> list[bool]:
    if "user_id" in table.column_names:
        return [user in users for user in table.column("user_id").to_pylist()]
    return [_names(payload, users) for payload in table.column("payload").to_pylist()]


def _names(payload: bytes, users: set[str]) -> bool:
    """Also of bytes that are no event: whatever holds the id in quotes may be of the user."""
    try:
        return msgspec.json.decode(payload, type=_Who).user_id in users
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return any(msgspec.json.encode(user) in payload for user in users)


def _replace(aside: Path, path: Path) -> None:
    sync(aside)
    aside.replace(path)
    sync(path.parent)
