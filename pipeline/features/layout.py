"""The prepared row: what a raw state becomes before any snapshot is known, as one fixed-size numpy record.

  dense    float64 [n]   transformed values; NaN = missing
  hashes   uint64 [n]    ids of growing vocabularies; 0 = missing
  bits     uint64 [n]
  rows     int32 [n]     table rows that no snapshot changes: ranges and hashed ids
  lengths  int32 [n]     of the sequences, after truncation
  absent   uint8 [n]     1 = missing, for features other than dense that have an indicator
  <name>__vectors   float32 or float16 [max_len, dim]   per sequence, as its table stores it; a miss is zeros

All little-endian; numbers and each sequence start at a multiple of 8 bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeGuard

import numpy as np

from pipeline.config.schema import (
    Bits,
    Dense,
    ExternalTable,
    Feature,
    FeatureConfig,
    GraphTable,
    HashedId,
    IdFeature,
    RangeVocabulary,
    Sequence,
)
from pipeline.features.inputs import dense_features, has_indicator

_ALIGN = 8


class SequenceSlot(NamedTuple):
    feature: Sequence
    table: ExternalTable
    vector_bytes: int
    block_bytes: int  # of max_len vectors, padded

    @property
    def field(self) -> str:
        return f"{self.feature.name}__vectors"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<f4" if self.table.dtype == "float32" else "<f2")


class Layout(NamedTuple):
    dense: tuple[Dense, ...]
    hashes: tuple[IdFeature, ...]
    bits: tuple[Bits, ...]
    rows: tuple[IdFeature | HashedId, ...]
    sequences: tuple[SequenceSlot, ...]
    absent: tuple[IdFeature | HashedId | Bits | Sequence, ...]

    @classmethod
    def of(cls, config: FeatureConfig) -> Layout:
        features = config.features
        ranges = {name for name, t in config.embeddings.items() if _is_range(t)}
        return cls(
            dense_features(config),
            tuple(f for f in features if isinstance(f, IdFeature) and f.embedding not in ranges),
            tuple(f for f in features if isinstance(f, Bits)),
            tuple(f for f in features if _has_fixed_rows(f, ranges)),
            tuple(_slot(f, config) for f in features if isinstance(f, Sequence)),
            tuple(f for f in features if not isinstance(f, Dense) and has_indicator(f)),
        )

    def head(self) -> struct.Struct:
        """Packs everything before the sequences, padded."""
        counts = (len(self.dense), len(self.hashes) + len(self.bits), len(self.rows) + len(self.sequences))
        head = "<{}d{}Q{}i{}B".format(*counts, len(self.absent))
        return struct.Struct(f"{head}{-struct.calcsize(head) % _ALIGN}x")

    def dtype(self) -> np.dtype:
        fields = (
            ("dense", "<f8", len(self.dense)),
            ("hashes", "<u8", len(self.hashes)),
            ("bits", "<u8", len(self.bits)),
            ("rows", "<i4", len(self.rows)),
            ("lengths", "<i4", len(self.sequences)),
            ("absent", "u1", len(self.absent)),
        )
        names: list[str] = []
        formats: list[tuple[object, tuple[int, ...]]] = []
        offsets: list[int] = []
        offset = 0
        for name, kind, count in fields:
            names.append(name)
            formats.append((kind, (count,)))
            offsets.append(offset)
            offset += np.dtype(kind).itemsize * count
        offset = self.head().size
        for slot in self.sequences:
            names.append(slot.field)
            formats.append((slot.dtype, (slot.feature.max_len, slot.table.dim)))
            offsets.append(offset)
            offset += slot.block_bytes
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": offset})


def _has_fixed_rows(feature: Feature, ranges: set[str]) -> TypeGuard[IdFeature | HashedId]:
    return isinstance(feature, HashedId) or (isinstance(feature, IdFeature) and feature.embedding in ranges)


def _is_range(table: GraphTable | ExternalTable) -> bool:
    return isinstance(table, GraphTable) and isinstance(table.vocabulary, RangeVocabulary)


def _slot(feature: Sequence, config: FeatureConfig) -> SequenceSlot:
    table = config.embeddings[feature.embedding]
    assert isinstance(table, ExternalTable)  # checks.py says so
    vector = table.dim * (4 if table.dtype == "float32" else 2)
    block = feature.max_len * vector
    return SequenceSlot(feature, table, vector, block + -block % _ALIGN)
