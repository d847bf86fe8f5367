"""Made-up feed traffic, and how to read what a stream made of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pipeline.config.schema import (
    ActionDimension,
    Attribution,
    Bucket,
    Buckets,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Reward,
    Stream,
)
from pipeline.events import encode
from pipeline.logs.log import OUTPUTS, Entry, EventLog
from pipeline.records import DecidedBy, Decision, Feedback, FeedbackKind, Impression, Item, State

START_MS = 1_700_000_000_000
Traffic = Callable[..., list[Entry]]
Outputs = Callable[[EventLog], dict[str, list[bytes]]]


@pytest.fixture
def config() -> FeatureConfig:
    """Windows short enough for pages to close and sessions to end within the traffic."""
    return FeatureConfig(
        schema_version=1,
        name="feed",
        kv_prefix="pt",
        features=(Dense("hour", "context.hour"),),
        fusion=PayPlusAPhi(phi=0.1),
        action=(ActionDimension("a", 1.0, (0.0, 2.0)),),
        reward=Reward({"click": 0.1, "order": 1.0}),
        algorithm=Ddpg(gamma=0.9),
        policies=(Policy("base", "baseline"),),
        buckets=Buckets("salt", (Bucket("all", "base", (0, 99)),)),
        stream=Stream(
            attribution=Attribution(click=3_000, order=3_000),
            lateness=1_000,
            clock_skew=200,
            session_gap=10_000,
            max_pages=4,
            remember_closed=20_000,
        ),
    )


def impression(session: str, page: int, time_ms: int, items: int = 10) -> Impression:
    state = State(user={f"u{i}": (page * 7 + i) / 3 for i in range(12)}, context={"hour": 8, "city": "x", "when": 1.5})
    shown = tuple(Item(f"i{i}", 0.1 * i, 0.01 * i) for i in range(items))
    decision = Decision(DecidedBy.BASELINE, "base", "all")
    return Impression(1, f"{session}/{page}", f"user-{session}", session, time_ms, page, shown, state, decision)


def feedback(name: str, session: str, page: int, time_ms: int, kind: FeedbackKind, item: str | None = None) -> Feedback:
    return Feedback(1, name, f"{session}/{page}", f"user-{session}", session, time_ms, kind, item)


def session_traffic(rng: random.Random, session: str, time_ms: int) -> list[tuple[int, bytes]]:
    """(stamp, payload) of a session of some pages; stamps trail times, sometimes by more than is allowed."""
    sent: list[tuple[int, bytes]] = []

    def send(event: Impression | Feedback) -> None:
        lag_ms = rng.randrange(5, 900) if rng.random() > 0.03 else rng.randrange(5_000, 30_000)
        copies = 2 if rng.random() < 0.03 else 1
        sent.extend((event.time_ms + lag_ms * (i + 1), encode(event)) for i in range(copies))

    for page in range(rng.randrange(1, 9)):
        send(impression(session, page, time_ms))
        for click in range(rng.randrange(0, 9)):
            kind = rng.choice([FeedbackKind.CLICK, FeedbackKind.CLICK, FeedbackKind.ORDER, FeedbackKind.DWELL])
            item, after_ms = f"i{rng.randrange(10)}", rng.randrange(0, 3_300)
            send(feedback(f"{session}/{page}/{click}", session, page, time_ms + after_ms, kind, item))
        time_ms += rng.randrange(500, 9_000) if rng.random() > 0.1 else rng.randrange(9_000, 20_000)
    if rng.random() < 0.3:
        send(feedback(f"{session}/leave", session, page, time_ms, FeedbackKind.LEAVE))
    if rng.random() < 0.1:
        send(feedback(f"{session}/nowhere", session, 99, time_ms, FeedbackKind.CLICK, "i1"))
    return sent


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(impression=impression, feedback=feedback)


@pytest.fixture
def traffic() -> Traffic:
    def make(seed: int, sessions: int) -> list[Entry]:
        """Entries in the order of their stamps. Keys spread the events of a session over partitions."""
        rng = random.Random(seed)
        sent = []
        for number in range(sessions):
            sent += session_traffic(rng, f"s{number:05d}", START_MS + rng.randrange(0, 200 * sessions))
        sent += [(START_MS + rng.randrange(100 * sessions), b'{"not": "an event"') for _ in range(3)]
        sent.sort()
        return [Entry(f"agent-{rng.randrange(8)}", payload, stamp) for stamp, payload in sent]

    return make


@pytest.fixture
def outputs() -> Outputs:
    def read(log: EventLog) -> dict[str, list[bytes]]:
        """Sorted payloads by topic."""
        return {
            topic: sorted(
                record.payload
                for partition in range(log.partitions(topic))
                for record in log.read(topic, partition, 0, 10**9)
            )
            for topic in OUTPUTS
        }

    return read
