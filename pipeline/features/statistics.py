"""What is learned about features as transitions come: moments, quantiles and vocabularies. Frozen into snapshots."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from pipeline.config.schema import FeatureConfig, Quantile
from pipeline.features.changing import Change
from pipeline.features.decaying import Counted, DecayingVocabulary
from pipeline.features.errors import SnapshotError
from pipeline.features.fading import Fading
from pipeline.features.inputs import config_sha, epochs, quantiles, vocabularies
from pipeline.features.layout import Layout
from pipeline.features.moments import Moments
from pipeline.features.quantiles import Dump, Sketch
from pipeline.features.snapshot import Snapshot, read_hashes
from pipeline.features.vocabulary import Vocabulary


class _Wire(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["pageturn-statistics"]
    format_version: Literal[1]
    config_sha: str
    moments: dict[str, Moments]
    vocabularies: dict[str, tuple[bytes, bytes, bytes]]
    sketches: dict[str, Dump] = {}
    decaying: dict[str, Counted] = {}
    fading: dict[str, Fading] = {}


class Statistics:
    """Owned by the trainer, which gives it every ingested row once, in order."""

    def __init__(self, config: FeatureConfig) -> None:
        layout = Layout.of(config)
        self._config_sha = config_sha(config)
        self._epochs = epochs(config)
        scaled = {f.name: f.zscore for f in layout.dense if f.zscore is not None}
        self._columns = {f.name: i for i, f in enumerate(layout.dense) if f.zscore is not None}
        self._moments = {name: Moments() for name, rule in scaled.items() if rule.half_life is None}
        self._fading = {name: Fading(rule.half_life) for name, rule in scaled.items() if rule.half_life is not None}
        self._quantiles = quantiles(config)
        self._sketch_columns = {f.name: i for i, f in enumerate(layout.dense) if f.quantile is not None}
        self._sketches = {name: Sketch() for name in self._quantiles}
        rules = vocabularies(config)
        self._vocabularies = {name: Vocabulary(v) for name, v in rules.items() if v.half_life is None}
        self._rules = {name: v for name, v in rules.items() if v.half_life is not None}
        self._decaying = {name: DecayingVocabulary(v) for name, v in self._rules.items()}
        self._hash_columns = {
            table: [i for i, f in enumerate(layout.hashes) if f.embedding == table] for table in rules
        }

    @property
    def moments(self) -> dict[str, Moments]:
        """By feature with a z-score, as a snapshot has them."""
        return {**self._moments, **{name: fading.served() for name, fading in self._fading.items()}}

    def update(self, rows: np.ndarray) -> None:
        """Count prepared rows [n], one after another: however they are chunked, the result is the same, bit for bit.

        Missing values are not counted.
        """
        dense = rows["dense"].T.tolist()
        for name, moments in self._moments.items():
            self._moments[name] = moments.add(dense[self._columns[name]])
        for name, fading in self._fading.items():
            self._fading[name] = fading.add(dense[self._columns[name]])
        for name, column in self._sketch_columns.items():
            self._sketches[name].add(dense[column])
        for table, vocabulary in self._vocabularies.items():
            vocabulary.count(rows["hashes"][:, self._hash_columns[table]].ravel().tolist())
        for table, decaying in self._decaying.items():
            for ids in rows["hashes"][:, self._hash_columns[table]].tolist():
                decaying.count(ids)

    def freeze(self) -> Snapshot:
        known = {table: vocabulary.hashes() for table, vocabulary in self._vocabularies.items()}
        known |= {table: vocabulary.hashes() for table, vocabulary in self._decaying.items()}
        knots = {name: self._knots(name, rule) for name, rule in self._quantiles.items()}
        return Snapshot(self._config_sha, self.moments, known, self._epochs, quantiles=knots)

    def _knots(self, feature: str, rule: Quantile) -> np.ndarray:
        sketch = self._sketches[feature]
        return sketch.knots(rule.bins) if sketch.count >= rule.min_count else np.empty(0)

    def carried(self, config: FeatureConfig, change: Change) -> Statistics:
        """For a config with other features: what is known of those that stay."""
        other = Statistics(config)
        kept = change.stays & self._moments.keys() & other._moments.keys()
        other._moments |= {name: self._moments[name] for name in kept}
        other._fading |= {n: f for n, f in self._fading.items() if n in change.stays & other._fading.keys()}
        other._sketches |= {n: s for n, s in self._sketches.items() if n in change.stays & other._sketches.keys()}
        other._vocabularies |= {t: v for t, v in self._vocabularies.items() if t in change.tables}
        other._decaying |= {t: v for t, v in self._decaying.items() if t in change.tables}
        return other

    def to_bytes(self) -> bytes:
        """For the trainer's checkpoint: everything, exactly."""
        tables = {table: vocabulary.dump() for table, vocabulary in self._vocabularies.items()}
        sketches = {name: sketch.dump() for name, sketch in self._sketches.items()}
        decaying = {table: vocabulary.dump() for table, vocabulary in self._decaying.items()}
        parts = self._moments, tables, sketches, decaying, self._fading
        wire = _Wire("pageturn-statistics", 1, self._config_sha, *parts)
        return msgspec.msgpack.encode(wire, order="sorted")

    @classmethod
    def from_bytes(cls, payload: bytes, config: FeatureConfig) -> Statistics:
        """Read back `to_bytes`. SnapshotError when it is something else, or of another config."""
        try:
            wire = msgspec.msgpack.decode(payload, type=_Wire)
        except msgspec.MsgspecError as error:
            msg = f"expected feature statistics of format 1, found {error}"
            raise SnapshotError(msg) from error
        statistics = cls(config)
        if wire.config_sha != statistics._config_sha:
            expected, found = statistics._config_sha[:12], wire.config_sha[:12]
            msg = f"expected statistics of config {expected}, found those of {found}"
            raise SnapshotError(msg)
        parts = statistics._moments, statistics._fading, statistics._sketches, statistics._vocabularies
        expected_of = [sorted(part) for part in (*parts, statistics._decaying)]
        found_of = wire.moments, wire.fading, wire.sketches, wire.vocabularies, wire.decaying
        if expected_of != [sorted(part) for part in found_of]:
            msg = f"expected statistics of {[name for part in expected_of for name in part]}, found others"
            raise SnapshotError(msg)
        statistics._moments = {name: wire.moments[name] for name in statistics._moments}
        statistics._fading = {name: wire.fading[name] for name in statistics._fading}
        statistics._sketches = {name: Sketch(wire.sketches[name]) for name in statistics._sketches}
        for table, dump in wire.vocabularies.items():
            statistics._vocabularies[table].load(*_read_dump(table, *dump))
        statistics._decaying = {t: DecayingVocabulary(v, wire.decaying[t]) for t, v in statistics._rules.items()}
        return statistics


def _read_dump(table: str, admitted: bytes, candidates: bytes, counts: bytes) -> tuple[list[int], list[int], list[int]]:
    if len(candidates) != len(counts):
        msg = f"expected a count per candidate of vocabulary {table}, found {len(counts)} bytes for {len(candidates)}"
        raise SnapshotError(msg)
    numbers = np.frombuffer(counts, "<u8").tolist()
    return read_hashes(table, admitted).tolist(), read_hashes(table, candidates).tolist(), numbers
