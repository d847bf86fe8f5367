"""What the stream asks of a Flink cluster by its REST interface: where a job is, and to stop with a savepoint."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from pipeline.errors import PageturnError

_TIMEOUT_S = 30
_PAUSE_S = 0.2
_STARTING = "Not all required tasks are currently running"  # so Flink's CheckpointFailureReason puts it
ENDED = frozenset({"FAILED", "CANCELED", "FINISHED", "SUSPENDED"})


class FlinkError(PageturnError):
    """Flink cannot be reached, or a job of it ended badly; says which and what to do."""


class Unreachable(FlinkError):
    """No answer to a question, or none that can be read. It may be over in a while."""


class NotFound(FlinkError):
    """Flink does not know what was asked for."""


class Rest:
    def __init__(self, master: str) -> None:
        self._master = master

    def version(self) -> str:
        return str(self._call("/config")["flink-version"])

    def job_named(self, name: str) -> str | None:
        """Its id, once the cluster has it."""
        jobs = self._call("/jobs/overview")["jobs"]
        return next((str(job["jid"]) for job in jobs if job["name"] == name), None)

    def state(self, job: str) -> str | None:
        """None for a job that the cluster does not know (any more)."""
        try:
            return str(self._call(f"/jobs/{job}")["state"])
        except NotFound:
            return None

    def failure(self, job: str) -> str:
        """The first lines of what made it fail."""
        history = self._call(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return "\n".join(str(entry["stacktrace"])[:2_000] for entry in history[:1])

    def stop_with_savepoint(self, job: str, folder: str, patience_s: float) -> str:
        """Where the savepoint is. The job emits nothing of its own at the end: this is no drain.

        A job that is starting, for the first time or again, is given the time for that.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            operation = self._stop(job, folder, deadline_s)
            if "location" in operation:
                return str(operation["location"])
            cause = str(operation.get("failure-cause", {}).get("stack-trace", operation))
            if _STARTING not in cause or time.monotonic() > deadline_s:
                message = f"job {job} could not be stopped with a savepoint; it goes on running: {cause[:2_000]}"
                raise FlinkError(message)
            time.sleep(_PAUSE_S)

    def _stop(self, job: str, folder: str, deadline_s: float) -> dict[str, Any]:
        """What came of trying: a location or a failure."""
        trigger = self._call(f"/jobs/{job}/stop", {"targetDirectory": folder, "drain": False})["request-id"]
        while True:
            reply = self._call(f"/jobs/{job}/savepoints/{trigger}")
            if reply["status"]["id"] == "COMPLETED":
                return dict(reply["operation"])
            if time.monotonic() > deadline_s:
                message = f"job {job} took no savepoint in time; it may still be running: {self._master}"
                raise FlinkError(message)
            time.sleep(_PAUSE_S)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self._master}{path}", data, {"Content-Type": "application/json"}, method="POST" if data else "GET"
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            kind = NotFound if error.code == 404 else Unreachable
            raise kind(self._told(path, error)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(self._told(path, error)) from error

    def _told(self, path: str, error: Exception) -> str:
        return f"cannot ask Flink at {self._master} for {path}: {error}; is --flink-master its REST address?"
