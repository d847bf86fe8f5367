"""The embedded runner, with small DoFns of its own: what it does, what it refuses, and that it goes on where it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder, StrUtf8Coder, VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
    ReadModifyWriteStateSpec,
    SetStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from pipeline.errors import PageturnError
from pipeline.streaming.embedded import EmbeddedRunner, Limits
from pipeline.streaming.errors import SnapshotError
from pipeline.streaming.progress import Progress, SavedKey, whole
from pipeline.streaming.sources import Batch, Poll

# (records, watermark) of each poll; a record is "key=due" and arms a timer, "key" alone is just kept
Script = Sequence[tuple[Sequence[str], int]]


class ScriptedSource:
    def __init__(self, script: Script, start: int = 0) -> None:
        self._script, self._next = script, start

    @property
    def positions(self) -> dict[int, int]:
        return {0: self._next}

    def poll(self, limit: int) -> Batch:
        records, watermark_ms = self._script[min(self._next, len(self._script) - 1)]
        fresh = self._next < len(self._script)
        self._next += fresh
        return Batch(list(records) if fresh else [], watermark_ms, self._next == len(self._script))


class Split(beam.DoFn):
    def process(self, element: list[str]) -> Iterator[object]:
        for record in element:
            key, _, due = record.partition("=")
            if key == "odd":
                yield beam.pvalue.TaggedOutput("odd", record)
            else:
                yield key, due


class Remember(beam.DoFn):
    """Keeps the records of a key in a bag and their number in a value; tells both when its timer fires."""

    SEEN = BagStateSpec("seen", StrUtf8Coder())
    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[str, str],
        seen: Any = beam.DoFn.StateParam(SEEN),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[str]:
        _, due = element
        if due == "boom":
            message = "boom"
            raise ValueError(message)
        if due == "disk":
            message = "the disk is full"
            raise PageturnError(message)
        seen.add(due)
        count.write((count.read() or 0) + 1)
        if due == "never":
            wake.clear()
        elif due:
            wake.set(Timestamp(micros=round(float(due) * 1000)))
        yield f"got {element[0]}={due}"

    @on_timer(WAKE)
    def on_wake(
        self,
        key: Any = beam.DoFn.KeyParam,
        timestamp: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(SEEN),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[str]:
        """Arms itself again once, one millisecond later, where it was asked to stutter."""
        yield f"{key}@{timestamp.micros / 1000:g}:{count.read()}:{','.join(sorted(seen.read()))}"
        if key == "stutter" and count.read() > 0:
            count.write(0)
            wake.set(timestamp + 0.001)
        else:
            seen.clear()
            count.clear()


class Journal(beam.DoFn):
    """Keeps what it gets, and when bundles begin and end."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def setup(self) -> None:
        self.lines.append("setup")

    def start_bundle(self) -> None:
        self.lines.append("<")

    def process(self, element: str) -> None:
        self.lines.append(element)

    def finish_bundle(self) -> None:
        self.lines.append(">")

    def teardown(self) -> None:
        self.lines.append("teardown")


class Harness:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.saved: list[Progress] = []
        self.stop = threading.Event()

    def run(self, script: Script, resume: Progress | None = None, **limits: Any) -> list[str]:
        """The lines that this run added, without bundle marks."""
        start, lines = resume.positions[0] if resume else 0, Journal(self.lines)
        runner = EmbeddedRunner(
            self.saved.append, resume=resume, until_idle=True, stop=self.stop, limits=Limits(idle_wait_s=0, **limits)
        )
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
        split = (
            pipeline
            | "Read" >> Poll(ScriptedSource(script, start))
            | "Split" >> beam.ParDo(Split()).with_outputs("odd", main="keyed")
        )
        told = split.keyed | "Key" >> beam.Map(lambda kv: kv).with_output_types(tuple[str, str]) | Remembering()
        odd = split.odd | beam.Map(lambda record: f"odd {record}")
        _ = (told, odd) | beam.Flatten() | "Write" >> beam.ParDo(lines)
        before = len(self.lines)
        pipeline.run().wait_until_finish()
        return [line for line in self.lines[before:] if line not in {"setup", "<", ">", "teardown"}]


def Remembering() -> beam.PTransform:  # noqa: N802 (reads like a transform)
    return "Remember" >> beam.ParDo(Remember())


@pytest.fixture
def harness() -> Harness:
    return Harness()


# What it does ------------------------------------------------------------------------------------------------------


def test_a_timer_fires_once_the_watermark_reaches_it(harness: Harness) -> None:
    assert harness.run([(["a=10"], 9), ([], 9), ([], 10), ([], 11)]) == ["got a=10", "a@10:1:10"]


def test_timers_fire_in_the_order_of_time_each_at_its_own(harness: Harness) -> None:
    assert harness.run([(["a=30", "b=10", "c=20"], 100)])[3:] == ["b@10:1:10", "c@20:1:20", "a@30:1:30"]


def test_a_timer_that_is_set_again_fires_once(harness: Harness) -> None:
    assert harness.run([(["a=10", "a=20"], 5), ([], 15), ([], 25)])[2:] == ["a@20:2:10,20"]
    assert harness.run([(["b=20", "b=10"], 5), ([], 15), ([], 25)])[2:] == ["b@10:2:10,20"]


def test_a_cleared_timer_does_not_fire(harness: Harness) -> None:
    assert harness.run([(["a=10", "a=never"], 100)]) == ["got a=10", "got a=never"]


def test_a_timer_is_rounded_up_to_whole_milliseconds(harness: Harness) -> None:
    assert harness.run([(["a=10.001", "b=9.5"], 10), ([], 11)])[2:] == ["b@10:1:9.5", "a@11:1:10.001"]


def test_a_timer_behind_the_watermark_fires_at_once_with_its_own_time(harness: Harness) -> None:
    assert harness.run([([], 100), (["a=10"], 100)]) == ["got a=10", "a@10:1:10"]


def test_a_callback_may_arm_its_timer_again(harness: Harness) -> None:
    assert harness.run([(["stutter=10"], 100)])[1:] == ["stutter@10:1:10", "stutter@11:0:10"]


def test_records_are_processed_before_the_watermark_that_came_with_them(harness: Harness) -> None:
    assert harness.run([(["a=10"], 5), (["a=50"], 20), ([], 60)])[2:] == ["a@50:2:10,50"]


def test_the_watermark_never_decreases(harness: Harness) -> None:
    assert harness.run([([], 50), (["a=40"], 10)]) == ["got a=40", "a@40:1:40"]


def test_side_outputs_and_flatten(harness: Harness) -> None:
    assert harness.run([(["odd", "a"], 0)]) == ["odd odd", "got a="]


def test_bundles_are_bounded_in_timers_and_sinks_flush_between(harness: Harness) -> None:
    harness.run([([f"{k}=10" for k in "abcde"], 100)], timers_per_bundle=2)
    assert "".join(line if line in "<>" else "." for line in harness.lines[1:-1]) == "<.....><..><..><.>"
    assert harness.lines[0] == "setup"
    assert harness.lines[-1] == "teardown"


def test_an_idle_stream_has_no_bundles(harness: Harness) -> None:
    harness.run([([], 1), ([], 2)])
    assert harness.lines == ["setup", "teardown"]
    assert harness.saved == []


def test_an_error_names_its_step_and_keeps_its_type(harness: Harness) -> None:
    with pytest.raises(ValueError, match="boom") as caught:
        harness.run([(["a=boom"], 0)])
    assert caught.value.__notes__ == ["in step 'Remember'"]
    assert harness.lines[-1] == "teardown"
    assert harness.saved == []


def test_an_error_that_the_user_must_mend_stays_what_it_is(harness: Harness) -> None:
    with pytest.raises(PageturnError) as caught:
        harness.run([(["a=disk"], 0)])
    assert str(caught.value) == "the disk is full"


def test_a_stop_ends_it_after_the_bundle_with_a_snapshot(harness: Harness) -> None:
    harness.stop.set()
    assert harness.run([(["a=1"], 5)]) == []
    harness.stop.clear()

    class Stopping(ScriptedSource):
        def poll(self, limit: int) -> Batch:
            harness.stop.set()
            return super().poll(limit)

    runner = EmbeddedRunner(harness.saved.append, stop=harness.stop)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    _ = pipeline | Poll(Stopping([(["x"], 5)])) | beam.ParDo(Journal(harness.lines))
    result = pipeline.run()
    assert result.wait_until_finish() == "CANCELLED"
    assert harness.lines[-4:] == ["<", ["x"], ">", "teardown"]
    assert harness.saved[-1].positions == {0: 1}


def test_cancel_from_another_thread_returns_at_once() -> None:
    polled = threading.Event()

    class Endless(ScriptedSource):
        def poll(self, limit: int) -> Batch:
            polled.set()
            return Batch([], 0, True)

    pipeline = beam.Pipeline(runner=EmbeddedRunner(lambda _: None), options=PipelineOptions([]))
    _ = pipeline | Poll(Endless([([], 0)])) | beam.Map(str)
    result = pipeline.run()
    thread = threading.Thread(target=result.wait_until_finish)
    thread.start()
    assert polled.wait(250)
    result.cancel()
    thread.join(250)
    assert not thread.is_alive()
    assert result.state == "CANCELLED"


# Snapshots ---------------------------------------------------------------------------------------------------------

STORY: Script = [(["a=10", "b=20"], 5), (["a=12", "odd"], 8), (["c=30"], 11), (["b=14"], 15), ([], 22), ([], 99)]


@pytest.mark.parametrize("cut", range(1, len(STORY)))
def test_a_run_from_a_snapshot_tells_the_rest_of_the_story(cut: int) -> None:
    at_once = Harness().run(STORY)
    first, second = Harness(), Harness()
    told = first.run(STORY[:cut])
    assert told + second.run(STORY, resume=whole(first.saved)) == at_once


def test_the_watermark_is_part_of_a_snapshot(harness: Harness) -> None:
    """A source may start again further back than it had come, as one does whose partitions were idle."""
    harness.run([(["a=10"], 50)])
    assert Harness().run([([], 0), (["b=40"], 0)], resume=whole(harness.saved)) == ["got b=40", "b@40:1:40"]


def test_snapshots_are_taken_by_number_of_records_between_bundles(harness: Harness) -> None:
    harness.run(STORY, snapshot_after_records=2)
    assert [progress.positions[0] for progress in harness.saved][:2] == [1, 2]


def test_a_snapshot_is_taken_while_many_timers_fire(harness: Harness) -> None:
    harness.run([([f"{k}=10" for k in "abcdef"], 100)], timers_per_bundle=2, snapshot_after_records=2)
    assert [len(whole(harness.saved[: n + 1]).steps["Remember"].keys) for n in range(3)] == [4, 2, 0]
    rest = Harness().run([([], 100), ([], 100)], resume=harness.saved[0])
    assert rest == ["c@10:1:10", "d@10:1:10", "e@10:1:10", "f@10:1:10"]


def test_a_snapshot_holds_encoded_values(harness: Harness) -> None:
    harness.run([(["a=10", "a=20"], 5)])
    (step,) = harness.saved[-1].steps.values()
    assert step.keys == {"a": SavedKey({"seen": [b"10", b"20"], "count": [b"\x02"]}, [("ts-wake", "", 20)])}


def changes(harness: Harness) -> list[dict[str, bool]]:
    """By snapshot: the keys in it, and whether anything is left of them."""
    return [{key: saved is not None for key, saved in p.steps["Remember"].keys.items()} for p in harness.saved]


def test_a_snapshot_holds_what_changed_since_the_last_one(harness: Harness) -> None:
    script = [(["a=10", "b=20"], 5), (["b=30"], 6), ([], 10), (["c", "c=never"], 30)]
    harness.run(script, snapshot_after_records=1)
    assert changes(harness) == [{"a": True, "b": True}, {"b": True}, {"a": False}, {"b": False, "c": True}]


def test_a_run_from_a_snapshot_saves_what_changes_from_there_on(harness: Harness) -> None:
    harness.run([(["a=10", "b=20"], 5)])
    later = Harness()
    later.run([([], 5), ([], 10)], resume=whole(harness.saved))
    assert changes(later) == [{"a": False}]


def test_a_timer_that_is_cleared_is_a_change(harness: Harness) -> None:
    harness.run([(["a=10"], 5), (["a=never"], 6)], snapshot_after_records=1)
    saved = harness.saved[-1].steps["Remember"].keys["a"]
    assert saved is not None
    assert saved.timers == []


def test_a_snapshot_of_another_graph_is_refused(harness: Harness) -> None:
    harness.run(STORY[:1])
    (saved,) = harness.saved
    other = Progress(saved.watermark_ms, saved.positions, {"Forget": saved.steps["Remember"]})
    with pytest.raises(SnapshotError, match=r"another graph: .*'Forget'.*'Remember'"):
        harness.run(STORY, resume=other)


# What it refuses ---------------------------------------------------------------------------------------------------


class Combining(beam.DoFn):
    def process(self, element, state=beam.DoFn.StateParam(CombiningValueStateSpec("sum", VarIntCoder(), sum))):  # noqa: B008
        pass


class Setting(beam.DoFn):
    def process(self, element, state=beam.DoFn.StateParam(SetStateSpec("set", BytesCoder()))):  # noqa: B008
        pass


class RealTime(beam.DoFn):
    WAKE = TimerSpec("soon", TimeDomain.REAL_TIME)

    def process(self, element, wake=beam.DoFn.TimerParam(WAKE)):  # noqa: B008
        pass

    @on_timer(WAKE)
    def on_wake(self):
        pass


class Finalizing(beam.DoFn):
    def process(self, element, finalizer=beam.DoFn.BundleFinalizerParam):
        pass


class Batched(beam.DoFn):
    def process_batch(self, batch):
        yield batch

    process_batch.__annotations__.update(batch=list[str])  # types, not their names
    process_batch.__annotations__["return"] = Iterator[list[str]]

    def infer_output_type(self, input_element_type):
        return str


class Restrictions(beam.transforms.core.RestrictionProvider):
    def initial_restriction(self, element):
        return None

    def create_tracker(self, restriction):
        return None

    def restriction_size(self, element, restriction):
        return 1


class Splittable(beam.DoFn):
    def process(self, element, tracker=beam.DoFn.RestrictionParam(Restrictions())):  # noqa: B008
        pass


Build = Callable[[beam.PCollection], object]
KEYED = beam.Map(lambda x: (str(x), x)).with_output_types(tuple[str, list])


def firing() -> beam.WindowInto:
    """Without a trigger Beam itself refuses to group an unbounded stream."""
    trigger = Repeatedly(AfterCount(1))
    return beam.WindowInto(GlobalWindows(), trigger=trigger, accumulation_mode=AccumulationMode.DISCARDING)


REFUSED: dict[str, tuple[Build, str]] = {
    "grouping": (lambda c: c | KEYED | firing() | "Step" >> beam.GroupByKey(), "GroupByKey"),
    "combining": (lambda c: c | firing() | "Step" >> beam.CombineGlobally(len).without_defaults(), "Step"),
    "side input": (
        lambda c: c | "Step" >> beam.Map(lambda x, y: x, beam.pvalue.AsSingleton(c | beam.Map(str))),
        "side inputs",
    ),
    "windows": (lambda c: c | "Step" >> beam.WindowInto(beam.window.FixedWindows(5)), "windows other than the global"),
    "splittable": (lambda c: c | "Step" >> beam.ParDo(Splittable()), "splittable"),
    "batches": (lambda c: c | beam.Map(str).with_output_types(str) | "Step" >> beam.ParDo(Batched()), "batch DoFn"),
    "finalizer": (lambda c: c | "Step" >> beam.ParDo(Finalizing()), "BundleFinalizerParam"),
    "combining state": (lambda c: c | KEYED | "Step" >> beam.ParDo(Combining()), "CombiningValueStateSpec"),
    "set state": (lambda c: c | KEYED | "Step" >> beam.ParDo(Setting()), "SetStateSpec"),
    "processing time": (lambda c: c | KEYED | "Step" >> beam.ParDo(RealTime()), "processing time"),
    "keys": (
        lambda c: c | beam.Map(lambda x: (1, x)).with_output_types(tuple[int, str]) | "Step" >> beam.ParDo(Remember()),
        "keyed by something else than str",
    ),
    "reshuffle": (lambda c: c | "Step" >> beam.Reshuffle(), "Step"),
    "second source": (lambda c: c.pipeline | "Step" >> Poll(ScriptedSource([])), "2 polled sources"),
    "create": (lambda c: c.pipeline | "Step" >> beam.Create([1]), "Step"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_at_submit_by_its_label(case: str) -> None:
    build, what = REFUSED[case]
    pipeline = beam.Pipeline(runner=EmbeddedRunner(lambda _: None), options=PipelineOptions([]))
    build(pipeline | "Read" >> Poll(ScriptedSource([([], 0)])))
    with pytest.raises(NotImplementedError, match="Step") as caught:
        pipeline.run()
    assert what in str(caught.value)


def test_a_graph_without_a_polled_source_is_refused() -> None:
    pipeline = beam.Pipeline(runner=EmbeddedRunner(lambda _: None), options=PipelineOptions([]))
    with pytest.raises(NotImplementedError, match="0 polled sources"):
        pipeline.run()
