"""What the model takes in, derived from the config and never written by hand."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import structs

from pipeline.config.schema import (
    Bits,
    Dense,
    DynamicVocabulary,
    ExternalTable,
    Feature,
    FeatureConfig,
    GraphTable,
    HashedId,
    IdFeature,
    Quantile,
    Sequence,
)

DENSE = "dense"
PAD_ROW, MISSING_ROW, FIRST_OOV_ROW = 0, 1, 2  # of a graph table
RANGE_OOV_ROWS = 1
_LATER = frozenset(
    {"quantile", "half_life", "remember"}
)  # keys that came after configs were in use: these keep their hash
HASHED_MISSING_ROW = 0


Part = Literal["state", "item"]  # what a feature describes: the user, the context and the page; or one candidate
_ITEM = "item."
_OF_ITEMS = "items__"  # how inputs of items begin in a signature: no feature has such a name


class Input(NamedTuple):
    name: str
    dtype: str  # "float32" or "int32"
    shape: tuple[int | None, ...]  # without the batch axis


def part_of(config: FeatureConfig, part: Part) -> FeatureConfig:
    """The config with the features of one part, and their tables. Without features of items it is as it was."""
    chosen = tuple(f for f in config.features if f.source.startswith(_ITEM) == (part == "item"))
    if len(chosen) == len(config.features):
        return config
    used = {f.embedding for f in chosen if isinstance(f, IdFeature | Sequence)}
    tables = {name: table for name, table in config.embeddings.items() if name in used}
    return structs.replace(config, features=chosen, embeddings=tables)


def served_inputs(config: FeatureConfig) -> tuple[Input, ...]:
    """The inputs of the signature of a model: of states, and where there are features of items, of these.

    The first axis of an item's input is that of the candidates, as many as the caller has (shape None).
    """
    state = model_inputs(part_of(config, "state"))
    if config.ranking is None:
        return state
    of_items = model_inputs(part_of(config, "item"))
    return state + tuple(Input(item_input(i.name), i.dtype, (None, *i.shape)) for i in of_items)


def item_input(name: str) -> str:
    return f"{_OF_ITEMS}{name}"


def model_inputs(config: FeatureConfig) -> tuple[Input, ...]:
    """What the features become: the dense block first, then the others in the order of the config."""
    width = len(dense_columns(config))
    dense = (Input(DENSE, "float32", (width,)),) if width else ()
    return dense + tuple(i for feature in config.features for i in _inputs_of(feature, config))


def _inputs_of(feature: Feature, config: FeatureConfig) -> tuple[Input, ...]:
    match feature:
        case Dense():
            return ()
        case IdFeature() | HashedId():
            return (Input(feature.name, "int32", ()),)
        case Bits():
            return (Input(feature.name, "float32", (feature.width,)),)
        case Sequence():
            dim = config.embeddings[feature.embedding].dim
            return (
                Input(feature.name, "float32", (feature.max_len, dim)),
                Input(mask_name(feature.name), "float32", (feature.max_len,)),
            )


def mask_name(feature: str) -> str:
    return f"{feature}__mask"


def dense_columns(config: FeatureConfig) -> tuple[str, ...]:
    """Names of the columns of the dense input: the values, then the indicators, each in the order of the config."""
    values = tuple(f.name for f in dense_features(config))
    return values + tuple(f"{f.name}__missing" for f in config.features if has_indicator(f))


def quantiles(config: FeatureConfig) -> dict[str, Quantile]:
    """The dense features that are mapped by their distribution."""
    return {f.name: f.quantile for f in dense_features(config) if f.quantile is not None}


def dense_features(config: FeatureConfig) -> tuple[Dense, ...]:
    return tuple(f for f in config.features if isinstance(f, Dense))


def has_indicator(feature: Feature) -> bool:
    return feature.missing is not None and feature.missing.indicator


def vocabularies(config: FeatureConfig) -> dict[str, DynamicVocabulary]:
    """The vocabularies that grow, by table."""
    tables = ((name, table) for name, table in config.embeddings.items() if isinstance(table, GraphTable))
    return {name: t.vocabulary for name, t in tables if isinstance(t.vocabulary, DynamicVocabulary)}


def epochs(config: FeatureConfig) -> dict[str, str]:
    """The epoch of each external table."""
    return {name: table.epoch for name, table in config.embeddings.items() if isinstance(table, ExternalTable)}


def first_id_row(vocabulary: DynamicVocabulary) -> int:
    return FIRST_OOV_ROW + vocabulary.oov_buckets


def table_rows(table: GraphTable) -> int:
    """Rows of a trained table: padding, missing, out of vocabulary, then ids (a range's value v has row v + 3)."""
    if isinstance(table.vocabulary, DynamicVocabulary):
        return table.vocabulary.capacity
    return FIRST_OOV_ROW + RANGE_OOV_ROWS + table.vocabulary.size


def hashed_rows(feature: HashedId) -> int:
    """Rows of a hashed feature's table: row 0 stands for missing, row 1 + hash % buckets for an id."""
    return 1 + feature.buckets


def config_sha(config: FeatureConfig) -> str:
    """sha256 of what model, parameters and agent must agree on: features, embeddings, fusion and actions."""
    parts = {
        "features": config.features,
        "embeddings": config.embeddings,
        "fusion": config.fusion,
        "action": config.action,
    }
    return hashlib.sha256(canonical(parts)).hexdigest()


def canonical(part: object) -> bytes:
    """JSON of a part of a config. It stays as it is when keys are added that the config does not use."""
    return msgspec.json.encode(_said(msgspec.to_builtins(part)), order="sorted")


def _said(value: Any) -> Any:
    """Without the keys of `_LATER` that say nothing."""
    if isinstance(value, dict):
        return {key: _said(x) for key, x in value.items() if x or key not in _LATER}
    return [_said(x) for x in value] if isinstance(value, list | tuple) else value
