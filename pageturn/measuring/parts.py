"""When each part of the loop started and ended."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pageturn.supervisor import PartEvent


class Life(Struct, frozen=True):
    """One process of a part."""

    part: str
    started_ms: int
    ended_ms: int | None  # None: still running, as far as the journal knows
    status: int | None = None


def lives(events: Iterable[PartEvent]) -> tuple[Life, ...]:
    """In the order of their starts. A part that starts again without having ended ended then at the latest."""
    found: list[Life] = []
    running: dict[str, int] = {}  # -> its place in `found`
    for event in sorted(events, key=lambda event: event.time_ms):
        place = running.pop(event.part, None)
        if place is not None:
            life = found[place]
            found[place] = Life(life.part, life.started_ms, event.time_ms, event.status)
        if event.event == "started":
            running[event.part] = len(found)
            found.append(Life(event.part, event.time_ms, None))
    return tuple(found)
