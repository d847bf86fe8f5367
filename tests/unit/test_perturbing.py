"""Candidates near the served weights: what moves, how far, and that it changes a ranking at all."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ranking.candidates import Candidate
from pipeline.ranking.perturbing import (
    Noise,
    PerturbingError,
    Weights,
    centred_ranks,
    dbgd,
    difference,
    evolved,
    mirrored_pairs,
    moved,
    noise,
    rebased,
)

LIVE = Candidate(version=3, seed=11)


def net(seed: int, bias: float = 0.0) -> dict[str, np.ndarray]:
    """A ranker of 8 inputs and two layers of ReLUs."""
    rng = np.random.default_rng(seed)
    sizes = ((8, 16), (16, 16), (16, 1))
    kernels = {f"advantage_{i}_kernel": rng.normal(size=size).astype("f4") for i, size in enumerate(sizes)}
    return kernels | {f"advantage_{i}_bias": np.full(size[1], bias, "f4") for i, size in enumerate(sizes)}


def ranked(weights: Weights, items: np.ndarray) -> list[int]:
    x = items
    for i in range(3):
        x = x @ weights[f"advantage_{i}_kernel"] + weights[f"advantage_{i}_bias"]
        x = np.maximum(x, 0) if i < 2 else x
    return list(np.argsort(-x[:, 0], kind="stable"))


def scalar_noise(candidate: Candidate, weights: Weights, rule: Noise) -> dict[str, np.ndarray]:
    """The known-wrong way: rand(-1, 1) read as one number."""
    u = np.random.default_rng(candidate.seed).uniform(-1, 1)
    return {name: np.float32(rule.alpha * u) * w for name, w in weights.items()}


@pytest.mark.parametrize(("draw", "changed"), [(noise, range(95, 101)), (scalar_noise, range(1))])
def test_noise_per_weight_changes_the_ranking_of_nearly_every_net_and_a_scalar_of_none(draw, changed: range) -> None:
    count = 0
    for seed in range(100):
        items = np.random.default_rng(1000 + seed).normal(size=(20, 8)).astype("f4")
        weights = net(seed)
        candidate = moved(weights, draw(Candidate(1, seed), weights, Noise(floor=0.0)))
        count += ranked(weights, items) != ranked(candidate, items)
    assert count in changed


def test_noise_is_a_function_of_version_and_seed_and_name() -> None:
    weights = net(1)
    first, again = (noise(LIVE, weights, Noise()) for _ in range(2))
    some = noise(LIVE, {"advantage_1_kernel": weights["advantage_1_kernel"]}, Noise())
    assert all((first[name] == again[name]).all() for name in weights)
    assert (some["advantage_1_kernel"] == first["advantage_1_kernel"]).all()  # whatever other weights there are
    for other in (Candidate(4, 11), Candidate(3, 12)):
        assert (noise(other, weights, Noise())["advantage_1_kernel"] != first["advantage_1_kernel"]).mean() > 0.9
    same = {"a": np.ones(100, "f4"), "b": np.ones(100, "f4")}
    drawn = noise(LIVE, same, Noise())
    assert (drawn["a"] != drawn["b"]).mean() > 0.9


def test_draws_are_fixed_for_good() -> None:
    """A change would make the updates of a log impossible to repeat."""
    drawn = noise(Candidate(3, 11), {"w": np.array([1.0, -2.0, 0.0], "f4")}, Noise(alpha=0.1, floor=0.01))["w"]
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, np.array([-0.09007525, 0.020337224, -0.0008049225], "f4"))


def test_it_is_alpha_u_w_beyond_the_floor_and_alpha_u_floor_below() -> None:
    weights = {"w": np.array([2.0] * 5_000 + [-0.5] * 5_000 + [0.001] * 5_000 + [0.0] * 5_000, "f4")}
    drawn = noise(LIVE, weights, Noise(alpha=0.1, floor=0.01))["w"].reshape(4, -1)
    for part, bound in zip(drawn, (0.2, 0.05, 0.001, 0.001), strict=True):
        assert np.abs(part).max() <= bound * (1 + 1e-6)
        assert np.abs(part).max() > 0.99 * bound
        assert abs(part.mean()) < 4 * bound / np.sqrt(3 * 5_000)


def test_weights_of_zero_move_with_a_floor_and_never_without() -> None:
    fresh = {"advantage_last_kernel": np.zeros((16, 1), "f4"), "advantage_last_bias": np.zeros(1, "f4")}
    for floor, moves in ((0.01, True), (0.0, False)):
        drawn = noise(LIVE, fresh, Noise(floor=floor))
        assert all((d != 0).all() == moves for d in drawn.values())


def test_only_the_layers_that_are_named_explore() -> None:
    weights = {"value_0_kernel": np.ones(3, "f4"), "advantage_0_kernel": np.ones(3, "f4")}
    rule = Noise(layers=("advantage",))
    assert set(noise(LIVE, weights, rule)) == {"advantage_0_kernel"}
    after = dbgd(LIVE, weights, rule, eta=0.5)
    assert after["value_0_kernel"] is weights["value_0_kernel"]
    with pytest.raises(PerturbingError, match=r"expected the beginnings of some of .*found \['head'\]"):
        noise(LIVE, weights, Noise(layers=("head",)))


def test_a_win_is_a_step_towards_the_winner() -> None:
    weights = {"w": np.array([1.0, -2.0, 0.0], "f4")}
    winner = moved(weights, noise(LIVE, weights, Noise()))["w"]
    found = dbgd(LIVE, weights, Noise(), eta=0.05)["w"]
    np.testing.assert_allclose(found, weights["w"] + 0.05 * (winner - weights["w"]), rtol=1e-5)
    np.testing.assert_array_equal(dbgd(LIVE, weights, Noise(), eta=1.0)["w"], winner)


def test_the_weights_do_not_grow_after_100_wins_and_would_as_the_paper_prints_it() -> None:
    start = net(1, bias=0.1)
    weights = printed = start
    for win in range(100):
        candidate = Candidate(win, 5)
        weights = dbgd(candidate, weights, Noise(), eta=0.05)
        other = moved(printed, noise(candidate, printed, Noise()))
        printed = {name: w + np.float32(0.05) * other[name] for name, w in printed.items()}

    def size(of: Weights) -> float:
        return float(np.sqrt(sum((w.astype("f8") ** 2).sum() for w in of.values())))

    assert size(weights) == pytest.approx(size(start), rel=0.02)
    assert 100 < size(printed) / size(start) < 200


# Evolution strategies ------------------------------------------------------------------------------------------------


def test_candidates_of_a_generation_come_with_their_opposites() -> None:
    generation = mirrored_pairs(version=5, seed=1, pairs=3)
    assert len(set(generation)) == 6
    weights = net(1)
    for one, opposite in zip(generation[::2], generation[1::2], strict=True):
        assert (one.mirrored, opposite.mirrored) == (False, True)
        a, b = noise(one, weights, Noise(shape="normal")), noise(opposite, weights, Noise(shape="normal"))
        assert all((a[name] == -b[name]).all() for name in weights)
    assert generation != mirrored_pairs(6, 1, 3)
    assert generation == mirrored_pairs(5, 1, 3)


def test_normal_noise_has_the_spread_of_alpha() -> None:
    drawn = noise(LIVE, {"w": np.full(20_000, 2.0, "f4")}, Noise(alpha=0.1, shape="normal"))["w"]
    assert drawn.std() == pytest.approx(0.2, rel=0.03)
    assert np.abs(drawn).max() > 0.6


def test_centred_ranks() -> None:
    np.testing.assert_allclose(centred_ranks(np.array([3.0, -1.0, 50.0])), [0.0, -0.5, 0.5])
    np.testing.assert_allclose(centred_ranks(np.array([1.0, 1.0, 2.0])), [-0.25, -0.25, 0.5])
    np.testing.assert_allclose(centred_ranks(np.array([7.0])), [0.0])


def test_a_generation_by_hand() -> None:
    """Scores 4, 1, 3, 2 rank to .5, -.5, 1/6, -1/6; their sizes sum to 4/3."""
    weights = {"w": np.array([1.0, -2.0], "f4")}
    generation = mirrored_pairs(0, 1, 2)
    first, _, third, _ = (noise(c, weights, Noise())["w"] for c in generation)
    found = evolved(dict(zip(generation, (4, 1, 3, 2), strict=True)), weights, Noise(), eta=0.4)
    np.testing.assert_allclose(found["w"], weights["w"] + 0.4 * (0.75 * first + 0.25 * third), rtol=1e-6)


def test_equal_scores_move_nothing() -> None:
    weights = {"w": np.array([1.0, -2.0], "f4")}
    scores = dict.fromkeys(mirrored_pairs(0, 1, 3), 0.0)
    np.testing.assert_array_equal(evolved(scores, weights, Noise(), eta=1.0)["w"], weights["w"])


@pytest.mark.parametrize("rank", [True, False])
def test_it_climbs(rank: bool) -> None:
    goal, weights = np.array([0.5, -1.0, 0.2], "f4"), {"w": np.zeros(3, "f4")}
    rule = Noise(alpha=0.5, floor=0.2, shape="normal")
    for version in range(300):
        generation = mirrored_pairs(version, 1, 4)
        scores = {c: -float(((moved(weights, noise(c, weights, rule))["w"] - goal) ** 2).sum()) for c in generation}
        weights = evolved(scores, weights, rule, eta=0.5, rank=rank)
    assert np.abs(weights["w"] - goal).max() < 0.1


# Rebasing ------------------------------------------------------------------------------------------------------------


def test_what_was_accepted_while_the_major_update_trained_is_not_lost() -> None:
    snapshot = net(1)
    accepted = [noise(Candidate(version, 1), snapshot, Noise()) for version in (1, 2)]
    now = moved(moved(snapshot, accepted[0]), accepted[1])
    trained = net(2)
    found = rebased(trained, accepted)
    for name in snapshot:
        gained, wanted = found[name] - trained[name], difference(now, snapshot)[name]
        np.testing.assert_allclose(gained, wanted, atol=2e-6)
    untrained = rebased(snapshot, accepted)
    assert all((untrained[name] == now[name]).all() for name in now)
