"""The parameters features are encoded with, frozen for one model version, and their bytes.

Bytes: msgpack of a map with sorted keys; arrays as little-endian bytes. Equal snapshots have equal bytes, so the
sha256 of the bytes names the snapshot.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from pipeline.config.schema import FeatureConfig
from pipeline.features.changing import Change
from pipeline.features.errors import SnapshotError
from pipeline.features.inputs import config_sha, dense_features, epochs, first_id_row, quantiles, vocabularies
from pipeline.features.moments import Moments
from pipeline.records import Explorer

_HASH, _KNOT = np.dtype("<u8"), np.dtype("<f8")


class _Wire(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["pageturn-parameters"]
    format_version: Literal[1]
    config_sha: str
    moments: dict[str, Moments]
    vocabularies: dict[str, bytes]
    epochs: dict[str, str]
    explorers: tuple[Explorer, ...] = ()
    quantiles: dict[str, bytes] = {}


def _frozen(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    frozen = np.array(numbers, dtype)
    frozen.setflags(write=False)
    return frozen


@dataclass(frozen=True, eq=False)
class Snapshot:
    config_sha: str
    moments: Mapping[str, Moments]  # by feature with a z-score
    vocabularies: Mapping[str, np.ndarray] = field(repr=False)  # by table: id hashes by row, uint64
    epochs: Mapping[str, str]  # by external table
    explorers: tuple[Explorer, ...] = ()  # what is served beside the weights, in the order of the model's output
    # by feature with quantiles: what ends its bins, float64 [bins + 1]; [0] where too few values were seen
    quantiles: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, dtype in (("vocabularies", _HASH), ("quantiles", _KNOT)):
            frozen = {key: _frozen(numbers, dtype) for key, numbers in getattr(self, name).items()}
            object.__setattr__(self, name, frozen)

    @classmethod
    def initial(cls, config: FeatureConfig) -> Snapshot:
        """What is known before the first transition: nothing."""
        moments = {f.name: Moments() for f in dense_features(config) if f.zscore is not None}
        empty = {table: np.empty(0, _HASH) for table in vocabularies(config)}
        no_knots = {name: np.empty(0, _KNOT) for name in quantiles(config)}
        return cls(config_sha(config), moments, empty, epochs(config), quantiles=no_knots)

    @classmethod
    def of_parts(cls, config: FeatureConfig, parts: Iterable[Snapshot], explorers: tuple[Explorer, ...]) -> Snapshot:
        """Of a config from what is known of the features of states and of items."""
        moments: dict[str, Moments] = {}
        known: dict[str, np.ndarray] = {}
        knots: dict[str, np.ndarray] = {}
        for part in parts:
            moments |= part.moments
            known |= part.vocabularies
            knots |= part.quantiles
        return cls(config_sha(config), moments, known, epochs(config), explorers, knots)

    @classmethod
    def from_bytes(cls, payload: bytes, config: FeatureConfig | None = None) -> Snapshot:
        """Read back `to_bytes`; with a config also check that it is a snapshot of this config."""
        try:
            wire = msgspec.msgpack.decode(payload, type=_Wire)
        except msgspec.MsgspecError as error:
            msg = f"expected a parameter snapshot of format 1, found {error}"
            raise SnapshotError(msg) from error
        snapshot = cls(
            wire.config_sha,
            wire.moments,
            {table: read_hashes(table, data) for table, data in wire.vocabularies.items()},
            wire.epochs,
            wire.explorers,
            {name: _read_knots(name, data) for name, data in wire.quantiles.items()},
        )
        for name, moments in snapshot.moments.items():
            _check_moments(name, moments)
        if snapshot.to_bytes() != payload:
            msg = "expected the canonical bytes of a parameter snapshot, found others: their hash would name nothing"
            raise SnapshotError(msg)
        if config is not None:
            snapshot.check(config)
        return snapshot

    def carried(self, config: FeatureConfig, change: Change) -> Snapshot:
        """For a config with other features: those that stay are encoded as they were."""
        fresh = Snapshot.initial(config)
        kept = change.stays & self.moments.keys() & fresh.moments.keys()
        moments = {**fresh.moments, **{name: self.moments[name] for name in kept}}
        known = {t: self.vocabularies[t] if t in change.tables else none for t, none in fresh.vocabularies.items()}
        knots = {name: self.quantiles[name] if name in change.stays else none for name, none in fresh.quantiles.items()}
        return Snapshot(fresh.config_sha, moments, known, fresh.epochs, quantiles=knots)

    def to_bytes(self) -> bytes:
        return self._payload

    @cached_property
    def _payload(self) -> bytes:
        wire = _Wire(
            "pageturn-parameters",
            1,
            self.config_sha,
            dict(self.moments),
            {table: hashes.tobytes() for table, hashes in self.vocabularies.items()},
            dict(self.epochs),
            self.explorers,
            {name: knots.tobytes() for name, knots in self.quantiles.items()},
        )
        return msgspec.msgpack.encode(wire, order="sorted")

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self._payload).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self._payload == other._payload

    def __hash__(self) -> int:
        return hash(self.sha256)

    def check(self, config: FeatureConfig) -> None:
        """SnapshotError unless this is a snapshot of the config."""
        expected = Snapshot.initial(config)
        if self.config_sha != expected.config_sha:
            msg = (
                f"expected parameters of config {expected.config_sha[:12]}, found parameters of {self.config_sha[:12]}"
            )
            raise SnapshotError(msg)
        for what, ours, theirs in (
            ("moments", expected.moments, self.moments),
            ("vocabularies", expected.vocabularies, self.vocabularies),
            ("epochs", expected.epochs, self.epochs),
            ("quantiles", expected.quantiles, self.quantiles),
        ):
            if ours.keys() != theirs.keys():
                msg = f"expected {what} of {sorted(ours)}, found {sorted(theirs)}"
                raise SnapshotError(msg)
        for table, vocabulary in vocabularies(config).items():
            room, found = vocabulary.capacity - first_id_row(vocabulary), len(self.vocabularies[table])
            if found > room:
                msg = f"expected at most {room} ids in vocabulary {table}, found {found}"
                raise SnapshotError(msg)
        for name, rule in quantiles(config).items():
            found = len(self.quantiles[name])
            if found not in (0, rule.bins + 1):
                msg = f"expected {rule.bins + 1} knots of {name}, or none yet, found {found}"
                raise SnapshotError(msg)


def read_hashes(table: str, data: bytes) -> np.ndarray:
    """uint64, distinct and none of them 0; SnapshotError otherwise."""
    if len(data) % _HASH.itemsize:
        msg = f"expected whole 64-bit hashes in vocabulary {table}, found {len(data)} bytes"
        raise SnapshotError(msg)
    hashes = np.frombuffer(data, _HASH)
    if len(np.unique(hashes)) != len(hashes) or (hashes == 0).any():
        msg = f"expected distinct hashes other than 0 in vocabulary {table}, found others"
        raise SnapshotError(msg)
    return hashes


def _read_knots(name: str, data: bytes) -> np.ndarray:
    knots = np.frombuffer(data, _KNOT) if len(data) % _KNOT.itemsize == 0 else np.array([math.nan])
    if not np.isfinite(knots).all() or (np.diff(knots) < 0).any():
        msg = f"expected finite knots that never fall for {name}, found others"
        raise SnapshotError(msg)
    return knots


def _check_moments(name: str, moments: Moments) -> None:
    if not (moments.count >= 0 and moments.m2 >= 0 and math.isfinite(moments.mean) and math.isfinite(moments.m2)):
        msg = f"expected finite moments with count and M2 >= 0 for {name}, found {moments}"
        raise SnapshotError(msg)
