"""Rules about features and the tables they look up in."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.findings import Finding, Findings, all_read, repeated_names
from pipeline.config.problems import closest, suggestion
from pipeline.config.schema import (
    Bits,
    Dense,
    Drn,
    DynamicVocabulary,
    ExternalTable,
    Feature,
    FeatureConfig,
    GraphTable,
    HashedId,
    IdFeature,
    QLearning,
    Sequence,
)

DENSE_INPUT = "dense"
_RESERVED_ROWS = 2  # padding and missing
_DOMAINS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "log1p": ("> -1", lambda x: x > -1),
    "logit": ("between 0 and 1, both excluded", lambda x: 0 < x < 1),
    "sqrt": (">= 0", lambda x: x >= 0),
}


def feature_names(config: FeatureConfig) -> Findings:
    yield from repeated_names(config.features, ("features",))


def reserved_name(config: FeatureConfig, feature: Feature) -> Findings:
    if feature.name == DENSE_INPUT:
        yield Finding(("name",), f'"{DENSE_INPUT}" is the model input that holds all dense features; take another name')
    if "__" in feature.name:
        yield Finding(("name",), 'must not contain "__" (reserved for generated inputs such as x__mask)')


def reference(config: FeatureConfig, feature: Feature) -> Findings:
    if not isinstance(feature, IdFeature | Sequence):
        return
    if feature.embedding not in config.embeddings:
        hint = suggestion(feature.embedding, config.embeddings)
        yield Finding(("embedding",), f'no table "{feature.embedding}" in embeddings{hint}')
        return
    table = config.embeddings[feature.embedding]
    if isinstance(feature, IdFeature) and isinstance(table, ExternalTable):
        message = f'an id feature needs a table with lookup: graph, but "{feature.embedding}" is external'
        yield Finding(("embedding",), message)
    if isinstance(feature, Sequence) and isinstance(table, GraphTable):
        message = f'a sequence needs a table with lookup: external, but "{feature.embedding}" is in the graph'
        yield Finding(("embedding",), message)


def missing_rule(config: FeatureConfig, feature: Feature) -> Findings:
    rule = feature.missing
    if rule is None:
        return
    if isinstance(feature, Dense):
        yield from _dense_fill(feature)
    elif rule.fill is not None:
        stand_in = {IdFeature: "a row", HashedId: "a row", Bits: "zeros", Sequence: "a mask of zeros"}[type(feature)]
        yield Finding(("missing", "fill"), f"is for dense features; {stand_in} will do here: write missing: {{}}")
    if isinstance(feature, IdFeature | HashedId) and rule.indicator:
        yield Finding(("missing", "indicator"), "a missing id has a row that says so; leave the indicator out")


def _dense_fill(feature: Dense) -> Findings:
    assert feature.missing is not None
    fill = feature.missing.fill
    if fill is None:
        yield Finding(("missing",), 'a dense feature needs fill: a number, "mean" or "median"')
    elif fill == "mean":
        if feature.zscore is None:
            yield Finding(("missing", "fill"), '"mean" needs zscore, which keeps the mean')
    elif fill == "median":
        if feature.quantile is None:
            yield Finding(("missing", "fill"), '"median" needs quantile, which keeps the median')
    elif feature.transform != "none":
        domain, holds = _DOMAINS[feature.transform]
        if not holds(fill):
            yield Finding(("missing", "fill"), f"must be {domain} for transform {feature.transform}, got {fill}")


def normaliser(config: FeatureConfig, feature: Feature) -> Findings:
    if isinstance(feature, Dense) and feature.zscore is not None and feature.quantile is not None:
        yield Finding(("quantile",), "is there beside zscore; keep one of them")


def convolution(config: FeatureConfig, feature: Feature) -> Findings:
    """Convolutions are not padded: each shortens its input by kernel - 1."""
    if not isinstance(feature, Sequence):
        return
    length = feature.max_len
    for i, layer in enumerate(feature.encoder.layers):
        if layer.kernel > length:
            message = f"kernel {layer.kernel} is longer than what reaches it ({length} of max_len {feature.max_len})"
            yield Finding(("encoder", "layers", i, "kernel"), message)
            return
        length -= layer.kernel - 1


def unused_tables(config: FeatureConfig) -> Findings:
    """A table that a misspelt reference may have meant is not reported a second time."""
    users = [f for f in all_read(config.features) if isinstance(f, IdFeature | Sequence)]
    used = {f.embedding for f in users}
    meant = {closest(name, config.embeddings) for name in used if name not in config.embeddings}
    for table in config.embeddings:
        if table not in used | meant:
            yield Finding(("embeddings", table), "never used by a feature")


def capacities(config: FeatureConfig) -> Findings:
    for name, table in config.embeddings.items():
        if isinstance(table, GraphTable) and isinstance(table.vocabulary, DynamicVocabulary):
            yield from _capacity(name, table.vocabulary)


def fading_tables(config: FeatureConfig) -> Findings:
    """Whoever hands a row on has to clear what was learned of it, wherever that is."""
    for name, table in config.embeddings.items():
        if not isinstance(table, GraphTable) or not isinstance(table.vocabulary, DynamicVocabulary):
            continue
        path = ("embeddings", name, "vocabulary", "half_life")
        if table.vocabulary.half_life is None:
            if table.vocabulary.remember:
                yield Finding((*path[:-1], "remember"), "needs half_life: without it no row ever passes on")
            continue
        if isinstance(config.algorithm, Drn | QLearning):
            yield Finding(path, "is for learners with one network of embeddings, not for drn or q_learning")
        if any(isinstance(f, HashedId) and f.name == name for f in all_read(config.features)):
            yield Finding(
                path, f'needs a name of its own: the hashed_id feature "{name}" has a table that is called so'
            )


def _capacity(table: str, vocabulary: DynamicVocabulary) -> Findings:
    reserved = _RESERVED_ROWS + vocabulary.oov_buckets
    if vocabulary.capacity <= reserved:
        message = (
            f"must be > {reserved}: padding, missing and {vocabulary.oov_buckets} out-of-vocabulary rows come first"
        )
        yield Finding(("embeddings", table, "vocabulary", "capacity"), f"{message}; got {vocabulary.capacity}")
