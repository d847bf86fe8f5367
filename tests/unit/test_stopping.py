"""A signal stops a process wherever its main thread is, in the middle of looking whether to stop, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# At its first argument's line of threading.py, it sends itself the signal; it says how many lines there were.
AT_LINE = """
import faulthandler, os, signal, sys, threading
from pipeline.stopping import stop_on_signals

faulthandler.dump_traceback_later(30, exit=True)
lines = 0

def at(line, number):
    def trace(frame, event, _):
        global lines
        if frame.f_code.co_filename != threading.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                os.kill(os.getpid(), number)
        return trace
    return trace

number = getattr(signal, sys.argv[2])
line = 0
while line <= lines:  # until there is no such line
    stop, lines, line = threading.Event(), 0, line + 1
    stop_on_signals(stop)
    sys.settrace(at(line, number))
    {look}
    sys.settrace(None)
    if line <= lines:
        assert stop.wait(20), f"line {{line}} of {{lines}}"
print(lines)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("look", "least"), [("stop.is_set()", 1), ("stop.wait(0.001)", 15)])
def test_a_signal_that_comes_while_it_looks_stops_it(look: str, least: int, number: str) -> None:
    script = AT_LINE.format(look=look)
    done = subprocess.run(
        [sys.executable, "-c", script, "-", number], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
