"""The candidates of several pages as one block of model inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.features.encoder import Encoder
from pipeline.features.inputs import item_input
from pipeline.features.snapshot import Snapshot


def item_inputs(encoder: Encoder, rows: Sequence[np.ndarray], snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Prepared items of B pages, [n] each -> [B, N, ...]; pages with fewer are padded with zeros at the end."""
    there = places(rows)
    finished = encoder.finish(np.concatenate(rows, dtype=encoder.prepared_dtype), snapshot)
    padded = {}
    for name, x in finished.items():
        padded[item_input(name)] = block = np.zeros((*there.shape, *x.shape[1:]), x.dtype)
        block[there] = x
    return padded


def places(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[B, N] bool: where there is an item, and not padding."""
    lengths = np.array([len(each) for each in rows])
    return np.asarray(np.arange(lengths.max(initial=0)) < lengths[:, None])
