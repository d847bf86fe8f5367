"""Child processes of one machine: each part of the loop in a process of its own, with a log file of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PageturnError

_TAIL_LINES = 15
_LOOK_S = 0.05
_log = logging.getLogger(__name__)


class ProcessError(PageturnError):
    """A part of the loop ended when it should not have; says which one, and ends with what it said last."""


class Stopped(PageturnError):
    """We were told to stop, and have ended what we had started."""


class Process:
    """A running command. Its output goes to `<logs>/<name>.log`; `stop` ends it with SIGTERM, then SIGKILL.

    Ctrl-C in a terminal reaches us alone, and it is for us to end what we started. Should we be killed, the kernel
    ends it (where there is `setpriv`, on Linux).
    """

    def __init__(self, name: str, command: Sequence[str], logs: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        logs.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [*_dies_with_us(), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def status(self) -> int | None:
        """None while it runs; the negative number of the signal that ended it."""
        return self._child.poll()

    def check(self) -> None:
        """Raise ProcessError if the command has ended."""
        if self._child.poll() is not None:
            raise ProcessError(self.report(f"ended with status {self._child.returncode}"))

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Return once the command has ended well. It does not outlive this: where it is not done in time, or `stop`
        is set, it is ended. Raises: ProcessError, Stopped."""
        deadline = time.monotonic() + timeout_s
        while (status := self._child.poll()) is None:
            if stop.wait(_LOOK_S):
                self.stop()
                message = f"stopped while {self.name} was running"
                raise Stopped(message)
            if time.monotonic() > deadline:
                self.stop()
                raise ProcessError(self.report(f"was not done after {timeout_s:.0f} s"))
        if status != 0:
            raise ProcessError(self.report(f"ended with status {status}"))

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting for what comes of it."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float = 10.0) -> None:
        if self._child.poll() is None:
            self.ask_to_end()
            try:
                self._child.wait(grace_s)
            except subprocess.TimeoutExpired:
                _log.warning("%s has not ended %.0f s after SIGTERM: killed", self.name, grace_s)
                self._child.kill()
                self._child.wait()

    def report(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n  ".join([f"{self.name} {what}; the end of {self.log}:", *lines])


def _dies_with_us() -> list[str]:
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def pageturn(*arguments: str) -> list[str]:
    """The command line that runs `pageturn` with the arguments in this interpreter's environment."""
    return [sys.executable, "-m", "pageturn", *arguments]
