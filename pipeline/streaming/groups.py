"""Open sessions by the group: what a worker remembers of one, and the log of changes that its engine keeps for it.

An engine asks its price for each key of state that a bundle touches, not for its bytes. So sessions share keys. What a
bundle changed of a group is appended to the group's state as one piece; all pieces together say what is open. When
they hold several times as much as is open, the open sessions alone are written in their place. A group without an open
session has no state.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import xxhash
from msgspec import Struct

FORMAT = 1  # of pieces, and of what a group is: state of another one cannot be read
_STEPS_MS = tuple(1_000 * 4**rung for rung in range(7))  # a second to more than an hour
_PIECES_TO_OPEN = 3  # bytes in all pieces, to bytes of open sessions, before these are written anew
_ALWAYS_ALLOWED = 16_000  # bytes: with less in it, a group is not worth the trouble
_STALE_ALLOWED = 100
_OVERHEAD = 32  # bytes, roughly, of a session beside its name and its state


class Open(Struct, frozen=True, gc=False, array_like=True):
    """A session."""

    state: bytes  # as encoded
    wake_ms: int  # when its next decision is due


class Piece(Struct, frozen=True, array_like=True):
    """What has become of some sessions of a group. None: nothing is left of it."""

    mark: bytes  # no other piece has it
    sessions: dict[str, Open | None]


def group_of(session_id: str, groups: int) -> str:
    return str(xxhash.xxh3_64_intdigest(session_id.encode()) % groups)


class Group:
    """Open sessions, as the pieces tell them."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self.sessions: dict[str, Open] = {}
        self.mark: bytes | None = None  # of the last piece; None: there is none
        self.armed: dict[str, int] = {}  # timers, as far as they are known: name -> due (ms)
        self._agenda: list[tuple[int, str]] = []  # a heap; also holds what is not due any more
        self._open_bytes = self._bytes = 0
        for piece in pieces:
            self.add(piece)

    def add(self, piece: Piece) -> None:
        for name, session in piece.sessions.items():
            before = self.sessions.pop(name, None)
            self._open_bytes -= _size(name, before) if before else 0
            self._bytes += _size(name, session)
            if session is not None:
                self.sessions[name] = session
                self._open_bytes += _size(name, session)
                if before is None or before.wake_ms != session.wake_ms:
                    heapq.heappush(self._agenda, (session.wake_ms, name))
        self.mark = piece.mark
        if len(self._agenda) > 2 * len(self.sessions) + _STALE_ALLOWED:
            self._agenda = sorted((session.wake_ms, name) for name, session in self.sessions.items())

    @property
    def is_wasteful(self) -> bool:
        """Whether what is open is to be written anew, in the place of all pieces."""
        return not self.sessions or self._bytes > _PIECES_TO_OPEN * self._open_bytes + _ALWAYS_ALLOWED

    def anew(self, mark: bytes) -> list[Piece]:
        """The pieces that say the same in the fewest bytes: one or none."""
        self.mark, self._bytes = mark if self.sessions else None, self._open_bytes
        return [Piece(mark, {**self.sessions})] if self.sessions else []

    def take_due(self, until_ms: int) -> list[str]:
        """Sessions with a decision that is due by then. What is decided is to be added: they are not told again."""
        due: dict[str, None] = {}
        while (next_ms := self.next_due_ms) is not None and next_ms <= until_ms:
            due[heapq.heappop(self._agenda)[1]] = None
        return list(due)

    @property
    def next_due_ms(self) -> int | None:
        agenda = self._agenda
        while agenda and not self._is_current(*agenda[0]):
            heapq.heappop(agenda)
        return agenda[0][0] if agenda else None

    def _is_current(self, due_ms: int, name: str) -> bool:
        session = self.sessions.get(name)
        return session is not None and session.wake_ms == due_ms


def ladder(due_ms: int | None) -> Mapping[str, int]:
    """When to wake a group that has something due then: name -> time (ms), of one timer for each rung.

    The first is at the last millisecond of its second: Flink's runner knows watermarks in whole seconds, and fires a
    timer when one is past it. The others are for when time comes in leaps: a leap fires all timers that it passes, at
    once, and each says no more than that its own time has come. A rung is the last millisecond of its own step, so
    that it is seldom set; a leap of any length is made good in a few turns rather than in one for each decision.
    """
    return {} if due_ms is None else {str(step): due_ms // step * step + step - 1 for step in _STEPS_MS}


def _size(name: str, session: Open | None) -> int:
    return len(name) + _OVERHEAD + (len(session.state) if session else 0)
