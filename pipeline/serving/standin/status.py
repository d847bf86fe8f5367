"""A gRPC status as an exception."""

from __future__ import annotations

import grpc

from pipeline.serving.standin.manager import Failure

CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAX_TEXT = 1024  # TF-Serving cuts longer messages


class StatusError(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def failure(self) -> Failure:
        return Failure(self.code.value[0], self.code.name, self.text)


def invalid(text: str) -> StatusError:
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, text)


def truncated(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "...TRUNCATED"
