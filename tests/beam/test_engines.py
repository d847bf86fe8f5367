"""One graph, several engines, the same outputs: what Beam itself makes of timers, coders and pickling."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import msgspec
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner
from apache_beam.testing import test_stream as scripted
from apache_beam.utils.timestamp import Timestamp

from pipeline.config.schema import FeatureConfig
from pipeline.events import decode, encode
from pipeline.logs.log import EPISODES, LATE, SAMPLES, TRANSITIONS, Entry, Record
from pipeline.records import Ending, Episode, FeedbackKind, Page, SetAside, Transition
from pipeline.streaming.embedded import EmbeddedRunner
from pipeline.streaming.groups import group_of
from pipeline.streaming.job import Parse, build
from pipeline.streaming.sinks import Encoded
from pipeline.streaming.sources import Batch, Poll
from pipeline.transitions.session import Stamped

Told = dict[str, list[tuple[int, bytes]]]  # topic -> sorted (event time of the emission, payload)
FAR_MS = 10**13


class WriteFiles(beam.DoFn):
    """A file for each bundle: engines that pickle DoFns, or make them anew, cannot write to memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def start_bundle(self) -> None:
        self._lines: list[bytes] = []

    def process(self, element: Encoded, timestamp: Timestamp = beam.DoFn.TimestampParam) -> None:
        self._lines.append(msgspec.json.encode((element, timestamp.micros // 1000)))

    def finish_bundle(self) -> None:
        if self._lines:
            (self._folder / uuid.uuid4().hex).write_bytes(b"\n".join(self._lines))


def run(
    runner: PipelineRunner,
    source: beam.PTransform,
    config: FeatureConfig,
    folder: Path,
    *flags: str,
    groups: int | None = None,
) -> Told:
    folder.mkdir()
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([*flags]))
    build(pipeline, source, beam.ParDo(WriteFiles(folder)), config, groups)
    pipeline.run().wait_until_finish()
    told: Told = defaultdict(list)
    for file in folder.iterdir():
        for line in file.read_bytes().split(b"\n"):
            output, time_ms = msgspec.json.decode(line, type=tuple[Encoded, int])
            told[output.topic].append((time_ms, output.payload))
    return {topic: sorted(outputs) for topic, outputs in told.items()}


def payloads(told: Told) -> dict[str, list[bytes]]:
    return {topic: sorted(payload for _, payload in outputs) for topic, outputs in told.items()}


def batches(entries: list[Entry], size: int) -> list[list[Record]]:
    """As a log of one partition would give them."""
    records = [Record(0, i, e.appended_at_ms or 0, e.key, e.payload) for i, e in enumerate(entries)]
    return [records[i : i + size] for i in range(0, len(records), size)]


class BatchSource:
    """The batches one by one, then the end of time."""

    def __init__(self, todo: list[list[Record]], lateness_ms: int) -> None:
        self._todo, self._lateness_ms = list(todo), lateness_ms
        self.positions: dict[int, int] = {}

    def poll(self, limit: int) -> Batch:
        records = self._todo.pop(0)
        watermark_ms = records[-1].appended_at_ms - self._lateness_ms if self._todo else FAR_MS
        return Batch(records, watermark_ms, not self._todo)


def embedded() -> EmbeddedRunner:
    return EmbeddedRunner(lambda _: None, until_idle=True)


def test_a_bounded_log_gives_the_same_outputs_on_beams_own_runner(
    config: FeatureConfig, traffic: Callable[..., list[Entry]], tmp_path: Path
) -> None:
    """FnApiRunner pickles DoFns, encodes every state and element, and knows only the end of time as a watermark."""
    todo = batches(traffic(3, 40), 50)
    source = Poll(BatchSource(todo, config.stream.lateness))
    ours = run(embedded(), source, config, tmp_path / "ours")
    theirs = run(FnApiRunner(), beam.Create(todo), config, tmp_path / "theirs")
    assert payloads(theirs) == payloads(ours)
    assert set(ours) >= {SAMPLES, TRANSITIONS, EPISODES, LATE}


@pytest.mark.parametrize("groups", [1, 7])
def test_keyed_by_groups_of_sessions_the_outputs_are_the_same(
    config: FeatureConfig, traffic: Callable[..., list[Entry]], tmp_path: Path, groups: int
) -> None:
    todo = batches(traffic(3, 40), 50)
    by_session = run(embedded(), Poll(BatchSource(todo, config.stream.lateness)), config, tmp_path / "by-session")
    ours = run(embedded(), Poll(BatchSource(todo, config.stream.lateness)), config, tmp_path / "ours", groups=groups)
    theirs = run(FnApiRunner(), beam.Create(todo), config, tmp_path / "theirs", groups=groups)
    assert payloads(theirs) == payloads(ours) == payloads(by_session)


def test_events_of_a_group_go_on_together(config: FeatureConfig, traffic: Callable[..., list[Entry]]) -> None:
    (records,) = batches(traffic(3, 100), 10_000)
    elements = [each for each in Parse(config.stream, groups=7).process(records) if isinstance(each, tuple)]
    assert sorted(key for key, _ in elements) == list("0123456")
    assert all(group_of(stamped.event.session_id, 7) == key for key, events in elements for stamped in events)


def story(beats: list[int | list[tuple[int, object]]]) -> list[int | list[Record]]:
    """Watermarks, and records as (stamp, event), all in ms after T."""
    told: list[int | list[Record]] = []
    offset = 0
    for beat in beats:
        if isinstance(beat, int):
            told.append(beat)
            continue
        told.append([Record(0, offset + i, T + stamp, "k", encode(event)) for i, (stamp, event) in enumerate(beat)])
        offset += len(beat)
    return told


T = 1_700_000_000_000


@pytest.fixture
def scenario(make: SimpleNamespace) -> list[int | list[Record]]:
    impression, feedback = make.impression, make.feedback
    return story(
        [
            -1_000,
            [
                (0, impression("s", 0, T, items=2)),
                (1_000, feedback("c1", "s", 0, T + 1_000, FeedbackKind.CLICK, "i0")),
            ],
            2_000,  # the window is open
            [
                (2_500, feedback("c2", "s", 0, T + 2_500, FeedbackKind.CLICK, "i1")),
                (4_000, impression("s", 1, T + 4_000, items=2)),
            ],
            3_500,  # closes page 0
            [(4_201, feedback("c3", "s", 0, T + 1_500, FeedbackKind.CLICK, "i0"))],  # late
            8_000,  # closes page 1
            30_000,  # the gap
        ]
    )


class StorySource:
    def __init__(self, beats: list[int | list[Record]]) -> None:
        self._left, self._now_ms = list(beats), 0
        self.positions: dict[int, int] = {}

    def poll(self, limit: int) -> Batch:
        beat = self._left.pop(0)
        records = beat if isinstance(beat, list) else []
        self._now_ms = self._now_ms if isinstance(beat, list) else beat
        return Batch(records, T + self._now_ms, not self._left)


def expected(config: FeatureConfig, told: Told, step_ms: int = 1) -> None:
    """Page, transition and episode, each at its own time: no engine may fire a timer early or late.

    `step_ms`: each time is the last of a step.
    """

    def at(time_ms: int) -> int:
        return time_ms // step_ms * step_ms + step_ms - 1

    pages = [(time_ms - T, decode(payload, Page)) for time_ms, payload in told[SAMPLES]]
    assert [(time_ms, page.id, [label.clicks for label in page.labels]) for time_ms, page in pages] == [
        (at(3_001), "s/0", [1, 1]),
        (at(7_001), "s/1", [0, 0]),
    ]
    transitions = [(time_ms - T, decode(payload, Transition)) for time_ms, payload in told[TRANSITIONS]]
    assert [(time_ms, t.request_id, round(t.reward, 9), t.discount, t.ending) for time_ms, t in transitions] == [
        (at(7_201), "s/0", 0.2, 1.0, None),
        (at(17_201), "s/1", 0.0, 0.0, Ending.INFERRED_LEAVE),
    ]
    ((time_ms, payload),) = told[EPISODES]
    episode = decode(payload, Episode)
    assert (time_ms - T, [round(s.reward, 9) for s in episode.steps]) == (at(17_201), [0.2, 0.0])
    ((_, payload),) = told[LATE]
    late = decode(payload, SetAside)
    assert (late.reason, late.event.event_id) == ("transport", "c3")


@pytest.mark.parametrize(("groups", "step_ms"), [(None, 1), (3, 1_000)])
def test_the_scenario_on_beams_test_stream(
    config: FeatureConfig, scenario: list[int | list[Record]], tmp_path: Path, groups: int | None, step_ms: int
) -> None:
    stream = scripted.TestStream()
    for beat in scenario:
        if isinstance(beat, int):
            stream = stream.advance_watermark_to(Timestamp(micros=(T + beat) * 1_000))
        else:
            stream = stream.add_elements([beat])
    source = stream.advance_watermark_to_infinity()
    told = run(BundleBasedDirectRunner(), source, config, tmp_path / "out", "--streaming", groups=groups)
    expected(config, told, step_ms)


@pytest.mark.parametrize(("groups", "step_ms"), [(None, 1), (3, 1_000)])
def test_the_scenario_on_the_embedded_runner(
    config: FeatureConfig, scenario: list[int | list[Record]], tmp_path: Path, groups: int | None, step_ms: int
) -> None:
    told = run(embedded(), Poll(StorySource(scenario)), config, tmp_path / "out", groups=groups)
    expected(config, told, step_ms)


@pytest.mark.parametrize("hint", [list[Record], tuple[str, list[Stamped]], Encoded])
def test_nothing_is_pickled_between_processes(hint: object) -> None:
    coder = beam.coders.registry.get_coder(beam.typehints.native_type_compatibility.convert_to_beam_type(hint))
    assert "MsgpackCoder" in repr(coder)
    assert "Primitives" not in repr(coder)


@pytest.mark.parametrize("runner", [FnApiRunner, BundleBasedDirectRunner])
def test_no_other_runner_takes_a_polled_source(
    runner: type[PipelineRunner], config: FeatureConfig, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="Unable to translate Read") as caught:
        run(runner(), Poll(BatchSource([], 0)), config, tmp_path / "out")
    assert "embedded runner only" in str(caught.value.__cause__)
