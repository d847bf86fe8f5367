"""The embedded runner rests on internals of Beam that promise nothing: an upgrade that moves one must fail here.

Beam's hot modules are compiled, and compiled functions have no signatures; so signatures are read from the sources
that lie beside them.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners import common
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms import core, userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

SIGNATURES = {
    "apache_beam.runners.common": {
        "DoFnRunner.__init__": "self fn args kwargs side_inputs windowing tagged_receivers step_name logging_context "
        "state scoped_metrics_container operation_name transform_id user_state_context",
        "DoFnRunner.setup": "self",
        "DoFnRunner.start": "self",
        "DoFnRunner.process": "self windowed_value",
        "DoFnRunner.process_user_timer": "self timer_spec key window timestamp pane_info dynamic_timer_tag",
        "DoFnRunner.finish": "self",
        "DoFnRunner.teardown": "self",
        "Receiver.receive": "self windowed_value",
        "Receiver.flush": "self",
        "DoFnSignature.__init__": "self do_fn",
        "DoFnSignature.is_splittable_dofn": "self",
    },
    "apache_beam.transforms.userstate": {
        "is_stateful_dofn": "dofn",
        "get_dofn_specs": "dofn",
        "UserStateContext.get_state": "self state_spec key window",
        "UserStateContext.get_timer": "self timer_spec key window timestamp pane",
        "UserStateContext.commit": "self",
        "BaseTimer.set": "self timestamp dynamic_timer_tag",
        "BaseTimer.clear": "self dynamic_timer_tag",
        "StateSpec.__init__": "self name coder",
        "TimerSpec.__init__": "self name time_domain",
    },
    "apache_beam.runners.runner": {
        "PipelineRunner.run_pipeline": "self pipeline options",
        "PipelineRunner.is_fnapi_compatible": "self",
        "PipelineResult.__init__": "self state",
        "PipelineResult.wait_until_finish": "self duration",
        "PipelineResult.cancel": "self",
    },
    "apache_beam.pipeline": {
        "Pipeline.visit": "self visitor",
        "PipelineVisitor.visit_transform": "self transform_node",
    },
    "apache_beam.transforms.window": {
        "GlobalWindows.windowed_value": "cls value timestamp pane_info",
    },
}
FLAT = [(module, name, expected) for module, names in SIGNATURES.items() for name, expected in names.items()]


def arguments(module: str, name: str) -> list[str]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / f"{module.rsplit('.', 1)[1]}.py"
    scope: ast.AST = ast.parse(source.read_text())
    for part in name.split("."):
        scope = next(node for node in scope.body if getattr(node, "name", None) == part)  # type: ignore[attr-defined]
    assert isinstance(scope, ast.FunctionDef)
    return [argument.arg for argument in scope.args.args]


@pytest.mark.parametrize(("module", "name", "expected"), FLAT, ids=lambda value: value if "." in value else None)
def test_signatures(module: str, name: str, expected: str) -> None:
    assert arguments(module, name) == expected.split()


def test_the_version_is_the_one_that_was_read() -> None:
    assert beam.__version__.startswith("2.77."), "read streaming.md section 4 against the new sources, then move this"


def test_a_runner_that_is_fn_api_compatible_gets_the_very_dofns_of_the_graph() -> None:
    assert PipelineRunner().is_fnapi_compatible()
    assert PipelineState.is_terminal(PipelineState.DONE)
    assert not PipelineState.is_terminal(PipelineState.RUNNING)
    assert issubclass(PipelineResult, object)


class Tagging(beam.DoFn):
    STATE = userstate.BagStateSpec("bag", beam.coders.BytesCoder())
    WAKE = userstate.TimerSpec("wake", TimeDomain.WATERMARK)

    def process(self, element, bag=beam.DoFn.StateParam(STATE), wake=beam.DoFn.TimerParam(WAKE)):  # noqa: B008
        yield element[1]
        yield beam.pvalue.TaggedOutput("side", element[0])

    @userstate.on_timer(WAKE)
    def on_wake(self, key=beam.DoFn.KeyParam, timestamp=beam.DoFn.TimestampParam, tag=beam.DoFn.DynamicTimerTagParam):
        yield key, timestamp, tag


class Collect(common.Receiver):
    def __init__(self) -> None:
        self.values: list[object] = []

    def receive(self, windowed_value) -> None:
        self.values.append(windowed_value.value)

    def flush(self) -> None:
        pass


class NoState(userstate.UserStateContext):
    def get_state(self, *_: object) -> None:
        return None

    def get_timer(self, *_: object) -> None:
        return None


def test_a_dofn_runner_calls_a_stateful_dofn_as_the_embedded_runner_expects() -> None:
    dofn, main, side = Tagging(), Collect(), Collect()
    receivers = {None: main, "side": side}
    runner = common.DoFnRunner(
        dofn, (), {}, [], beam.Windowing(GlobalWindows()), receivers, user_state_context=NoState()
    )
    states, timers = userstate.get_dofn_specs(dofn)
    assert [spec.name for spec in states] == ["bag"]
    (timer,) = timers
    assert timer.name == "ts-wake"
    for call in (runner.setup, runner.start):
        call()
    runner.process(GlobalWindows.windowed_value(("k", 1), timestamp=Timestamp(micros=0)))
    runner.process_user_timer(timer, "k", GlobalWindow(), Timestamp(micros=5_000), PANE_INFO_UNKNOWN, "tag")
    for call in (runner.finish, runner.teardown):
        call()
    assert main.values == [1, ("k", Timestamp(micros=5_000), "tag")]
    assert side.values == ["k"]


def test_leaves_are_visited_producers_first_with_their_outputs_by_tag() -> None:
    seen = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, transform_node) -> None:
            seen.append(transform_node)

    pipeline = beam.Pipeline(runner=PipelineRunner(), options=PipelineOptions([]))
    keyed = pipeline | beam.Impulse() | beam.Map(lambda _: ("k", 1)).with_output_types(tuple[str, int])
    made = keyed | "Tag" >> beam.ParDo(Tagging()).with_outputs("side", main="main")
    _ = (made.main, made.side) | beam.Flatten() | "Last" >> beam.Map(str)
    pipeline.visit(Visitor())
    by_label = {node.full_label: node for node in seen}
    assert list(by_label)[-1] == "Last"
    assert next(label for label in by_label if label.startswith("Tag")).endswith("ParDo(Tagging)")
    tag = next(node for label, node in by_label.items() if label.startswith("Tag"))
    assert set(tag.outputs) == {None, "side"}
    assert isinstance(tag.transform, core.ParDo)
    assert isinstance(by_label["Flatten"].transform, core.Flatten)
    last = by_label["Last"]
    assert isinstance(last.transform, core.ParDo)
    assert last.inputs[0] is by_label["Flatten"].outputs[None]
    assert not last.side_inputs
    assert isinstance(last.inputs[0].windowing.windowfn, GlobalWindows)
    assert hasattr(last.transform, "args")
    assert hasattr(last.transform, "kwargs")
    assert last.transform.dofn._process_batch_defined is False


def test_time_is_microseconds() -> None:
    assert Timestamp(micros=1_500).micros == 1_500
    assert MIN_TIMESTAMP.micros < -(10**15)
