"""What the stream must put out for a log, worked out from the whole log at once: no state, no watermark, no haste.

Written from the rules, not from `pipeline/transitions`, of which it uses nothing; quadratic and plain on purpose.
"""

from __future__ import annotations

import hashlib
import json

from msgspec import structs

from pipeline.config.schema import FeatureConfig, Reward, Stream
from pipeline.records import (
    Ending,
    Episode,
    Event,
    Fate,
    Feedback,
    FeedbackKind,
    Impression,
    Labels,
    Page,
    SetAside,
    Stamp,
    Step,
    Transition,
)

Log = list[tuple[Stamp, Event]]  # one session's


def outputs(config: FeatureConfig, log: Log) -> list[Page | Transition | Episode | SetAside]:
    pages, aside = join(config.stream, log)
    steps, episodes = collect(config, [page for page in pages if page.shown])
    return [*pages, *aside, *steps, *episodes]


# Joining


def window(stream: Stream, kind: FeedbackKind | None = None) -> int:
    named = {FeedbackKind.CLICK: stream.attribution.click, FeedbackKind.ORDER: stream.attribution.order}
    return named[kind] if kind in named else max(named.values())


def join(stream: Stream, log: Log) -> tuple[list[Page], list[SetAside]]:
    pages: list[Page] = []
    aside: list[SetAside] = []
    log = admit(stream, log, aside)
    for request_id in {event.request_id for _, event in log}:
        mine = sorted((stamp, i) for i, (stamp, event) in enumerate(log) if event.request_id == request_id)
        impressions = [(stamp, log[i][1]) for stamp, i in mine if isinstance(log[i][1], Impression)]
        feedback = [(stamp, log[i][1]) for stamp, i in mine if isinstance(log[i][1], Feedback)]
        owners = own(stream, impressions, aside)
        takers = [taker(stream, owners, stamp, event) for stamp, event in feedback]
        aside += [
            set_aside(s, e, Fate.ORPHAN, "no_page") for (s, e), t in zip(feedback, takers, strict=True) if t is None
        ]
        for owner in owners:
            heard = [each for each, t in zip(feedback, takers, strict=True) if t is owner]
            pages.append(close(stream, owner[1], heard, aside))
    return pages, aside


def admit(stream: Stream, log: Log, aside: list[SetAside]) -> Log:
    """What a session takes in: of each slot of stamps and partition the first so many, impressions too late apart."""
    taken: Log = []
    slots: dict[tuple[int, int], int] = {}
    for stamp, event in sorted(log, key=lambda record: record[0]):
        slot = stamp.partition, stamp.appended_at_ms // max(window(stream), 1)
        if not too_late(stream, stamp, event):
            slots[slot] = slots.get(slot, 0) + 1
            if slots[slot] > stream.max_session_events:
                aside.append(set_aside(stamp, event, Fate.ORPHAN, "session_full"))
                continue
        taken.append((stamp, event))
    return taken


def too_late(stream: Stream, stamp: Stamp, event: Event) -> bool:
    """Of an impression: after the close of the page that it would be."""
    return isinstance(event, Impression) and stamp.appended_at_ms > event.time_ms + window(stream) + stream.lateness


def own(stream: Stream, impressions: Log, aside: list[SetAside]) -> Log:
    """The copies that become pages."""
    owners: Log = []
    for stamp, event in impressions:
        if too_late(stream, stamp, event):
            aside.append(set_aside(stamp, event, Fate.LATE, "transport"))
        elif owners and stamp.appended_at_ms <= owned_until(stream, owners[-1]):
            aside.append(set_aside(stamp, event, Fate.DUPLICATE, "request_id"))
        else:
            owners.append((stamp, event))
    return owners


def owned_until(stream: Stream, owner: tuple[Stamp, Event]) -> int:
    return owner[1].time_ms + window(stream) + stream.lateness + stream.remember_closed


def taker(stream: Stream, owners: Log, stamp: Stamp, event: Event) -> tuple[Stamp, Event] | None:
    owner = next((o for o in owners if stamp.appended_at_ms <= owned_until(stream, o)), None)
    in_time = max(event.time_ms + stream.clock_skew + window(stream) + stream.lateness, stamp.appended_at_ms)
    return owner if owner is not None and owner[0].appended_at_ms <= in_time else None


def close(stream: Stream, page: Impression, heard: Log, aside: list[SetAside]) -> Page:
    closes = page.time_ms + window(stream)
    joined: list[Feedback] = []
    for stamp, event in heard:
        if stamp.appended_at_ms > closes + stream.lateness:
            aside.append(set_aside(stamp, event, Fate.LATE, "transport"))
        elif event.time_ms < page.time_ms - stream.clock_skew or event.time_ms > page.time_ms + window(
            stream, event.kind
        ):
            aside.append(set_aside(stamp, event, Fate.LATE, "outside_window"))
        elif event.user_id != page.user_id:
            aside.append(set_aside(stamp, event, Fate.ORPHAN, "other_user"))
        elif event.item_id is not None and event.item_id not in {item.item_id for item in page.items}:
            aside.append(set_aside(stamp, event, Fate.ORPHAN, "unknown_item"))
        elif event.event_id in {f.event_id for f in joined}:
            aside.append(set_aside(stamp, event, Fate.DUPLICATE, "event_id"))
        else:
            joined.append(event)
    joined.sort(key=lambda f: (f.time_ms, f.event_id))
    labels = tuple(label([f for f in joined if f.item_id == item.item_id]) for item in page.items)
    shown = stream.activation == "immediate" or FeedbackKind.SHOWN in {f.kind for f in joined}
    return Page(page, labels, tuple(joined), closes, shown)


def label(feedback: list[Feedback]) -> Labels:
    values = {kind: [f.value for f in feedback if f.kind is kind] for kind in FeedbackKind}
    clicks, orders, dwells = (values[kind] for kind in (FeedbackKind.CLICK, FeedbackKind.ORDER, FeedbackKind.DWELL))
    label = Labels(clicks=len(clicks), orders=len(orders))
    if orders:
        label = structs.replace(label, order_value=sum(orders))
    return structs.replace(label, dwell_s=sum(dwells)) if dwells else label


def set_aside(stamp: Stamp, event: Event, fate: Fate, reason: str) -> SetAside:
    return SetAside(f"{stamp.partition}:{stamp.offset}", fate, reason, stamp.appended_at_ms, event)


# Collecting


def collect(config: FeatureConfig, pages: list[Page]) -> tuple[list[Transition], list[Episode]]:
    ordered = in_order(config.stream, pages)
    transitions, episodes = [], []
    episode: list[Page] = []
    for page, after in zip(ordered, [*ordered, None][1:], strict=True):
        episode.append(page)
        ending = ending_of(config.stream, page, after)
        transitions.append(transition(config, page, after, ending))
        if ending is None and len(episode) == config.stream.max_pages:
            ending = Ending.TRUNCATED
        if ending is not None:
            episodes.append(make_episode(config, episode, after, ending))
            episode = []
    return transitions, episodes


def in_order(stream: Stream, pages: list[Page]) -> list[Page]:
    """Repeatedly the earliest page, and before it those of a lower index that are later by a clock's skew at most."""
    rest, ordered = list(pages), []
    while rest:
        first_ms = min(page.impression.time_ms for page in rest)
        last = max(key(page) for page in rest if page.impression.time_ms == first_ms)
        near = [p for p in rest if key(p) <= last and p.impression.time_ms <= first_ms + stream.clock_skew]
        ordered += sorted(near, key=key)
        rest = [page for page in rest if page not in near]
    return ordered


def key(page: Page) -> tuple[int, int, str]:
    return page.impression.page_index, page.impression.time_ms, page.impression.request_id


def ending_of(stream: Stream, page: Page, after: Page | None) -> Ending | None:
    if FeedbackKind.LEAVE in {f.kind for f in page.feedback}:
        return Ending.LEAVE
    if after is None or after.impression.time_ms - page.impression.time_ms > stream.session_gap:
        return Ending.INFERRED_LEAVE
    return None


def reward(rule: Reward, page: Page, ending: Ending | None) -> float:
    earned = sum(rule.weights.get(f.kind.value, 0.0) * f.value for f in page.feedback)
    if not {FeedbackKind.CLICK, FeedbackKind.ORDER} & {f.kind for f in page.feedback}:
        left = ending in (Ending.LEAVE, Ending.INFERRED_LEAVE)
        earned -= rule.penalties.page_without_conversion + (rule.penalties.leave_without_conversion if left else 0)
    return float(earned if rule.clip is None else min(max(earned, rule.clip[0]), rule.clip[1]))


def version(rule: Reward) -> str:
    plain = {
        "clip": None if rule.clip is None else [float(x) for x in rule.clip],
        "penalties": {
            "leave_without_conversion": float(rule.penalties.leave_without_conversion),
            "page_without_conversion": float(rule.penalties.page_without_conversion),
        },
        "weights": {kind: float(weight) for kind, weight in sorted(rule.weights.items())},
    }
    return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()[:12]


def transition(config: FeatureConfig, page: Page, after: Page | None, ending: Ending | None) -> Transition:
    shown, rule = page.impression, version(config.reward)
    return Transition(
        id=f"{shown.request_id}@{rule}",
        request_id=shown.request_id,
        user_id=shown.user_id,
        session_id=shown.session_id,
        time_ms=shown.time_ms,
        page_index=shown.page_index,
        state=shown.state,
        decision=shown.decision,
        reward=reward(config.reward, page, ending),
        reward_version=rule,
        discount=0.0 if ending else 1.0,
        next_state=None if ending or after is None else after.impression.state,
        ending=ending,
    )


def make_episode(config: FeatureConfig, pages: list[Page], after: Page | None, ending: Ending) -> Episode:
    cut = ending is Ending.TRUNCATED
    steps = []
    for page in pages:
        shown = page.impression
        earned = reward(config.reward, page, ending if page is pages[-1] else None)
        steps.append(Step(shown.request_id, shown.time_ms, shown.page_index, shown.state, shown.decision, earned))
    return Episode(
        id=f"{pages[0].impression.request_id}@{version(config.reward)}",
        user_id=pages[0].impression.user_id,
        session_id=pages[0].impression.session_id,
        steps=tuple(steps),
        reward_version=version(config.reward),
        ending=ending,
        discount=1.0 if cut else 0.0,
        bootstrap_state=after.impression.state if cut and after is not None else None,
    )
