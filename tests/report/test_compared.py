"""Several runs on one page: their lifts, their settings, their curves; and without a complaint from a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pageturn.__main__ import main
from pageturn.measuring.differences import differences
from pageturn.report import write_comparison
from pipeline.config.reading import parse_config


@pytest.fixture
def others(lively: Any, tmp_path: Path) -> list[Any]:
    """Three runs: a lively one; one that learned less, by other settings; one that has just begun."""
    slower = type(lively)(tmp_path / "slower")
    for bucket, reward in (("control", 1.0), ("rl_a", 1.5), ("rl_b", 1.5)):
        slower.visits(bucket, *(reward + n % 3 for n in range(40)), every_s=4)
    row = {"time_ms": slower.start_ms, "transitions": 64, "updates": 8, "value_loss": 0.5, "advantage_mean/rl_a": 0.1}
    slower.learned(row)
    path = slower.run.config_path
    path.write_text(path.read_text().replace("learning_rate: 3e-4", "learning_rate: 1e-3"))
    return [lively, slower, type(lively)(tmp_path / "begun")]


def compare(made: list[Any]) -> str:
    return write_comparison([each.run for each in made]).read_text()


def figures_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_lifts_are_side_by_side_and_against_the_first(others: list[Any]) -> None:
    figures = figures_of(compare(others))
    (lifts,) = figures["lifts"]["data"]
    assert lifts["y"] == ["slower", "made"]  # from the bottom up
    assert lifts["x"] == pytest.approx([0.5, 0.75])
    by_run = {trace["name"]: trace for trace in figures["buckets"]["data"]}
    assert by_run.keys() == {"made", "slower"}  # nobody came to the third
    assert by_run["slower"]["y"] == pytest.approx([39 / 40 + 1, 39 / 40 + 1.5, 39 / 40 + 1.5], abs=0.02)
    beyond = re.search(r"beyond that of made</th><td>–</td><td>(-0\.25[^<]*)</td><td>–</td>", compare(others))
    assert beyond
    assert "[" in beyond[1]


def test_curves_are_by_transitions_of_whoever_measured_them(others: list[Any]) -> None:
    figures = figures_of(compare(others))
    both = {trace["name"]: trace for trace in figures["value_loss"]["data"]}
    assert (both["slower"]["x"], both["slower"]["y"]) == ([64], [0.5])
    assert both["made"]["x"][:2] == [64, 128]
    (one,) = figures["actor_loss-rl_a"]["data"]
    assert one["name"] == "made"
    assert "q_loss-rl_a" not in figures


def test_settings_that_differ_are_named(others: list[Any]) -> None:
    page = compare(others)
    assert re.search(r"algorithm.learning_rate</th><td>0.0003</td><td>0.001</td><td>0.0003</td>", page)
    assert "algorithm.gamma" not in page
    assert "the same" in compare([others[0], others[2]])


def test_one_more_feature_is_one_difference(others: list[Any]) -> None:
    text = others[0].run.config_path.read_text()
    more = "features:\n  - {name: age, kind: dense, source: user.age, missing: {fill: 0}}\n"
    found = differences([parse_config(text), parse_config(text.replace("features:\n", more, 1))])
    assert {path.partition(".")[0] for path, _ in found} == {"features[age]"}
    assert all(before == "–" for _, (before, _) in found)


def test_a_setting_by_default_is_no_difference(others: list[Any]) -> None:
    text = others[0].run.config_path.read_text()
    assert differences([parse_config(text), parse_config(text.replace("gamma: 0.95", "gamma: 0.95\n  seeds: 1"))]) == ()


def test_the_command_compares_runs_and_says_what_it_wants(others: list[Any], tmp_path: Path) -> None:
    folders = [str(each.run.folder) for each in others]
    done = CliRunner().invoke(main, ["report", *folders, "--to", str(tmp_path / "here")])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "here" / "compared.html")
    assert (tmp_path / "here" / "plotly.min.js").exists()
    one = CliRunner().invoke(main, ["report", folders[0]])
    assert one.output.strip() == str(others[0].run.report / "index.html")
    both = CliRunner().invoke(main, ["report", folders[0], "--run", folders[1]])
    assert both.exit_code == 2
    assert "expected one run" in both.output
    none = CliRunner().invoke(main, ["report", folders[0], str(tmp_path)])
    assert "expected the folder of a run" in none.output


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_has_nothing_to_complain_about(others: list[Any], chromium: Any, width: int) -> None:
    path = write_comparison([each.run for each in others])
    chromium.size(width, 900)
    chromium.open(path)
    drawn = "document.querySelectorAll('.chart .main-svg').length >= document.querySelectorAll('.chart').length"
    chromium.await_true(drawn)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.errors == []
    assert {url.split(":")[0] for url in chromium.requests} <= {"file", "data"}
