"""The Online Joiner: which feedback belongs to which page of a session, and when a page is final.

Everything read for one request waits in a bucket. A bucket is decided at a point T of event time, on the records
with a stamp of at most T - 1 + lateness: all of those have been read when the watermark reaches T, and those with
later stamps, though perhaps in the bucket already, must not sway the decision. So the outputs are a function of the
log alone, not of the order in which its partitions are read.

Of a session only so much is read: within a slot of the stamps (as long as the longest window) and a partition the
first `max_events`, others are orphans (session_full). A partition is read in its own order by every engine, so that
this, too, follows from the log alone; and with no event much ahead of its stamp, it bounds what a session may hold.

With close = impression time + longest window:
  impression  late (transport) if stamped after its own close + lateness (it takes no room in a slot). Of the on-time
              copies of a request the one with the smallest stamp is the page, the others are duplicates.
  page        decided at close + 1. It owns the request id up to the stamp close + lateness + remembered time: copies
              stamped in that time are its duplicates, feedback stamped in that time is judged against it. A copy
              stamped later opens a page anew: the old one may have been forgotten.
  feedback    orphan (no_page)      if no on-time copy is stamped by max(its stamp, the last stamp any page could have
                                    in whose window it falls)
              late (transport)      if stamped after close + lateness
              late (outside_window) if its time is not in [page time - clock skew, page time + window of its kind]
              orphan (other_user, unknown_item)  if it contradicts the page
              duplicate (event_id)  if feedback with a smaller stamp and the same event id has been joined
              joined                otherwise
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.records import Event, Fate, Feedback, FeedbackKind, Impression, Page, SetAside, Stamp
from pipeline.transitions.labels import item_labels
from pipeline.transitions.rules import Rules
from pipeline.transitions.waiting import (
    Bucket,
    Copy,
    Desk,
    Heard,
    Joiner,
    Stamped,
    close_ms,
    given_up_ms,
    page_by_ms,
    record_id,
    slot_end_ms,
    stamp_of,
)

_FULL = Fate.ORPHAN, "session_full"


def read(rules: Rules, joiner: Joiner, events: Iterable[Stamped]) -> tuple[Joiner, list[SetAside]]:
    """Put events into their buckets. What no later record can change is set aside at once."""
    desk = Desk(joiner)
    aside = []
    for stamp, event in events:
        if isinstance(event, Impression):
            fate = _read_impression(rules, desk, stamp, event)
        else:
            fate = _read_feedback(rules, desk, stamp, event)
        if fate is not None:
            aside.append(_set_aside(stamp, event, fate))
    return desk.freeze(), aside


def decide(rules: Rules, joiner: Joiner, watermark_ms: int) -> tuple[Joiner, list[Page | SetAside]]:
    """Make every decision that is due at or before the watermark, in time order, and forget what may be forgotten."""
    if joiner.agenda and joiner.agenda[0][0] > watermark_ms:
        return joiner, []
    desk = Desk(joiner)
    desk.owned = dict(desk.owned)
    outputs: list[Page | SetAside] = []
    while desk.agenda and desk.agenda[0][0] <= watermark_ms:
        due_ms, request_id = desk.agenda[0]
        bucket = desk.take(request_id)
        if bucket.copies:
            copies, heard = _close(rules, desk, bucket, outputs)
        else:
            copies, heard = (), _give_up(rules, bucket, due_ms, outputs)
        desk.put(rules, request_id, copies, heard)
    _forget(rules, desk, watermark_ms)
    return desk.freeze(), outputs


# Reading -----------------------------------------------------------------------------------------------------------


def _read_impression(rules: Rules, desk: Desk, stamp: Stamp, event: Impression) -> tuple[Fate, str] | None:
    if stamp.appended_at_ms > close_ms(rules, event) + rules.lateness_ms:
        return Fate.LATE, "transport"
    if not desk.admit(rules, stamp):
        return _FULL
    request_id = event.request_id
    if stamp.appended_at_ms <= desk.owned.get(request_id, -1):
        return Fate.DUPLICATE, "request_id"
    copies: tuple[Copy, ...] = (Copy(stamp, event),)
    heard: tuple[Heard, ...] = ()
    if request_id in desk.buckets:
        bucket = desk.take(request_id)
        copies, heard = bucket.copies + copies, bucket.heard
    desk.put(rules, request_id, copies, heard)
    return None


def _read_feedback(rules: Rules, desk: Desk, stamp: Stamp, event: Feedback) -> tuple[Fate, str] | None:
    if not desk.admit(rules, stamp):
        return _FULL
    request_id = event.request_id
    if stamp.appended_at_ms <= desk.owned.get(request_id, -1):
        return Fate.LATE, "transport"
    heard = Heard(stamp, event)
    bucket = desk.buckets.get(request_id)
    if bucket is not None and bucket.copies:  # the page decides when: nothing to reschedule
        desk.buckets[request_id] = Bucket(bucket.due_ms, bucket.copies, (*bucket.heard, heard))
    else:
        before = desk.take(request_id).heard if bucket is not None else ()
        desk.put(rules, request_id, (), (*before, heard))
    return None


# Deciding ----------------------------------------------------------------------------------------------------------


def _close(
    rules: Rules, desk: Desk, bucket: Bucket, outputs: list[Page | SetAside]
) -> tuple[tuple[Copy, ...], tuple[Heard, ...]]:
    """Emit the bucket's page and all that it owns. Returns what is stamped after that."""
    first, *others = sorted(bucket.copies, key=stamp_of)
    last_stamp = close_ms(rules, first.impression) + rules.lateness_ms + rules.remember_ms
    joined = _judge(rules, first, [h for h in bucket.heard if h.stamp.appended_at_ms <= last_stamp], outputs)
    outputs.append(_page(rules, first.impression, joined))
    for copy in others:
        if copy.stamp.appended_at_ms <= last_stamp:
            outputs.append(_set_aside(copy.stamp, copy.impression, (Fate.DUPLICATE, "request_id")))
    request_id = first.impression.request_id
    desk.owned.pop(request_id, None)  # an owner whose time is over: the new one goes to the end
    desk.owned[request_id] = last_stamp
    return (
        tuple(c for c in others if c.stamp.appended_at_ms > last_stamp),
        tuple(h for h in bucket.heard if h.stamp.appended_at_ms > last_stamp),
    )


def _judge(rules: Rules, page: Copy, heard: Sequence[Heard], outputs: list[Page | SetAside]) -> list[Feedback]:
    """The feedback that the page joins; the rest is set aside."""
    joined: dict[str, Feedback] = {}
    for each in sorted(heard, key=stamp_of):
        fate = _objection(rules, page, each)
        if fate is None and each.feedback.event_id in joined:
            fate = Fate.DUPLICATE, "event_id"
        if fate is None:
            joined[each.feedback.event_id] = each.feedback
        else:
            outputs.append(_set_aside(each.stamp, each.feedback, fate))
    return sorted(joined.values(), key=lambda f: (f.time_ms, f.event_id))


def _objection(rules: Rules, page: Copy, heard: Heard) -> tuple[Fate, str] | None:
    """Why the page cannot have this feedback."""
    impression, feedback = page.impression, heard.feedback
    if page.stamp.appended_at_ms > page_by_ms(rules, heard):
        return Fate.ORPHAN, "no_page"
    if heard.stamp.appended_at_ms > close_ms(rules, impression) + rules.lateness_ms:
        return Fate.LATE, "transport"
    age_ms = feedback.time_ms - impression.time_ms
    if not -rules.skew_ms <= age_ms <= rules.windows_ms[feedback.kind]:
        return Fate.LATE, "outside_window"
    if feedback.user_id != impression.user_id:
        return Fate.ORPHAN, "other_user"
    if feedback.item_id is not None and feedback.item_id not in [item.item_id for item in impression.items]:
        return Fate.ORPHAN, "unknown_item"
    return None


def _page(rules: Rules, impression: Impression, feedback: list[Feedback]) -> Page:
    shown = not rules.deferred or any(f.kind is FeedbackKind.SHOWN for f in feedback)
    labels = item_labels(impression.items, feedback)
    return Page(impression, labels, tuple(feedback), close_ms(rules, impression), shown)


def _give_up(rules: Rules, bucket: Bucket, now_ms: int, outputs: list[Page | SetAside]) -> tuple[Heard, ...]:
    """Set feedback aside for which no page can come any more. Returns the rest."""
    waiting = []
    for each in sorted(bucket.heard, key=stamp_of):
        if given_up_ms(rules, each) <= now_ms:
            outputs.append(_set_aside(each.stamp, each.feedback, (Fate.ORPHAN, "no_page")))
        else:
            waiting.append(each)
    return tuple(waiting)


def _forget(rules: Rules, desk: Desk, watermark_ms: int) -> None:
    """Drop slots that no stamp to come is in, and pages that own none.

    Stops at the first page that owns one: they are in the order of closing.
    """
    unread_ms = watermark_ms + rules.lateness_ms
    over = []
    for request_id, last_stamp in desk.owned.items():
        if last_stamp >= unread_ms:
            break
        over.append(request_id)
    for request_id in over:
        del desk.owned[request_id]
    desk.intake = {p: (slot, n) for p, (slot, n) in desk.intake.items() if slot_end_ms(rules, slot) >= unread_ms}


def _set_aside(stamp: Stamp, event: Event, fate: tuple[Fate, str]) -> SetAside:
    return SetAside(record_id(stamp), *fate, stamp.appended_at_ms, event)
