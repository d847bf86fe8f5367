"""What the stream asks of a Flink cluster by its REST interface: where a job is, and to stop with a savepoint."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from pipeline.errors import PageturnError

_TIMEOUT_S = 30
ENDED = frozenset({"FAILED", "CANCELED", "FINISHED", "SUSPENDED"})


class FlinkError(PageturnError):
    """Flink cannot be reached, or a job of it ended badly; says which and what to do."""


class Rest:
    def __init__(self, master: str) -> None:
        self._master = master

    def job_named(self, name: str) -> str | None:
        """Its id, once the cluster has it."""
        jobs = self._call("/jobs/overview")["jobs"]
        return next((str(job["jid"]) for job in jobs if job["name"] == name), None)

    def state(self, job: str) -> str | None:
        """None for a job that the cluster does not know (any more)."""
        try:
            return str(self._call(f"/jobs/{job}")["state"])
        except FlinkError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
                return None
            raise

    def failure(self, job: str) -> str:
        """The first lines of what made it fail."""
        history = self._call(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return "\n".join(str(entry["stacktrace"])[:2_000] for entry in history[:1])

    def stop_with_savepoint(self, job: str, folder: str, patience_s: float) -> str:
        """Where the savepoint is. The job emits nothing of its own at the end: this is no drain."""
        trigger = self._call(f"/jobs/{job}/stop", {"targetDirectory": folder, "drain": False})["request-id"]
        deadline_s = time.monotonic() + patience_s
        while True:
            reply = self._call(f"/jobs/{job}/savepoints/{trigger}")
            if reply["status"]["id"] == "COMPLETED":
                return _location(job, reply["operation"])
            if time.monotonic() > deadline_s:
                message = (
                    f"job {job} took no savepoint within {patience_s:.0f} s; it may still be running: {self._master}"
                )
                raise FlinkError(message)
            time.sleep(0.2)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self._master}{path}", data, {"Content-Type": "application/json"}, method="POST" if data else "GET"
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                return json.load(reply)
        except (OSError, ValueError) as error:
            message = f"cannot ask Flink at {self._master} for {path}: {error}; is --flink-master its REST address?"
            raise FlinkError(message) from error


def _location(job: str, operation: dict[str, Any]) -> str:
    if "location" in operation:
        return str(operation["location"])
    cause = str(operation.get("failure-cause", {}).get("stack-trace", operation))[:2_000]
    message = f"job {job} could not be stopped with a savepoint; it goes on running: {cause}"
    raise FlinkError(message)
