"""The trainer where policies choose the items: what it learns from and tries, and by which evidence weights move."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.features.candidates import item_inputs
from pipeline.features.encoder import Encoder
from pipeline.learning.drn.served import ServedRankers
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.merging import MergedReader, Told
from pipeline.learning.trainer import UPDATES, train
from pipeline.logs.files import FileLog
from pipeline.logs.log import SAMPLES, TRANSITIONS, Entry
from pipeline.ranking.interleaving import uniform
from pipeline.ranking.pages import best_first, chosen
from pipeline.ranking.perturbing import Noise, dbgd, noise
from pipeline.ranking.updates import Update
from pipeline.records import (
    DecidedBy,
    Decision,
    Ending,
    Impression,
    Item,
    Labels,
    Page,
    Ranked,
    State,
    Transition,
)

TEXT = """
schema_version: 1
name: feed
kv_prefix: fd
embeddings:
  shop: {lookup: graph, dim: 2, vocabulary: {kind: dynamic, capacity: 8, oov_buckets: 1}}
features:
  - {name: ctr, kind: dense, source: user.ctr, zscore: {min_count: 2}}
  - {name: good, kind: dense, source: item.good}
  - {name: shop, kind: id, source: item.shop, embedding: shop}
ranking:
  page_size: 2
  minor: {rl: MINOR}
  major: MAJOR
reward: {weights: {click: 1.0}}
algorithm: {kind: drn, hidden: [8], gamma: 0.4, learning_rate: 1e-2, replay: 500, seed: 3}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
stream: {session_gap: 24h, clock_skew: 0}
buckets:
  salt: s
  assign: [{name: control, policy: base, slots: [0, 49]}, {name: treated, policy: rl, slots: [50, 99]}]
publish: {every: 0, min_transitions: 0, probes: 4}
"""
GRADIENT = "{by: gradient, every: 10s, batch: 8}"
DBGD = "{by: dbgd, every: 10s, min_decisive: 3, alpha: 0.5, eta: 0.5}"
NO_MAJOR, MAJOR = "null", "{every: 20s, updates: 20, batch: 16, history: 60s, min_decisive: 3}"


def make(minor: str = GRADIENT, major: str = NO_MAJOR) -> FeatureConfig:
    return parse_config(TEXT.replace("MINOR", minor).replace("MAJOR", major))


def items(number: int) -> tuple[Item, ...]:
    rng = np.random.default_rng(number)
    return tuple(Item(f"{number}-{i}", features={"good": float(g), "shop": i % 3}) for i, g in enumerate(rng.random(5)))


def state(number: int) -> State:
    return State({"ctr": 0.1 * (number % 7)})


def transition(number: int) -> Transition:
    """A page of the baseline: what is good is clicked."""
    shown, last = items(number)[:2], number % 10 == 9
    clicks = tuple(Labels(clicks=int(item.features["good"] > 0.5)) for item in shown)
    decision = Decision(DecidedBy.BASELINE, "base", "control", ranked=Ranked(2))
    following = {"discount": 0.0, "ending": Ending.INFERRED_LEAVE} if last else {
        "discount": 1.0, "next_state": state(number + 1), "next_items": items(number + 1)
    }  # fmt: skip
    request, user = f"r{number}", f"u{number % 5}"
    return Transition(
        f"{request}@1", request, user, user, 1_000 * number, number, state(number), decision,
        float(sum(c.clicks for c in clicks)), "1", items=shown, labels=clicks, activeness=0.5, **following,
    )  # fmt: skip


def told(number: int, stamp_ms: int | None = None) -> Told:
    """A page a second."""
    stamp_ms = 1_000 * number if stamp_ms is None else stamp_ms
    return Told(0, number, stamp_ms, f"u{number % 5}", encode(transition(number)), TRANSITIONS)


class Agent:
    """Pages as the agent makes them of what was handed out last."""

    def __init__(self, training: RankingTraining) -> None:
        self._training, self._held = training, -1
        self._model = ServedRankers(training.config, training.config.ranking.explorers("rl"))

    def scores(self, number: int) -> list[list[float]]:
        """Q of the candidates of a page, by the served weights and by each explorer."""
        training, method = self._training, self._training.methods["rl"]
        if self._held != method.standing.version:
            self._model.hold(method.standing.weights, method.explorer_weights())
            self._held = method.standing.version
        of_user, of_item = training.encoders
        user = of_user.finish(of_user.prepare(state(number)).row, training.snapshot)
        rows = item_inputs(of_item, [of_item.prepare_items(items(number))], training.snapshot)
        said = self._model.serve(**{name: tf.constant(x) for name, x in {**user, **rows}.items()})
        others = said["q_explorers"][0].numpy()[: len(method.explorers)] if method.explorers else []
        return [said["q"][0].numpy().tolist(), *(q.tolist() for q in others)]

    def page(self, number: int, stamp_ms: int, likes: int) -> Told:
        """One on which what ranker `likes` ranks first is clicked."""
        explorers, of_page = self._training.methods["rl"].explorers, items(number)
        orders = [best_first(q) for q in self.scores(number)]
        ranked = chosen(orders, explorers, 2, "probabilistic", None, uniform("s", f"p{number}"))
        decision = Decision(DecidedBy.POLICY, "rl", "treated", ranked=ranked)
        placed = tuple(of_page[place] for place in ranked.places)
        user = f"u{number % 20}"
        impression = Impression(1, f"p{number}", user, user, stamp_ms, number, placed, state(number), decision)
        best = of_page[orders[min(likes, len(explorers))][0]].item_id
        labels = tuple(Labels(clicks=int(item.item_id == best)) for item in placed)
        return Told(0, number, stamp_ms, user, encode(Page(impression, labels, (), stamp_ms)), SAMPLES)


def training_of(config: FeatureConfig) -> RankingTraining:
    return RankingTraining(config, Encoder(config))


def feed(training: RankingTraining, numbers: range) -> list[Update]:
    for number in numbers:
        assert training.ingest(told(number)) is None
    return training.decided()


# Gradient and major updates -----------------------------------------------------------------------------------------


def test_a_minor_update_is_taken_every_period_on_the_pages_since_the_last() -> None:
    training = training_of(make())
    updates = feed(training, range(45))
    assert [(u.kind, u.by, u.taken, u.version, u.pages) for u in updates] == [
        ("minor", "gradient", True, 1, 8), ("minor", "gradient", True, 2, 8), ("minor", "gradient", True, 3, 8),
        ("minor", "gradient", True, 4, 8),
    ]  # fmt: skip
    assert [u.time_ms for u in updates] == [11_000, 21_000, 31_000, 41_000]
    assert (training.progress.ingested, training.news) == (45, 1)
    training.handed_out()
    assert training.news == 0


def test_it_learns_what_is_clicked() -> None:
    """Nothing is tried without a trial: a major update is served at once."""
    training = training_of(make("{by: none, every: 10s}", "{every: 10s, updates: 60, batch: 16, trial: false}"))
    updates = feed(training, range(120))
    assert {(u.kind, u.by, u.taken) for u in updates} == {("major", "replay", True)}
    good = [[item.features["good"] for item in items(n)] for n in range(500, 540)]
    agent = Agent(training)
    agree = [np.corrcoef(agent.scores(500 + n)[0], of)[0, 1] for n, of in enumerate(good)]
    assert np.mean(agree) > 0.7, agree


def test_a_fresh_policy_says_nothing_of_anything() -> None:
    training = training_of(make())
    assert Agent(training).scores(1) == [[0.0] * 5]


def test_history_ends_by_age() -> None:
    training = training_of(make())
    feed(training, range(100))
    assert training.feeding.younger(60_000).tolist() == list(range(60, 100))
    assert len(training.feeding.younger(100_000)) == 0


# Explorers ------------------------------------------------------------------------------------------------------------


def play(training: RankingTraining, seconds: range, likes: int) -> list[Update]:
    """A transition and three samples in each second."""
    found, agent = [], Agent(training)
    if not training.progress.ingested:  # explorers are handed out once there is something to name them after
        for number in (900, 901):
            training.ingest(told(number, 1_000 * seconds[0]))
    for second in seconds:
        training.ingest(told(second))
        for i in range(3):
            training.ingest(agent.page(10_000 + 3 * second + i, 1_000 * second, likes))
        found += training.decided()
    return found


def test_a_candidate_that_wins_is_stepped_towards_and_one_that_loses_is_not() -> None:
    won, lost = training_of(make(DBGD)), training_of(make(DBGD))
    fresh = won.methods["rl"].standing.weights
    (after_win, *_), (after_loss, *_) = play(won, range(13), likes=1), play(lost, range(13), likes=0)
    assert (after_win.by, after_win.taken, after_win.evidence[0].verdict.value) == ("dbgd", True, "candidate")
    assert (after_loss.by, after_loss.taken, after_loss.evidence[0].verdict.value) == ("dbgd", False, "incumbent")
    assert after_win.evidence[0].pages >= 27
    moved = {n: np.abs(w - fresh[n]).max() for n, w in won.methods["rl"].standing.weights.items()}
    assert {n for n, size in moved.items() if size > 0} == {n for n in moved if n.startswith("advantage")}
    stayed = lost.methods["rl"].standing.weights
    assert all((w == fresh[n]).all() for n, w in stayed.items())
    assert lost.methods["rl"].standing.version == 2  # another candidate is tried


def test_a_candidate_that_no_page_has_seen_is_left_behind_after_a_while() -> None:
    training = training_of(make(DBGD))
    updates = feed(training, range(65))
    assert [(u.taken, u.evidence[0].pages, u.evidence[0].verdict.value) for u in updates] == [(False, 0, "tie")]
    assert updates[0].time_ms == 61_000  # six periods


def test_pages_of_an_earlier_candidate_count_for_nothing() -> None:
    training = training_of(make(DBGD))
    play(training, range(2), likes=1)
    old = Agent(training).page(20_000, 2_000, likes=1)
    play(training, range(2, 11), likes=1)
    assert training.methods["rl"].standing.version == 2
    training.ingest(old)
    heard = training.methods["rl"].standing
    assert (heard.heard[0].pages, heard.foreign) == (3, 1)  # three of its own, in the last second


@pytest.mark.parametrize(("likes", "taken"), [(1, True), (0, False)])
def test_a_major_update_is_tried_before_it_is_served(likes: int, taken: bool) -> None:
    """It comes with the second period, for in the first there were too few pages."""
    training = training_of(make("{by: none, every: 10s}", MAJOR))
    feed(training, range(22))
    assert [e.seed for e in training.methods["rl"].explorers] == [None]
    trial = training.methods["rl"].standing.trial
    served = training.methods["rl"].standing.weights
    (update,) = play(training, range(22, 34), likes)[:1]
    assert (update.kind, update.by, update.taken) == ("major", "replay", taken)
    now = training.methods["rl"].standing.weights
    assert all((now[n] == (trial if taken else served)[n]).all() for n in now)


def test_a_major_update_outlives_no_minor_one() -> None:
    """What was accepted while it was tried is on top of it."""
    training = training_of(make(DBGD, MAJOR.replace("min_decisive: 3", "min_decisive: 1000")))
    play(training, range(12), likes=1)
    before = training.methods["rl"].standing
    assert before.trial is None
    play(training, range(12, 24), likes=1)
    tried = training.methods["rl"].standing
    assert tried.trial is not None
    updates = play(training, range(24, 37), likes=1)
    minor, major = (next(u for u in updates if u.kind == kind) for kind in ("minor", "major"))
    assert major.taken
    step = {n: w - tried.weights[n] for n, w in minor_weights(training, tried, minor).items()}
    now = training.methods["rl"].standing.weights
    for name, weight in now.items():
        np.testing.assert_allclose(weight, tried.trial[name] + step[name], atol=1e-6)


def test_evolution_strategies_step_along_what_was_clicked() -> None:
    training = training_of(make("{by: es, every: 10s, pairs: 1, min_decisive: 3, alpha: 0.5, eta: 0.5}"))
    fresh = training.methods["rl"].standing
    (update, *_) = play(training, range(13), likes=1)
    assert (update.by, update.taken) == ("es", True)
    one, opposite = update.evidence
    assert (one.candidate.mirrored, opposite.candidate.mirrored) == (False, True)
    assert one.mean > opposite.mean
    towards = noise(one.candidate, fresh.weights, Noise(0.5, 0.01, layers=("advantage",)))
    for name, weight in training.methods["rl"].standing.weights.items():
        np.testing.assert_allclose(weight, fresh.weights[name] + 0.5 * towards.get(name, 0.0), atol=1e-6)


def minor_weights(training: RankingTraining, before: Any, minor: Update) -> dict[str, np.ndarray]:
    if not minor.taken:
        return before.weights
    return dbgd(before.noise[0], before.weights, Noise(0.5, 0.01, layers=("advantage",)), 0.5)


# The log --------------------------------------------------------------------------------------------------------------


def test_a_page_that_is_not_of_a_ranking_is_refused() -> None:
    training = training_of(make())
    plain = msgspec.structs.replace(transition(1), items=(), labels=(), activeness=None)
    letter = training.ingest(Told(0, 1, 1, "u", encode(plain), TRANSITIONS))
    assert (letter.reason, letter.id) == ("not_ranked", f"{TRANSITIONS}/0:1")
    assert training.ingest(Told(0, 7, 1, "u", b"{}", SAMPLES)).id == f"{SAMPLES}/0:7"
    assert training.progress.read == 2


@pytest.fixture
def log(tmp_path: Path) -> str:
    with closing(FileLog(tmp_path / "log")) as made:
        made.create(TRANSITIONS, 2)
        made.create(SAMPLES, 2)
        for number in range(60):
            entry = Entry(f"u{number % 5}", encode(transition(number)), 1_000 * number)
            made.append(TRANSITIONS, [entry])
            impression = Impression(
                1, f"q{number}", "u", "u", 0, 0, items(number), state(number), transition(number).decision
            )
            page = Page(impression, (Labels(),) * 5, (), 0)
            made.append(SAMPLES, [Entry("u", encode(page), 1_000 * number + 500)])
    return f"file://{tmp_path / 'log'}"


def test_topics_come_in_one_order_however_they_are_read(log: str) -> None:
    orders = []
    for limit in (1, 7, 1000):
        with closing(FileLog(Path(log.removeprefix("file://")))) as opened:
            reader, found = MergedReader(opened, {TRANSITIONS: {}, SAMPLES: {}}, lambda: 10**9, 0), []
            while not reader.caught_up() or not found:
                found += reader.poll(limit)
        orders.append([(each.topic, each.partition, each.offset) for each in found])
    assert orders[0] == orders[1] == orders[2]
    assert [topic for topic, *_ in orders[0]] == [TRANSITIONS, SAMPLES] * 60


def test_a_trainer_that_was_stopped_goes_on_as_if_it_had_not_been(log: str, tmp_path: Path) -> None:
    config = make(GRADIENT, MAJOR.replace("min_decisive: 3", "trial: false"))
    handed: dict[str, list[Any]] = {"whole": [], "parts": []}

    def taken(name: str) -> Any:
        return lambda training, now: handed[name].append(dict(training.methods["rl"].standing.weights))

    whole = train(config, log, tmp_path / "whole", until_idle=True, export=taken("whole"))

    class Enough(Exception):
        pass

    def stop_after_two(training: RankingTraining, now: int) -> None:
        taken("parts")(training, now)
        raise Enough

    for _ in range(2):
        with pytest.raises(Enough):
            train(config, log, tmp_path / "parts", until_idle=True, export=stop_after_two)
    parts = train(config, log, tmp_path / "parts", until_idle=True, export=taken("parts"))
    assert (whole.ingested, whole.heard) == (60, 60)
    assert (parts.ingested, parts.heard, parts.updates) == (60, 60, whole.updates)
    for name, weight in handed["whole"][-1].items():
        np.testing.assert_array_equal(weight, handed["parts"][-1][name], err_msg=name)
    written = (tmp_path / "whole" / UPDATES).read_bytes().splitlines()
    lines = [msgspec.json.decode(line, type=Update) for line in written]
    assert [(u.kind, u.version) for u in lines][:2] == [("minor", 1), ("minor", 2)]
    assert {u.kind for u in lines} == {"minor", "major"}
