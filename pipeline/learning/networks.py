"""The networks, generated from the feature config: one block per feature, a shared state tower, stacked heads.

Every variable has a leading axis of seeds, heads of policies a second one of policies: S x K networks are one batched
product. Shapes: S seeds, K policies, B examples, N action dimensions.

Weights are drawn from numpy's Philox keyed by (seed, name): one seed gives the same weights on any machine, whatever
other seeds are beside it, and a new feature leaves the draws of the others alone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several

import numpy as np
import tensorflow as tf
import xxhash

from pipeline.config.schema import Bits, ConvLayer, Feature, FeatureConfig, GraphTable, HashedId, IdFeature, Sequence
from pipeline.features.inputs import (
    DENSE,
    dense_columns,
    dense_features,
    has_indicator,
    hashed_rows,
    mask_name,
    table_rows,
)

Inputs = dict[str, tf.Tensor]
Draw = Callable[[str, tuple[int, ...], float], tf.Variable]  # (name, shape, bound) -> [S, *shape] in [-bound, bound)

_EMBEDDING_BOUND = 0.05


def drawing(seeds: Several[int]) -> Draw:
    """Variables with uniform weights; bits of the generator scaled by exact arithmetic, so alike everywhere."""

    def draw(name: str, shape: tuple[int, ...], bound: float) -> tf.Variable:
        units = np.stack([_uniform(seed, name, shape) for seed in seeds])
        return tf.Variable((2 * units - 1) * np.float32(bound), name=name)

    return draw


def _uniform(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    key = np.random.SeedSequence([seed % 2**64, xxhash.xxh3_64_intdigest(name.encode())])
    return np.random.Generator(np.random.Philox(key)).random(shape, dtype=np.float32)


def he_bound(fan_in: int) -> float:
    """He et al. 2015: keeps the variance of ReLU layers."""
    return (6 / fan_in) ** 0.5


class Linear(tf.Module):
    """x @ kernel + bias; with a `stack`, as many of them side by side.

    Without: [S, B, in] -> [S, B, out]. With: [S, B, in] or [S, K, B, in] -> [S, K, B, out].
    """

    def __init__(self, draw: Draw, name: str, fan_in: int, out: int, stack: int | None = None, zero: bool = False):
        super().__init__()
        lead = () if stack is None else (stack,)
        self.kernel = draw(f"{name}_kernel", (*lead, fan_in, out), 0.0 if zero else he_bound(fan_in))
        self.bias = draw(f"{name}_bias", (*lead, 1, out), 0.0)

    def __call__(self, x: tf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> tf.Tensor:
        x = for_policies(x, self.kernel.shape.rank)
        *lead, fan_in, out = self.kernel.shape
        if any(n != 1 for n in lead):
            return activation(tf.matmul(x, self.kernel) + self.bias)
        # TensorFlow has a faster product for one than for a stack of one, and puts bias and activation into its kernel.
        product = tf.matmul(tf.reshape(x, [-1, fan_in]), tf.reshape(self.kernel, [fan_in, out]))
        return tf.reshape(activation(tf.nn.bias_add(product, tf.reshape(self.bias, [out]))), [*lead, -1, out])


def for_policies(x: tf.Tensor, rank: int = 4) -> tf.Tensor:
    """[S, B, ...] -> [S, 1, B, ...] where an axis of policies is expected and x has none."""
    return x if len(x.shape) == rank else tf.expand_dims(x, 1)


class Mlp(tf.Module):
    """ReLU between layers. The last layer starts at zero: before any update the output is exactly 0."""

    def __init__(self, draw: Draw, name: str, fan_in: int, hidden: tuple[int, ...], out: int, stack: int | None = None):
        super().__init__()
        sizes = (fan_in, *hidden)
        self.hidden = [Linear(draw, f"{name}_{i}", sizes[i], sizes[i + 1], stack=stack) for i in range(len(hidden))]
        self.last = Linear(draw, f"{name}_last", sizes[-1], out, stack=stack, zero=True)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.hidden:
            x = layer(x, tf.nn.relu)
        return self.last(x)


class QuadraticAdvantages(tf.Module):
    """A_k(s, a) = level(s) + sum over dimensions of slope(s) u + curvature(s) u^2 / 2, for all k.

    What fits the level leaves the slope alone. In a network of (state, action) whose action weights are random, the
    first thing that is learned, the level, tilts A along the action, and the actor follows to a bound.
    """

    def __init__(self, draw: Draw, width: int, dimensions: int, hidden: tuple[int, ...], policies: int):
        super().__init__()
        self.sizes = (1, dimensions, dimensions)
        self.terms = Mlp(draw, "advantage", width, hidden, sum(self.sizes), stack=policies)

    def of_state(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.terms(hidden)  # [S, B, H] -> [S, K, B, 1 + 2 N]

    def coefficients(self, state_part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Level [S, K, B, 1], slope and curvature [S, K, B, N]."""
        level, slope, curvature = tf.split(state_part, self.sizes, axis=-1)
        return level, slope, curvature

    def __call__(self, state_part: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
        """units: the action in baseline-centred units, [S, B, N] or [S, K, B, N]. Returns [S, K, B]."""
        units = for_policies(units)
        level, slope, curvature = self.coefficients(state_part)
        return tf.squeeze(level, -1) + tf.reduce_sum(units * (slope + 0.5 * curvature * units), axis=-1)


class NetworkAdvantages(tf.Module):
    """A_k(s, a) for all k. The state's share of the first layer is computed once for several actions of a state."""

    def __init__(self, draw: Draw, width: int, dimensions: int, hidden: tuple[int, ...], policies: int):
        super().__init__()
        first, *rest = (*hidden, 1)
        self.linear = not rest
        self.state = Linear(draw, "advantage_state", width, first, stack=policies, zero=self.linear)
        bound = 0.0 if self.linear else he_bound(dimensions)
        self.action_kernel = draw("advantage_action_kernel", (policies, dimensions, first), bound)
        self.rest = None if self.linear else Mlp(draw, "advantage", first, tuple(rest[:-1]), 1, stack=policies)

    def of_state(self, hidden: tf.Tensor) -> tf.Tensor:
        return self.state(hidden)  # [S, B, H] -> [S, K, B, F]

    def __call__(self, state_part: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
        """units: the action in baseline-centred units, [S, B, N] or [S, K, B, N]. Returns [S, K, B]."""
        x = state_part + tf.matmul(for_policies(units), self.action_kernel)
        return tf.squeeze(x if self.rest is None else self.rest(tf.nn.relu(x)), -1)


class Embedding(tf.Module):
    def __init__(self, draw: Draw, name: str, rows: int, dim: int):
        super().__init__()
        self.width = dim
        self.table = draw(f"{name}_table", (rows, dim), _EMBEDDING_BOUND)

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.table, rows, batch_dims=1)  # [S, B] -> [S, B, dim]


class SequenceEncoder(tf.Module):
    """Masked 1-D convolutions over [S, B, L, D], then pooling. Padding counts for nothing; none but padding gives 0.

    Activations are not negative and 0 where masked, so their maximum needs no mask of its own.
    """

    def __init__(self, draw: Draw, name: str, dim: int, layers: tuple[ConvLayer, ...], pool: str):
        super().__init__()
        self.pool, self.width = pool, layers[-1].filters
        self._spans = tuple(layer.kernel for layer in layers)
        fans = [c.kernel * d for c, d in zip(layers, (dim, *(c.filters for c in layers)), strict=False)]
        self.layers = [Linear(draw, f"{name}_conv_{i}", fans[i], c.filters) for i, c in enumerate(layers)]

    def __call__(self, x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        keep = mask[..., None]
        shape = tf.shape(mask)  # [S, B, L]
        for span, layer in zip(self._spans, self.layers, strict=True):
            seen = tf.reshape(_windows(x * keep, span), [shape[0], shape[1] * shape[2], layer.kernel.shape[1]])
            x = tf.reshape(layer(seen, tf.nn.relu), [shape[0], shape[1], shape[2], layer.kernel.shape[2]]) * keep
        if self.pool == "max":
            return tf.reduce_max(x, axis=2)
        return tf.reduce_sum(x, axis=2) / tf.maximum(tf.reduce_sum(keep, axis=2), 1.0)


def _windows(x: tf.Tensor, span: int) -> tf.Tensor:
    """What a convolution sees around each place, zeros beyond the ends: [S, B, L, D] -> [S, B, L, span * D]."""
    before, length = (span - 1) // 2, tf.shape(x)[2]
    padded = tf.pad(x, [[0, 0], [0, 0], [before, span - 1 - before], [0, 0]])
    return tf.concat([padded[:, :, i : i + length] for i in range(span)], axis=-1)


class Columns(tf.Module):
    """Model inputs [S, B, ...] -> [S, B, columns]: what a first layer reads, ids and sequences through their tables."""

    def __init__(self, config: FeatureConfig, draw: Draw):
        super().__init__()
        self._features = tuple(f.name for f in config.features if isinstance(f, Bits | IdFeature | HashedId | Sequence))
        self._dense = bool(dense_columns(config))
        self.tables = {
            name: Embedding(draw, name, table_rows(table), table.dim)
            for name, table in config.embeddings.items()
            if isinstance(table, GraphTable) and _used(config, name)
        }
        self._table_of = {f.name: f.embedding for f in config.features if isinstance(f, IdFeature)}
        self.hashed = {
            f.name: Embedding(draw, f.name, hashed_rows(f), f.dim) for f in config.features if isinstance(f, HashedId)
        }
        self.sequences = {
            f.name: SequenceEncoder(draw, f.name, config.embeddings[f.embedding].dim, f.encoder.layers, f.encoder.pool)
            for f in config.features
            if isinstance(f, Sequence)
        }
        self.columns = len(dense_columns(config)) + sum(_width(f, config) for f in config.features)

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        dense = [inputs[DENSE]] if self._dense else []
        return tf.concat(dense + [self._block(name, inputs) for name in self._features], axis=-1)

    def _block(self, name: str, inputs: Inputs) -> tf.Tensor:
        if name in self._table_of:
            return self.tables[self._table_of[name]](inputs[name])
        if name in self.hashed:
            return self.hashed[name](inputs[name])
        if name in self.sequences:
            return self.sequences[name](inputs[name], inputs[mask_name(name)])
        return inputs[name]


class Tower(Columns):
    """State inputs [S, B, ...] -> [S, B, width]: what V, A and mu of all policies read."""

    def __init__(self, config: FeatureConfig, draw: Draw):
        super().__init__(config, draw)
        sizes = (self.columns, *config.algorithm.tower)
        self.width = sizes[-1]
        self.layers = [Linear(draw, f"tower_{i}", sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        x = super().__call__(inputs)
        for layer in self.layers:
            x = layer(x, tf.nn.relu)
        return x


def tower_columns(config: FeatureConfig) -> list[tuple[str, int]]:
    """What each row of the first layer's kernel multiplies: a feature, and which of its columns (-1: its indicator)."""
    values = [(f.name, 0) for f in dense_features(config)]
    flags = [(f.name, -1) for f in config.features if has_indicator(f)]
    return values + flags + [(f.name, i) for f in config.features for i in range(_width(f, config))]


def _used(config: FeatureConfig, table: str) -> bool:
    return any(isinstance(f, IdFeature) and f.embedding == table for f in config.features)


def _width(feature: Feature, config: FeatureConfig) -> int:
    """How many columns a feature adds beside the dense block."""
    match feature:
        case IdFeature():
            return config.embeddings[feature.embedding].dim
        case HashedId():
            return feature.dim
        case Bits():
            return feature.width
        case Sequence():
            return feature.encoder.layers[-1].filters
    return 0
