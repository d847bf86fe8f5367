"""Users are taken out of the archive, wholly, and nobody else is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks.events import simulated
from pageturn.__main__ import main
from pageturn.forgetting import ForgetError, forget_users
from pipeline.config.reading import load_config
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, Entry
from pipeline.streaming.archiver import archive
from pipeline.streaming.run import run_stream
from tests.conftest import ROOT

TABLES = {"events", "samples", "transitions", "episodes"}


@pytest.fixture
def archived(tmp_path: Path) -> Path:
    with closing(FileLog(tmp_path / "log")) as log:
        log.create(EVENTS, 2)
        log.append(EVENTS, [*simulated(20), Entry("k", b'{"user_id": "torn'), Entry("k", b'{"user_id": "whole"} {')])
    url, stop = f"file://{tmp_path}/log", threading.Event()
    run_stream(
        load_config(ROOT / "feature_configs" / "simulated.yaml"), url, tmp_path / "s", until_idle=True, stop=stop
    )
    archive(url, tmp_path / "archive", until_idle=True, stop=stop)
    return tmp_path / "archive"


def rows(directory: Path) -> Iterator[tuple[str, str]]:
    """(table, row as text), in order."""
    for path in sorted(directory.glob("*/**/*.parquet")):
        for row in pq.ParquetFile(path).read().to_pylist():
            yield path.relative_to(directory).parts[0], repr(row)


def test_every_row_of_the_user_goes_and_no_other(archived: Path) -> None:
    before = list(rows(archived))
    files = set(archived.rglob("*"))
    [user, *_] = sorted(
        {p["user_id"] for f in archived.glob("samples/**/*.parquet") for p in pq.read_table(f).to_pylist()}
    )
    theirs = [row for row in before if f'"user_id":"{user}"' in row[1] or f"'user_id': '{user}'" in row[1]]
    assert {table for table, _ in theirs} == TABLES
    removed = forget_users(archived, [user])
    assert removed == {table: sum(t == table for t, _ in theirs) for table in TABLES}
    assert list(rows(archived)) == [row for row in before if row not in theirs]
    assert set(archived.rglob("*")) == files
    assert user not in "".join(row for _, row in rows(archived))
    assert forget_users(archived, [user]) == {}


def test_damaged_bytes_with_the_id_go_too(archived: Path) -> None:
    assert forget_users(archived, ["whole"])["events"] == 1
    assert forget_users(archived, ["nobody"]) == {}


def test_the_archiver_goes_on_with_what_is_left(archived: Path) -> None:
    forget_users(archived, ["whole"])
    count = len(list(rows(archived)))
    assert archive(f"file://{archived.parent}/log", archived, until_idle=True, stop=threading.Event()) == 0
    assert len(list(rows(archived))) == count


def test_a_folder_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForgetError, match="expected the folder of an archive"):
        forget_users(tmp_path, ["u"])


def test_the_command_says_what_it_did(archived: Path) -> None:
    def said(user: str) -> str:
        done = CliRunner().invoke(main, ["forget", "--archive", str(archived), "--user", user])
        assert done.exit_code == 0, done.output
        return done.output

    assert said("whole") == "events: 1 rows removed\n"
    assert said("whole") == f"{archived}: has nothing of this user\n"
