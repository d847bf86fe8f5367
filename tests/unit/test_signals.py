"""A signal stops a process wherever its main thread is, in the middle of looking whether to stop, too; and one that
stands still says where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# At its first argument's line of threading.py, it sends itself the signal; it says how many lines there were.
AT_LINE = """
import faulthandler, os, signal, sys, threading
from pipeline.signals import handle_signals

faulthandler.dump_traceback_later(250, exit=True)
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
    handle_signals(stop)
    sys.settrace(at(line, number))
    {look}
    sys.settrace(None)
    if line <= lines:
        assert stop.wait(200), f"line {{line}} of {{lines}}"
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


STANDS_STILL = """
import os, threading
from pipeline.signals import handle_signals

stop, standing, held = threading.Event(), threading.Event(), threading.Lock()
handle_signals(stop)

def stand():
    standing.set()
    held.acquire()

held.acquire()
threading.Thread(target=stand, daemon=True).start()
standing.wait()
print("stands", flush=True)
stop.wait()
"""


@pytest.mark.parametrize("_", range(5))
def test_a_process_says_where_its_threads_are_and_goes_on(_: int) -> None:
    """Of two signals at once the second often goes to another thread, which must not wait for the main one."""
    child = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "stands\n"
    os.kill(child.pid, signal.SIGUSR1)
    os.kill(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=250)
    assert child.returncode == 0, said
    assert "in stand\n" in said
    assert "in <module>\n" in said
