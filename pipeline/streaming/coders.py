"""How elements and state cross from one process of an engine to another: msgpack, never pickle.

Pickle would not only run what it reads: a field that is left out of JSON because it has its default value comes back
from a pickle as an equal number that is another object, and is then written. The outputs' bytes would depend on where
an engine cuts the graph.
"""

from __future__ import annotations

from typing import Any

import msgspec
from apache_beam.coders import Coder, registry

from pipeline.logs.log import Record
from pipeline.streaming.sinks import Encoded
from pipeline.streaming.snapshot import session_state
from pipeline.transitions.session import SessionState, Stamped, encode_state


class MsgpackCoder(Coder):
    """Any type that msgspec knows."""

    def __init__(self, type_: type) -> None:
        self._type = type_

    @classmethod
    def from_type_hint(cls, typehint: type, registry: object) -> MsgpackCoder:
        return cls(typehint)

    def encode(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def decode(self, encoded: bytes) -> Any:
        return msgspec.msgpack.decode(encoded, type=self._type)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return self._type


class SessionCoder(Coder):
    """Session states; their encoding carries a version."""

    def encode(self, value: SessionState) -> bytes:
        return encode_state(value)

    def decode(self, encoded: bytes) -> SessionState:
        return session_state(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return SessionState


for _type in (Record, Stamped, Encoded):
    registry.register_coder(_type, MsgpackCoder)
