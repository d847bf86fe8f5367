"""Grafana's dashboard: that of the table, of metrics that exist, and of whichever Prometheus is chosen."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.k8s.dashboards import FILE, dashboard
from tests.unit.test_alerts import KNOWN, tool, unknown

SHOWN: dict[str, Any] = json.loads(FILE.read_text())
PANELS = [panel for panel in SHOWN["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


def test_the_file_is_that_of_the_table() -> None:
    assert FILE.read_text() == dashboard(), "run `make dashboards`"


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_query_is_of_metrics_that_exist_by_labels_that_they_have(title: str, target: dict[str, Any]) -> None:
    expression = target["expr"]
    names = re.findall(r"pageturn_[a-z_]+", expression)
    assert names
    assert unknown(expression) == []
    labels = set.union(*(KNOWN[name] for name in names)) | {"instance"}
    grouped = {each.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for each in group.split(",")}
    assert grouped <= labels
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"q:{i}", "expr": target["expr"]} for i, (_, target) in enumerate(QUERIES)]
    file = tmp_path / "rules.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump({"groups": [{"name": "q", "rules": rules}]}, stream)
    done = tool("promtool", "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_source_of_the_data_is_chosen_on_the_page() -> None:
    [variable] = SHOWN["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    sources = [panel["datasource"] for panel in PANELS] + [target["datasource"] for _, target in QUERIES]
    assert {source["uid"] for source in sources} == {"${datasource}"}


def test_no_panel_lies_on_another() -> None:
    ids = [panel["id"] for panel in SHOWN["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations((panel["gridPos"] for panel in SHOWN["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
