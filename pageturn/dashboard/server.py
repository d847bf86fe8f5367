"""The page and its data over HTTP, on this machine only: there is no authentication."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import msgspec

from pageturn.dashboard.live import Live
from pipeline.errors import PageturnError

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
}
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_LOG = logging.getLogger(__name__)


class DashboardError(PageturnError):
    """The page cannot be served; says why."""


@contextmanager
def serving(live: Live, port: int) -> Iterator[int]:
    """Serve on the loopback address while the context lasts; yields the port (0 takes a free one)."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(live))
    except OSError as error:
        message = f"port {port}: cannot be listened on: {error.strerror}"
        raise DashboardError(message) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="dashboard")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in _LOCAL:  # another site, by a name of its own
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path in _FILES:
                name, kind = _FILES[self.path]
                self._send(kind, files(__package__).joinpath(name).read_bytes)
            elif self.path == "/state.json":
                self._send("application/json", lambda: msgspec.json.encode(live.state()))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, kind: str, content: Callable[[], bytes]) -> None:
            body = content()
            self.send_response(HTTPStatus.OK)
            for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # who asked has gone
                self.wfile.write(body)

        def log_message(self, template: str, *values: object) -> None:
            _LOG.debug(template, *values)

    return Handler
