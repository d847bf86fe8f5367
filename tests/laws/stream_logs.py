"""Random logs of one session, written with a liking for the boundaries of the rules."""

from __future__ import annotations

import random

import msgspec
from hypothesis import strategies as st

from pipeline.config.schema import FeatureConfig
from pipeline.records import (
    SCHEMA_VERSION,
    DecidedBy,
    Decision,
    Event,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Stamp,
    State,
)
from pipeline.transitions.session import Stamped


def make_config(reward: dict[str, object], stream: dict[str, object]) -> FeatureConfig:
    config = {
        "schema_version": 1,
        "name": "test",
        "kv_prefix": "t",
        "features": [{"kind": "dense", "name": "x", "source": "user.x"}],
        "fusion": {"kind": "pay_plus_a_phi", "phi": 1.0},
        "action": [{"name": "a", "baseline": 1.0, "range": [0.0, 2.0]}],
        "reward": reward,
        "algorithm": {"kind": "ddpg", "gamma": 0.9},
        "policies": [{"name": "baseline", "kind": "baseline"}],
        "buckets": {"salt": "s", "assign": [{"name": "all", "policy": "baseline", "slots": [0, 99]}]},
        "stream": stream,
    }
    return msgspec.convert(config, FeatureConfig)


def random_config(rng: random.Random) -> FeatureConfig:
    penalties = {"page_without_conversion": 0.5, "leave_without_conversion": rng.choice([0.0, 2.0])}
    reward = {
        "weights": {"click": 1.0, "order": 10.0, "dwell": rng.choice([0.0, 0.25])},
        "penalties": penalties,
        "clip": rng.choice([None, [-1.0, 12.0]]),
    }
    stream = {
        "attribution": {"click": rng.randint(0, 10), "order": rng.randint(0, 10)},
        "lateness": rng.randint(0, 6),
        "clock_skew": rng.randint(0, 6),
        "session_gap": rng.randint(0, 20),
        "max_pages": rng.randint(1, 4),
        "remember_closed": rng.choice([0, rng.randint(1, 8), 30]),
        "max_session_events": rng.choice([100, 100, rng.randint(1, 6)]),
        "activation": rng.choice(["immediate", "immediate", "deferred"]),
    }
    return make_config(reward, stream)


def impression(request: int, time_ms: int, index: int, user: str) -> Impression:
    state = State(user={"x": request}, page={"at": time_ms})
    decision = Decision(DecidedBy.BASELINE, "baseline", "all")
    items = (Item("i0"), Item("i1"))
    return Impression(SCHEMA_VERSION, f"r{request}", user, "s", time_ms, index, items, state, decision)


class Writer:
    """Writes a session's log of small numbers."""

    def __init__(self, config: FeatureConfig, rng: random.Random) -> None:
        self.stream, self.rng = config.stream, rng
        self.records: list[tuple[int, int, Event]] = []  # stamp, partition, event

    def write(self, requests: int) -> list[Stamped]:
        time_ms = self.rng.randint(0, 5)
        for request in range(requests):
            self._request(request, time_ms)
            skew, gap = self.stream.clock_skew, self.stream.session_gap
            step = self.rng.choice([self._near(skew), self._near(gap), self.rng.randint(-skew, 12)])
            time_ms = max(time_ms + step, 0)
        return self._stamped()

    def _stamped(self) -> list[Stamped]:
        """In the order of the stamps; offsets count within a partition."""
        self.rng.shuffle(self.records)
        log, ends = [], [0, 0, 0]
        for stamp_ms, partition, event in sorted(self.records, key=lambda record: record[:2]):
            log.append(Stamped(Stamp(stamp_ms, partition, ends[partition]), event))
            ends[partition] += 1
        return log

    def _request(self, request: int, time_ms: int) -> None:
        index = self.rng.choice([request, self.rng.randint(0, 5)])
        for _ in range(self.rng.choice([0, 1, 1, 1, 1, 2, 3])):
            own_ms = time_ms + self.rng.choice([0, 0, 0, 1, self.rng.randint(0, 40)])
            user = self.rng.choice(["u", "u", "u", "u", "u", "v"])
            self._append(time_ms, own_ms, impression(request, own_ms, index, user))
        for _ in range(self.rng.choice([0, 0, 1, 2, 4])):
            feedback = self._feedback(request, time_ms)
            self._append(time_ms, feedback.time_ms, feedback)

    def _feedback(self, request: int, page_ms: int) -> Feedback:
        click, order = self.stream.attribution.click, self.stream.attribution.order
        edge = self.rng.choice([-self.stream.clock_skew, click, order])
        age_ms = self.rng.choice([self._near(edge), self.rng.randint(0, 8), self.rng.randint(-10, 50)])
        return Feedback(
            SCHEMA_VERSION,
            event_id=f"e{self.rng.randint(0, 2)}",
            request_id=f"r{request}",
            user_id=self.rng.choice(["u", "u", "u", "u", "u", "v"]),
            session_id="s",
            time_ms=max(page_ms + age_ms, 0),
            kind=self.rng.choice(list(FeedbackKind)),
            item_id=self.rng.choice([None, "i0", "i1", "i1", "i2"]),
            value=self.rng.choice([1.0, 0.1, 3.0]),
        )

    def _append(self, page_ms: int, time_ms: int, event: Event) -> None:
        longest = max(self.stream.attribution.click, self.stream.attribution.order)
        on_time = longest + self.stream.lateness
        edges = (
            self._near(page_ms + on_time),
            self._near(page_ms + on_time + self.stream.remember_closed),
            self._near(time_ms + self.stream.clock_skew + on_time),
        )
        soon = time_ms + self.rng.randint(-2, 4)
        stamp_ms = self.rng.choice([soon, soon, time_ms + self.rng.randint(0, 40), *edges])
        self.records.append((max(stamp_ms, 0), self.rng.randint(0, 2), event))

    def _near(self, edge: int) -> int:
        return edge + self.rng.choice([-1, 0, 0, 1])


Case = tuple[FeatureConfig, list[Stamped], random.Random]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A config, a session's log, and what a test draws from."""
    rng = random.Random(draw(st.integers(0, 2**32)))  # faster, and less fond of zeros, than drawing each number
    config = random_config(rng)
    return config, Writer(config, rng).write(draw(st.integers(1, 6))), rng
