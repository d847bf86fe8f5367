"""What an agent's decision costs beside the model's own answer, how many there are per second, and what swaps cost.

    python -m benchmarks.serving [--calls 2000] [--seconds 10] [--swaps 20] [--json FILE]

The model server is the one that PAGETURN_MODEL_SERVER names, else the stand-in. Calls that are compared take turns, so
that what else the machine does meets them alike. Pages: 100 candidates, a sequence of 20 items.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.awake import cores
from benchmarks.serving_load import Decide, Load, Times, load
from benchmarks.serving_place import Place, agent_process, pages, place, tour
from benchmarks.serving_swaps import Swaps, swaps
from benchmarks.shares import BenchmarkError
from benchmarks.telling import parser, say, tell
from pipeline.agent.agent import Agent, PageRequest
from pipeline.agent.client import AgentClient
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.features.stored_vectors import StoredVectors
from pipeline.logs.log import EVENTS, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.serving.client import ModelServer
from pipeline.serving.launch import uses_real_binary
from pipeline.stores.opening import open_store
from pipeline.stores.published import read_pointers

ALONE_S, TOGETHER_S = 10.0, 1.0  # of a page: for one caller so long that nothing is cut short
CLIENTS = (1, 8, 32)
WARM = 300
LIBRARY, SERVICE = "library", "gRPC service"
Ask = Callable[[PageRequest, float], object]  # a page, and for how many seconds it waits


class Alone(Struct, frozen=True):
    """One caller, whose calls take turns with bare Predict calls of the same tensors."""

    form: str
    awake: bool  # whether cores were kept from halting between calls
    bare: Times
    decide: Times
    added_p50: float  # ms


class Result(Struct, frozen=True):
    server: str
    cores: int
    alone: tuple[Alone, ...]
    loads: tuple[Load, ...]
    swaps: Swaps


# One caller --------------------------------------------------------------------------------------------------------


def alone(place: Place, form: str, decide: Decide, calls: int, *, awake: bool) -> Alone:
    bare = BarePredict(place)
    asked = pages(place.config, 1 + awake)
    seconds: dict[str, list[float]] = {"bare": [], "decide": []}
    with closing(bare), cores(awake=awake):
        for page in tour(place.config):
            decide(page)
        for number in range(WARM + calls):
            page = next(asked)
            inputs = bare.inputs(page)
            for name, call in (("bare", lambda x=inputs: bare.predict(x)), ("decide", lambda x=page: decide(x))):
                began = time.perf_counter()
                call()
                if number >= WARM:
                    seconds[name].append(time.perf_counter() - began)
    found = {name: Times.of(each) for name, each in seconds.items()}
    added = 1e3 * (statistics.median(seconds["decide"]) - statistics.median(seconds["bare"]))
    return Alone(form, awake, found["bare"], found["decide"], round(added, 3))


class BarePredict:
    """The call itself, over a channel of its own, with the tensors that the agent would send."""

    def __init__(self, place: Place) -> None:
        config, self._policy = place.config, place.config.learned_policies()[0]
        self._model = config.model_name(self._policy)
        self._store = open_store(place.store_url)
        vectors = StoredVectors(self._store, config.kv_prefix, capacity=200_000, monotonic=time.monotonic)
        self._encoder, self._snapshot = Encoder(config, vectors), Snapshot.initial(config)
        stable = read_pointers(self._store, config.kv_prefix, (self._policy,))[self._policy].stable
        if stable is None:
            message = f"expected a version of {self._policy}, found none"
            raise BenchmarkError(message)
        self._version, self._client = stable.version, ModelServer(place.server)

    def inputs(self, page: PageRequest) -> dict[str, np.ndarray]:
        return self._encoder.finish(self._encoder.stack([self._encoder.prepare(page.state)]), self._snapshot)

    def predict(self, inputs: dict[str, np.ndarray]) -> object:
        return self._client.predict(self._model, inputs, version=self._version, timeout_s=ALONE_S)

    def close(self) -> None:
        self._client.close()
        self._store.close()


# All of it ---------------------------------------------------------------------------------------------------------


def measure(calls: int, seconds: float, versions: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="pageturn-bench-") as folder, place(Path(folder)) as made:
        say("model server ready")
        found: list[Alone] = []
        loads: list[Load] = []
        for form, running in ((LIBRARY, _library), (SERVICE, _service)):
            with running(made) as (decide, pid):
                for awake in (False, True):
                    found.append(alone(made, form, lambda page, ask=decide: ask(page, ALONE_S), calls, awake=awake))
                say(f"{form}: one caller measured")
                together = partial(_together, decide)
                loads += [load(made, form, together, clients, seconds, pid) for clients in CLIENTS]
        with _service(made) as (decide, _):
            swapped = swaps(made, partial(_together, decide), versions, seconds / 2)
    name = "TF-Serving" if uses_real_binary() else "stand-in"
    return Result(name, os.cpu_count() or 0, tuple(found), tuple(loads), swapped)


def _together(ask: Ask, page: PageRequest) -> object:
    return ask(page, TOGETHER_S)


@contextmanager
def _library(place: Place) -> Iterator[tuple[Ask, int]]:
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(place.store_url)))
        log = stack.enter_context(closing(open_log(f"file://{place.folder}/log")))
        ensure_topic(log, EVENTS, 1)
        server = stack.enter_context(ModelServer(place.server))
        agent = stack.enter_context(Agent(place.config, store, server, log, agent_id="library"))
        agent.wait_ready(ALONE_S)
        yield agent.decide, os.getpid()


@contextmanager
def _service(place: Place) -> Iterator[tuple[Ask, int]]:
    with agent_process(place) as (target, pid), AgentClient(target) as client:
        if not client.wait_ready(60.0):
            message = f"expected an agent at {target}, found none; see {place.logs / 'agent.log'}"
            raise BenchmarkError(message)
        yield client.decide, pid


def table(result: Result) -> str:
    lines = [f"model server: {result.server}; {result.cores} cores", ""]
    lines.append(f"{'one caller (ms)':19} {'bare p50':>9} {'bare p99':>9} {'p50':>9} {'p99':>9} {'added p50':>10}")
    for row in result.alone:
        cells = (row.bare.p50, row.bare.p99, row.decide.p50, row.decide.p99)
        form = f"{row.form}, awake" if row.awake else row.form
        lines.append(f"{form:19} " + " ".join(f"{x:9.3f}" for x in cells) + f" {row.added_p50:10.3f}")
    lines += ["", f"{'clients':16} {'':4} {'p50':>9} {'p99':>9} {'per s':>9} {'per core':>9} {'no policy':>10}"]
    for each in result.loads:
        times = f"{each.decide.p50:9.3f} {each.decide.p99:9.3f}"
        rates = f"{each.per_s:9.0f} {each.per_core_s:9.0f} {each.not_by_policy:10d}"
        lines.append(f"{each.form:16} {each.clients:4d} {times} {rates}")
    return "\n".join([*lines, "", *_swap_lines(result.swaps)])


def _swap_lines(found: Swaps) -> Iterator[str]:
    yield f"{found.versions} versions while {found.decisions} pages were decided: {found.failed} failed, "
    yield f"{sum(found.fallbacks.values())} by the baseline for trouble {found.fallbacks}, {found.mixed} mixed"
    for name, times in (("at rest", found.rest), ("swapping", found.swapping)):
        yield f"{name}: p50 {times.p50} ms, p99 {times.p99} ms"
    middle, low, high = found.p99_ratio
    yield f"p99 swapping to p99 at rest, paired windows: {middle} [{low}, {high}] (a bar for the real binary only)"


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("serving", __doc__)
    known.add_argument("--calls", type=int, default=2_000, help="of one caller")
    known.add_argument("--seconds", type=float, default=10.0, help="of each load")
    known.add_argument("--swaps", type=int, default=20, help="versions that go out under load")
    options = known.parse_args(arguments)
    return tell(
        lambda: measure(options.calls, options.seconds, options.swaps),
        table,
        options.json,
        good=lambda result: result.swaps.failed == result.swaps.mixed == 0,
    )


if __name__ == "__main__":
    sys.exit(main())
