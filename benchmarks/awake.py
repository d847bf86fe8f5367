"""Cores that do not go to sleep.

Between two calls of a single caller the cores of a quiet machine halt, and a virtual machine's are woken by its host:
that takes half of the time of an empty gRPC call, and is nothing that code does. Servers with traffic are awake.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Gives way to everything else: as a process, and, where the kernel groups processes by session, as a group.
_SPIN = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
try:
    with open("/proc/self/autogroup", "w") as group:
        group.write("19")
except OSError:
    pass
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def cores(*, awake: bool) -> Iterator[None]:
    """Whether each core is kept from halting meanwhile, or left alone."""
    with ExitStack() as stack:
        for _ in range((os.cpu_count() or 1) if awake else 0):
            spinner = stack.enter_context(subprocess.Popen([sys.executable, "-c", _SPIN], start_new_session=True))
            stack.callback(spinner.kill)
        yield
