"""The numbers of each round for TensorBoard, which need not be installed to write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=1,  # DATA_CLASS_SCALAR of summary.proto
)


class Summaries:
    """Owns a writer into the directory. After a restart it writes another file there, which TensorBoard joins on."""

    def __init__(self, directory: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(directory))

    def add(self, line: Mapping[str, object], step: int) -> None:
        """Every number of a line of metrics; a table of counts as one tag per row."""
        with self._writer.as_default(step=step):
            for name, value in _flat(line).items():
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=_SCALAR)
        self._writer.flush()


def _flat(line: Mapping[str, object]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{row}": float(x) for row, x in value.items()}
        elif isinstance(value, int | float) and name != "time_ms":
            numbers[name] = float(value)
    return numbers
