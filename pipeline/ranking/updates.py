"""What became of an update of weights that rank items: who proposed it, what users said, and whether it was taken."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pipeline.ranking.comparing import Outcome


class Update(Struct, frozen=True):
    """Decided at the end of a period. A line of the trainer's updates.jsonl, and in the record of the candidate that it
    led to."""

    policy: str
    version: int  # of the weights that it led to, in the trainer's count
    base: int  # of those it set out from
    kind: Literal["minor", "major"]
    by: Literal["gradient", "dbgd", "es", "replay"]
    taken: bool
    evidence: tuple[Outcome, ...] = ()  # what users' clicks said; a gradient has none but its loss
    time_ms: int = 0
    pages: int = 0  # that a gradient learned from
    loss: float | None = None  # mean over its steps
