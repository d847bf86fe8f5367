"""The simulated news: who lives how long, who sees what, and that nothing but what is shown makes a difference."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ranking.activeness import EXACT, Activeness, after, observe
from pipeline.simulation.news.feed import NewsFeed, Requests
from pipeline.simulation.news.items import published
from pipeline.simulation.news.params import VERSION, Params, World


def feed(seed: int = 1, users: int = 80, days: float = 1, **changes: float) -> NewsFeed:
    return NewsFeed(Params(**changes), seed, users, days)


def first(requests: Requests, places: int = 10) -> np.ndarray:
    return np.where(requests.exists[:, :places], np.arange(places), -1)


def by(column: np.ndarray, requests: Requests, sign: int) -> np.ndarray:
    """The ten best by what an item has."""
    return np.argsort(-sign * column[requests.items] + 1e9 * ~requests.exists, axis=1)[:, :10]


def play(made: NewsFeed, show=first) -> tuple[int, int]:
    """Pages and clicks of a run."""
    pages = clicks = 0
    while not made.over:
        requests = made.requests()
        clicks += made.show(requests, show(requests)).sum()
        pages += len(requests.users)
    return pages, int(clicks)


def test_its_numbers_are_frozen() -> None:
    """Results name them. After a change of a number or of what the code does: a new VERSION, and all results anew."""
    assert (VERSION, World().sha256[:12]) == (1, "17de41749121")


def test_what_it_does_is_frozen() -> None:
    assert play(feed()) == (312, 187)


def test_items_live_for_4_1_hours_in_the_mean_and_the_feed_is_full_from_the_start() -> None:
    items = published(Params(), seed=1, days=60)
    life_h = (items.gone_min - items.born_min) / 60
    assert life_h.mean() == pytest.approx(4.1, rel=0.03)
    assert np.median(life_h) == pytest.approx(4.1 * np.log(2), rel=0.04)
    alive = [len(items.alive(60 * hour)) for hour in range(0, 1440, 5)]
    assert np.mean(alive) == pytest.approx(24 * 4.1, rel=0.05)
    assert abs(alive[0] - np.mean(alive)) < 5 * np.std(alive)


def test_candidates_are_alive_and_drawn_for_the_request() -> None:
    made, seen = feed(users=400), []
    while made.now_min < 200:
        requests = made.requests()
        assert np.isin(requests.items[requests.exists], made.items.alive(made.now_min)).all()
        assert all(len(set(row)) == 30 for row in requests.items)
        seen += requests.items.tolist()
        made.show(requests, first(requests))
    assert len({tuple(row) for row in seen}) == len(seen)


def test_where_few_items_are_alive_the_rest_is_padding_and_is_never_clicked() -> None:
    made = feed(items_per_h=3.0, click_level=50.0)
    while not made.over:
        requests = made.requests()
        n = requests.exists.sum(axis=1)
        assert (requests.exists == (np.arange(30) < n[:, None])).all()
        assert not requests.item_features[~requests.exists].any()
        shown = first(requests)
        assert not (made.show(requests, shown) & (shown < 0)).any()


def test_a_user_is_the_same_whoever_else_there_is_until_they_are_shown_different_things() -> None:
    """Requests and candidates of a user depend on the seed, the user, and what the user did."""
    few, many = feed(users=20), feed(users=60)
    for _ in range(300):
        a, b = few.requests(), many.requests()
        mine = b.users < 20
        assert a.users.tolist() == b.users[mine].tolist()
        assert (a.items == b.items[mine]).all()
        few.show(a, first(a))
        many.show(b, first(b))


def test_a_seed_decides_everything() -> None:
    assert play(feed(seed=1)) == play(feed(seed=1)) != play(feed(seed=2))


def test_activeness_is_that_of_the_survival_model() -> None:
    made, times, last = feed(days=2), {}, {}
    while not made.over:
        requests = made.requests()
        for user, activeness in zip(requests.users.tolist(), requests.activeness, strict=True):
            times.setdefault(user, []).append(made.now_min * 60_000)
            last[user] = activeness
        made.show(requests, first(requests))
    for user, moments in times.items():
        expected = after(EXACT, observe(Activeness(), moments), moments[-1])
        assert last[user] == pytest.approx(expected, abs=1e-12)


def test_places_further_down_are_clicked_less() -> None:
    made, clicks = feed(users=400), np.zeros(10)
    while not made.over:
        requests = made.requests()
        clicks += made.show(requests, first(requests)).sum(axis=0)
    looked_at = clicks * (1 + 0.15 * np.arange(10))
    assert clicks[0] > 1.5 * clicks[9]
    assert looked_at.std() / looked_at.mean() < 0.15


def test_what_hooks_is_clicked_on_and_disappoints() -> None:
    baited, honest = feed(users=200, days=2), feed(users=200, days=2)
    (pages, clicks) = play(baited, lambda r: by(baited.items.hook, r, 1))
    (more_pages, fewer_clicks) = play(honest, lambda r: by(honest.items.hook, r, -1))
    assert clicks / pages > 1.3 * fewer_clicks / more_pages
    assert baited.people.goodwill.mean() < honest.people.goodwill.mean() - 0.05
    assert pages < 0.8 * more_pages


def test_old_news_and_worn_topics_are_clicked_less() -> None:
    made = feed(users=200)
    while made.now_min < 120:
        requests = made.requests()
        made.show(requests, first(requests))
    requests = made.requests()
    users, items = requests.users, requests.items
    now = made.attraction(users, items)
    made.people.worn[users] += 0.5
    assert (made.attraction(users, items) <= now).all()
    made.people.worn[users] -= 0.5
    made.now_min += 60
    assert (made.attraction(users, items) <= now).all()


def test_nothing_is_clicked_twice() -> None:
    made, clicked = feed(click_level=3.0, items_per_h=5.0), set()
    while not made.over:
        requests = made.requests()
        found = made.show(requests, first(requests))
        for page, place in np.argwhere(found):
            pair = (int(requests.users[page]), int(requests.items[page, place]))
            assert pair not in clicked
            clicked.add(pair)
    assert len(clicked) > 100


def test_features_are_finite_and_of_the_widths_that_it_says() -> None:
    made = feed(users=200)
    while not made.over:
        requests = made.requests()
        assert (requests.user_features.shape[1], requests.item_features.shape[2]) == made.widths
        assert np.isfinite(requests.user_features).all()
        assert np.abs(requests.item_features).max(initial=0) < 20
        made.show(requests, first(requests))
