"""What of a session waits to be decided, request by request, and until when."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

from msgspec import Struct

from pipeline.records import Event, Feedback, Impression, Stamp
from pipeline.transitions.rules import Rules


class Stamped(NamedTuple):
    stamp: Stamp
    event: Event


class Copy(Struct, frozen=True, gc=False, array_like=True):
    stamp: Stamp
    impression: Impression


class Heard(Struct, frozen=True, gc=False, array_like=True):
    stamp: Stamp
    feedback: Feedback


class Bucket(Struct, frozen=True, gc=False, array_like=True):
    """What was read for one request and is not decided yet."""

    due_ms: int
    copies: tuple[Copy, ...]  # on time
    heard: tuple[Heard, ...]


class Joiner(Struct, frozen=True, gc=False, array_like=True):
    buckets: dict[str, Bucket] = {}  # by request id
    agenda: tuple[tuple[int, str], ...] = ()  # (due, request id) of each bucket, sorted
    owned: dict[str, int] = {}  # closed request id -> last stamp its page owns; in the order of closing
    intake: dict[int, tuple[int, int]] = {}  # partition -> its last slot, how many events were read in it


def next_due_ms(joiner: Joiner) -> int | None:
    return joiner.agenda[0][0] if joiner.agenda else None


def forget_due_ms(rules: Rules, joiner: Joiner) -> int | None:
    """When the last closed page and the last slot may be forgotten."""
    last_stamps = [*joiner.owned.values(), *(slot_end_ms(rules, slot) for slot, _ in joiner.intake.values())]
    return max(last_stamps) - rules.lateness_ms + 1 if last_stamps else None


def undecided(joiner: Joiner) -> list[str]:
    """`partition:offset` of what is in the buckets."""
    stamps = [copy.stamp for bucket in joiner.buckets.values() for copy in bucket.copies]
    stamps += [heard.stamp for bucket in joiner.buckets.values() for heard in bucket.heard]
    return [record_id(stamp) for stamp in stamps]


class Desk:
    """Working copies of a Joiner's collections for the length of one call; `owned` is the original until replaced."""

    def __init__(self, joiner: Joiner) -> None:
        self.buckets = dict(joiner.buckets)
        self.agenda = list(joiner.agenda)
        self.owned = joiner.owned
        self.intake = dict(joiner.intake)

    def freeze(self) -> Joiner:
        return Joiner(self.buckets, tuple(self.agenda), self.owned, self.intake)

    def admit(self, rules: Rules, stamp: Stamp) -> bool:
        """Whether the session may have one more event in the stamp's slot."""
        slot = stamp.appended_at_ms // rules.intake_ms
        current, count = self.intake.get(stamp.partition, (slot, 0))
        count = 1 if slot > current else count + 1
        self.intake[stamp.partition] = max(slot, current), count
        return count <= rules.max_events

    def take(self, request_id: str) -> Bucket:
        bucket = self.buckets.pop(request_id)
        del self.agenda[bisect_left(self.agenda, (bucket.due_ms, request_id))]
        return bucket

    def put(self, rules: Rules, request_id: str, copies: tuple[Copy, ...], heard: tuple[Heard, ...]) -> None:
        if copies or heard:
            due_ms = bucket_due_ms(rules, copies, heard)
            self.buckets[request_id] = Bucket(due_ms, copies, heard)
            insort(self.agenda, (due_ms, request_id))


# Times -------------------------------------------------------------------------------------------------------------


def close_ms(rules: Rules, impression: Impression) -> int:
    return impression.time_ms + rules.longest_window_ms


def page_by_ms(rules: Rules, heard: Heard) -> int:
    """The last stamp that an impression may have to be this feedback's page; but not before the feedback itself."""
    last_close = heard.feedback.time_ms + rules.skew_ms + rules.longest_window_ms
    return max(last_close + rules.lateness_ms, heard.stamp.appended_at_ms)


def given_up_ms(rules: Rules, heard: Heard) -> int:
    return page_by_ms(rules, heard) - rules.lateness_ms + 1


def bucket_due_ms(rules: Rules, copies: tuple[Copy, ...], heard: tuple[Heard, ...]) -> int:
    if copies:
        return close_ms(rules, min(copies, key=stamp_of).impression) + 1
    return min(given_up_ms(rules, each) for each in heard)


def stamp_of(read: Copy | Heard) -> Stamp:
    return read.stamp


def slot_end_ms(rules: Rules, slot: int) -> int:
    """The last stamp in a slot."""
    return (slot + 1) * rules.intake_ms - 1


def record_id(stamp: Stamp) -> str:
    return f"{stamp.partition}:{stamp.offset}"
