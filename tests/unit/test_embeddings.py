"""`pageturn embeddings`: from files into the store, as users call it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pageturn.__main__ import main
from pipeline.features.stored_vectors import StoredVectors, TableMeta, read_table
from pipeline.stores.opening import open_store
from pipeline.stores.store import KeyValueStore

CONFIG = Path(__file__).resolve().parents[2] / "feature_configs" / "guess_you_like.yaml"  # table shop, 32 floats, e1
RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((45, 32)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyValueStore]:
    with closing(open_store(f"sqlite://{tmp_path}/store.sqlite")) as store:
        yield store


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same vectors in all forms."""
    np.save(tmp_path / "vectors.npy", MATRIX)
    np.save(tmp_path / "ids.npy", np.arange(45))
    (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in range(45)))
    write(tmp_path / "fixed.parquet", range(45), pa.FixedSizeListArray.from_arrays(MATRIX.ravel(), 32))
    write(tmp_path / "lists.parquet", map(str, range(45)), pa.array(MATRIX.astype(float).tolist()))
    return tmp_path


def write(path: Path, ids, vectors: pa.Array) -> None:
    pq.write_table(pa.table({"id": pa.array(list(ids)), "vector": vectors}), path, row_group_size=20)


def run(folder: Path, line: str, *, config: Path = CONFIG) -> Result:
    words = [word.replace("@", str(folder)) for word in line.split()]
    result = CliRunner().invoke(
        main, ["embeddings", *words, "--config", str(config), "--store", f"sqlite://{folder}/store.sqlite"]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def held(store: KeyValueStore, epoch: str = "e1", count: int = 45) -> list[bytes | None]:
    stored = StoredVectors(store, "gyl", capacity=100, monotonic=lambda: 0.0)
    return stored.vectors("shop", epoch, [str(i) for i in range(count)])


@pytest.mark.parametrize(
    "source",
    ["@/vectors.npy --ids @/ids.npy", "@/vectors.npy --ids @/ids.txt", "@/fixed.parquet", "@/lists.parquet"],
)
def test_every_form_gives_the_same_vectors(files: Path, store: KeyValueStore, monkeypatch, source: str):
    monkeypatch.setattr("pageturn.vector_files._ROWS", 10)  # portions
    result = run(files, f"load {source}")
    assert "shop, epoch e1: 45 vectors added; 45 in all" in result.output
    assert held(store) == [row.tobytes() for row in MATRIX]
    assert read_table(store, "gyl", "shop", "e1") == TableMeta(32, "float32", 45)


def test_a_delta_adds_what_is_new(files: Path, store: KeyValueStore):
    run(files, "load @/fixed.parquet")
    more = np.vstack([MATRIX[40:], RNG.standard_normal((3, 32))]).astype(np.float32)
    write(files / "more.parquet", range(40, 48), pa.FixedSizeListArray.from_arrays(more.ravel(), 32))
    assert "3 vectors added, 5 were there; 48 in all" in run(files, "delta @/more.parquet").output
    assert held(store, count=48)[40:] == [row.tobytes() for row in more]


def test_a_load_that_was_broken_off_is_finished_by_doing_it_again(files: Path, store: KeyValueStore, monkeypatch):
    monkeypatch.setattr("pageturn.vector_files._ROWS", 10)
    broken = MATRIX.copy()
    broken[35, 3] = np.nan
    np.save(files / "broken.npy", broken)
    result = run(files, "load @/broken.npy --ids @/ids.npy")
    assert (result.exit_code, read_table(store, "gyl", "shop", "e1")) == (1, None)
    assert "expected finite numbers" in result.output
    assert held(store).count(None) == 15
    assert "none, or a load that was broken off" in run(files, "stat").output
    assert "never loaded completely" in run(files, "delta @/fixed.parquet").output
    assert "15 vectors added, 30 were there; 45 in all" in run(files, "load @/vectors.npy --ids @/ids.npy").output


def test_a_job_that_fills_an_emptied_store_does_nothing_else(files: Path, store: KeyValueStore):
    for said in ("45 vectors added", "is loaded, 45 vectors", "is loaded, 45 vectors"):
        result = run(files, "load @/fixed.parquet --if-missing")
        assert (result.exit_code, said in result.output) == (0, True), result.output
    store.delete_prefix("gyl:")
    assert "45 vectors added" in run(files, "load @/fixed.parquet --if-missing").output


def test_an_epoch_is_kept_apart_and_dropped_alone(files: Path, store: KeyValueStore):
    run(files, "load @/fixed.parquet")
    np.save(files / "retrained.npy", MATRIX + 1)
    run(files, "load @/retrained.npy --ids @/ids.npy --epoch e2")
    assert held(store, "e2") == [row.tobytes() for row in MATRIX + 1]
    output = run(files, "stat").output
    assert re.search(r"shop, epoch e1\n-+\nvectors +45\nkind +32 x float32\nnumbers alone +0.0 MB", output), output
    assert "epoch 'e1' is the one that" in run(files, "drop --epoch e1").output
    assert "epoch e2: 45 vectors deleted" in run(files, "drop --epoch e2").output
    assert (held(store).count(None), held(store, "e2").count(None)) == (0, 45)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("load @/vectors.npy", "expected --ids FILE"),
        ("load @/fixed.parquet --ids @/ids.npy", "--ids is for .npy files"),
        ("load @/vectors.npy --ids @/short.txt", r"vectors.npy: expected \[2, 32\] floats.*found \[45, 32\] float32"),
        ("load @/narrow.npy --ids @/ids.npy", r"expected \[45, 32\] floats.*found \[45, 8\] float32"),
        ("load @/vectors.npy --ids @/twice.txt", "expected distinct ids, found 45 of which 1 repeat others"),
        ("load @/twice.parquet", "expected distinct ids, found 45 of which 1 repeat others"),
        ("load @/objects.npy --ids @/ids.npy", "without Python objects"),
        ("load @/ids.txt", "expected Parquet with the columns 'id' and 'vector'"),
        ("load @/absent.parquet", "expected Parquet"),
        ("load @/fixed.parquet --id-column shop", "columns 'shop' and 'vector'"),
        ("load @/fixed.parquet --vector-column id", "column 'id': expected lists of floats, found int64"),
        ("load @/fixed.parquet --id-column vector", "column 'vector': expected integers or text"),
        ("load @/ragged.parquet", "expected an id and 32 numbers in every row"),
        ("load @/fixed.parquet --table city", "--table: expected one of shop, found city"),
        ("delta @/fixed.parquet --epoch e7", "epoch e7: was never loaded completely"),
    ],
)
def test_a_mistake_is_named_and_loads_nothing(files: Path, store: KeyValueStore, line: str, message: str):
    (files / "short.txt").write_text("1\n2\n")
    (files / "twice.txt").write_text("".join(f"{max(i, 1)}\n" for i in range(45)))
    np.save(files / "narrow.npy", MATRIX[:, :8])
    np.save(files / "objects.npy", np.array([{}], object))
    write(files / "twice.parquet", [max(i, 1) for i in range(45)], pa.array(MATRIX.tolist()))
    write(files / "ragged.parquet", range(45), pa.array([[1.0], *MATRIX.tolist()[1:]]))
    result = run(files, line)
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert re.search(message, result.output), result.output
    assert held(store).count(None) == 45


def test_what_is_loaded_is_not_loaded_again_nor_changed(files: Path, store: KeyValueStore):
    run(files, "load @/fixed.parquet")
    assert "is loaded, 45 vectors; `delta` adds to it" in run(files, "load @/fixed.parquet").output
    np.save(files / "other.npy", MATRIX + 1)
    assert "holds another vector" in run(files, "delta @/other.npy --ids @/ids.npy").output
    assert held(store) == [row.tobytes() for row in MATRIX]
