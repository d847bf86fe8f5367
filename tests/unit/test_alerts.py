"""Alert rules: Prometheus' own tools accept and test them, every metric in them exists, and each has its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.monitoring.catalogue import PROCESSES, Kind
from tests.conftest import ROOT, missing

MONITORING = ROOT / "k8s" / "monitoring"
RULES = MONITORING / "rules" / "pageturn.yaml"
TESTS = MONITORING / "rules_test" / "pageturn.yaml"
SUFFIXES = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
KNOWN = {
    process.full_name(family) + suffix: {*family.labels, *(("le",) if suffix == "_bucket" else ())}
    for process in PROCESSES
    for family in process.families
    for suffix in SUFFIXES[family.kind]
}


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(name) is None:
        missing("prometheus", f"{name} is not on the PATH")
    return subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def alerts() -> list[dict]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def unknown(expression: str) -> list[str]:
    """Metrics of ours that no process has, and labels that they do not have."""
    found = re.findall(r"(pageturn_[a-z_]+)(?:\{([^}]*)\})?", expression)
    wrong = [name for name, _ in found if name not in KNOWN]
    for name, matchers in found:
        labels = re.findall(r"([a-z_]+)\s*[=!]", matchers)
        wrong += [f"{name}.{label}" for label in labels if name in KNOWN and label not in KNOWN[name]]
    return wrong


def test_prometheus_accepts_the_rules() -> None:
    done = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_beside() -> None:
    done = tool("promtool", "test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    """A misspelt metric is valid PromQL; only the tests see it."""
    for folder in ("rules", "rules_test"):
        (tmp_path / folder).mkdir()
    text = RULES.read_text().replace("pageturn_controller_holds_lease", "pageturn_controller_hold_lease")
    (tmp_path / "rules" / RULES.name).write_text(text)
    shutil.copy(TESTS, tmp_path / "rules_test")
    assert tool("promtool", "test", "rules", tmp_path / "rules_test" / TESTS.name).returncode == 1


@pytest.mark.parametrize("alert", alerts(), ids=lambda a: a["alert"])
def test_an_alert_is_made_of_metrics_that_exist_and_says_what_to_do(alert: dict) -> None:
    assert unknown(alert["expr"]) == []
    assert "for" in alert
    assert alert["labels"]["severity"] in {"page", "ticket"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    assert f"\n## {alert['alert']}\n" in (ROOT / page).read_text()


def test_each_alert_is_tested_both_ways() -> None:
    cases = [case for test in YAML(typ="safe").load(TESTS)["tests"] for case in test["alert_rule_test"]]
    for alert in alerts():
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == alert["alert"]}
        beside = alert["alert"] in {"PageturnFallbacks", "PageturnCandidatesRefused", "PageturnPolicyEarnsLess"}
        assert fires == ({True} if beside else {True, False}), alert["alert"]  # beside: another policy stays quiet


def test_runbooks_are_for_alerts_that_exist() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alert["alert"] for alert in alerts())


def test_what_the_documentation_asks_prometheus_is_valid_and_about_metrics_that_exist(tmp_path: Path) -> None:
    rows = re.findall(r"^\| .+\? \| (.+) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    queries = [query for row in rows for query in re.findall(r"`([^`]+)`", row)]
    assert len(queries) >= 8
    assert [wrong for query in queries for wrong in unknown(query)] == []
    rules = {"groups": [{"name": "q", "rules": [{"record": f"q:{i}", "expr": q} for i, q in enumerate(queries)]}]}
    file = tmp_path / "rules.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(rules, stream)
    done = tool("promtool", "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_accepts_the_example_and_wakes_nobody_for_a_ticket() -> None:
    config = MONITORING / "alertmanager.yaml"
    done = tool("amtool", "check-config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    for severity, receiver in (("page", "on-call"), ("ticket", "tickets")):
        routed = tool("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}")
        assert routed.stdout.split() == [receiver]
    text = config.read_text()
    inhibited = re.findall(r"Pageturn\w+", text)
    assert set(inhibited) <= {alert["alert"] for alert in alerts()}
