"""One learner in a process of its own, which does updates when it is told to, so that learners can take turns.

    python LEARNER.py --batch 256 --threads 1 --cpus 1     # then, line by line: a number of updates in, seconds out

Knows no framework and nothing of Pageturn: it runs in the environments of the peers, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

OBSERVATION, HIDDEN, REPLAY = 91, (256, 256), 50_000
LEARNING_RATE, TAU, GAMMA = 1e-3, 0.005, 0.95
_THREADS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip


class Task(NamedTuple):
    batch: int
    threads: int
    kind: str


class Learner(Protocol):
    def __call__(self, updates: int) -> None:
        """Sample and learn, so many times."""


def answer(make: Callable[[Task], tuple[Learner, str]], argv: list[str] | None = None) -> None:
    """`make` imports its framework, so that what the environment and the affinity say holds for it."""
    options = _parser().parse_args(argv)
    os.sched_setaffinity(0, options.cpus)
    os.environ.update(dict.fromkeys(_THREADS, str(options.threads)), TF_CPP_MIN_LOG_LEVEL="2")
    answers, sys.stdout = sys.stdout, sys.stderr  # what frameworks print is no answer
    learner, version = make(Task(options.batch, options.threads, options.kind))
    _say(answers, {"version": version})
    for line in sys.stdin:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        learner(int(line))
        _say(answers, {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s})


def _say(answers: object, what: dict[str, object]) -> None:
    print(json.dumps(what), file=answers, flush=True)  # type: ignore[call-overload]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpus", type=int, nargs="+", default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--kind", default="")
    return parser
