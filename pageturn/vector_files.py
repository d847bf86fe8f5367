"""Item vectors in files, a portion at a time: Parquet with a column of ids and one of lists, or NumPy with ids beside.

vectors.parquet                           columns `id` (integers or text) and `vector` (lists of numbers)
vectors.npy --ids ids.npy | ids.txt       [n, dim], and one id for each row; in text one in each line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.features.stored_vectors import Portion, VectorError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 20_000  # of a portion


class Columns(NamedTuple):
    ids: str = "id"
    vectors: str = "vector"


class VectorFile(NamedTuple):
    rows: int
    portions: Iterator[Portion]


def open_vectors(path: Path, ids: Path | None, columns: Columns, dim: int, dtype: str) -> VectorFile:
    """All that can be seen without reading the vectors is checked here. Raises: VectorError."""
    if path.suffix == ".npy":
        if ids is None:
            msg = f"{path}: expected --ids FILE with an id for each row, found none"
            raise VectorError(msg)
        return _from_numpy(path, ids, dim, dtype)
    if ids is not None:
        msg = f"{path}: --ids is for .npy files; a Parquet file has its ids in column {columns.ids!r}"
        raise VectorError(msg)
    return _from_parquet(path, columns, dim, dtype)


# NumPy -------------------------------------------------------------------------------------------------------------


def _from_numpy(path: Path, ids_path: Path, dim: int, dtype: str) -> VectorFile:
    matrix, ids = _array(path), _ids(ids_path)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.shape != (len(ids), dim):
        found = f"{list(matrix.shape)} {matrix.dtype}"
        msg = f"{path}: expected [{len(ids)}, {dim}] floats, a row for each id of {ids_path}; found {found}"
        raise VectorError(msg)
    _check_distinct(ids_path, len(ids), len(set(ids)))
    starts = range(0, len(ids), _ROWS)
    return VectorFile(len(ids), (_portion(ids[i : i + _ROWS], matrix[i : i + _ROWS], dtype) for i in starts))


def _array(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"{path}: expected an array as NumPy saves it, without Python objects: {error}"
        raise VectorError(msg) from error
    return found


def _ids(path: Path) -> list[str]:
    if path.suffix != ".npy":
        try:
            return path.read_text().splitlines()
        except (OSError, UnicodeError) as error:
            msg = f"{path}: expected a text file with an id in each line: {error}"
            raise VectorError(msg) from error
    found = _array(path)
    if found.ndim != 1 or found.dtype.kind not in "iuU":
        msg = f"{path}: expected [n] integers or text, found {list(found.shape)} {found.dtype}"
        raise VectorError(msg)
    return [str(each) for each in found.tolist()]


# Parquet -----------------------------------------------------------------------------------------------------------


def _from_parquet(path: Path, columns: Columns, dim: int, dtype: str) -> VectorFile:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    try:
        source: Any = ds.dataset(path, format="parquet")
        ids = source.to_table(columns=[columns.ids]).column(0)
        _check_kinds(path, source.schema, columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        msg = f"{path}: expected Parquet with the columns {columns.ids!r} and {columns.vectors!r}: {error}"
        raise VectorError(msg) from error
    _check_distinct(path, len(ids), pc.count_distinct(ids, mode="all").as_py())
    batches = source.to_batches(columns=list(columns), batch_size=_ROWS)
    return VectorFile(len(ids), (_from_batch(path, batch, dim, dtype) for batch in batches if batch.num_rows))


def _check_kinds(path: Path, schema: pa.Schema, columns: Columns) -> None:
    import pyarrow.types as kinds

    ids, vectors = schema.field(columns.ids).type, schema.field(columns.vectors).type
    if not (kinds.is_integer(ids) or kinds.is_string(ids) or kinds.is_large_string(ids)):
        msg = f"{path}, column {columns.ids!r}: expected integers or text, found {ids}"
        raise VectorError(msg)
    lists = kinds.is_list(vectors) or kinds.is_large_list(vectors) or kinds.is_fixed_size_list(vectors)
    if not lists or not kinds.is_floating(vectors.value_type):
        msg = f"{path}, column {columns.vectors!r}: expected lists of floats, found {vectors}"
        raise VectorError(msg)


def _from_batch(path: Path, batch: pa.RecordBatch, dim: int, dtype: str) -> Portion:
    ids, vectors = batch.column(0), batch.column(1)
    numbers = vectors.flatten()
    lengths = vectors.value_lengths()
    if ids.null_count or vectors.null_count or numbers.null_count or lengths.unique().to_pylist() != [dim]:
        msg = f"{path}: expected an id and {dim} numbers in every row, found rows without"
        raise VectorError(msg)
    matrix = numbers.to_numpy(zero_copy_only=False).reshape(len(ids), dim)
    return _portion([str(each) for each in ids.to_pylist()], matrix, dtype)


# Both --------------------------------------------------------------------------------------------------------------


def _portion(ids: list[str], matrix: np.ndarray, dtype: str) -> Portion:
    with np.errstate(over="ignore"):  # too large for the table's type: infinite, and refused as such
        return Portion(ids, np.ascontiguousarray(matrix, dtype))


def _check_distinct(path: Path, rows: int, distinct: int) -> None:
    if distinct < rows:
        msg = f"{path}: expected distinct ids, found {rows} of which {rows - distinct} repeat others"
        raise VectorError(msg)
