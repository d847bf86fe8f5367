"""The stream's settings as the pure core needs them. All times in milliseconds."""

from __future__ import annotations

from msgspec import Struct

from pipeline.config.schema import FeatureConfig, Reward
from pipeline.ranking.activeness import Survival
from pipeline.records import FeedbackKind
from pipeline.transitions.rewards import reward_version


class Choosing(Struct, frozen=True):
    """Of a feed whose policies choose the items."""

    page_size: int
    survival: Survival
    remember_ms: int  # a user who comes back later is new

    @classmethod
    def of(cls, config: FeatureConfig) -> Choosing | None:
        if config.ranking is None:
            return None
        model = config.ranking.activeness
        return cls(config.ranking.page_size, Survival(model.initial, model.absence / 1000), model.remember)


class Rules(Struct, frozen=True):
    windows_ms: dict[FeedbackKind, int]  # how long after its page feedback of a kind still counts
    longest_window_ms: int  # a page closes when it ends
    lateness_ms: int
    skew_ms: int
    gap_ms: int
    remember_ms: int
    max_events: int  # of a session and a partition, within `intake_ms` by their stamps
    intake_ms: int
    max_pages: int
    deferred: bool  # a page counts only if it was reported as shown
    reward: Reward
    reward_version: str
    choosing: Choosing | None = None

    @classmethod
    def of(cls, config: FeatureConfig) -> Rules:
        stream = config.stream
        longest = max(stream.attribution.click, stream.attribution.order)
        windows = dict.fromkeys(FeedbackKind, longest)
        windows[FeedbackKind.CLICK] = stream.attribution.click
        windows[FeedbackKind.ORDER] = stream.attribution.order
        return cls(
            windows_ms=windows,
            longest_window_ms=longest,
            lateness_ms=stream.lateness,
            skew_ms=stream.clock_skew,
            gap_ms=stream.session_gap,
            remember_ms=stream.remember_closed,
            max_events=stream.max_session_events,
            intake_ms=max(longest, 1),
            max_pages=stream.max_pages,
            deferred=stream.activation == "deferred",
            reward=config.reward,
            reward_version=reward_version(config.reward),
            choosing=Choosing.of(config),
        )
