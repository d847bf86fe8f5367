"""What a caller knows of a request of the simulated news: names and units are those of the config for them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.config.reading import load_config
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.simulation.news.asking import Known, check, users_for
from pipeline.simulation.news.feed import NewsFeed
from pipeline.simulation.news.params import Params
from pipeline.simulation.params import SimulationError

CONFIG = load_config(Path(__file__).resolve().parents[2] / "feature_configs" / "news_drn.yaml")


def test_every_feature_of_the_config_is_known_and_can_be_encoded() -> None:
    check(CONFIG, Params())
    feed, known = NewsFeed(Params(), seed=1, users=60, days=1), Known(Params())
    while not len((requests := feed.requests()).users):
        feed.show(requests, np.zeros((0, 10), int))
    state, items = known.state(requests, 0), known.items(requests, 0)
    snapshot = Snapshot.initial(CONFIG)
    of_user, of_items = Encoder(CONFIG), Encoder(CONFIG, part="item")
    inputs = of_user.finish(of_user.prepare(state).row, snapshot)["dense"][0]
    columns = requests.user_features[0]
    np.testing.assert_allclose(inputs[:9], columns[:9], atol=1e-4)  # likes, activeness
    assert state.user["requests"] == round(50 * columns[-3])
    assert len(items) == requests.exists[0].sum()
    dense = of_items.finish(of_items.prepare_items(items), snapshot)["dense"]
    raw = requests.item_features[0][: len(items)]
    np.testing.assert_allclose(dense[:, :8], raw[:, :8], atol=1e-4)  # what it is about
    np.testing.assert_allclose(dense[:, 10], 5 * raw[:, 16], atol=0.05)  # log of its views
    np.testing.assert_allclose(dense[:, 11], raw[:, 17], atol=1e-4)  # match
    providers = [item.features["provider"] for item in items]
    assert providers == [f"p{p}" for p in feed.items.provider[requests.items[0]][: len(items)]]


def test_a_feature_that_the_news_do_not_have_is_a_mistake_unless_it_may_be_missing() -> None:
    odd = msgspec.structs.replace(CONFIG.features[0], source="user.shoe_size")
    with pytest.raises(SimulationError, match=r"found user\.shoe_size"):
        check(msgspec.structs.replace(CONFIG, features=(odd, *CONFIG.features[1:])), Params())


def test_a_page_of_another_size_is_a_mistake() -> None:
    ranking = msgspec.structs.replace(CONFIG.ranking, page_size=7)
    with pytest.raises(SimulationError, match="expected 10, that of the simulated news, found 7"):
        check(msgspec.structs.replace(CONFIG, ranking=ranking), Params())


def test_so_many_users_begin_about_so_many_visits() -> None:
    feed, visits = NewsFeed(Params(), seed=1, users=users_for(0.01, 86_400.0), days=3), 0
    while not feed.over:
        requests = feed.requests()
        visits += int((feed.people.depth[requests.users] == 0).sum())
        feed.show(requests, np.where(requests.exists[:, :10], np.arange(10), -1))
    assert visits / 3 == pytest.approx(0.01 * 86_400, rel=0.5)
