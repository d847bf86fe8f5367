"""Policies that choose items -> candidates: the served weights and what is tried beside them in one SavedModel."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import structs

from model_export.candidate import (
    EXTRA,
    MODEL,
    PARAMETERS,
    RECORD,
    WARM_UP,
    Candidate,
    Probe,
    encode_candidate,
    file_digests,
)
from model_export.export import clear_away, explained, neutral_item, neutral_state, write_warm_up
from pipeline import durable
from pipeline.config.schema import FeatureConfig
from pipeline.features.candidates import item_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.served import ServedRankers
from pipeline.learning.drn.training import RankingTraining

_log = logging.getLogger(__name__)


class RankingExporter:
    """Writes candidates to staging. Callable as the trainer's `export`.

    Raises: CandidateError where staging cannot be written, at the start rather than after the first update.
    """

    def __init__(self, config: FeatureConfig, staging: Path) -> None:
        assert config.ranking is not None
        self._staging = staging
        for policy in config.learned_policies():
            with explained(staging / policy):
                (staging / policy).mkdir(parents=True, exist_ok=True)
        self._models = {
            policy: ServedRankers(config, config.ranking.explorers(policy)) for policy in config.learned_policies()
        }

    def __call__(self, training: RankingTraining, created_ms: int) -> tuple[Path, ...]:
        """A candidate of each policy whose weights or explorers were not handed out yet."""
        training.check_finite()
        return tuple(
            self._hand_out(training, policy, created_ms)
            for policy, method in training.methods.items()
            if method.standing.version > training.progress.versions.get(policy, 0) or not training.progress.ingested
        )

    def _hand_out(self, training: RankingTraining, policy: str, created_ms: int) -> Path:
        method, model, snapshot = training.methods[policy], self._models[policy], training.snapshot_of(policy)
        model.hold(method.standing.weights, method.explorer_weights())
        found = _asked(training, snapshot, model)
        candidate = _candidate(training, policy, snapshot, found, created_ms)
        final = self._staging / policy / candidate.id
        if final.exists():
            _log.info("%s is there already", final)
            return final
        temporary = final.with_name(f".tmp-{candidate.id}")
        shutil.rmtree(temporary, ignore_errors=True)
        with explained(final):
            _write(temporary, candidate, snapshot, model, found.inputs)
            durable.rename(temporary, final)
            if method.standing.version:
                clear_away(final)
        return final


class _Asked(NamedTuple):
    probes: tuple[Probe, ...]  # with Q of the served weights
    inputs: dict[str, np.ndarray]  # of these


def _asked(training: RankingTraining, snapshot: Snapshot, model: ServedRankers) -> _Asked:
    raw = training.probes() or ((neutral_state(training.config), (neutral_item(training.config),) * 2),)
    state, item = training.encoders
    prepared = [state.prepare(each) for each, _ in raw]
    rows = [item.prepare_items(items) for _, items in raw]
    inputs = {**state.finish(state.stack(prepared), snapshot), **item_inputs(item, rows, snapshot)}
    q = model.q(inputs).tolist()
    probes = tuple(
        Probe(structs.replace(each, lookups=row.lookups), (), items, tuple(q_of[: len(items)]))
        for (each, items), row, q_of in zip(raw, prepared, q, strict=True)
    )
    return _Asked(probes, inputs)


def _candidate(training: RankingTraining, policy: str, snapshot: Snapshot, found: _Asked, created_ms: int) -> Candidate:
    config, progress = training.config, training.progress
    losses = {name.removesuffix(f"/{policy}"): x for name, x in training.losses.items() if name.endswith(f"/{policy}")}
    best = [max(probe.q) for probe in found.probes]
    return Candidate(
        id=training.candidate_of(policy),
        policy=policy,
        model_name=config.model_name(policy),
        config_sha=training.encoder.config_sha,
        parameters=snapshot.sha256,
        created_ms=created_ms,
        seed=config.algorithm.seed,
        transitions=progress.ingested,
        explored=progress.explored.get(policy, 0),
        updates=progress.updates,
        first_transition=progress.first_transition,
        last_transition=progress.last_transition,
        losses=losses,
        value_mean=float(np.mean(best)) if progress.ingested else None,
        advantage_mean=None,
        pages=dict(progress.pages.get(policy, {})),
        probes=found.probes,
        explorers=snapshot.explorers,
        decided=training.latest[policy],
        gone_back=progress.gone_back.get(policy, 0),
    )


def _write(
    folder: Path, candidate: Candidate, snapshot: Snapshot, model: ServedRankers, inputs: dict[str, np.ndarray]
) -> None:
    saved = folder / MODEL
    model.save(saved)
    (saved / EXTRA).mkdir()
    (saved / PARAMETERS).write_bytes(snapshot.to_bytes())
    write_warm_up(saved / WARM_UP, candidate.model_name, inputs)
    record = structs.replace(candidate, files=file_digests(saved))
    (folder / RECORD).write_bytes(encode_candidate(record))
    durable.sync_tree(folder)
