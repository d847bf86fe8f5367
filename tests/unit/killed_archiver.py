"""Archivers that are killed, by SIGKILL, as they are about to open, make, rename or remove something in their folder.

killed_archiver.py LOG_URL FOLDER archives the events: in FOLDER/1 an archiver dies at its first such step, and another
one follows that lives; in FOLDER/2 the first dies at its second step; and so on until one has no such step. In
FOLDER/again each dies a step later than the one before it, until one lives. Prints how many died in these two ways.
Each is a fork, so that imports are paid for once; nothing but the forks uses pyarrow.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from pipeline.logs.log import EVENTS
from pipeline.streaming.archiver import Limits, archive

LIMITS = Limits(records_per_read=3, buffer_bytes=30, commit_bytes=70)  # several commits, of several row groups
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
FIRST = 9  # step at which the first of those dies that are killed again and again


def lived(url: str, folder: Path, die_at: int | None) -> bool:
    """Whether it was done, and not killed."""
    pid = os.fork()
    if pid == 0:
        if die_at is not None:
            _die_at(folder, die_at)
        archive(url, folder, until_idle=True, stop=threading.Event(), topics=[EVENTS], limits=LIMITS)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    return True


def _die_at(folder: Path, step: int) -> None:
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    url, folder = sys.argv[1], Path(sys.argv[2])
    step = 1
    while not lived(url, folder / f"{step}", step):
        assert lived(url, folder / f"{step}", None)
        step += 1
    lives = 0
    while not lived(url, folder / "again", FIRST + lives):
        lives += 1
    print(step - 1, lives)
