"""The report of a run: whole, self-contained, escaped, and without a complaint from a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from pageturn.measures import measure
from pageturn.report import write_report
from pageturn.report.writing import render

_VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture
def lively(lively: Any) -> Any:
    """With a round that measured sizes, and a version that learned from it."""
    row = {"time_ms": lively.start_ms, "transitions": 2, "updates": 1, "value_loss": 2.0, "value_mean": -1.0}
    lively.learned(row | {"value_abs": 2.0, "advantage_mean/rl_a": 0.01, "advantage_abs/rl_a": 0.25})
    lively.verdict(92, "accepted", version=4, last_transition="p16@1", updates=1, moved=0.25)
    return lively


class Reading(HTMLParser):
    """What is in a page, and whether its elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.charts: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.charts += [found["data-chart"]] if "data-chart" in found else []
        self.loads += [found[name] for name in ("src", "href") if name in found and not found[name].startswith("#")]
        self._script = found.get("id", "") if tag == "script" else None
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def test_the_report_opens_from_a_disk(lively: Any):
    path = write_report(lively.run, measure(lively.run))
    assert path == lively.run.folder / "report" / "index.html"
    page = path.read_text()
    found = Reading(page)
    assert found.loads == ["plotly.min.js"]
    assert (path.parent / "plotly.min.js").stat().st_size > 1_000_000
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    assert "url(" not in page
    assert "@import" not in page


def test_every_section_is_there_and_every_chart_has_its_data(lively: Any):
    found = Reading(render(measure(lively.run)))
    sections = {"reward", "users", "actions", "learning", "serving", "freshness", "events", "versions"}
    assert sections <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    figures = json.loads(found.scripts["figures"])
    assert sorted(figures) == sorted(found.charts)
    assert {"visit_reward", "reward", "lift", "reward-time", "exposure", "user_clicks", "dwell_s", "depth"} < set(
        figures
    )
    assert {"deciders", "parts", "waits"} < set(figures)
    assert {"action-mean-rl_a-a", "action-executed-rl_a-a", "ratio", "value-mean", "freshness-rl_a"} < set(figures)
    assert not any("template" in figure["layout"] for figure in figures.values())  # the page has its own
    (ratio,) = [each for each in figures["ratio"]["data"] if each["name"] == "rl_a"]
    assert ratio["y"] == [0.125, *[None] * 19]  # rounds of before sizes were measured


def test_sizes_that_nobody_measured_are_not_shown(made: Any):
    made.learned({"time_ms": made.start_ms, "transitions": 64, "updates": 1, "value_loss": 1.0, "value_mean": 2.0})
    figures = json.loads(Reading(render(measure(made.run))).scripts["figures"])
    assert "value-mean" in figures
    assert "ratio" not in figures


def test_a_baseline_that_is_not_its_own_twin_is_warned_of(lively: Any):
    measures = measure(lively.run)
    warned = msgspec.structs.replace(measures.twins, checked=20, odd=3)
    words = "3 of 20 visits of the baseline differ from themselves"
    assert words in Reading(render(msgspec.structs.replace(measures, twins=warned))).text
    assert "warning" not in Reading(render(msgspec.structs.replace(measures, twins=twins_of(measures)))).text


def twins_of(measures: Any) -> Any:
    return msgspec.structs.replace(measures.twins, odd=0)


def test_a_run_in_progress_says_so(lively: Any):
    measures = measure(lively.run)
    assert "in progress" not in Reading(render(measures)).text
    text = Reading(render(msgspec.structs.replace(measures, up=True))).text
    assert text.count("in progress") == 2  # in the conclusion, and among the facts


def test_its_numbers_can_be_read_without_scripts(lively: Any):
    measures = measure(lively.run)
    text = Reading(render(measures)).text
    control = measures.comparison.buckets[0].whole
    for found in (control.visit_reward, control.reward):
        assert f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]" in text
    assert "moved from the baseline" in text
    assert "learned buckets are ahead of the baseline" in text or "No difference" in text
    for words in ("simulated feed v", "accepted (bootstrap)", "expected <= 0.2, found 0.3", "agent: signal 9"):
        assert words in text
    assert "fallback: unavailable" in text
    assert "against version 1" in text  # a check's note
    assert "0.125" in text


def test_text_from_data_is_escaped(lively: Any):
    nasty = "</script><script>alert(1)</script><b>&amp;"
    lively.verdict(95, "refused", reason=nasty, detail=nasty)
    measures = measure(lively.run)
    buckets = tuple(msgspec.structs.replace(each, bucket=nasty) for each in measures.comparison.buckets)
    comparison = msgspec.structs.replace(measures.comparison, buckets=buckets)
    record = msgspec.structs.replace(measures.run, name=nasty)
    page = render(msgspec.structs.replace(measures, comparison=comparison, run=record))
    assert "<script>alert" not in page
    assert "<b>" not in page
    found = Reading(page)
    assert nasty in found.text
    figures = json.loads(found.scripts["figures"])
    assert "<" not in figures["reward-time"]["data"][1]["name"]  # Plotly would take it for a tag


def test_a_run_that_has_just_begun_has_a_report(made: Any):
    found = Reading(write_report(made.run, measure(made.run)).read_text())
    assert "There is nothing to compare yet." in found.text
    assert found.charts == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_has_nothing_to_complain_about(lively: Any, chromium: Any, width: int):
    path = write_report(lively.run, measure(lively.run))
    chromium.size(width, 900)
    chromium.scheme("light")
    chromium.open(path)
    drawn = "document.querySelectorAll('.chart .main-svg').length >= document.querySelectorAll('.chart').length"
    chromium.await_true(drawn)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    light = chromium.value(INK)
    chromium.scheme("dark")
    chromium.await_true(f"{INK} !== {json.dumps(light)}")  # it follows the reader's choice
    assert chromium.errors == []
    assert {url.split(":")[0] for url in chromium.requests} <= {"file", "data"}


INK = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"


def test_a_browser_would_be_heard_complaining(chromium: Any, tmp_path: Any):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>nowhere()</script><img src='https://example.invalid/a.png'>")
    chromium.open(page)
    chromium.await_true("true")
    assert any("nowhere" in error for error in chromium.errors)
    assert "https://example.invalid/a.png" in chromium.requests
