"""The simulated feed: the same draws whoever asks, the product's own fusion and reward, a config that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from pipeline.agent.fusion import fuse
from pipeline.config.reading import load_config, parse_config
from pipeline.config.schema import PayPlusAPhi
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.features.stored_vectors import StoredVectors
from pipeline.simulation import draws, observing
from pipeline.simulation.catalogue import catalogue, item_id, item_index
from pipeline.simulation.feed import Sessions, advance, arrange, begin, offer, react, rewards, select
from pipeline.simulation.params import Objective, Params, SimulationError, World
from pipeline.simulation.reactions import candidates, feedback, ids_of
from pipeline.simulation.rollout import Step, constant, digest, play
from pipeline.simulation.tables import ItemVectors, load_items
from pipeline.stores.opening import open_store
from pipeline.transitions.rewards import page_reward

CONFIG = Path(__file__).resolve().parents[2] / "feature_configs" / "simulated.yaml"
WORLD = World()
PARAMS = WORLD.params
HAPPENS = "ca0185cb2d3912029826bd6e65d8ce15dd0ce1642fb4230f18c9f5dd2cb1aa60"
FROZEN = "035727c9b396633eba034af521fa900db19549a699a00c6194675a00b4d0d7ee"


def start(users: int, seed: int = 5) -> Sessions:
    return begin(PARAMS, seed, np.arange(users), np.zeros(users, np.int64))


def one(sessions: Sessions, index: int) -> Sessions:
    return select(sessions, np.array([index]))


def same(left: Sessions, right: Sessions) -> bool:
    pairs = [*zip(left.visitors, right.visitors, strict=True), *zip(left[1:], right[1:], strict=True)]
    return all(np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating)) for a, b in pairs)


def test_the_world_is_frozen():
    """A change of any parameter is a new world: every result measured on the old one has to be measured again."""
    assert WORLD.sha256 == FROZEN
    assert World(structs.replace(PARAMS, patience_spread=0.31)).sha256 != FROZEN


def test_what_happens_in_it_is_frozen():
    """A change of the code that changes what happens asks for a new `VERSION`, and all results anew."""
    assert digest(WORLD) == HAPPENS
    assert digest(World(structs.replace(PARAMS, exposure_loyalty=0.89))) != HAPPENS


def test_the_feature_config_asks_for_what_the_yardsticks_measured():
    assert World.of(load_config(CONFIG)) == WORLD


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{kind: pay_plus_a_phi, phi: 0.07}", "{kind: exponents}", "fusion"),
        ("{click: 1.0, order: 4.0}", "{click: 1.0, dwell: 0.1}", "reward.weights"),
        ("  penalties: {page", "  clip: [-1, 5]\n  penalties: {page", "reward.clip"),
    ],
)
def test_a_config_that_the_feed_cannot_measure_is_refused(old: str, new: str, message: str):
    text = CONFIG.read_text().replace(old, new)
    if "exponents" in new:
        text = text.replace("action:\n", "action:\n  - {name: b, baseline: 1.0, range: [0, 2]}\n")
    with pytest.raises(SimulationError, match=message):
        World.of(parse_config(text))


def test_the_same_seed_gives_the_same_sessions_and_another_seed_others():
    users = np.arange(200)
    first, again, other = (play(WORLD, constant(1.3), seed, users) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.reward, other.reward)


def test_a_session_alone_and_in_a_batch_agree_in_every_bit():
    n = 60
    action = np.linspace(0, 2, n)
    batch = start(n)
    singles = [one(batch, i) for i in range(n)]
    for _ in range(6):
        page = offer(PARAMS, batch)
        reaction = react(PARAMS, batch, page, arrange(WORLD, page, action))
        for i in range(n):
            alone = offer(PARAMS, singles[i])
            reacted = react(PARAMS, singles[i], alone, arrange(WORLD, alone, action[i : i + 1]))
            assert all(np.array_equal(a[..., 0], b[..., i]) for a, b in zip(reacted, reaction, strict=True))
            singles[i] = advance(PARAMS, singles[i], reacted)
        batch = advance(PARAMS, batch, reaction)
        assert all(same(singles[i], one(batch, i)) for i in range(n))


def test_a_page_is_arranged_by_the_products_fusion():
    batch = start(30)
    page = offer(PARAMS, batch)
    actions = np.linspace(0, 2, 30)
    shown = arrange(WORLD, page, actions)
    for i in range(30):
        items = candidates(offer(PARAMS, one(batch, i)))
        expected = fuse(PayPlusAPhi(phi=WORLD.objective.phi), (float(actions[i]),), items)[: PARAMS.page_size]
        assert tuple(shown[:, i]) == expected


def test_candidates_are_distinct_and_scores_are_probabilities():
    page = offer(PARAMS, start(300))
    assert all(len(set(items)) == PARAMS.candidates for items in page.items.T)
    for scores in (page.click_score, page.pay_score):
        assert ((scores > 0) & (scores < 1)).all()


def test_rewards_are_those_of_the_stream():
    steps: list[Step] = []
    play(WORLD, constant(0.7), 2, np.arange(40), watch=steps)
    kinds = set()
    for step in steps:
        for i in range(len(step.at)):
            alone = one(step.before, i)
            page = offer(PARAMS, alone)
            reaction = react(PARAMS, alone, page, arrange(WORLD, page, step.action[i : i + 1]))
            events = feedback(PARAMS, ids_of(alone), page, reaction)
            left = bool(reaction.left[0])
            kinds.add((bool(reaction.clicks[0]), bool(reaction.orders[0]), left))
            assert page_reward(WORLD.objective.reward, events, left=left) == step.reward[i]
            assert rewards(WORLD.objective, reaction)[0] == step.reward[i]
    assert len(kinds) == 6  # all that there are: no order without a click


def test_an_order_follows_the_click_on_its_item_and_a_page_has_at_most_one():
    sessions = start(2000)
    page = offer(PARAMS, sessions)
    reaction = react(PARAMS, sessions, page, arrange(WORLD, page, np.zeros(2000)))
    assert reaction.orders.max() == 1
    assert not (reaction.ordered & ~reaction.clicked).any()


def test_buyers_who_found_the_right_thing_leave_and_browsers_stay_for_shows():
    sessions = start(20_000)
    buyer = sessions.visitors.buyer
    page = offer(PARAMS, sessions)
    deals, shows = (react(PARAMS, sessions, page, arrange(WORLD, page, np.full(20_000, a))) for a in (0.0, 2.0))
    served = buyer & (deals.orders == 1)
    assert deals.left[served].mean() > 0.8 > 2 * deals.left[buyer & (deals.orders == 0)].mean() > 0
    assert shows.left[~buyer].mean() < 0.9 * deals.left[~buyer].mean()
    assert shows.clicks[buyer].mean() < 0.85 * deals.clicks[buyer].mean()


def test_the_visible_tells_of_the_intent_but_not_all():
    """Area under the curve of one linear reading of the raw features, before the first page."""
    sessions = start(4000)
    seen, buyer = observing.vector(PARAMS, sessions).astype(float), sessions.visitors.buyer
    at = observing.names(PARAMS).index
    evidence = seen[:, at("orders_30d")] - 2 * seen[:, at("recents_0")]
    rank = np.argsort(np.argsort(evidence))
    auc = (rank[buyer].mean() - (buyer.sum() - 1) / 2) / (~buyer).sum()
    assert 0.75 < auc < 0.95


def test_nothing_hidden_is_in_the_state():
    sessions = start(50)
    tampered = sessions._replace(
        visitors=sessions.visitors._replace(buyer=~sessions.visitors.buyer, patience=sessions.visitors.patience + 1),
        trust=sessions.trust + 0.1,
        goodwill=sessions.goodwill + 0.1,
        saturation=sessions.saturation + 0.1,
    )
    assert observing.state(sessions, 7) == observing.state(tampered, 7)
    assert np.array_equal(observing.vector(PARAMS, sessions), observing.vector(PARAMS, tampered))
    assert observing.vector(PARAMS, sessions).shape == (50, len(observing.names(PARAMS)))


def test_the_encoder_reads_every_state():
    config = load_config(CONFIG)
    encoder = Encoder(config, ItemVectors())
    steps: list[Step] = []
    play(WORLD, constant(1.0), 1, np.arange(30), watch=steps)
    states = [observing.state(step.before, i) for step in steps for i in range(len(step.at))]
    prepared = [encoder.prepare(state) for state in states]
    assert all(all(p.lookups["recent_clicks"].hits) for p in prepared)
    inputs = encoder.finish(encoder.stack(prepared), Snapshot.initial(config))
    assert inputs["recent_clicks"].shape == (len(states), PARAMS.recents, PARAMS.vector_dim)


def test_item_vectors_are_loaded_once_and_tell_the_lean(tmp_path: Path):
    config = load_config(CONFIG)
    store = open_store(f"sqlite:///{tmp_path / 'kv.db'}")
    for _ in range(2):
        assert load_items(config, store).rows == PARAMS.catalogue
    stored = StoredVectors(store, config.kv_prefix, capacity=10, monotonic=lambda: 0.0)
    ids = [item_id(0), item_id(600), "item-601", "other"]
    assert stored.vectors("item", "e1", ids) == ItemVectors().vectors("item", "e1", ids)
    found = stored.vectors("item", "e1", ids)
    assert found[2:] == [None, None]
    store.close()
    items = catalogue(PARAMS)
    assert np.corrcoef(items.vectors[:, 0], items.lean)[0, 1] > 0.95


@pytest.mark.parametrize("name", ["item-601", "item-", "x-1", "item--1"])
def test_an_item_of_another_feed_is_refused(name: str):
    with pytest.raises(SimulationError, match=name):
        item_index(PARAMS, name)


def test_recent_clicks_shift_as_items_are_clicked():
    sessions = start(500)
    page = offer(PARAMS, sessions)
    reaction = react(PARAMS, sessions, page, arrange(WORLD, page, np.ones(500)))
    after = advance(PARAMS, sessions, reaction)
    for i in range(500):
        clicked = reaction.items[reaction.clicked[:, i], i]
        expected = np.concatenate([sessions.recents[:, i], clicked])[-PARAMS.recents :]
        assert np.array_equal(after.recents[:, i], expected)
        assert after.active[i] & np.uint64(1) == bool(len(clicked))


def test_draws_are_uniform_and_bells_have_unit_variance():
    keys = draws.key(draws.root(1), np.arange(100_000))
    high, low = draws.two_uniforms(keys)
    for x in (draws.uniform(keys), high, low):
        assert abs(x.mean() - 0.5) < 0.005
        assert abs(x.var() - 1 / 12) < 0.001
        assert x.min() >= 0
        assert x.max() < 1
    first, second = draws.two_bells(keys)
    assert abs(first.var() - 1) < 0.02
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_objective_without_penalties_keeps_the_weights():
    bare = Objective().without_penalties()
    assert bare.reward.weights == Objective().reward.weights
    assert bare.reward.penalties.page_without_conversion == bare.reward.penalties.leave_without_conversion == 0


def test_params_are_one_value():
    assert Params() == Params()
    assert catalogue(Params()) is catalogue(Params())
