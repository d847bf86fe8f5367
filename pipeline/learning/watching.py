"""What the features of the transitions look like, beside those of the first ones: for gauges, not for learning.

The reference is the first window of rows that a trainer with this work directory has seen. It is kept there, in a file
that may be deleted when features have changed on purpose: the next window is the reference then.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from pipeline import durable
from pipeline.config.schema import FeatureConfig
from pipeline.features.drift import Profile, columns, missing_share, out_of_vocabulary, profile, psi
from pipeline.features.inputs import config_sha
from pipeline.features.snapshot import Snapshot
from pipeline.monitoring.metrics import Metrics

FILE = "reference.json"
WINDOW = 2_000  # rows: without drift PSI is about 0.01
_LOG = logging.getLogger(__name__)


class _Reference(Struct, frozen=True, forbid_unknown_fields=True):
    config_sha: str
    features: dict[str, Profile]


class FeatureWatch:
    def __init__(self, config: FeatureConfig, work_dir: Path, metrics: Metrics, window: int = WINDOW) -> None:
        self._config, self._file, self._metrics = config, work_dir / FILE, metrics
        self._window, self._rows = window, list[np.ndarray]()
        self._reference = self._read()

    def add(self, row: np.ndarray, snapshot: Snapshot) -> None:
        """A prepared row [1]; shows a window once it is full."""
        self._rows.append(row)
        if len(self._rows) == self._window:
            first = self._rows[0]
            self._show(np.concatenate(self._rows, dtype=first.dtype), snapshot)
            self._rows.clear()

    def _show(self, rows: np.ndarray, snapshot: Snapshot) -> None:
        found = dict(columns(rows, self._config))
        if self._reference is None:
            self._reference = {name: profile(column) for name, column in found.items()}
            durable.write(self._file, msgspec.json.encode(_Reference(config_sha(self._config), self._reference)))
        for name, column in found.items():
            self._metrics.gauge("feature_drift_psi", psi(self._reference[name], column.values), feature=name)
            self._metrics.gauge("feature_missing_share", missing_share(column), feature=name)
        for name, share in out_of_vocabulary(rows, self._config, snapshot).items():
            self._metrics.gauge("out_of_vocabulary_share", share, feature=name)

    def _read(self) -> dict[str, Profile] | None:
        """None where there is none, or one of other features."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=_Reference)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            _LOG.warning("%s: %s; the next rows are the reference", self._file, error)
            return None
        return found.features if found.config_sha == config_sha(self._config) else None
