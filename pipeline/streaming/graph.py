"""A Beam graph checked and wired for the embedded runner.

Supported: one polled source; ParDo (Map, FlatMap, Filter and side outputs included); Flatten; user state as one value
or a bag, keyed by str; event-time timers; the global window. Anything else is refused here, by its label, before the
first record is read: a runner that ignores what it does not know gives wrong results without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners import common
from apache_beam.transforms import core, userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints import typehints
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.streaming.keyed import KeyedState
from pipeline.streaming.sources import Poll, PolledSource

_PARAMETERS = (
    core.DoFn.ElementParam,
    core.DoFn.KeyParam,
    core.DoFn.TimestampParam,
    core.DoFn.WindowParam,
    core.DoFn.DynamicTimerTagParam,
)

Consumer = Callable[[WindowedValue], None]


class Step(NamedTuple):
    """One ParDo, ready to run."""

    label: str
    runner: common.DoFnRunner
    fire: Callable[..., None]  # a timer
    state: KeyedState | None


class Graph(NamedTuple):
    source: PolledSource
    entry: list[Consumer]  # what takes the source's elements
    steps: list[Step]  # producers before consumers


def wire(pipeline: beam.Pipeline) -> Graph:
    """Connect the steps of a pipeline. NotImplementedError names the step that the runner does not support."""
    nodes = _leaves(pipeline)
    for node in nodes:
        _check(node)
    sources = [node for node in nodes if isinstance(node.transform, Poll)]
    if len(sources) != 1:
        _refuse(", ".join(node.full_label for node in sources) or "the graph", f"{len(sources)} polled sources, not 1")
    consumers: dict[beam.PCollection, list[Consumer]] = {}
    steps = [step for node in nodes if (step := _connect(node, consumers)) is not None]
    return Graph(sources[0].transform.source, consumers.setdefault(sources[0].outputs[None], []), steps)


class _Leaves(PipelineVisitor):
    def __init__(self) -> None:
        self.nodes: list[AppliedPTransform] = []

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self.nodes.append(transform_node)


def _leaves(pipeline: beam.Pipeline) -> list[AppliedPTransform]:
    visitor = _Leaves()
    pipeline.visit(visitor)
    return visitor.nodes


# Wiring ------------------------------------------------------------------------------------------------------------


class _Output(common.Receiver):
    """Hands each element to all consumers at once, so that a bundle is processed depth first, without queues."""

    def __init__(self, consumers: list[Consumer]) -> None:
        self._consumers = consumers

    def receive(self, windowed_value: WindowedValue) -> None:
        for consume in self._consumers:
            consume(windowed_value)

    def flush(self) -> None:
        """Nothing is buffered."""


def _connect(node: AppliedPTransform, consumers: dict[beam.PCollection, list[Consumer]]) -> Step | None:
    """Attach a node to what it reads. Consumers of its own outputs are attached when their turn comes."""
    if isinstance(node.transform, Poll):
        return None
    if isinstance(node.transform, core.Flatten):
        consume = _Output(consumers.setdefault(node.outputs[None], [])).receive
        step = None
    else:
        step = _step(node, consumers)
        consume = naming(step.label, step.runner.process)
    for source in node.inputs:
        consumers.setdefault(source, []).append(consume)
    return step


def _step(node: AppliedPTransform, consumers: dict[beam.PCollection, list[Consumer]]) -> Step:
    transform = node.transform
    receivers = {tag: _Output(consumers.setdefault(output, [])) for tag, output in node.outputs.items()}
    receivers.setdefault(None, _Output([]))
    stateful = userstate.is_stateful_dofn(transform.dofn)
    state = KeyedState(*userstate.get_dofn_specs(transform.dofn)) if stateful else None
    runner = common.DoFnRunner(
        transform.dofn,
        transform.args,
        transform.kwargs,
        [],
        node.inputs[0].windowing,
        receivers,
        user_state_context=state,
    )
    return Step(node.full_label, runner, naming(node.full_label, runner.process_user_timer), state)


def naming(label: str, function: Callable[..., None]) -> Callable[..., None]:
    """The function, whose errors tell in which step they happened (once: steps call each other)."""

    def call(*args: object) -> None:
        try:
            function(*args)
        except Exception as error:
            _note(label, error)
            raise

    return call


def _note(label: str, error: Exception) -> None:
    if not any(note.startswith("in step ") for note in getattr(error, "__notes__", ())):
        error.add_note(f"in step {label!r}")


# Refusing ----------------------------------------------------------------------------------------------------------


def _refuse(label: str, what: str) -> None:
    message = f"the embedded runner does not support step {label!r}: {what}"
    raise NotImplementedError(message)


def _check(node: AppliedPTransform) -> None:
    for collection in (*node.inputs, *node.outputs.values()):
        if isinstance(collection, beam.PCollection) and not isinstance(collection.windowing.windowfn, GlobalWindows):
            _refuse(node.full_label, f"windows other than the global one ({collection.windowing.windowfn})")
    if isinstance(node.transform, core.ParDo):
        _check_pardo(node)
    elif not isinstance(node.transform, (Poll, core.Flatten)):
        _refuse(node.full_label, f"a {type(node.transform).__name__}; it runs ParDo, Flatten and a polled source")


def _check_pardo(node: AppliedPTransform) -> None:
    label, dofn = node.full_label, node.transform.dofn
    signature = common.DoFnSignature(dofn)
    if node.side_inputs:
        _refuse(label, "side inputs")
    if signature.is_splittable_dofn():
        _refuse(label, "a splittable DoFn")
    if dofn._process_batch_defined:
        _refuse(label, "a batch DoFn")
    for method in (signature.process_method, *signature.timer_methods.values()):
        _check_parameters(label, method.defaults)
    if userstate.is_stateful_dofn(dofn):
        _check_state(label, dofn, node.inputs[0].element_type)


def _check_parameters(label: str, defaults: list[object]) -> None:
    for parameter in defaults:
        kind = parameter if isinstance(parameter, type) else type(parameter)  # Beam also takes some as classes
        known = kind in (core.DoFn.StateParam, core.DoFn.TimerParam) or parameter in _PARAMETERS
        if issubclass(kind, core._DoFnParam) and not known:
            _refuse(label, f"the parameter {parameter}")


def _check_state(label: str, dofn: beam.DoFn, element_type: object) -> None:
    states, timers = userstate.get_dofn_specs(dofn)
    for spec in states:
        if type(spec) not in (userstate.ReadModifyWriteStateSpec, userstate.BagStateSpec):
            _refuse(label, f"state {spec.name!r} of kind {type(spec).__name__}")
    for timer in timers:
        if timer.time_domain != TimeDomain.WATERMARK:
            _refuse(label, f"timer {timer.name!r} in processing time")
    types = getattr(element_type, "tuple_types", ())
    if len(types) != 2 or types[0] is not str:
        _refuse(label, f"state keyed by something else than str: its input is {typehints.normalize(element_type)}")
