"""A policy that ranks items goes back alone, to weights and optimisers of then, with new explorers beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from model_export.exporting import exporter_of
from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.trainer import Pace, train
from pipeline.records import Explorer
from pipeline.stores.published import BOOTSTRAP, Served, change_pointer, sent_back
from pipeline.stores.sqlite import SqliteStore
from tests.learning.test_drn_training import DBGD, GRADIENT, NO_MAJOR, TEXT, log

__all__ = ["log"]  # the fixture
LAST = "policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]"
BOTH = LAST.replace("}]", "}, {name: rm, kind: learned}]")
HALVES = "{name: treated, policy: rl, slots: [50, 74]}, {name: too, policy: rm, slots: [75, 99]}]"


def config_of(minor: str) -> FeatureConfig:
    text = TEXT.replace("{rl: MINOR}", f"{{rl: {minor}, rm: {GRADIENT}}}").replace("MAJOR", NO_MAJOR)
    return parse_config(text.replace(LAST, BOTH).replace("{name: treated, policy: rl, slots: [50, 99]}]", HALVES))


class Known(NamedTuple):
    """A policy, when it was handed out."""

    candidate: str
    version: int
    weights: dict[str, np.ndarray]
    variables: list[np.ndarray]
    explorers: tuple[Explorer, ...]
    gone_back: int

    @classmethod
    def of(cls, training: RankingTraining, policy: str) -> Known:
        standing = training.methods[policy].standing
        variables = [variable.numpy() for variable in training.learner.of(policy)]
        followed = training.progress.gone_back.get(policy, 0)
        found = dict(standing.weights), variables, training.methods[policy].explorers, followed
        return cls(training.candidate_of(policy), standing.version, *found)

    def has_learned_what(self, other: Known) -> bool:
        same = all(np.array_equal(weight, other.weights[name]) for name, weight in self.weights.items())
        return same and all(np.array_equal(x, y) for x, y in zip(self.variables, other.variables, strict=True))


class Bench:
    def __init__(self, config: FeatureConfig, log_url: str, folder: Path) -> None:
        self.config, self._log_url, self.folder = config, log_url, folder
        self.store = SqliteStore(folder / "store.sqlite")

    def train(self) -> list[dict[str, Known]]:
        handed: list[dict[str, Known]] = []
        export = exporter_of(self.config, self.folder / "staging")

        def taken(training: RankingTraining, now_ms: int) -> None:
            export(training, now_ms)
            handed.append({policy: Known.of(training, policy) for policy in training.methods})

        train(
            self.config, self._log_url, self.folder / "work", until_idle=True, export=taken, store=self.store,
            pace=Pace(poll=8),
        )  # fmt: skip
        return handed

    def go_back(self, policy: str, candidate: str) -> None:
        prefix = self.config.kv_prefix
        change_pointer(self.store, prefix, policy, lambda now: sent_back(now, Served(1, "sha"), candidate))


@pytest.fixture(params=[GRADIENT, DBGD.replace("10s", "2s")], ids=["gradient", "dbgd"])
def bench(request: Any, log: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(config_of(request.param), log, tmp_path)
    with closing(made.store):
        yield made


def test_it_goes_on_from_what_it_was_then_and_the_others_from_where_they_are(bench: Bench) -> None:
    handed = bench.train()
    before, last = handed[1], handed[-1]
    assert before["rl"].version < last["rl"].version
    bench.go_back("rl", before["rl"].candidate)
    [after] = bench.train()
    assert after["rl"].has_learned_what(before["rl"])
    assert after["rm"].has_learned_what(last["rm"])
    assert (after["rl"].version, after["rm"].version) == (last["rl"].version + 1, last["rm"].version)
    assert (after["rl"].gone_back, after["rm"].gone_back) == (1, 0)
    assert not set(after["rl"].explorers) & {explorer for each in handed for explorer in each["rl"].explorers}
    staged = {path.name for path in (bench.folder / "staging" / "rl").iterdir()}
    assert {after["rl"].candidate} <= staged
    assert bench.train() == []


def test_to_the_baseline_is_to_weights_that_have_learned_nothing(bench: Bench) -> None:
    last = bench.train()[-1]
    bench.go_back("rm", BOOTSTRAP)
    [after] = bench.train()
    fresh = Known.of(RankingTraining(bench.config, Encoder(bench.config)), "rm")
    assert after["rm"].has_learned_what(fresh)
    assert not fresh.has_learned_what(last["rm"])
    assert after["rl"].has_learned_what(last["rl"])
