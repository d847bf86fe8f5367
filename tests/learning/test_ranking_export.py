"""Candidates of policies that rank items: what the model says is what the trainer's weights say, explorers included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model_export.candidate import BOOTSTRAP, MODEL, PARAMETERS, read_candidate
from model_export.exporting import bootstrap, exporter_of
from pipeline.features.candidates import item_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.training import RankingTraining
from tests.learning.test_drn_training import DBGD, MAJOR, make, play, training_of


@pytest.fixture(scope="module")
def trained() -> RankingTraining:
    """After two periods: with a candidate of noise, and a major update that is tried."""
    training = training_of(make(DBGD, MAJOR))
    play(training, range(24), likes=1)
    assert [explorer.seed for explorer in training.methods["rl"].explorers] == [3, None]
    return training


def test_the_bootstrap_leaves_candidates_in_their_order(tmp_path: Path) -> None:
    (path,) = bootstrap(make(DBGD, MAJOR), tmp_path, 1)
    candidate = read_candidate(path)
    assert (candidate.id, candidate.transitions, candidate.explorers) == (BOOTSTRAP, 0, ())
    (probe,) = candidate.probes
    assert set(probe.q) == {0.0}
    assert len(probe.q) == len(probe.items) == 2


def test_a_model_scores_with_all_its_rankers(trained: RankingTraining, tmp_path: Path) -> None:
    (path,) = exporter_of(trained.config, tmp_path)(trained, 1)
    candidate = read_candidate(path)
    snapshot = Snapshot.from_bytes((path / MODEL / PARAMETERS).read_bytes(), trained.config)
    assert snapshot.explorers == candidate.explorers == trained.methods["rl"].explorers
    assert (candidate.id[:12], candidate.decided) == (f"{3:012d}", trained.latest["rl"])
    model = tf.saved_model.load(str(path / MODEL)).signatures["serving_default"]
    state, item = trained.encoders
    rows = [item.prepare_items(probe.items) for probe in candidate.probes]
    prepared = [state.prepare(probe.state) for probe in candidate.probes]
    inputs = {**state.finish(state.stack(prepared), snapshot), **item_inputs(item, rows, snapshot)}
    said = model(**{name: tf.constant(x) for name, x in inputs.items()})
    np.testing.assert_allclose(said["q"], [probe.q for probe in candidate.probes], atol=1e-6)
    standing = trained.methods["rl"].standing
    network = trained.learner.major["rl"].online
    before = network.weights()
    user = {i.name: inputs[i.name][None] for i in state.inputs}
    of_items = {name: x[None] for name, x in inputs.items() if name not in user}
    for place, weights in enumerate((standing.weights, *trained.methods["rl"].explorer_weights())):
        network.assign(weights)
        expected = network(user, of_items)[0]
        found = said["q"] if place == 0 else said["q_explorers"][:, place - 1]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(place))
    network.assign(before)
    assert np.abs(said["q_explorers"][:, 0] - said["q"]).max() > 1e-3


def test_what_was_handed_out_is_not_handed_out_again(trained: RankingTraining, tmp_path: Path) -> None:
    export = exporter_of(trained.config, tmp_path)
    trained.handed_out()
    assert export(trained, 2) == ()
