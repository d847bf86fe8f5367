"""A trainer that makes a candidate when it is told to, so that a test knows what each version has to say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model_export.export import Exporter, PolicyModel
from pipeline.config.reading import load_config
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import config_sha
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.learning.training import Training
from pipeline.records import State

PREFIX, POLICY, TABLE, EPOCH, MODEL_NAME = "fd", "rl", "shop", "e1", "feed_rl"
CONFIG = """
schema_version: 1
name: feed
kv_prefix: fd
embeddings: {shop: {lookup: external, dim: 4, epoch: e1}}
features:
  - {name: x, kind: dense, source: user.x, zscore: {min_count: 2}}
  - {name: clicks, kind: sequence, source: user.clicks, embedding: shop, max_len: 2, missing: {},
     encoder: {kind: conv1d, layers: [{filters: 2, kernel: 1}], pool: max}}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.0, 2.0]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.5, tower: [8], head: [8]}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  unit: session_id
  assign: [{name: control, policy: base, slots: [0, 19]}, {name: treated, policy: rl, slots: [20, 99]}]
publish: {every: 1s, min_transitions: 1, max_step_change: 1.0, max_total_change: 1.0, max_at_bounds: 1.0,
          max_drift: 1.0e6, max_fallback_share: 1.0, load_timeout: 60s}
"""
KNOWN = [str(i) for i in range(50)]
VECTORS = np.random.default_rng(5).standard_normal((len(KNOWN), 4)).astype(np.float32)


class Known:
    """The vectors, without a store."""

    def vectors(self, table: str, epoch: str, ids: Sequence[str]) -> list[bytes | None]:
        rows = dict(zip(KNOWN, VECTORS, strict=True))
        return [rows[each].tobytes() if each in rows else None for each in ids]


class Trainer:
    """Exports real candidates with weights and parameters of its choice, and remembers what each says."""

    def __init__(self, folder: Path) -> None:
        self.config = load_config(folder / "config.yaml")
        self.staging, self._aside = folder / "staging", folder / "aside"
        self._training = Training(self.config, Encoder(self.config))
        self._export = Exporter(self.config, self._aside)
        self._served = PolicyModel(self.config)
        self._said: dict[str, tuple[Snapshot, list[np.ndarray]]] = {}  # by candidate: its parameters and weights

    def candidate(self, spoil: Callable[[Path], None] = lambda folder: None) -> str:
        """A candidate unlike all others; `spoil` is done to it before anyone sees it. Raises: CandidateError."""
        training, number = self._training, len(self._said)
        if number:
            self._move(number)
        [path] = self._export(training, time.time_ns() // 1_000_000)
        self._served.actor.copy_from(training.learner.actor, training.chosen, 0)
        self._said[path.name] = training.snapshot, [each.numpy() for each in self._served.actor.variables]
        spoil(path)
        (self.staging / POLICY).mkdir(parents=True, exist_ok=True)
        path.rename(self.staging / POLICY / path.name)
        return path.name

    def go_back(self) -> None:
        """What it says from now on is made of what was not given up."""
        gone_back = self._training.progress.gone_back
        gone_back[POLICY] = gone_back.get(POLICY, 0) + 1

    def parameters(self, candidate: str) -> str:
        return self._said[candidate][0].sha256

    def means(self, candidate: str, states: Sequence[State], parameters_of: str | None = None) -> np.ndarray:
        """[n] what it says about states; with the parameters of another candidate what it should never say."""
        for variable, value in zip(self._served.actor.variables, self._said[candidate][1], strict=True):
            variable.assign(value)
        encoder = Encoder(self.config, Known())
        rows = encoder.stack([encoder.prepare(state) for state in states])
        snapshot = self._said[parameters_of or candidate][0]
        return self._served(encoder.finish(rows, snapshot)).numpy()[:, 0]

    def _move(self, number: int) -> None:
        training, rng = self._training, np.random.default_rng(number)
        for variable in training.learner.actor.variables:
            variable.assign_add(rng.normal(0, 0.1, variable.shape).astype("f4"))
        moments = {"x": Moments(1_000, number / 10, 1_000.0)}
        training.snapshot = Snapshot(config_sha(self.config), moments, {}, {TABLE: EPOCH})
        training.progress.ingested += 1_000
        training.progress.first_transition, training.progress.last_transition = "first", f"t{number}"
