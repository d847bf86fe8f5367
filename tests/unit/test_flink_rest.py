"""What the stream makes of a Flink cluster's answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.serving.launch import free_ports
from pipeline.streaming.flink import launch
from pipeline.streaming.flink.options import Settings
from pipeline.streaming.flink.rest import FlinkError, NotFound, Rest, Unreachable

STARTING = {"failure-cause": {"stack-trace": "CheckpointException: ... Not all required tasks are currently running."}}
BROKEN = {"failure-cause": {"stack-trace": "java.io.IOException: disk full"}}
Serve = Callable[[dict[str, list[Any]]], Rest]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A cluster with such answers, by path: one after another, and the last one for ever. A number is an HTTP error."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, list[Any]]) -> Rest:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                waiting = answers[self.path]
                answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(answer if isinstance(answer, int) else 200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_POST = do_GET  # noqa: N815 (named by the library)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return Rest(f"127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def savepoints(*operations: dict[str, Any]) -> dict[str, list[Any]]:
    """What comes of asking for one, time after time."""
    done: list[Any] = [{"status": {"id": "COMPLETED"}, "operation": operation} for operation in operations]
    return {"/jobs/j/stop": [{"request-id": "t"}], "/jobs/j/savepoints/t": done}


def test_a_job_that_is_starting_is_stopped_once_it_runs(serve: Serve) -> None:
    rest = serve(savepoints(STARTING, STARTING, {"location": "file:/s/savepoint-1"}))
    assert rest.stop_with_savepoint("j", "file:/s", 30) == "file:/s/savepoint-1"


def test_a_savepoint_under_way_is_waited_for(serve: Serve) -> None:
    answers = savepoints({"location": "file:/s/savepoint-1"})
    answers["/jobs/j/savepoints/t"].insert(0, {"status": {"id": "IN_PROGRESS"}})
    assert serve(answers).stop_with_savepoint("j", "file:/s", 30) == "file:/s/savepoint-1"


def test_a_job_that_takes_no_savepoint_is_told_why(serve: Serve) -> None:
    with pytest.raises(FlinkError, match=r"goes on running: .*disk full"):
        serve(savepoints(BROKEN)).stop_with_savepoint("j", "file:/s", 30)


def test_a_job_that_never_starts_is_given_up(serve: Serve) -> None:
    with pytest.raises(FlinkError, match="Not all required tasks"):
        serve(savepoints(STARTING)).stop_with_savepoint("j", "file:/s", 0.1)


def test_a_job_that_is_not_there_has_no_state(serve: Serve) -> None:
    rest = serve(
        {
            "/config": [{"flink-version": "1.19.3"}],
            "/jobs/j": [404],
            "/jobs/k": [{"state": "RUNNING"}],
            "/jobs/l": [503],
        }
    )
    assert rest.version() == "1.19.3"
    assert rest.state("j") is None
    assert rest.state("k") == "RUNNING"
    with pytest.raises(Unreachable, match="503"):
        rest.state("l")


def test_no_answer_is_an_error_that_says_where() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unreachable, match=rf"cannot ask Flink at 127.0.0.1:{port} for /jobs/j: .*refused") as caught:
        Rest(f"127.0.0.1:{port}").state("j")
    assert not isinstance(caught.value, NotFound)


def test_a_cluster_of_another_version_than_the_job_server_is_refused(serve: Serve) -> None:
    rest = serve({"/config": [{"flink-version": "1.19.3"}]})
    launch._check_version(rest, Settings("h:1", job_server="a-jar-for-it"))
    with pytest.raises(FlinkError, match=r"expected version 1\.20, found 1\.19\.3; give .* for Flink 1\.19 with"):
        launch._check_version(rest, Settings("h:1"))
