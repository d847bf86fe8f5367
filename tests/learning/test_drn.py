"""DRN: hand numbers of its loss, who trains what, padding, a task whose answer is known, and what is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.learning.drn.learner import Drn, Pages, Settings
from pipeline.learning.drn.losses import at_best, double_q, mean_of_shown, page_reward
from pipeline.learning.drn.rankers import Rankers
from pipeline.learning.drn.towers import TwoTowers, Widths
from pipeline.learning.networks import drawing
from pipeline.ranking.candidates import Candidate
from pipeline.ranking.perturbing import Noise, moved, noise

WIDTHS = Widths(user=3, item=4)
SMALL = Settings(hidden=(8, 8))


def random_pages(seed: int = 0, n: int = 16, shown: int = 2, candidates: int = 5, **columns: Any) -> Pages:
    rng = np.random.default_rng(seed)
    full = {
        "user": rng.normal(size=(n, WIDTHS.user)).astype("f4"),
        "items": rng.normal(size=(n, shown, WIDTHS.item)).astype("f4"),
        "shown": np.ones((n, shown), bool),
        "reward": rng.normal(size=(n, shown)).astype("f4"),
        "discount": (np.arange(n) % 4 > 0).astype("f4"),
        "next_user": rng.normal(size=(n, WIDTHS.user)).astype("f4"),
        "next_items": rng.normal(size=(n, candidates, WIDTHS.item)).astype("f4"),
        "next_exists": rng.random((n, candidates)) < 0.7,
    }
    return Pages(*(np.asarray(x)[None] for x in Pages(**{**full, **columns})))


def shaken(module: tf.Module, salt: int = 0) -> None:
    """Weights of their own for all variables that train, so that it matters which network is asked."""
    for i, variable in enumerate(module.trainable_variables):
        if variable.dtype.is_floating and variable.shape.rank > 0:
            variable.assign_add(0.3 * np.random.default_rng([salt, i]).normal(size=variable.shape).astype("f4"))


def learner(**changes: Any) -> Drn:
    made = Drn(WIDTHS, Settings(**{"hidden": (8, 8), **changes}))
    shaken(made.online)
    return made


def one_page(**columns: Any) -> dict[str, tf.Tensor]:
    full = {
        "q_tm1": [[[0.5]]],
        "r_t": [[[1.0]]],
        "discount_t": [[0.4]],
        "chooser_t": [[[1.0, 2.0]]],
        "q_t": [[[3.0, 0.5]]],
        "exists_t": [[[True, True]]],
    }
    return {name: tf.constant(x) for name, x in {**full, **columns}.items()}


# The loss -----------------------------------------------------------------------------------------------------------


def test_the_double_dqn_vector() -> None:
    """Online Q(s') = [1, 2], target Q = [3, .5], r = 1, gamma = .4."""
    fit = double_q(**one_page())
    np.testing.assert_allclose(fit.target, [[[1.2]]])
    np.testing.assert_allclose(fit.loss, [[[0.5 * 0.7**2]]], rtol=1e-6)
    np.testing.assert_allclose(double_q(**one_page(chooser_t=[[[3.0, 0.5]]])).target, [[[2.2]]])  # plain DQN


def test_padding_is_never_chosen_however_large_its_q() -> None:
    fit = double_q(**one_page(chooser_t=[[[1.0, 9.0]]], exists_t=[[[True, False]]]))
    np.testing.assert_allclose(fit.target, [[[1 + 0.4 * 3]]])
    negative = double_q(**one_page(chooser_t=[[[-5.0, 0.0]]], q_t=[[[-5.0, 0.0]]], exists_t=[[[True, False]]]))
    np.testing.assert_allclose(negative.target, [[[1 - 0.4 * 5]]])  # not the 0 of the padding


def test_a_request_without_candidates_is_worth_nothing() -> None:
    found = at_best(tf.constant([[[5.0, 6.0]]]), tf.constant([[[7.0, 8.0]]]), tf.constant([[[False, False]]]))
    np.testing.assert_array_equal(found, [[0.0]])


def test_no_gradient_reaches_the_target() -> None:
    parts = one_page()
    with tf.GradientTape() as tape:
        tape.watch(list(parts.values())[:5])
        loss = tf.reduce_sum(double_q(**parts).loss)
    gradients = tape.gradient(loss, [parts[name] for name in ("q_tm1", "chooser_t", "q_t")])
    np.testing.assert_allclose(gradients[0], [[[0.5 - 1.2]]], rtol=1e-6)
    assert gradients[1:] == [None, None]


def test_a_missing_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="rank"):
        double_q(**one_page(discount_t=[[[0.4]]]))


def test_means_are_over_what_was_shown() -> None:
    found = mean_of_shown(tf.constant([[[1.0, 2.0], [3.0, 99.0]]]), tf.constant([[[True, True], [True, False]]]))
    np.testing.assert_allclose(found, [2.0])
    np.testing.assert_array_equal(mean_of_shown(tf.ones([1, 2, 2]), tf.zeros([1, 2, 2], tf.bool)), [0.0])


def test_the_reward_of_an_item_is_its_click_and_the_activeness_of_the_page() -> None:
    found = page_reward(tf.constant([[1.0, 0.0]]), tf.constant([0.6]), beta=0.05)
    np.testing.assert_allclose(found, [[1.03, 0.03]])


# The network ----------------------------------------------------------------------------------------------------------


def test_q_is_the_sum_of_both_towers_by_hand() -> None:
    network = TwoTowers(drawing([1]), WIDTHS, (8, 8))
    shaken(network)
    w, pages = network.weights(), random_pages()
    user, items = pages.user[0], pages.items[0]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}_kernel"] + w[f"{name}_bias"]

    v = dense(np.maximum(dense(np.maximum(dense(user, "value_0"), 0), "value_1"), 0), "value_last")
    both = np.concatenate([np.repeat(user[:, None], 2, axis=1), items], axis=-1)
    first = both @ np.concatenate([w["advantage_user_kernel"], w["advantage_item_kernel"]]) + w["advantage_bias"]
    a = dense(np.maximum(dense(np.maximum(first, 0), "advantage_0"), 0), "advantage_last")[..., 0]
    np.testing.assert_allclose(network(pages.user, pages.items)[0], v + a, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_has_no_opinion() -> None:
    pages = random_pages()
    assert not np.any(TwoTowers(drawing([1]), WIDTHS, (8,))(pages.user, pages.items))


def test_an_item_is_worth_the_same_whatever_stands_beside_it() -> None:
    network, pages = TwoTowers(drawing([1]), WIDTHS, (8, 8)), random_pages(shown=6)
    shaken(network)
    whole = network(pages.user, pages.items)
    np.testing.assert_allclose(network(pages.user, pages.items[:, :, 3:4])[..., 0], whole[..., 3], rtol=1e-5, atol=1e-6)


def test_weights_go_out_and_come_back() -> None:
    a, b = (TwoTowers(drawing([seed]), WIDTHS, (8, 8)) for seed in (1, 2))
    shaken(a)
    b.assign(a.weights())
    assert all((x.numpy() == y.numpy()).all() for x, y in zip(a.variables, b.variables, strict=True))
    assert len(a.by_name()) == len(a.variables)
    assert {name.split("_")[0] for name in a.by_name()} == {"value", "advantage"}


# The learner ----------------------------------------------------------------------------------------------------------


def test_the_online_network_chooses_and_the_target_network_values() -> None:
    made, pages = learner(), random_pages(n=64)
    shaken(made.target.networks, salt=1)
    online = made.online(pages.next_user, pages.next_items).numpy()
    target = made.target.networks(pages.next_user, pages.next_items).numpy()

    def by_hand(chooser: np.ndarray) -> np.ndarray:
        best = np.where(pages.next_exists, chooser, -np.inf).argmax(-1)
        ahead = np.take_along_axis(target, best[..., None], -1)[..., 0] * pages.next_exists.any(-1)
        return pages.reward + (0.4 * pages.discount * ahead)[..., None]

    np.testing.assert_allclose(made.fit(pages).target, by_hand(online), rtol=1e-4, atol=1e-5)
    assert np.abs(by_hand(online) - by_hand(target)).max() > 1e-3
    plain = Drn(WIDTHS, Settings(hidden=(8, 8), double=False))
    plain.target.networks.assign(made.target.networks.weights())
    np.testing.assert_allclose(plain.fit(pages).target, by_hand(target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("period", [0, 5])
def test_the_loss_trains_all_of_the_online_network_and_nothing_else(period: int) -> None:
    made, pages = learner(target_period=period), random_pages()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(made.losses(pages).loss)
    online = made.online.trainable_variables
    others = [v for v in made.trainable_variables if not any(v is w for w in online)]
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, online))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(made.losses(pages).loss)
    assert tape.gradient(loss, others) == [None] * len(others)
    assert len(others) > len(online) * (1 if period else 0)


def test_what_was_not_shown_teaches_nothing() -> None:
    pages = random_pages(shown=3)
    mask = np.array(pages.shown)
    mask[0, :, 2] = False
    rubbish = np.array(pages.reward)
    rubbish[0, :, 2] = 1e6
    found = []
    for reward in (pages.reward, rubbish):
        made = learner()
        made.step(pages._replace(shown=mask, reward=reward))
        found.append(made.online.weights())
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


def test_dn_does_not_look_ahead() -> None:
    pages = random_pages()
    np.testing.assert_array_equal(learner(gamma=0.0).fit(pages).target, pages.reward)


def test_the_target_is_refreshed_after_every_period() -> None:
    made, pages, same = learner(target_period=3, learning_rate=0.01), random_pages(), []
    for _ in range(7):
        made.step(pages)
        mine, theirs = made.online.weights(), made.target.networks.weights()
        same.append(all((mine[name] == theirs[name]).all() for name in mine))
    assert same == [False, False, True, False, False, True, False]


def test_several_steps_in_one_call_are_the_same_as_one_by_one() -> None:
    one, many = learner(), learner()
    batches = [random_pages(seed) for seed in range(4)]
    losses = [one.step(pages)["loss"].numpy() for pages in batches]
    stacked = Pages(*(np.stack(columns) for columns in zip(*batches, strict=True)))
    np.testing.assert_allclose(many.steps(stacked)["loss"], losses, rtol=1e-6)
    for name, weights in one.online.weights().items():
        np.testing.assert_allclose(many.online.weights()[name], weights, rtol=1e-5, atol=1e-7)


def test_seeds_learn_apart() -> None:
    pages = [random_pages(seed) for seed in (1, 2)]
    both = Drn(WIDTHS, Settings(hidden=(8, 8), seeds=(1, 2)))
    both.step(Pages(*(np.concatenate(columns) for columns in zip(*pages, strict=True))))
    for i, seed in enumerate((1, 2)):
        alone = Drn(WIDTHS, Settings(hidden=(8, 8), seeds=(seed,)))
        alone.step(pages[i])
        for name, weights in alone.online.weights().items():
            np.testing.assert_allclose(both.online.weights(i)[name], weights, rtol=1e-5, atol=1e-7)


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (1, 1, 2):
        made = Drn(WIDTHS, Settings(hidden=(8, 8), seeds=(seed,)))
        for batch in range(5):
            made.step(random_pages(batch))
        found.append(made.online.weights())
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    assert any((found[0][name] != found[2][name]).any() for name in found[0])


# A task whose answer is known -------------------------------------------------------------------------------------

# A user is content or not. Content ones click on bait (1) rather than on substance (.75), but bait leaves them not
# content, and then they click on nothing, until substance makes them content again. With gamma = .4:
# Q(content, substance) = .75 / .6 = 1.25, Q(not, substance) = .4 1.25 = .5, Q(content, bait) = 1 + .4 .5 = 1.2,
# Q(not, bait) = .4 .5 = .2. Looking one click ahead bait is better.
GOOD = Widths(user=2, item=2)
REWARD = np.array([[0.0, 0.0], [0.75, 1.0]], "f4")  # [content][bait]
ANSWER = np.array([[0.5, 0.2], [1.25, 1.2]])


def visits(n: int, seed: int) -> Pages:
    rng = np.random.default_rng(seed)
    content, bait = rng.integers(0, 2, (2, n))
    both = np.broadcast_to(np.eye(2, dtype="f4"), (n, 2, 2))
    one = np.eye(2, dtype="f4")
    return Pages(
        *(
            x[None]
            for x in (
                one[content],
                one[bait][:, None],
                np.ones((n, 1), bool),
                REWARD[content, bait][:, None],
                np.ones(n, "f4"),
                one[1 - bait],
                both,
                np.ones((n, 2), bool),
            )
        )
    )


def learned(gamma: float) -> np.ndarray:
    """Q [content][bait]."""
    made = Drn(GOOD, Settings(gamma=gamma, hidden=(16,), learning_rate=0.01, target_period=20))
    batches = [visits(64, seed) for seed in range(400)]
    made.steps(Pages(*(np.stack(columns) for columns in zip(*batches, strict=True))))
    return made.online(np.eye(2, dtype="f4")[None], np.broadcast_to(np.eye(2, dtype="f4"), (1, 2, 2, 2))).numpy()[0]


def test_it_learns_that_bait_costs_more_later_than_it_brings_now() -> None:
    np.testing.assert_allclose(learned(gamma=0.4), ANSWER, atol=0.01)


def test_dn_does_not() -> None:
    np.testing.assert_allclose(learned(gamma=0.0), REWARD, atol=0.01)


# What is served ---------------------------------------------------------------------------------------------------


def test_w_and_w_plus_dw_are_two_outputs_of_one_call() -> None:
    network, pages, rule = TwoTowers(drawing([1]), WIDTHS, (8, 8)), random_pages(candidates=7), Noise()
    shaken(network)
    weights, candidates = network.weights(), (Candidate(1, 5), Candidate(1, 5, mirrored=True))
    rankers = Rankers(WIDTHS, (8, 8), candidates=2)
    rankers.serve(weights, candidates, rule)
    found = rankers.scores(pages.next_user[0], pages.next_items[0])
    assert found["q"].shape == (16, 7)
    assert found["q_candidates"].shape == (16, 2, 7)
    np.testing.assert_allclose(found["q"], network(pages.next_user, pages.next_items)[0], rtol=1e-4, atol=1e-5)
    for i, candidate in enumerate(candidates):
        network.assign(moved(weights, noise(candidate, weights, rule)))
        expected = network(pages.next_user, pages.next_items)[0]
        np.testing.assert_allclose(found["q_candidates"][:, i], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found["q_candidates"].numpy()[:, 0] - found["q"].numpy()).max() > 1e-3


def test_a_page_has_the_same_scores_in_any_batch_and_beside_any_padding() -> None:
    rankers, pages = Rankers(WIDTHS, (8, 8), candidates=1), random_pages(candidates=7)
    shaken(rankers)
    user, items = pages.next_user[0], pages.next_items[0]
    whole = rankers.scores(user, items)
    padded = np.concatenate([items[3:4], np.zeros((1, 4, WIDTHS.item), "f4")], axis=1)
    alone = rankers.scores(user[3:4], padded)
    np.testing.assert_allclose(alone["q"][0, :7], whole["q"][3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone["q_candidates"][0, :, :7], whole["q_candidates"][3], rtol=1e-5, atol=1e-6)
