"""The embedded runner: runs a Beam graph over a polled source in this process, with snapshots.

It drives Beam's own DoFnRunner, so that a DoFn is called as by any other runner. One turn of its loop: poll; start a
bundle; push the records through all steps; raise the watermark and fire the timers it has passed; finish the bundle
(sinks write). Bundles are bounded in records and in timers. Snapshots are taken between bundles only, after the
sinks have written: what is written after a snapshot is written again when the job starts from it.

It rests on internals of Beam 2.77; tests/beam/test_beam_internals.py pins them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.graph import Graph, Step, naming, wire
from pipeline.streaming.keyed import KeyedState
from pipeline.streaming.progress import Progress, Timer
from pipeline.streaming.sources import Batch

_WINDOW = GlobalWindow()
_BEGINNING_MS = MIN_TIMESTAMP.micros // 1000 + 1


class Limits(NamedTuple):
    records_per_bundle: int = 2_000
    timers_per_bundle: int = 1_000
    snapshot_after_records: int = 200_000
    snapshot_after_s: float = 10.0
    idle_wait_s: float = 0.02


class EmbeddedRunner(PipelineRunner):
    """Runs until `stop` is set or, with `until_idle`, until the source is caught up and no due timer is left.

    `save` gets what changed since it was last called (the first time, since `resume`). None: nothing is to be saved.
    """

    def __init__(
        self,
        save: Callable[[Progress], None] | None,
        *,
        resume: Progress | None = None,
        until_idle: bool = False,
        stop: threading.Event | None = None,
        limits: Limits = Limits(),  # noqa: B008 (immutable)
    ) -> None:
        self._save, self._resume, self._until_idle = save, resume, until_idle
        self._stop, self._limits = stop or threading.Event(), limits

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> EmbeddedResult:
        """Check and wire the graph; nothing runs before `wait_until_finish`."""
        resume, self._resume = self._resume, None  # what was restored from is large, and not needed any more
        loop = _Loop(wire(pipeline), self._save, resume, self._until_idle, self._stop, self._limits)
        return EmbeddedResult(loop, self._stop)


class EmbeddedResult(PipelineResult):
    """The loop runs in the thread that calls `wait_until_finish`; any thread may cancel it."""

    def __init__(self, loop: _Loop, stop: threading.Event) -> None:
        super().__init__(PipelineState.RUNNING)
        self._loop, self._stop = loop, stop

    def wait_until_finish(self, duration: int | None = None) -> str:
        if duration is not None:
            message = "the embedded runner waits without limit; set its stop event from another thread"
            raise NotImplementedError(message)
        if self._state == PipelineState.RUNNING:
            self._state = PipelineState.FAILED
            self._loop.run()
            self._state = PipelineState.CANCELLED if self._stop.is_set() else PipelineState.DONE
        return self._state

    def cancel(self) -> str:
        """Finish the bundle, take a snapshot, return."""
        self._stop.set()
        return self._state


class _Loop:
    def __init__(
        self,
        graph: Graph,
        save: Callable[[Progress], None] | None,
        resume: Progress | None,
        until_idle: bool,
        stop: threading.Event,
        limits: Limits,
    ) -> None:
        self._graph, self._save, self._until_idle = graph, save, until_idle
        self._stop, self._limits = stop, limits
        self._watermark_ms = _BEGINNING_MS
        self._read = 0  # records
        self._unsaved, self._saved_at_s = 0, time.monotonic()  # records and timers since the last snapshot
        if resume is not None:
            self._restore(resume)

    def run(self) -> None:
        self._each("setup")
        try:
            while not self._stop.is_set():
                batch = self._graph.source.poll(self._limits.records_per_bundle)
                self._turn(batch)
                self._snapshot_if_due()
                if self._until_idle and batch.caught_up:
                    break
                if not batch.records and not batch.passed_over:
                    self._stop.wait(self._limits.idle_wait_s)
            if self._unsaved:
                self._snapshot()
        finally:
            self._each("teardown")

    def _turn(self, batch: Batch) -> None:
        """Records first, then the watermark that they allow, in as many bundles as it takes."""
        self._unsaved += len(batch.records) + batch.passed_over
        if batch.records:
            self._bundle(lambda: self._push(batch))
        self._watermark_ms = max(self._watermark_ms, batch.watermark_ms)
        while self._due() and not self._stop.is_set():
            self._bundle(self._fire_due)
            self._snapshot_if_due()

    def _bundle(self, work: Callable[[], None]) -> None:
        self._each("start")
        work()
        self._each("finish")

    def _push(self, batch: Batch) -> None:
        """An element's timestamp is the watermark it arrived at: no engine takes it for late."""
        value = GlobalWindows.windowed_value(batch.records, timestamp=_timestamp(self._watermark_ms))
        for consume in self._graph.entry:
            consume(value)
        self._read += len(batch.records)

    def _due(self) -> bool:
        return any(s.state is not None and s.state.timers.due(self._watermark_ms) for s in self._graph.steps)

    def _fire_due(self) -> None:
        """Fire due timers in the order of the steps, at most as many as a bundle may hold."""
        room = self._limits.timers_per_bundle
        for step in self._graph.steps:
            while room and step.state is not None and (timer := step.state.timers.pop(self._watermark_ms)):
                self._fire(step, timer)
                room -= 1
        self._unsaved += self._limits.timers_per_bundle - room

    def _fire(self, step: Step, timer: Timer) -> None:
        due_ms, name, key, tag = timer
        assert step.state is not None
        step.fire(step.state.specs[name], key, _WINDOW, _timestamp(due_ms), PANE_INFO_UNKNOWN, tag)

    def _each(self, method: str) -> None:
        for step in self._graph.steps:
            naming(step.label, getattr(step.runner, method))()

    def _snapshot_if_due(self) -> None:
        waited_s = time.monotonic() - self._saved_at_s
        many = self._unsaved >= self._limits.snapshot_after_records
        if many or (self._unsaved and waited_s >= self._limits.snapshot_after_s):
            self._snapshot()

    def _snapshot(self) -> None:
        if self._save is None:
            for state in self._states().values():
                state.forget_changes()
        else:
            saved = {label: state.save_changes() for label, state in self._states().items()}
            self._save(Progress(self._watermark_ms, self._graph.source.positions, saved, self._read))
        self._unsaved, self._saved_at_s = 0, time.monotonic()

    def _restore(self, progress: Progress) -> None:
        self._watermark_ms, self._read = progress.watermark_ms, progress.read
        states = self._states()
        saved = {label: step.names for label, step in progress.steps.items()}
        found = {label: state.saved().names for label, state in states.items()}
        if saved != found:
            message = f"the snapshot is of another graph: its steps have (states, timers) {saved}, this one's {found}"
            raise SnapshotError(message)
        for label, state in states.items():
            state.restore(progress.steps[label])

    def _states(self) -> dict[str, KeyedState]:
        return {step.label: step.state for step in self._graph.steps if step.state is not None}


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(micros=milliseconds * 1000)
