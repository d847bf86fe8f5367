"""Outside learners, in an environment of their own: `make bench-learning` sets it up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

from benchmarks.courses import Pupil, Run
from benchmarks.shares import BenchmarkError

_ROOT = Path(__file__).parents[1]
PYTHON = _ROOT / ".peers" / "learning" / "bin" / "python"


def taught_outside(pupil: Pupil, python: Path = PYTHON) -> Run:
    """BenchmarkError where the environment is missing, or the learner failed in it."""
    if not python.exists():
        msg = f"{pupil.row.name}: expected an environment of its own, found no {python}: `make bench-learning` makes it"
        raise BenchmarkError(msg)
    done = subprocess.run(
        [python, "-m", "benchmarks.peers"],
        input=msgspec.json.encode(pupil),
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != 0:
        msg = f"{pupil.row.name}, seed {pupil.seed}: the learner ended with status {done.returncode}"
        raise BenchmarkError(msg)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Run)
