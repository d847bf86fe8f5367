"""Agent and trainer see the same bits: whatever the config, the raw features, the batch, and the way to the log."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.checks import check
from pipeline.config.reading import parse_config
from pipeline.config.schema import DynamicVocabulary, FeatureConfig
from pipeline.events import encode
from pipeline.features.decaying import DecayingVocabulary
from pipeline.features.encoder import Encoder, Prepared
from pipeline.features.fading import Fading
from pipeline.features.inputs import model_inputs, table_rows
from pipeline.features.moments import Moments
from pipeline.features.quantiles import positions
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.features.vocabulary import Vocabulary
from pipeline.learning.ingestion import read_transition, to_example
from pipeline.learning.replay import Replay
from pipeline.records import DecidedBy, Decision, State, Transition
from tests.laws.strategies import HashedVectors, feature_configs, states

moderate = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def configs_and_states(draw: st.DrawFn, min_size: int = 1) -> tuple[FeatureConfig, list[State]]:
    config = draw(feature_configs())
    return config, draw(st.lists(states(config), min_size=min_size, max_size=12))


def logged(state: State, prepared: Prepared) -> State:
    """The state as the trainer reads it: with the agent's look-ups, through the log's JSON."""
    with_lookups = msgspec.structs.replace(state, lookups=prepared.lookups)
    return msgspec.json.decode(msgspec.json.encode(with_lookups), type=State)


def same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        a.dtype == right[k].dtype and a.shape == right[k].shape and a.tobytes() == right[k].tobytes()
        for k, a in left.items()
    )


@moderate
@given(configs_and_states())
def test_trainer_in_a_batch_and_agent_one_by_one_encode_the_same_bits(drawn: tuple[FeatureConfig, list[State]]) -> None:
    config, raw = drawn
    agent, trainer = Encoder(config, HashedVectors(config)), Encoder(config, HashedVectors(config))
    at_agent = [agent.prepare(state) for state in raw]
    at_trainer = [trainer.prepare(logged(s, p)) for s, p in zip(raw, at_agent, strict=True)]
    assert [p.lookups for p in at_trainer] == [p.lookups for p in at_agent]
    rows = trainer.stack(at_trainer)
    statistics = Statistics(config)
    statistics.update(rows)
    frozen = statistics.freeze()
    fetched = Snapshot.from_bytes(frozen.to_bytes(), config)
    batch = trainer.finish(rows, frozen)
    for i, prepared in enumerate(at_agent):
        assert same_bits(agent.finish(prepared.row, fetched), {k: v[i : i + 1] for k, v in batch.items()})


@moderate
@given(configs_and_states(), st.integers(0, 2**32))
def test_what_an_update_samples_from_the_replay_is_what_the_agent_asked_with(
    drawn: tuple[FeatureConfig, list[State]], seed: int
) -> None:
    """The whole way of the trainer: from the bytes of a transition through ingestion and the ring to model inputs."""
    config, raw = drawn
    agent, trainer = Encoder(config, HashedVectors(config)), Encoder(config, HashedVectors(config))
    at_agent = [agent.prepare(state) for state in raw]
    visit = [logged(s, p) for s, p in zip(raw, at_agent, strict=True)]
    replay, statistics = Replay(len(raw), trainer.prepared_dtype, len(config.action)), Statistics(config)
    for i, state in enumerate(visit):
        following = visit[i + 1] if i + 1 < len(visit) else None
        transition = read_transition(encode(page_turned(i, state, following)))
        example = to_example(transition, config, trainer)
        statistics.update(example.rows[:1])
        replay.add(example, partition=0, offset=i)
    snapshot = statistics.freeze()
    fetched = Snapshot.from_bytes(snapshot.to_bytes(), config)
    sampled = replay.sample(np.random.default_rng(seed), 20)
    states, following = trainer.finish(sampled.state, snapshot), trainer.finish(sampled.next_state, snapshot)
    for k, i in enumerate(sampled.reward.astype(int)):
        assert same_bits(agent.finish(at_agent[i].row, fetched), {n: x[k : k + 1] for n, x in states.items()})
        if sampled.discount[k]:
            after = agent.finish(at_agent[i + 1].row, fetched)
            assert same_bits(after, {n: x[k : k + 1] for n, x in following.items()})


def page_turned(i: int, state: State, following: State | None) -> Transition:
    discount = 0.0 if following is None else 1.0
    decision = Decision(DecidedBy.BASELINE, "base", "b")
    return Transition(str(i), str(i), "u", "s", i, i, state, decision, float(i), "1", discount, following)


@moderate
@given(configs_and_states())
def test_outputs_are_what_the_model_expects(drawn: tuple[FeatureConfig, list[State]]) -> None:
    config, raw = drawn
    encoder = Encoder(config, HashedVectors(config))
    rows = encoder.stack([encoder.prepare(state) for state in raw])
    statistics = Statistics(config)
    statistics.update(rows)
    outputs = encoder.finish(rows, statistics.freeze())
    found = [(name, value.dtype.name, value.shape) for name, value in outputs.items()]
    assert found == [(i.name, i.dtype, (len(raw), *i.shape)) for i in model_inputs(config)]
    assert all(np.isfinite(value).all() for value in outputs.values())
    for feature in config.features:
        table = config.embeddings.get(getattr(feature, "embedding", ""))
        if outputs.get(feature.name, np.zeros(0)).dtype == np.int32 and table is not None:
            assert (outputs[feature.name] >= 1).all()
            assert (outputs[feature.name] < table_rows(table)).all()


@moderate
@given(configs_and_states(), st.data())
def test_an_id_that_got_its_vector_later_changes_nothing_for_the_trainer(
    drawn: tuple[FeatureConfig, list[State]], data: st.DataObject
) -> None:
    config, raw = drawn
    ids = {i for s in raw for scope in (s.user, s.context, s.page) for i in _flat(scope.values())}
    before = HashedVectors(
        config, gone=frozenset(data.draw(st.sets(st.sampled_from(sorted(ids))) if ids else st.just(())))
    )
    agent, trainer = Encoder(config, before), Encoder(config, HashedVectors(config))
    for state in raw:
        prepared = agent.prepare(state)
        assert trainer.prepare(logged(state, prepared)).row.tobytes() == prepared.row.tobytes()


def _flat(values: object) -> list[str]:
    return [str(i) for v in values if isinstance(v, tuple) for i in v]


@moderate
@given(configs_and_states(), st.integers(1, 5))
def test_statistics_do_not_depend_on_chunks(drawn: tuple[FeatureConfig, list[State]], size: int) -> None:
    config, raw = drawn
    encoder = Encoder(config, HashedVectors(config))
    rows = encoder.stack([encoder.prepare(state) for state in raw])
    whole, chunked = Statistics(config), Statistics(config)
    whole.update(rows)
    for start in range(0, len(rows), size):
        chunked.update(rows[start : start + size])
        chunked = Statistics.from_bytes(chunked.to_bytes(), config)
    assert chunked.to_bytes() == whole.to_bytes()
    assert chunked.freeze().sha256 == whole.freeze().sha256


@moderate
@given(configs_and_states(min_size=2))
def test_rows_of_known_ids_never_change_where_counts_do_not_fade(drawn: tuple[FeatureConfig, list[State]]) -> None:
    config, raw = drawn
    encoder = Encoder(config, HashedVectors(config))
    statistics = Statistics(config)
    known: dict[str, list[int]] = {}
    for state in raw:
        statistics.update(encoder.prepare(state).row)
        for table, hashes in statistics.freeze().vocabularies.items():
            if config.embeddings[table].vocabulary.half_life is not None:
                continue
            before = known.get(table, [])
            assert hashes[: len(before)].tolist() == before
            known[table] = hashes.tolist()


@moderate
@given(configs_and_states())
def test_encoding_changes_neither_state_nor_rows(drawn: tuple[FeatureConfig, list[State]]) -> None:
    config, raw = drawn
    encoder = Encoder(config, HashedVectors(config))
    before = msgspec.json.encode(raw)
    prepared = [encoder.prepare(state) for state in raw]
    rows = encoder.stack(prepared)
    bits = rows.tobytes()
    encoder.finish(rows, Snapshot.initial(config))
    assert msgspec.json.encode(raw) == before
    assert rows.tobytes() == bits
    assert not prepared[0].row.flags.writeable


@moderate
@given(feature_configs())
def test_a_config_that_is_written_down_reads_as_itself(config: FeatureConfig) -> None:
    assert check(config) == []
    built = msgspec.to_builtins(config)
    for section, keys in (
        (built["stream"], ("lateness", "clock_skew", "session_gap", "remember_closed", "max_ahead")),
        (built["stream"]["attribution"], ("click", "order")),
        (built["publish"], ("every", "load_timeout")),
    ):
        section.update({key: f"{section[key]}ms" for key in keys})
    assert parse_config(msgspec.json.encode(built).decode()) == config


# Moments ---------------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), max_size=30)


def close(left: Moments, right: Moments) -> bool:
    return (
        left.count == right.count
        and left.mean == pytest.approx(right.mean, rel=1e-9, abs=1e-9)
        and left.m2 == pytest.approx(right.m2, rel=1e-9, abs=1e-6)
    )


@moderate
@given(numbers)
def test_moments_are_those_of_numpy(values: list[float]) -> None:
    moments = Moments().add(values)
    seen = np.array([v for v in values if not math.isnan(v)])
    assert moments.count == len(seen)
    if len(seen):
        assert moments.mean == pytest.approx(seen.mean(), rel=1e-9, abs=1e-9)
        assert moments.std == pytest.approx(seen.std(), rel=1e-6, abs=1e-6)


@moderate
@given(numbers, numbers, numbers)
def test_merge_has_an_identity_is_associative_and_equals_the_moments_of_all_data(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = (Moments().add(values) for values in (a, b, c))
    assert x.merge(Moments()) == x == Moments().merge(x)
    assert close(x.merge(y).merge(z), x.merge(y.merge(z)))
    assert close(x.merge(y), y.merge(x))
    assert close(x.merge(y).merge(z), Moments().add([*a, *b, *c]))


# Moments that fade -----------------------------------------------------------------------------------------------

half_lives = st.sampled_from([1, 3, 40])


def weighted(values: list[float], half_life: int) -> tuple[float, float, float]:
    """Weight, mean and sum of squared deviations, by their definition."""
    ages = np.arange(len(values))[::-1]
    x, seen = np.array(values), ~np.isnan(values)
    w = (2.0 ** (-ages / half_life))[seen]
    mean = np.average(x[seen], weights=w)
    return float(w.sum()), float(mean), float((w * (x[seen] - mean) ** 2).sum())


def moves_of(values: list[float], half_life: int) -> float:
    """What the variance does not fall below, by its definition."""
    moved, weights = [], []
    for i, x in enumerate(values):
        if not math.isnan(x) and not np.isnan(values[:i]).all():
            before = weighted(values[:i], half_life)[1]
            moved.append((x - before) ** 2)
            weights.append(2.0 ** (-(len(values) - 1 - i) / (16 * half_life)))
    return float(np.average(moved, weights=weights)) if moved else 0.0


def now(fading: Fading) -> tuple[float, float, float]:
    """With the time since the last value."""
    faded = 2.0 ** (-fading.since / fading.half_life)
    return fading.weight * faded, fading.mean, fading.m2 * faded


@moderate
@given(numbers, half_lives, st.integers(1, 7))
def test_moments_that_fade_are_the_weighted_ones_of_numpy_however_values_are_chunked(
    values: list[float], half_life: int, chunk: int
) -> None:
    fading = Fading(half_life).add(values)
    chunked = Fading(half_life)
    for start in range(0, len(values), chunk):
        chunked = chunked.add(values[start : start + chunk])
    assert chunked == fading
    seen = [v for v in values if not math.isnan(v)]
    served = fading.served()
    assert served.count == len(seen)
    if not seen:
        assert served == Moments()
        return
    expected = weighted(values, half_life)
    assert now(fading) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert served.mean == fading.mean
    variance = max(expected[2] / expected[0], moves_of(values, half_life))
    assert served.std == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-4)


@moderate
@given(numbers, numbers, numbers, half_lives)
def test_merged_moments_that_fade_are_those_of_streams_side_by_side(
    a: list[float], b: list[float], c: list[float], half_life: int
) -> None:
    x, y, z = (Fading(half_life).add(values) for values in (a, b, c))
    assert x.merge(Fading(half_life)) == x == (Fading(half_life).merge(x) if x.count else x)
    orders = x.merge(y).merge(z), x.merge(y.merge(z)), z.merge(x).merge(y)
    ages = [age for values in (a, b, c) for age in range(len(values))[::-1]]
    together = np.array([*a, *b, *c])
    seen = ~np.isnan(together)
    for merged in orders:
        assert merged.count == seen.sum()
        if merged.count:
            w = 2.0 ** (-np.array(ages)[seen] / half_life)
            mean = np.average(together[seen], weights=w)
            m2 = (w * (together[seen] - mean) ** 2).sum()
            assert now(merged) == pytest.approx((w.sum(), mean, m2), rel=1e-9, abs=1e-6)
            assert merged.served().std == pytest.approx(orders[0].served().std, rel=1e-6, abs=1e-6)


# Quantiles -------------------------------------------------------------------------------------------------------


@moderate
@given(st.lists(st.floats(-1e38, 1e38) | st.integers(-3, 3).map(float), min_size=3, max_size=12), st.data())
def test_positions_never_fall_and_are_the_same_one_by_one(drawn: list[float], data: st.DataObject) -> None:
    knots = np.sort(np.array(drawn))
    others = st.floats(-3e38, 3e38) | st.floats(-4, 4)
    values = np.sort(np.array([*drawn, *data.draw(st.lists(others))]))
    found = positions(values, knots)
    assert (np.diff(found) >= 0).all()
    assert (np.abs(found) <= 1).all()
    assert b"".join(positions(values[i : i + 1], knots).tobytes() for i in range(len(values))) == found.tobytes()


# Vocabulary ------------------------------------------------------------------------------------------------------


@moderate
@given(st.lists(st.integers(0, 6)), st.integers(1, 3), st.integers(4, 8))
def test_ids_are_admitted_in_the_order_in_which_they_reached_min_count(
    ids: list[int], min_count: int, capacity: int
) -> None:
    vocabulary = Vocabulary(DynamicVocabulary(capacity, min_count, oov_buckets=1))
    vocabulary.count(ids)
    reached: list[int] = []
    for i, each in enumerate(ids):
        if each and each not in reached and ids[: i + 1].count(each) == min_count:
            reached.append(each)
    assert vocabulary.hashes().tolist() == reached[: capacity - 3]


class Naive:
    """The rules of a vocabulary that fades, with nothing that makes them fast."""

    def __init__(self, room: int, min_count: int, half_life: int) -> None:
        self.room, self.enough, self.half_life = room, min_count - 0.5, half_life
        self.rows: list[int] = []
        self.counts: dict[int, float] = {}
        self.transitions = 0

    def count(self, ids: list[int]) -> None:
        weight = 2.0 ** (self.transitions % self.half_life / self.half_life)
        for h in filter(None, ids):
            self.counts[h] = self.counts.get(h, 0.0) + weight
            if h not in self.rows and self.counts[h] >= self.enough * weight:
                self.place(h)
        self.transitions += 1
        if self.transitions % self.half_life == 0:
            self.counts = {h: count / 2 for h, count in self.counts.items()}

    def place(self, h: int) -> None:
        if len(self.rows) < self.room:
            self.rows.append(h)
            return
        least = min(self.rows, key=lambda each: (self.counts[each], each))
        if self.counts[h] > 2 * self.counts[least]:
            self.rows[self.rows.index(least)] = h


@moderate
@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=60), st.integers(1, 3), st.integers(4, 8), st.data())
def test_rows_pass_on_by_the_rules_and_also_after_a_restart(
    transitions: list[list[int]], min_count: int, capacity: int, data: st.DataObject
) -> None:
    config = DynamicVocabulary(capacity, min_count, 1, half_life=data.draw(st.integers(1, 30)))
    naive, vocabulary = Naive(capacity - 3, min_count, config.half_life), DecayingVocabulary(config)
    restart_at = data.draw(st.integers(0, 60))
    for i, ids in enumerate(transitions):
        naive.count(ids)
        vocabulary.count(ids)
        if i == restart_at:
            vocabulary = DecayingVocabulary(config, vocabulary.dump())
        assert vocabulary.hashes().tolist() == naive.rows
