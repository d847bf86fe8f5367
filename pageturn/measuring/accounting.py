"""Nothing is lost, by the ids: what users reported and were shown, and where it is found again."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pageturn.measuring.topics import Ids, Topics


class Accounting(Struct, frozen=True):
    """Found: joined, set aside, a dead letter, open in the stream's snapshot, or not read by it yet."""

    acknowledged: int  # events, by their ids
    missing: int  # of them; anything but 0 is a fault
    answered: int  # pages
    lost: int  # of them, in the log nowhere: not written yet, or the agent ended before it had written them


def account(acknowledged: Ids, answered: Ids, topics: Topics) -> Accounting:
    """The ids must have been read before the log: it is ahead of them, then."""
    return Accounting(
        acknowledged=len(acknowledged.hashes),
        missing=len(acknowledged.without(topics.events)),
        answered=len(answered.hashes),
        lost=len(answered.without(topics.requests)),
    )


def ids(texts: Iterable[str]) -> Ids:
    found = Ids()
    for text in texts:
        found.add(text)
    return found
