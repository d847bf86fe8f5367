"""Which exporter a config takes: of policies that weigh a ranker's scores, or that choose the items."""

from __future__ import annotations

from pathlib import Path

from model_export.export import Exporter
from model_export.export import bootstrap as bootstrap_actors
from model_export.ranking_export import RankingExporter
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.learning.drn.training import RankingTraining


def exporter_of(config: FeatureConfig, staging: Path) -> Exporter | RankingExporter:
    """For the trainer. Raises CandidateError."""
    return Exporter(config, staging) if config.ranking is None else RankingExporter(config, staging)


def bootstrap(config: FeatureConfig, staging: Path, created_ms: int) -> tuple[Path, ...]:
    """Candidates of learners that have learned nothing: exactly the baseline, for version 1 of every model."""
    if config.ranking is None:
        return bootstrap_actors(config, staging, created_ms)
    return RankingExporter(config, staging)(RankingTraining(config, Encoder(config)), created_ms)
