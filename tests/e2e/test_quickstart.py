"""The quickstart, as it is written: its commands in their order, in one shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.documented import in_blocks

QUICKSTART = ROOT / "docs" / "quickstart.md"
RUNS = ("runs/first", "runs/mine")
pytestmark = pytest.mark.timeout(1_800)


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """Where a reader would be; what was started there is ended."""
    for folder in ("feature_configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    yield tmp_path
    for run in RUNS:
        command = [sys.executable, "-m", "pageturn", "down", "--run", run]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)


def test_a_reader_gets_to_a_report(clone: Path) -> None:
    """All but `make`: the demo and the production shape have tests of their own."""
    shown = [each.words for each in in_blocks(QUICKSTART) if each.words[0] in ("pageturn", "python")]
    commands = [shlex.join(words) for words in shown]
    assert len(commands) >= 16
    script = "\n".join(["set -eux", *commands]).replace("$PWD", str(clone))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=clone, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rl_a" in done.stdout
    assert "pages without an answer" in done.stdout
    assert (clone / "runs" / "first" / "report" / "index.html").is_file()
