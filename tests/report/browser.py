"""A headless Chromium, spoken to over its debugging pipe: what a page asks for, says and looks like."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE_S = 250.0  # nothing rests on it
_LOUD = {"error", "warning", "assert"}

# Chromium reads from descriptor 3 and writes to 4, whichever the pipes' own are here.
_LAUNCH = """
import os, sys
from fcntl import F_DUPFD, fcntl
pipes = [fcntl(int(number), F_DUPFD, 10) for number in sys.argv[1:3]]
for place, pipe in enumerate(pipes, start=3):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page. `errors` and `requests` are what was heard so far."""

    def __init__(self, to: int, come: int) -> None:
        self._to, self._from, self._numbers = to, come, itertools.count(1)
        self._buffer = b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._hear(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path | str) -> None:
        """A file, or an address. The page before is complete too: it is marked, to be told from this one."""
        self.value("window.isBefore = true")
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.await_true("!window.isBefore && document.readyState === 'complete'")

    def scheme(self, name: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def await_true(self, expression: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < deadline, f"not true: {expression}"

    def picture(self, path: Path) -> None:
        """Of the whole page."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._from, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _hear(self, event: dict[str, Any]) -> None:
        what, params = event.get("method"), event.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and params["type"] in _LOUD:
            self.errors.append(str(params["args"]))
        elif what == "Log.entryAdded" and params["entry"]["level"] in _LOUD:
            self.errors.append(str(params["entry"]))


@contextmanager
def running(binary: str, profile: Path) -> Iterator[Browser]:
    """Ended at the end, with all of its processes."""
    their_in, to = os.pipe()
    come, their_out = os.pipe()
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    arguments += ["--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    command = [sys.executable, "-c", _LAUNCH, str(their_in), str(their_out), binary, *arguments]
    process = subprocess.Popen(
        command, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(to, come)
    finally:  # it ends when nobody is at the other end of its pipes
        os.close(to)
        os.close(come)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
