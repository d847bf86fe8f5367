"""Child processes: how they end."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from pageturn.processes import Process

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here'); time.sleep(600)"


def test_one_that_does_not_end_is_killed_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process("stubborn", [sys.executable, "-c", STUBBORN], tmp_path)
    deadline_s = time.monotonic() + 250
    while "here" not in process.log.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.stop(0.1)
    assert process.status == -signal.SIGKILL
    assert "stubborn has not ended 0 s after SIGTERM: killed" in caplog.text


def test_one_that_ends_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process("willing", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path)
    process.stop(250)
    assert process.status == -signal.SIGTERM
    assert caplog.text == ""
