"""Random feature configs that pass every check, raw states that fit them, and vectors for their sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from pipeline.config.schema import (
    ActionDimension,
    Bits,
    Bucket,
    Buckets,
    Conv1d,
    ConvLayer,
    Ddpg,
    Dense,
    DynamicVocabulary,
    Exponents,
    ExternalTable,
    Feature,
    FeatureConfig,
    GraphTable,
    HashedId,
    IdFeature,
    Missing,
    PayPlusAPhi,
    Policy,
    Quantile,
    RangeVocabulary,
    Reward,
    Sequence,
    ZScore,
)
from pipeline.records import FeatureValue, State

_KINDS = ("dense", "id", "range", "hashed_id", "bits", "sequence")
_ABSENT_FROM_TABLES = 4  # one id in so many has no vector


@dataclass(frozen=True)
class HashedVectors:
    """A `VectorSource`: each id's vector follows from its name, and about a quarter of the ids has none.

    `gone` are ids that it has no longer; `asked` is what it was asked for.
    """

    config: FeatureConfig
    gone: frozenset[str] = frozenset()
    asked: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)

    def vectors(self, table: str, epoch: str, ids: Ids[str]) -> list[bytes | None]:
        self.asked.append((table, epoch, tuple(ids)))
        return [self._vector(table, epoch, each) for each in ids]

    def _vector(self, table: str, epoch: str, each: str) -> bytes | None:
        seed = int.from_bytes(hashlib.sha256(f"{table}/{epoch}/{each}".encode()).digest()[:8], "little")
        if seed % _ABSENT_FROM_TABLES == 0 or each in self.gone:
            return None
        definition = self.config.embeddings[table]
        assert isinstance(definition, ExternalTable)
        numbers = np.random.default_rng(seed).standard_normal(definition.dim)
        return numbers.astype("<f4" if definition.dtype == "float32" else "<f2").tobytes()


def feature_configs(kinds: Ids[str] = _KINDS) -> st.SearchStrategy[FeatureConfig]:
    """Configs with one to six features of the kinds."""
    return st.lists(st.sampled_from(kinds), min_size=1, max_size=6).flatmap(_config)


@st.composite
def _config(draw: st.DrawFn, kinds: list[str]) -> FeatureConfig:
    embeddings: dict[str, GraphTable | ExternalTable] = {}
    features = tuple(draw(_feature(kind, f"f{i}", embeddings)) for i, kind in enumerate(kinds))
    two_dimensional = draw(st.booleans())
    names = ("click", "pay") if two_dimensional else ("a",)
    return FeatureConfig(
        schema_version=1,
        name="random",
        kv_prefix="rnd",
        embeddings=embeddings,
        features=features,
        fusion=Exponents() if two_dimensional else PayPlusAPhi(phi=draw(st.sampled_from([0.05, 1.0]))),
        action=tuple(ActionDimension(name, 1.0, draw(_ranges())) for name in names),
        reward=Reward({"click": 1.0, "order": draw(st.sampled_from([0.0, 5.0]))}),
        algorithm=Ddpg(gamma=draw(st.sampled_from([0.0, 0.9]))),
        policies=(Policy("base", "baseline"), Policy("rl", "learned")),
        buckets=Buckets("salt", (Bucket("control", "base", (0, 49)), Bucket("rl", "rl", (50, 99)))),
    )


def _ranges() -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.5, 2.0]))


@st.composite
def _feature(draw: st.DrawFn, kind: str, name: str, embeddings: dict[str, GraphTable | ExternalTable]) -> Feature:
    """The feature; what it looks up in is added to the tables, and may be one that is there already."""
    source = f"{draw(st.sampled_from(['user', 'context', 'page']))}.{name}"
    indicator = draw(st.booleans())
    absent = st.sampled_from([None, Missing(indicator=indicator)])
    match kind:
        case "dense":
            return draw(_dense(name, source))
        case "hashed_id":
            missing = draw(st.sampled_from([None, Missing()]))
            return HashedId(name, source, draw(st.integers(1, 20)), draw(st.integers(1, 4)), missing)
        case "bits":
            return Bits(name, source, draw(st.integers(1, 64)), draw(absent))
        case "sequence":
            return draw(_sequence(name, source, embeddings, draw(absent)))
    vocabularies = _range_vocabularies() if kind == "range" else _dynamic_vocabularies()
    table = draw(_table(kind, embeddings, st.builds(GraphTable, st.integers(1, 4), vocabularies)))
    return IdFeature(name, source, table, draw(st.sampled_from([None, Missing()])))


@st.composite
def _table(
    draw: st.DrawFn,
    kind: str,
    embeddings: dict[str, GraphTable | ExternalTable],
    new: st.SearchStrategy[GraphTable | ExternalTable],
) -> str:
    name = f"{kind}_{draw(st.integers(0, 1))}"  # two of a kind, so that features share tables
    if name not in embeddings:
        embeddings[name] = draw(new)
    return name


def _range_vocabularies() -> st.SearchStrategy[RangeVocabulary]:
    return st.builds(RangeVocabulary, size=st.integers(1, 8))


@st.composite
def _dynamic_vocabularies(draw: st.DrawFn) -> DynamicVocabulary:
    oov = draw(st.integers(1, 3))
    half_life = draw(st.none() | st.integers(1, 20))
    return DynamicVocabulary(draw(st.integers(oov + 3, oov + 8)), draw(st.integers(1, 3)), oov, half_life)


@st.composite
def _dense(draw: st.DrawFn, name: str, source: str) -> Dense:
    transform = draw(st.sampled_from(["none", "log1p", "logit", "sqrt"]))
    floors, half_lives = st.sampled_from([1e-3, 1.0]), st.none() | st.integers(1, 20)
    zscore = draw(st.none() | st.builds(ZScore, st.integers(2, 6), floors, st.just(5.0), half_lives))
    quantile = draw(st.none() | st.builds(Quantile, st.integers(2, 9), st.integers(2, 6))) if zscore is None else None
    fill = draw(st.sampled_from([0.25, "mean" if zscore else "median" if quantile else 0.5]))
    missing = draw(st.sampled_from([None, Missing(fill), Missing(fill, indicator=True)]))
    return Dense(name, source, transform, zscore, missing, quantile)


@st.composite
def _sequence(
    draw: st.DrawFn, name: str, source: str, embeddings: dict[str, GraphTable | ExternalTable], missing: Missing | None
) -> Sequence:
    new = st.builds(ExternalTable, st.integers(1, 5), st.just("e1"), st.sampled_from(["float32", "float16"]))
    table = draw(_table("vectors", embeddings, new))
    max_len = draw(st.integers(1, 5))
    kernels = [draw(st.integers(1, max_len))]
    kernels.append(draw(st.integers(1, max_len - kernels[0] + 1)))
    encoder = Conv1d(tuple(ConvLayer(2, kernel) for kernel in kernels), draw(st.sampled_from(["max", "mean"])))
    keep = draw(st.sampled_from(["newest", "oldest"]))
    return Sequence(name, source, table, max_len, encoder, keep, missing)


def states(config: FeatureConfig) -> st.SearchStrategy[State]:
    """Raw states that the config accepts, without logged look-ups."""
    values = st.fixed_dictionaries({f.name: _values(f) for f in config.features})
    return values.map(lambda drawn: _state(config, drawn))


def _state(config: FeatureConfig, values: dict[str, FeatureValue]) -> State:
    scopes: dict[str, dict[str, FeatureValue]] = {"user": {}, "context": {}, "page": {}}
    for feature in config.features:
        scope, name = feature.source.split(".")
        scopes[scope][name] = values[feature.name]
    return State(**scopes)


def _values(feature: Feature) -> st.SearchStrategy[FeatureValue]:
    match feature:
        case Dense():
            present = _numbers(feature.transform)
        case IdFeature() | HashedId():
            present = _ids()
        case Bits():
            packed = st.integers(0, 2**feature.width - 1)
            present = packed | packed.map(str)
        case Sequence():
            present = st.lists(_ids(), max_size=feature.max_len + 2).map(tuple)
    return present if feature.missing is None else st.none() | present


def _ids() -> st.SearchStrategy[str | int]:
    return st.integers(-1, 9) | st.integers(0, 9).map(str) | st.text(max_size=3)


def _numbers(transform: str) -> st.SearchStrategy[float]:
    if transform == "logit":
        return st.floats(0, 1, exclude_min=True, exclude_max=True)
    if transform == "none":
        return st.floats(-1e6, 1e6) | st.integers(-5, 5) | st.floats(-1e38, 1e38)
    return st.floats(0, 1e6) | st.integers(0, 5)
