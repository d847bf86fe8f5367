"""What a run has come to, from its folder alone: while it goes on and after it is gone.

    measures = measure(open_run(folder))
    print(render(rows(measures)))

What is not there (yet) is absent, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from msgspec import Struct

from model_export.checks import Verdict
from model_export.verdicts import read_verdicts
from pageturn.measuring.accounting import Accounting, account, ids
from pageturn.measuring.actions import ActionOverTime, actions_over_time
from pageturn.measuring.asked import Asked, asked
from pageturn.measuring.buckets import Comparison, compare
from pageturn.measuring.freshness import Freshness, freshness
from pageturn.measuring.learning import learning_rows
from pageturn.measuring.parts import Life, lives
from pageturn.measuring.rows import rows
from pageturn.measuring.topics import Ids, Topics, read_topics
from pageturn.measuring.twins import Twins, against_twins
from pageturn.measuring.updates import decided
from pageturn.measuring.versions import PolicyVersions, versions
from pageturn.run import Run, RunRecord
from pageturn.supervisor import read_journal
from pageturn.traffic_log import AskedPage, Visit, read_acknowledged, read_pages, read_visits
from pipeline.config.schema import FeatureConfig
from pipeline.logs.opening import open_log
from pipeline.ranking.updates import Update
from pipeline.simulation.news import params as news
from pipeline.simulation.params import SimulationError, World
from pipeline.streaming.counts import Counts

__all__ = ["Measures", "measure", "rows"]


class Measures(Struct, frozen=True):
    run: RunRecord
    up: bool  # while it was looked at, so that more is to come
    config: str  # its name
    simulator: str | None  # version and hash; None where the config is not one of the simulated feed
    began_ms: int  # of what is told here; the run's creation where nothing is
    ended_ms: int
    comparison: Comparison | None  # of buckets
    twins: Twins | None  # the same visits under the baseline; only of the simulated feed
    versions: tuple[PolicyVersions, ...]
    verdicts: tuple[Verdict, ...]
    freshness: tuple[Freshness, ...]
    asked: Asked | None
    counts: Counts | None
    accounting: Accounting | None
    actions: tuple[ActionOverTime, ...]
    learning: tuple[dict[str, Any], ...]  # rows of the trainer's metrics
    parts: tuple[Life, ...]
    decided: tuple[Update, ...] = ()  # of policies that choose items: what became of updates, by the trainer

    @property
    def updates(self) -> int:
        return int(self.learning[-1].get("updates", 0)) if self.learning else 0


def measure(run: Run) -> Measures:
    """Raises: ConfigError, LogError, SnapshotError."""
    config, up = run.config(), run.holder is not None
    visits = list(read_visits(run.traffic))
    acknowledged, answered = ids(read_acknowledged(run.traffic)), Ids()
    pages = asked(config, _noting(answered, read_pages(run.traffic)))
    verdicts = tuple(read_verdicts(run.models))
    learning = learning_rows(run.trainer)
    topics, policies = _topics(config, run), config.learned_policies()
    parts = lives(read_journal(run.journal))
    times = [visit.time_ms for visit in visits] + [t for life in parts for t in (life.started_ms, life.ended_ms) if t]
    return Measures(
        run=run.record,
        up=up,
        config=config.name,
        simulator=_simulator(config),
        began_ms=min(times, default=run.record.created_ms),
        ended_ms=max(times, default=run.record.created_ms),
        comparison=compare(config, visits),
        twins=_twins(config, visits),
        versions=versions(policies, verdicts),
        verdicts=verdicts,
        freshness=freshness(policies, verdicts, topics.transitions(), topics.pages, learning),
        asked=pages,
        counts=topics.counts,
        accounting=account(acknowledged, answered, topics) if pages else None,
        actions=actions_over_time(config, topics.drawn),
        learning=learning,
        parts=parts,
        decided=decided(run.trainer),
    )


def _noting(answered: Ids, pages: Iterator[AskedPage]) -> Iterator[AskedPage]:
    for page in pages:
        if page.decided_by is not None:
            answered.add(page.request_id)
        yield page


def _topics(config: FeatureConfig, run: Run) -> Topics:
    with closing(open_log(run.log_url)) as log:
        return read_topics(config, log, run.stream)


def _twins(config: FeatureConfig, visits: list[Visit]) -> Twins | None:
    try:
        return against_twins(config, visits)
    except SimulationError:
        return None


def _simulator(config: FeatureConfig) -> str | None:
    if config.ranking is not None:
        return str(news.World())
    try:
        return str(World.of(config))
    except SimulationError:
        return None
