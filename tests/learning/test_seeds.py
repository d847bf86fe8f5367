"""Which of the seeds is chosen, by hand; that a crippled one never is; and that the choice is part of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from msgspec import structs

from model_export.candidate import read_candidate
from model_export.export import Exporter
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.exploration import log_density
from pipeline.features.encoder import Encoder
from pipeline.learning import training as training_module
from pipeline.learning.choosing import Choice, Pages, choose, log_ratios, truncated
from pipeline.learning.holdout import Holdout
from pipeline.learning.ingestion import to_example
from pipeline.learning.metrics import measured
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry, Record
from pipeline.records import Action, DecidedBy, Decision, Propensity, Transition

SIGMA = 0.4


def pages(n: int, optimum: float = 1.3, seed: int = 0, policies: int = 1) -> Pages:
    """Explored around 1 by a Gaussian; the residual is -(a - optimum)^2, plus noise. Sessions of two pages."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(1.0, SIGMA, n)
    return Pages(
        policy=np.arange(n) % policies,
        session=np.arange(n, dtype=np.uint64) // np.uint64(2),
        raw=raw[:, None],
        sigma=np.full((n, 1), SIGMA),
        log_density=np.array([log_density(x, 1.0, SIGMA) for x in raw]),
        residual=-((raw - optimum) ** 2) + rng.normal(0, 0.1, n),
    )


def means(n: int, *of_seeds: float) -> np.ndarray:
    return np.stack([np.full((n, 1), mean) for mean in of_seeds])


# The score -------------------------------------------------------------------------------------------------------


def test_weights_are_the_seeds_density_over_the_logged_one() -> None:
    """Two dimensions, the second of which was not drawn: N(2; 1, 0.5^2) / N(2; 1.5, 0.5^2) = exp(-2 + 0.5)."""
    logged = log_density(2.0, 1.5, 0.5)
    one = Pages(*(np.array(x) for x in ([0], [0], [[2.0, 0.0]], [[0.5, 0.0]], [logged], [0.0])))
    np.testing.assert_allclose(log_ratios(one, np.array([[[1.0, 9.0]], [[1.5, -9.0]]])), [[-1.5], [0.0]], atol=1e-12)


def test_weights_are_cut_at_the_root_of_n_times_their_mean() -> None:
    """Of nine weights, 92 and eight of 1, the mean is 100 / 9: the largest is cut to 3 times that."""
    cut = truncated(np.log([[92.0, *[1.0] * 8]]))[0]
    np.testing.assert_allclose(cut / cut[1], [100 / 3, *[1] * 8])
    np.testing.assert_allclose(truncated(np.array([[1000.0, 1000.0]])), [[1, 1]])  # no overflow


def test_a_score_is_what_the_seed_would_have_brought() -> None:
    """E -(a - 1.3)^2 with a from N(m, sigma^2) is -(m - 1.3)^2 - sigma^2."""
    found = choose(pages(40_000), means(40_000, 1.0, 1.3, 0.8), before=0)
    np.testing.assert_allclose(found.scores, [-0.09 - SIGMA**2, -(SIGMA**2), -0.25 - SIGMA**2], atol=0.02)
    assert found.chosen == 1
    np.testing.assert_allclose(found.effective[0], 40_000, rtol=0.01)  # it is who explored
    assert found.effective[1] == pytest.approx(40_000 * np.exp(-((0.3 / SIGMA) ** 2)), rel=0.1)


def test_policies_count_alike_and_those_with_few_pages_do_not() -> None:
    """With policy 1 seed 1 is worse by more than it is better with policy 0."""
    of, both = pages(4_000, policies=2), means(4_000, 1.0, 1.3)
    both[1, of.policy == 1] = 0.4
    assert choose(of, both, before=1).chosen == 0
    few = of._replace(policy=np.where(np.arange(4_000) % 100 == 1, 1, 0))  # forty pages
    assert choose(few, means(4_000, 1.0, 1.3), before=0).chosen == 1


# Hysteresis ------------------------------------------------------------------------------------------------------


def test_a_difference_within_the_noise_changes_nothing() -> None:
    of, nearly = pages(2_000), means(2_000, 1.0, 1.001)
    of = of._replace(residual=np.random.default_rng(3).normal(size=2_000))  # whatever is done
    assert [choose(of, nearly, before).chosen for before in (0, 1)] == [0, 1]


def test_without_evidence_the_seed_stays() -> None:
    assert choose(pages(90), means(90, 1.0, 1.3), before=0) == Choice(0, (), ())
    far = choose(pages(4_000), means(4_000, 4.0, 5.0, -3.0), before=2)  # nobody did anything of the kind
    assert far.chosen == 2
    assert max(far.effective) < 100


def test_a_seed_far_from_all_that_was_tried_is_not_chosen_and_given_up() -> None:
    of = pages(4_000, optimum=4.0)  # the further the better, says the little that there is
    found = choose(of, means(4_000, 1.0, 3.0), before=0)
    assert found.chosen == 0
    assert found.scores[1] > found.scores[0]
    assert choose(of, means(4_000, 1.0, 3.0), before=1).chosen == 0


@pytest.mark.parametrize("crippled", [0, 1, 2])
def test_a_crippled_seed_is_never_chosen(crippled: int) -> None:
    for before in range(3):
        for seed in range(10):
            of, actions = pages(2_000, seed=seed), means(2_000, 1.1, 1.1, 1.1)
            actions[crippled] = 0.5
            assert choose(of, actions, before).chosen != crippled


# In a run --------------------------------------------------------------------------------------------------------


def explored(transition: Transition, number: int) -> Transition:
    """The same page with a drawn action, and the reward of it; every third is the baseline's."""
    if transition.decision.decided_by is not DecidedBy.POLICY:
        return structs.replace(transition, reward=-0.09)
    raw = float(np.random.default_rng([7, number]).normal(1.0, SIGMA))
    value = min(max(raw, 0.0), 2.0)
    density = log_density(raw, 1.0, SIGMA)
    action = Action("a", value, Propensity(raw, 1.0, SIGMA, 0.15, 0.0, density, density))
    decision = Decision(DecidedBy.POLICY, "p1", "bucket", (action,))
    return structs.replace(transition, decision=decision, reward=-((value - 1.3) ** 2))


@pytest.fixture
def config(make_config) -> FeatureConfig:
    return make_config(policies=1, seeds=3, holdout=0.5, replay=400, updates_per_transition=0.03125, actor_after=10**6)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "_ROUNDS_PER_CHOICE", 5)


@pytest.fixture
def write(tmp_path: Path, make_transition) -> Callable[[int], str]:
    def write(n: int) -> str:
        log = FileLog(tmp_path / "log")
        log.create(TRANSITIONS, 2)
        entries = [Entry(f"s{i // 4}", encode(explored(make_transition(i), i)), 1_000 + i) for i in range(n)]
        log.append(TRANSITIONS, entries)
        log.close()
        return f"file://{tmp_path / 'log'}"

    return write


def test_held_out_sessions_are_never_learned_from(config, make_transition) -> None:
    training, holdout = Training(config, Encoder(config)), Holdout(config, Encoder(config))
    transitions = [explored(make_transition(i), i) for i in range(640)]
    for i, transition in enumerate(transitions):
        assert training.ingest(Record(0, i, i, "k", encode(transition))) is None
    held = [i for i, transition in enumerate(transitions) if holdout.takes(transition)]
    assert 250 < len(held) < 390
    others = {transition.session_id for i, transition in enumerate(transitions) if i not in held}
    assert others.isdisjoint(transitions[i].session_id for i in held)
    assert set(held).isdisjoint(training.feeding.held().origins.offsets.tolist())
    assert training.progress.left_out == {"held_out": len(held)}
    assert training.progress.ingested == 640
    assert training.holdout.origins().offsets.tolist() == [i for i in held if i % 3]  # pages that a policy explored


def test_a_single_seed_holds_nothing_out_unless_asked(make_config) -> None:
    for algorithm, share in (({}, 0), ({"seeds": 2}, 0.1), ({"holdout": 0.2}, 0.2), ({"seeds": 2, "holdout": 0.0}, 0)):
        assert make_config(**algorithm).algorithm.held_out == share


def cripple(training: Training, seed: int) -> None:
    """The others are a little nearer to the optimum than the baseline is."""
    bias = training.learner.actor.heads.last.bias
    value = np.full(bias.shape, 0.1, np.float32)
    value[seed] = -0.6
    bias.assign(value)


@pytest.mark.parametrize("crippled", [0, 1])
def test_in_a_run_a_crippled_seed_is_never_handed_out(
    config, make_transition, often: None, tmp_path: Path, crippled: int
) -> None:
    training = Training(config, Encoder(config))
    cripple(training, crippled)
    for i in range(12 * 64):
        training.ingest(Record(0, i, i, "k", encode(explored(make_transition(i), i))))
        if i > 650:
            assert training.chosen != crippled
    line = measured(training, 0)
    assert line["seed_chosen"] == 1 + training.chosen
    scores = [line[f"seed_score/{seed}"] for seed in (1, 2, 3)]
    assert scores.index(min(scores)) == crippled
    assert {"advantage_mean_spread/p1", "value_loss_spread", "seed_effective/3"} <= line.keys()
    (folder,) = Exporter(config, tmp_path)(training, created_ms=1)
    candidate = read_candidate(folder)
    assert (candidate.seed, candidate.seeds) == (1 + training.chosen, training.progress.seeds)
    assert candidate.seed_spread == pytest.approx(np.std([0.1, 0.1, -0.6]) / 2)  # in ranges, of two units each
    np.testing.assert_allclose([probe.action for probe in candidate.probes], 1.1, rtol=1e-6)


def test_a_restart_keeps_the_choice_and_all_that_it_rests_on(config, make_transition, often: None) -> None:
    records = [Record(0, i, i, "k", encode(explored(make_transition(i), i))) for i in range(1_000)]
    whole, first, again = (Training(config, Encoder(config)) for _ in range(3))
    for training in (whole, first):
        cripple(training, 0)
        for record in records[:700]:
            training.ingest(record)
    assert first.chosen != 0
    saved = first.saved()
    for mine, its in zip(again.learner.variables, first.learner.variables, strict=True):
        mine.assign(its)
    offsets = (np.frombuffer(x, "<i8") for x in (saved.offsets, saved.held_out_offsets))
    assert again.resume(saved, *([records[i] for i in of.tolist()] for of in offsets)) == 0
    assert (again.chosen, len(again.holdout)) == (first.chosen, len(first.holdout))
    for training in (whole, again):
        for record in records[700:]:
            training.ingest(record)
    assert whole.progress.seeds != first.progress.seeds
    assert again.progress == whole.progress


class Stop:
    """A stop event that is set after it was asked so many times."""

    def __init__(self, times: int) -> None:
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0

    def wait(self, timeout: float) -> bool:
        return self.is_set()


def test_on_a_closed_log_two_runs_agree_to_the_last_bit(config, write, tmp_path: Path, often: None) -> None:
    """One of them stops on the way, so its held-out pages are read again."""
    url, seen = write(700), []

    def run(name: str, **options: object) -> int:
        done = train(config, url, tmp_path / name, until_idle=True, export=lambda t, _: seen.append(t), **options)
        return done.ingested

    assert [run("a"), run("b", stop=Stop(400)) < 700, run("b")] == [700, True, 700]
    a, b = seen
    assert a.progress.seeds
    assert (a.progress.seeds, a.progress.chosen) == (b.progress.seeds, b.progress.chosen)
    for mine, its in zip(a.learner.variables, b.learner.variables, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_each_seed_is_judged_by_its_own_actions_and_by_the_v_of_all(config, make_transition) -> None:
    training = Training(config, Encoder(config))
    for i in range(640):
        transition = explored(make_transition(i), i)
        if training.holdout.takes(transition):
            training.holdout.add(to_example(transition, config, training.encoder), 0, i)

    def scores() -> tuple[float, ...]:
        return training.holdout.choose(training.learner, training.snapshot, 0).scores

    before = scores()
    assert before[0] == before[1] == before[2]  # all are at the baseline
    training.learner.value_head.last.bias.assign(tf.constant([[[0.0]], [[3.0]], [[0.0]]]))
    moved = scores()
    assert moved[0] == moved[1] == moved[2] < before[0] - 0.1
    cripple(training, 1)
    apart = scores()
    assert apart[0] == apart[2] > apart[1]
