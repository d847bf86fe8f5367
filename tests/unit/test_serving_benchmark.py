"""What the serving and the embeddings benchmark make of what they have measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import embeddings, serving
from benchmarks.serving_load import Load, Times
from benchmarks.serving_place import CANDIDATES, CLICKS, CONFIG, pages, tour
from benchmarks.serving_swaps import Swaps, ratio_of
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.agent.requests import admit
from pipeline.config.reading import load_config
from pipeline.features.encoder import Encoder

TIMES = Times(100, 1.0, 2.0)


def test_times_are_quantiles_in_milliseconds():
    assert Times.of([i / 1000 for i in range(1, 102)]) == Times(101, 51.0, 100.0)


def test_the_ratio_of_windows_is_that_of_pairs():
    """Whatever a window has in common with its partner is in neither the median nor the interval."""
    noise = np.exp(np.random.default_rng(3).normal(0, 2, 40))
    middle, low, high = ratio_of((1.2 * noise).tolist(), noise.tolist())
    assert (middle, low, high) == pytest.approx((1.2, 1.2, 1.2))


def test_an_uneven_ratio_has_an_interval():
    middle, low, high = ratio_of([1.0, 1.0, 1.0, 2.0, 3.0], [1.0] * 5)
    assert low == middle == 1.0
    assert high > 1.0


def test_pages_are_of_learned_buckets_and_fit_the_config():
    config = load_config(CONFIG)
    table, asked = bucket_table(config.buckets), pages(config, 1)
    encoder = Encoder(config, Nothing())
    for _ in range(20):
        page = admit(next(asked))
        assert len(page.items) == CANDIDATES
        assert len(page.user["recent_clicks"]) == CLICKS
        assert table[slot_of(config.buckets, page.user_id)].policy in config.learned_policies()
        encoder.prepare(page.state)


def test_after_the_tour_few_shops_are_new():
    config = load_config(CONFIG)
    known = {shop for page in tour(config) for shop in page.user["recent_clicks"]}
    asked = [shop for page, _ in zip(pages(config, 1), range(300), strict=False) for shop in page.user["recent_clicks"]]
    new = sum(shop not in known for shop in asked) / len(asked)
    assert 0 < new < 0.01


class Nothing:
    def vectors(self, table: str, epoch: str, ids: list[str]) -> list[None]:
        return [None] * len(ids)


def test_the_tables_say_what_was_counted():
    swaps = Swaps(21, 5_000, 0, {"timeout": 3}, 0, 0, TIMES, TIMES, (1.0, 0.9, 1.1))
    loads = (Load("library", 8, TIMES, 800.0, 900.0, 3),)
    alone = (serving.Alone("library", True, TIMES, TIMES, 0.5),)
    told = serving.table(serving.Result("stand-in", 2, alone, loads, swaps))
    assert "21 versions while 5000 pages were decided: 0 failed" in told
    assert "3 by the baseline for trouble {'timeout': 3}, 0 mixed" in told
    reads = embeddings.Reads(True, TIMES, TIMES, TIMES, 0.9)
    vectors = embeddings.table(embeddings.Result(10_000_000, 260.0, 265.0, 70_000, 100_000, 90_000, (reads,)))
    assert "260.0 (bar 270); 2.60 GB" in vectors
    assert "90.0 %" in vectors
    assert "kept awake" in vectors
