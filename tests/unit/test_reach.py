"""How far a back-fill reads, by hand: windows 20, lateness 5, skew 2, gap 50, ahead 3, memory 30, 4 pages at most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import structs

from pipeline.config.reading import parse_config
from pipeline.config.schema import Attribution, FeatureConfig, Stream
from pipeline.streaming.reach import Known, Range, reach

STREAM = Stream(
    attribution=Attribution(10, 20),
    lateness=5,
    clock_skew=2,
    session_gap=50,
    max_pages=4,
    remember_closed=30,
    max_ahead=3,
)
QUIET = 52
PAGES = Range(10_000, 11_000)
LONG_AGO = Known(0, 10**9)
SLOT = 20
BACK = 2 * 3 + 2 + 20 + 5 + 30
AHEAD = 3 + 20 + 5 + QUIET + 2


@pytest.fixture(scope="module")
def config() -> FeatureConfig:
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "feature_configs" / "ebnerd.yaml").read_text()
    return structs.replace(parse_config(text), stream=STREAM)


class Shown:
    """Impressions stamped with their own time, or as given; remembers what was asked for."""

    def __init__(self, times: dict[str, list[int]], stamps: dict[int, int] | None = None) -> None:
        self.times, self.stamps = times, stamps or {}
        self.asked: list[tuple[int, int]] = []

    def __call__(self, low_ms: int, high_ms: int) -> Iterator[tuple[str, int]]:
        self.asked.append((low_ms, high_ms))
        for session, times in self.times.items():
            yield from ((session, t) for t in times if low_ms <= self.stamps.get(t, t) < high_ms)


def stamps(begin_ms: int, end_ms: int) -> Range:
    return Range((begin_ms - BACK) // SLOT * SLOT, end_ms + AHEAD)


def test_without_visits_at_its_ends_a_range_needs_a_fixed_margin(config: FeatureConfig) -> None:
    shown = Shown({"a": [9_000, 10_500], "b": [9_940, 10_000], "c": [10_999, 11_060]})
    assert reach(config, PAGES, shown, LONG_AGO) == stamps(10_000, 11_000)


@pytest.mark.parametrize("quiet", [QUIET, QUIET + 1])
def test_a_visit_goes_on_exactly_within_gap_and_skew(config: FeatureConfig, quiet: int) -> None:
    at_the_ends = {"a": [9_990 - quiet, 9_990, 10_001], "b": [10_998, 11_030, 11_030 + quiet]}
    begin, end = (9_990 - quiet, 11_030 + quiet) if quiet == QUIET else (9_990, 11_030)
    assert reach(config, PAGES, Shown(at_the_ends), LONG_AGO) == stamps(begin, end)


def test_a_visit_that_ended_before_the_range_does_not_matter(config: FeatureConfig) -> None:
    shown = Shown({"a": [9_960, 9_999], "b": [11_000, 11_040]})
    assert reach(config, PAGES, shown, LONG_AGO) == stamps(10_000, 11_000)


def test_a_long_visit_is_followed_to_its_beginning(config: FeatureConfig) -> None:
    long = list(range(5_000, 10_100, 50))
    shown = Shown({"a": [4_900, *long], "b": [9_970, 10_010]})
    assert reach(config, PAGES, shown, LONG_AGO).from_ms == stamps(5_000, 0).from_ms
    assert min(low for low, _ in shown.asked) >= 5_000 - 5 * QUIET - 3  # and no farther


def test_forward_a_visit_is_followed_for_as_long_as_an_episode_can_last(config: FeatureConfig) -> None:
    endless = Shown({"a": list(range(10_900, 60_000, 50))})
    end_ms = reach(config, PAGES, endless, LONG_AGO).to_ms
    assert 11_000 + 4 * QUIET + AHEAD - 50 <= end_ms <= 11_000 + 8 * QUIET + AHEAD


def test_where_the_log_begins_and_ends_there_is_nothing_to_follow(config: FeatureConfig) -> None:
    shown = Shown({"a": list(range(9_000, 12_000, 50))})
    found = reach(config, PAGES, shown, Known(9_000, 11_100))
    assert found.from_ms == stamps(9_000, 0).from_ms
    assert found.to_ms >= 11_100
    assert reach(config, Range(10, 20), shown, LONG_AGO).from_ms == 0


@pytest.mark.parametrize("stamp_ms", [9_990 - 3, 9_990 + 25])
def test_a_page_is_found_wherever_its_stamp_may_be(config: FeatureConfig, stamp_ms: int) -> None:
    times = {"a": [9_700, 9_750, 9_800, 9_850, 9_900, 9_945, 9_990, 10_001]}
    shown = Shown(times, {t: t + stamp_ms - 9_990 for t in times["a"]})
    assert reach(config, PAGES, shown, LONG_AGO) == stamps(9_700, 11_000)
