"""Updates per second of the trainer beside those of peers, and eight seeds at once beside one after another.

    make bench-trainer         # the peers in environments of their own, then: python -m benchmarks.trainer --json FILE

Every learner is a process of its own, pinned to one core (seeds at once: two), with as many threads. They take turns in
rounds, so that what else the machine does meets all alike, and each samples its updates from a replay of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from benchmarks.arithmetic import pageturn, textbook
from benchmarks.peers.answering import HIDDEN, OBSERVATION
from benchmarks.shares import BenchmarkError
from benchmarks.telling import parser, say, tell

PEERS = Path(__file__).with_name("peers")
SHARED, STABLE_BASELINES, TF_AGENTS = "shared tower", "Stable-Baselines3", "TF-Agents"
DEFAULT = "with heads and z-scores"  # as configs have them: a layer of 32 in each head, every feature scaled
BARS = {STABLE_BASELINES: 2.0, TF_AGENTS: 1.7}  # the shared tower's updates/s are to be so many times theirs
SEEDS, SEEDS_BAR = 8, 0.65
_PRODUCT = 2 * 1024**3  # operations of one of `products`
_WARM_UP = 32  # updates; the first trace and compile


class Contender(NamedTuple):
    script: str
    environment: str | None  # of the peers; None: this one
    kind: str = ""
    operations: int = 0  # of matrix products, per example
    threads: int = 1


LEARNERS = {
    SHARED: Contender("own_ddpg", None, "shared", pageturn(OBSERVATION, HIDDEN, (), shared=True)),
    DEFAULT: Contender("own_ddpg", None, "default", pageturn(OBSERVATION, HIDDEN, (32,), shared=True)),
    "equal work": Contender("own_ddpg", None, "equal", pageturn(OBSERVATION, HIDDEN, (), shared=False)),
    STABLE_BASELINES: Contender(
        "sb3_ddpg", "stable_baselines3", "", textbook(OBSERVATION, HIDDEN, for_nothing=True)
    ),
    TF_AGENTS: Contender("tf_agents_ddpg", "tf_agents", "", textbook(OBSERVATION, HIDDEN, for_nothing=False)),
}  # fmt: skip
PRODUCTS = Contender("products", None)
APART, TOGETHER = Contender("own_ddpg", None, "shared"), Contender("own_ddpg", None, "seeds", threads=2)


class Measured(NamedTuple):
    wall_s: float
    cpu_s: float


class Process:
    """A contender, alive and warm."""

    def __init__(self, contender: Contender, batch: int, environments: Path) -> None:
        self.contender = contender
        cpus = sorted(os.sched_getaffinity(0))[-contender.threads :]
        options = {"--batch": str(batch), "--threads": str(contender.threads), "--kind": contender.kind}
        command = [_python(contender, environments), str(PEERS / f"{contender.script}.py")]
        command += [part for option in options.items() for part in option] + ["--cpus", *map(str, cpus)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ready(self) -> str:
        """Its version, once it is warm."""
        version = str(self._answer()["version"])
        self.run(_WARM_UP)
        return version

    def run(self, updates: int) -> Measured:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{updates}\n")
        self._process.stdin.flush()
        return Measured(**self._answer())

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            command = " ".join(map(str, self._process.args))  # type: ignore[arg-type]
            message = f"expected an answer, found the end (code {self._process.wait()}) of: {command}"
            raise BenchmarkError(message)
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _python(contender: Contender, environments: Path) -> str:
    if contender.environment is None:
        return sys.executable
    python = environments / contender.environment / "bin" / "python"
    if not python.exists():
        message = f"expected an environment at {python.parents[1]}, found none: `make bench-trainer` makes it"
        raise BenchmarkError(message)
    return str(python)


# Measuring ---------------------------------------------------------------------------------------------------------


class Row(Struct, frozen=True):
    batch: int
    name: str
    updates_per_s: tuple[float, ...]  # by round
    share: tuple[float, ...]  # of the core's rate of matrix products in the same round
    had_core: float  # CPU time over time, the least of all rounds: well below 1 where others wanted the core, too
    shared_is_times: tuple[float, ...]  # the shared tower's updates/s over this one's, by round


class Seeds(Struct, frozen=True):
    together_s: tuple[float, ...]  # eight at once on two threads
    apart_s: tuple[float, ...]  # eight single-thread runs one after another
    ratio: tuple[float, ...]


class Result(Struct, frozen=True):
    measured_on: str  # date
    cpu: str
    versions: dict[str, str]
    products_per_s: tuple[float, ...]  # operations per second of matrix products, by round, of the first batch size
    rows: tuple[Row, ...]
    seeds: Seeds


class Plan(NamedTuple):
    batches: tuple[int, ...]
    rounds: int
    seconds: float  # of each contender in each round, about
    environments: Path


def measure(plan: Plan) -> Result:
    versions: dict[str, str] = {}
    rows: list[Row] = []
    products: list[tuple[float, ...]] = []
    for batch in plan.batches:
        with _alive({"products": PRODUCTS, **LEARNERS}, batch, plan, versions) as processes:
            runs = _rounds(processes, plan)
        core = tuple(runs.pop("products"))
        products.append(tuple(_PRODUCT * rate.per_s for rate in core))
        rows += [_row(batch, name, runs, products[-1]) for name in LEARNERS]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Result(today, _cpu(), versions, products[0], tuple(rows), _seeds(plan))


class _Rate(NamedTuple):
    per_s: float
    had_core: float


@contextmanager
def _alive(
    contenders: dict[str, Contender], batch: int, plan: Plan, versions: dict[str, str]
) -> Iterator[dict[str, Process]]:
    with ExitStack() as stack:
        processes = {}
        for name, contender in contenders.items():
            processes[name] = Process(contender, batch, plan.environments)
            stack.callback(processes[name].close)
        for name, process in processes.items():
            versions[process.contender.script] = process.ready()
            say(f"batch {batch}: {name} is warm")
        yield processes


def _rounds(processes: dict[str, Process], plan: Plan) -> dict[str, list[_Rate]]:
    updates = {name: _for_seconds(process, plan.seconds) for name, process in processes.items()}
    rates: dict[str, list[_Rate]] = {name: [] for name in processes}
    for number in range(plan.rounds):
        for name, process in processes.items():
            took = process.run(updates[name])
            rates[name].append(_Rate(updates[name] / took.wall_s, took.cpu_s / took.wall_s))
            say(f"  {number + 1}/{plan.rounds} {name}: {rates[name][-1].per_s:,.1f}/s")
    return rates


def _for_seconds(process: Process, seconds: float) -> int:
    """So many updates, at least as many as our trainer does in one call."""
    took = process.run(_WARM_UP)
    return max(16, round(_WARM_UP * seconds / took.wall_s / 16) * 16)


def _row(batch: int, name: str, runs: dict[str, list[_Rate]], products: tuple[float, ...]) -> Row:
    own = [rate.per_s for rate in runs[name]]
    operations = LEARNERS[name].operations * batch
    return Row(
        batch,
        name,
        tuple(round(rate, 2) for rate in own),
        tuple(round(rate * operations / core, 4) for rate, core in zip(own, products, strict=True)),
        round(min(rate.had_core for rate in runs[name]), 3),
        tuple(round(ours.per_s / rate, 3) for ours, rate in zip(runs[SHARED], own, strict=True)),
    )


def _seeds(plan: Plan) -> Seeds:
    batch = plan.batches[0]
    with _alive({"eight seeds at once": TOGETHER, "one seed": APART}, batch, plan, {}) as processes:
        together, apart = processes.values()
        updates = _for_seconds(apart, plan.seconds / 2)
        pairs = [(together.run(updates).wall_s, apart.run(SEEDS * updates).wall_s) for _ in range(plan.rounds)]
    ratios = tuple(round(at_once / in_turn, 3) for at_once, in_turn in pairs)
    return Seeds(tuple(round(a, 3) for a, _ in pairs), tuple(round(b, 3) for _, b in pairs), ratios)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


# Telling -----------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    core = statistics.median(result.products_per_s) / 1e9
    lines = [f"{result.cpu}: {core:.1f} GFLOP/s of float32 matrix products on a core"]
    for batch in dict.fromkeys(row.batch for row in result.rows):
        lines.append(f"\n{f'batch {batch}':26} {'updates/s':^26} {'of the core':>12} {'shared is times':>16}")
        lines += [_line(row) for row in result.rows if row.batch == batch]
    seeds = result.seeds
    together_s, apart_s = statistics.median(seeds.together_s), statistics.median(seeds.apart_s)
    lines.append(
        f"\n{SEEDS} seeds: {together_s:.2f} s at once on two threads, {apart_s:.2f} s one after another on one"
    )
    lines.append(f"{'':7} {_ratio(seeds.ratio)}  {_verdict(seeds.ratio, at_most=SEEDS_BAR)}")
    return "\n".join(lines)


def _line(row: Row) -> str:
    rates = row.updates_per_s
    speed = f"{statistics.median(rates):>7,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
    line = f"{row.name:26} {speed:26} {statistics.median(row.share):>11.0%} {_ratio(row.shared_is_times):>18}"
    if row.batch == 256 and row.name in BARS:
        line += f"  {_verdict(row.shared_is_times, at_least=BARS[row.name])}"
    return line + (f"  (had {row.had_core:.0%} of its core)" if row.had_core < 0.9 else "")


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _verdict(values: Sequence[float], at_least: float = 0.0, at_most: float = float("inf")) -> str:
    holds = at_least <= statistics.median(values) <= at_most
    bar = f">= {at_least}" if at_least else f"<= {at_most}"
    return f"{bar}: {'holds' if holds else 'DOES NOT HOLD'}"


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("trainer", __doc__)
    known.add_argument("--batches", type=int, nargs="+", default=[256, 64, 32])
    known.add_argument("--rounds", type=int, default=5)
    known.add_argument("--seconds", type=float, default=1.5, help="of each learner in each round, about")
    known.add_argument("--environments", type=Path, default=Path(".peers"), help="of the peers")
    options = known.parse_args(arguments)
    plan = Plan(tuple(options.batches), options.rounds, options.seconds, options.environments)
    return tell(lambda: measure(plan), table, options.json)


if __name__ == "__main__":
    sys.exit(main())
