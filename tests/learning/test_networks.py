"""Networks from configs: what padding may not do, and where weights come from."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import (
    Bits,
    Conv1d,
    ConvLayer,
    Dense,
    DynamicVocabulary,
    ExternalTable,
    GraphTable,
    HashedId,
    IdFeature,
    Missing,
    Sequence,
)
from pipeline.features.inputs import model_inputs
from pipeline.learning.networks import Linear, QuadraticAdvantages, SequenceEncoder, Tower, drawing

ALL_KINDS = {
    "features": (
        Dense("x", "user.x", missing=Missing(fill="mean", indicator=True)),
        IdFeature("city", "user.city", "cities"),
        HashedId("device", "context.device", buckets=5, dim=3),
        Bits("seen", "user.seen", width=4),
        Sequence("clicks", "user.clicks", "items", 6, Conv1d((ConvLayer(7, 3),)), missing=Missing()),
    ),
    "embeddings": {"cities": GraphTable(2, DynamicVocabulary(10)), "items": ExternalTable(4, "e1")},
}


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_padding_counts_for_nothing(pool: str) -> None:
    encoder = SequenceEncoder(drawing([1]), "s", dim=3, layers=(ConvLayer(4, 3), ConvLayer(5, 2)), pool=pool)
    encoder.layers[0].bias.assign(tf.ones([1, 1, 4]))  # a bias must not make padding speak
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 3)).astype("f4")
    mask = np.array([[[1, 1, 1, 0, 0, 0]]], "f4")
    noisy = x + (1 - mask)[..., None] * 100
    np.testing.assert_array_equal(encoder(x, mask), encoder(noisy, mask))


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_sequence_of_padding_only_gives_zeros(pool: str) -> None:
    encoder = SequenceEncoder(drawing([1]), "s", dim=3, layers=(ConvLayer(4, 3),), pool=pool)
    encoder.layers[0].bias.assign(tf.ones([1, 1, 4]))
    np.testing.assert_array_equal(encoder(np.ones((1, 2, 6, 3), "f4"), np.zeros((1, 2, 6), "f4")), np.zeros((1, 2, 4)))


def test_a_tower_of_every_kind_of_feature(make_config) -> None:
    config = make_config(ALL_KINDS, tower=(9,))
    tower = Tower(config, drawing([1]))
    inputs = {i.name: tf.ones([1, 3, *i.shape], i.dtype) for i in model_inputs(config)}
    assert tower(inputs).shape == (1, 3, 9)
    assert tower.layers[0].kernel.shape[1] == 2 + 2 + 3 + 4 + 7
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(tower(inputs))
    assert all(g is not None for g in tape.gradient(out, tower.trainable_variables))


def test_draws_depend_on_seed_and_name_only() -> None:
    one = drawing([7])("w", (3, 4), 1.0).numpy()
    np.testing.assert_array_equal(one, drawing([6, 7])("w", (3, 4), 1.0).numpy()[1:])
    np.testing.assert_array_equal(one, drawing([7])("w", (3, 4), 1.0).numpy())
    assert (one != drawing([8])("w", (3, 4), 1.0).numpy()).any()
    assert (one != drawing([7])("v", (3, 4), 1.0).numpy()).any()
    np.testing.assert_allclose(one[0, 0, :2], [0.9925146, 0.5142950], rtol=1e-6)  # the same on any machine


def test_stacked_layers_are_separate_layers() -> None:
    """For each of three seeds and four policies one of its own, over the seed's examples."""
    stacked = Linear(drawing([1, 2, 3]), "w", 3, 2, stack=4)
    stacked.bias.assign(np.random.default_rng(1).normal(size=stacked.bias.shape))
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype("f4")
    separate = [[x[s] @ stacked.kernel[s, k].numpy() + stacked.bias[s, k].numpy() for k in range(4)] for s in range(3)]
    np.testing.assert_allclose(stacked(x), separate, rtol=1e-5, atol=1e-6)


def test_a_parabola_per_dimension() -> None:
    """level 1, slopes (2, 3), curvatures (4, 6) at u = (0.5, -1): 1 + (1 - 3) + (0.5 + 3)."""
    heads = QuadraticAdvantages(drawing([1]), width=3, dimensions=2, hidden=(), policies=2)
    heads.terms.last.bias.assign([[[[1.0, 2.0, 3.0, 4.0, 6.0]], [[1.0, 0.0, 0.0, 0.0, 0.0]]]])
    part = heads.of_state(np.zeros((1, 1, 3), "f4"))
    np.testing.assert_allclose(heads(part, np.array([[[0.5, -1.0]]], "f4")), [[[2.5], [1.0]]])
