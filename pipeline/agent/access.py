"""Who may call the agent: callers show `authorization: Bearer TOKEN`, one of the lines of a file.

Two lines at a time let tokens be replaced without a gap. The file is read again when it changes. Health checks need no
token: the cluster's probes have none, and learn nothing.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from pipeline.errors import PageturnError

_OPEN = ("/grpc.health.v1.Health/",)
_LEAST_LENGTH = 16  # characters: what is shorter can be guessed
_LOOK_EVERY_S = 1.0
_LOG = logging.getLogger(__name__)


class AccessError(PageturnError):
    """The file of tokens cannot be used."""


def read_tokens(file: Path) -> tuple[bytes, ...]:
    """Its lines, without empty ones. Raises AccessError."""
    try:
        lines = [line.strip() for line in file.read_bytes().splitlines()]
    except OSError as error:
        message = f"token file {file}: cannot be read: {error.strerror}"
        raise AccessError(message) from error
    tokens = tuple(line for line in lines if line)
    if not tokens or any(len(token) < _LEAST_LENGTH for token in tokens):
        message = f"token file {file}: expected a token of {_LEAST_LENGTH} characters or more on each line"
        raise AccessError(message)
    return tokens


class TokenGate(grpc.ServerInterceptor):
    def __init__(self, file: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Raises AccessError."""
        self._file, self._monotonic = file, monotonic
        self._tokens, self._looked_s = read_tokens(file), monotonic()
        self._lock = threading.Lock()
        self._refused = grpc.unary_unary_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.startswith(_OPEN) or self._admits(dict(details.invocation_metadata).get("authorization")):
            return continuation(details)
        return self._refused

    def _admits(self, header: str | bytes | None) -> bool:
        shown = header.encode() if isinstance(header, str) else header or b""
        # All are compared, so that the time tells nothing of which token, or how much of it, was right.
        matches = [hmac.compare_digest(shown, b"Bearer " + token) for token in self._current()]
        return any(matches)

    def _current(self) -> tuple[bytes, ...]:
        with self._lock:
            if self._monotonic() - self._looked_s >= _LOOK_EVERY_S:
                self._looked_s = self._monotonic()
                self._tokens = self._read_again()
            return self._tokens

    def _read_again(self) -> tuple[bytes, ...]:
        try:
            return read_tokens(self._file)
        except AccessError as error:
            _LOG.warning("%s; going on with the tokens of before", error)
            return self._tokens


def _refuse(_: object, context: grpc.ServicerContext) -> None:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "expected metadata `authorization: Bearer TOKEN` with a token of ours"
    )
