"""Where a learned policy stands, as a value that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from pipeline.ranking.candidates import Candidate


class Heard(Struct):
    """Of one explorer."""

    pages: int = 0
    users: dict[str, float] = field(default_factory=dict)  # sum of the preferences of each user's pages

    def add(self, user_id: str, preferred: float) -> None:
        self.pages += 1
        self.users[user_id] = self.users.get(user_id, 0.0) + preferred


class Standing(Struct, frozen=True):
    version: int  # of what was handed out last: the count of it
    weights: dict[str, Any]  # [...] float32 by name
    noise: tuple[Candidate, ...] = ()
    trial: dict[str, Any] | None = None  # what a major update has made, while it is tried
    heard: tuple[Heard, ...] = ()  # of each of `noise`, and of the trial
    handed_ms: int | None = None
    began_ms: int | None = None  # the first page with the present explorers
    major_ms: int | None = None  # the last major update
    foreign: int = 0  # pages with other explorers than the present ones


def encode_standing(standing: Standing) -> bytes:
    return msgspec.msgpack.encode(standing, enc_hook=_to_wire)


def decode_standing(payload: bytes) -> Standing:
    """Raises msgspec.MsgspecError."""
    found = msgspec.msgpack.decode(payload, type=Standing)
    trial = None if found.trial is None else _arrays(found.trial)
    return msgspec.structs.replace(found, weights=_arrays(found.weights), trial=trial)


def _to_wire(x: object) -> tuple[tuple[int, ...], bytes]:
    assert isinstance(x, np.ndarray)
    return x.shape, x.astype("<f4").tobytes()


def _arrays(wire: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(data, "<f4").reshape(shape) for name, (shape, data) in wire.items()}
