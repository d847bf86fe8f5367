"""The item vectors of the simulated feed as an external table."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.schema import ExternalTable, FeatureConfig
from pipeline.features.stored_vectors import TableMeta, load_vectors
from pipeline.simulation.catalogue import catalogue, item_id, item_index
from pipeline.simulation.params import Params, SimulationError
from pipeline.stores.store import KeyValueStore

TABLE = "item"


def load_items(config: FeatureConfig, store: KeyValueStore, params: Params | None = None) -> TableMeta:
    """Put the vectors where `config.embeddings[item]` says. Harmless when they are there.

    Raises SimulationError where the config has no such table, VectorError where other vectors are in it.
    """
    vectors = catalogue(params or Params()).vectors
    table = config.embeddings.get(TABLE)
    if not isinstance(table, ExternalTable) or table.dim != vectors.shape[1]:
        msg = f"embeddings.{TABLE}: expected an external table of dim {vectors.shape[1]}, found {table}"
        raise SimulationError(msg)
    ids = [item_id(i) for i in range(len(vectors))]
    return load_vectors(store, config.kv_prefix, TABLE, table.epoch, ids, vectors.astype(table.dtype))


class ItemVectors:
    """A `VectorSource` without a store, for encoders in the simulator's own process."""

    def __init__(self, params: Params | None = None) -> None:
        self._params = params or Params()

    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        """Of any epoch: they never change."""
        rows = catalogue(self._params).vectors.astype("<f4")
        return [self._row(rows, name) if table == TABLE else None for name in ids]

    def _row(self, rows: object, name: str) -> bytes | None:
        try:
            return bytes(rows[item_index(self._params, name)].tobytes())  # type: ignore[index]
        except SimulationError:
            return None
