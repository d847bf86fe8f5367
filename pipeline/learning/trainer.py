"""The trainer process: reads transitions, lets `Training` learn, keeps checkpoints, hands out candidates.

Everything here may depend on clocks, poll sizes and kills; nothing of that reaches the weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tensorflow as tf
from msgspec import to_builtins

from pipeline.config.schema import FeatureConfig
from pipeline.durable import exclusive
from pipeline.events import encode
from pipeline.features.encoder import Encoder, VectorSource
from pipeline.features.inputs import part_of
from pipeline.learning.checkpoint import Checkpoints
from pipeline.learning.dealing import DealtFeeding
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.going_back import GoingBack
from pipeline.learning.merging import MergedReader
from pipeline.learning.metrics import MetricsFile, measured, show
from pipeline.learning.progress import Progress
from pipeline.learning.resuming import AnyTraining, go_on
from pipeline.learning.shelf import Shelf, open_shelf
from pipeline.learning.summaries import Summaries
from pipeline.learning.together import Team, WorkerError, check_can_learn_together, of_chief, packed, unpack
from pipeline.learning.training import ROUND_SIZE, Training
from pipeline.learning.watching import FeatureWatch
from pipeline.logs.log import DEAD_LETTERS, SAMPLES, TRANSITIONS, Entry, EventLog, LogError, Record, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.logs.ordered import OrderedReader
from pipeline.monitoring.catalogue import TRAINER
from pipeline.monitoring.metrics import Metrics
from pipeline.records import DeadLetter
from pipeline.stores.store import KeyValueStore

UPDATES = "updates.jsonl"  # of policies that choose items: what became of each update
_STAMPS = 10_000
_log = logging.getLogger(__name__)


class Pace(NamedTuple):
    poll: int = 256  # records
    idle_s: float = 0.05
    topic_s: float = 1.0  # between looks for a topic that is not there yet
    checkpoint_every: int = 50 * ROUND_SIZE  # transitions


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


Export = Callable[[Any, int], object]  # (what was learned, created_ms)


class Job(NamedTuple):
    config: FeatureConfig
    log: EventLog
    work_dir: Path
    vectors: VectorSource | None
    export: Export | None
    until_idle: bool
    stop: threading.Event
    clock_ms: Callable[[], int]
    pace: Pace
    metrics: Metrics
    tensorboard: Path | None
    store: KeyValueStore | None
    team: Team | None
    shelf: Shelf | None


def train(
    config: FeatureConfig,
    log_url: str,
    work_dir: Path,
    *,
    vectors: VectorSource | None = None,
    export: Export | None = None,
    until_idle: bool = False,
    stop: threading.Event | None = None,
    clock_ms: Callable[[], int] = wall_clock_ms,
    pace: Pace | None = None,
    metrics: Metrics | None = None,
    tensorboard: Path | None = None,
    store: KeyValueStore | None = None,
    team: Team | None = None,
) -> Progress:
    """Learn from the transitions topic until stopped or, with `until_idle`, until all that it holds was learned from.

    Resumes from the work directory's newest checkpoint. `export` is called as `config.publish` says, and once at an
    idle end if there is anything new. `tensorboard` is a directory for the numbers of each round. `store` is where
    requests to go back come from. `team`: this is one of several trainers that learn together; all but the chief keep
    nothing, hand out nothing and say nothing.
    Raises: TrainerError, LogError; whatever `vectors` and `export` raise.
    """
    tf.config.experimental.enable_op_determinism()
    if team is not None:
        check_can_learn_together(config)
    if team is not None and not team.is_chief:
        work_dir, export, metrics, tensorboard, store = work_dir / f"worker-{team.rank}", None, None, None, None
    with exclusive(work_dir), closing(open_log(log_url)) as log, open_shelf(config, work_dir) as shelf:
        job = Job(
            config, log, work_dir, vectors, export, until_idle, stop or threading.Event(), clock_ms, pace or Pace(),
            metrics or Metrics(TRAINER), tensorboard, store, team, shelf,
        )  # fmt: skip
        training = _training(job)
        try:
            _Run(job, training).follow()
        except WorkerError as error:
            if not job.stop.is_set():
                raise
            _log.warning("%s; this one was to stop in any case", error)  # of all that are told to, some are quicker
        return training.progress


class _Marks(NamedTuple):
    """Two checkpoints with the same marks are the same."""

    read: int
    ingested: int
    exported: int
    gone_back: int


class _Run:
    def __init__(self, job: Job, training: AnyTraining) -> None:
        self._job, self.training = job, training
        self._checkpoints = Checkpoints(job.work_dir / "checkpoints")
        self._metrics = MetricsFile(job.work_dir / "metrics.jsonl")
        self._updates = MetricsFile(job.work_dir / UPDATES)
        self._summaries = Summaries(job.tensorboard) if job.tensorboard else None
        self._dead_letters: list[DeadLetter] = []
        self._leads = job.team is None or job.team.is_chief
        self.training.seen = FeatureWatch(part_of(job.config, "state"), job.work_dir, job.metrics).add
        self._number = self._resume()
        self._durable = self._marks() if self._number else None  # of the newest checkpoint
        self._exported_ms = job.clock_ms()
        self._stamps_ms: deque[int] = deque(maxlen=_STAMPS)  # of what was learned from since the last candidate
        self._back = GoingBack(self.training, job.work_dir / "handed_out", job.store, job.metrics)

    def follow(self) -> None:
        job, reader = self._job, self._reader()
        while reader and not job.stop.is_set():
            if self._back.look():
                self._checkpoint()
                _check_alone(job.team)
            records = reader.poll(job.pace.poll)
            for record in records:
                self._take(record)
                if job.stop.is_set():
                    break
            self._bury()
            if not records and job.until_idle and reader.caught_up() and (job.team is None or job.team.all_idle()):
                break
            if self._leads and self._export_is_due():
                self._hand_out()
            if not records:
                job.stop.wait(job.pace.idle_s)
        if self._leads and job.until_idle and not job.stop.is_set() and self._news() > 0:
            self._hand_out()
        self._checkpoint()

    def _reader(self) -> OrderedReader | MergedReader | None:
        """None when stopped while the topic was not there yet."""
        job = self._job
        while not job.stop.is_set():
            try:
                return self._reading()
            except LogError as error:
                if job.until_idle or self.training.progress.positions:
                    raise
                _log.warning("waiting for transitions: %s", error)
            job.stop.wait(job.pace.topic_s)
        return None

    def _reading(self) -> OrderedReader | MergedReader:
        job, progress = self._job, self.training.progress
        if job.config.ranking is None:
            return OrderedReader(job.log, TRANSITIONS, progress.positions, job.clock_ms, job.config.stream.clock_skew)
        positions = {TRANSITIONS: progress.positions, SAMPLES: progress.samples}
        return MergedReader(job.log, positions, job.clock_ms, job.config.stream.clock_skew)

    def _take(self, record: Record) -> None:
        rounds = self.training.rounds
        self._stamps_ms.append(record.appended_at_ms)
        dead_letter = self.training.ingest(record)
        if dead_letter is not None:
            self._dead_letters.append(dead_letter)
        if self.training.rounds != rounds and self._leads:
            line = measured(self.training, self._job.clock_ms())
            self._metrics.append(line)
            if self._summaries is not None:
                self._summaries.add(line, self.training.progress.ingested)
            show(self.training, record.appended_at_ms, self._job.metrics)
        for update in self.training.decided():
            self._updates.append(to_builtins(update))
        behind = self.training.progress.ingested - (self._durable.ingested if self._durable else 0)
        if behind >= self._job.pace.checkpoint_every:
            self._checkpoint()

    # Dead letters ----------------------------------------------------------------------------------------------------

    def _bury(self) -> None:
        """At least once: before their positions are behind a checkpoint."""
        if not self._dead_letters or not self._leads:
            self._dead_letters.clear()
            return
        entries = [Entry(letter.key, encode(letter)) for letter in self._dead_letters]
        _log.warning("%d transitions refused, the last: %s", len(entries), self._dead_letters[-1].detail)
        ensure_topic(self._job.log, DEAD_LETTERS, 1)
        self._job.log.append(DEAD_LETTERS, entries)
        self._dead_letters.clear()

    # Candidates ------------------------------------------------------------------------------------------------------

    def _news(self) -> int:
        return self.training.news

    def _export_is_due(self) -> bool:
        publish = self._job.config.publish
        elapsed = self._job.clock_ms() - self._exported_ms
        waits = 0 <= elapsed < publish.every  # below 0: the clock was put back
        return not waits and self._news() >= max(publish.min_transitions, 1)

    def _hand_out(self) -> None:
        """The checkpoint first: no candidate is ahead of what survives a kill."""
        self._checkpoint()
        now = self._job.clock_ms()
        if self._job.export is not None:
            self._back.remember(self._checkpoints.path(self._number))
            self._job.export(self.training, now)
            self._job.metrics.count("candidates", len(self._job.config.learned_policies()))
        for stamp_ms in self._stamps_ms:
            self._job.metrics.observe("transition_to_candidate_seconds", (now - stamp_ms) / 1000)
        self._stamps_ms.clear()
        self.training.progress.exported = self.training.progress.ingested
        self.training.progress.pages.clear()
        self.training.handed_out()
        self._exported_ms = now

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        marks = self._marks()
        if marks == self._durable:
            return
        self._bury()
        self.training.check_finite()
        self._durable = marks
        if not self._leads:
            return
        state = msgspec.msgpack.encode(self.training.saved())
        self._checkpoints.write(self._number + 1, self.training.learner, state)
        self._number += 1
        self._job.metrics.gauge("checkpoint_timestamp_seconds", self._job.clock_ms() / 1000)

    def _marks(self) -> _Marks:
        progress = self.training.progress
        return _Marks(progress.read, progress.ingested, progress.exported, sum(progress.gone_back.values()))

    def _resume(self) -> int:
        """Number of the checkpoint that was resumed from; 0 where there was none."""
        loaded, team = self._checkpoints.newest() if self._leads else None, self._job.team
        if team is not None:
            loaded = of_chief(team, self._job.config, loaded)
        if loaded is not None:
            go_on(self.training, loaded, self._job.log, with_weights=self._leads)
        elif self._job.shelf is not None:
            self._job.shelf.go_on(())  # without what a trainer wrote that never came to a checkpoint
        if team is not None:
            unpack(self.training.learner, team.from_chief(packed(self.training.learner)))
        return loaded.number if loaded else 0


def _training(job: Job) -> AnyTraining:
    encoder, team = Encoder(job.config, job.vectors), job.team
    if job.config.ranking is not None:
        return RankingTraining(job.config, encoder)
    if team is None:
        return Training(job.config, encoder, shelf=job.shelf)
    return Training(job.config, encoder, feeding=DealtFeeding.of_team(job.config, encoder, ROUND_SIZE, team))


def _check_alone(team: Team | None) -> None:
    if team is not None:
        message = "the chief went back to an earlier candidate: start all workers again, they go on from there"
        raise WorkerError(message)
