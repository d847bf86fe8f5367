"""Grafana's dashboard from a table of panels: `python -m tests.k8s.dashboards` writes the file anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parents[2] / "k8s" / "components" / "monitoring" / "dashboards" / "pageturn.json"
_WIDTH, _HEIGHT, _ACROSS = 8, 8, 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    title: str
    unit: str  # one of Grafana's
    queries: tuple[tuple[str, str], ...]  # (legend, PromQL)


def rate(metric: str, by: str = "", window: str = "5m") -> str:
    return f"sum by ({by}) (rate(pageturn_{metric}[{window}]))" if by else f"sum(rate(pageturn_{metric}[{window}]))"


def ratio(part: str, whole: str) -> str:
    """By bucket, over an hour."""
    return f"{rate(part, 'bucket', '1h')} / {rate(whole, 'bucket', '1h')}"


def quantile(q: float, metric: str, by: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'{by}, le' if by else 'le')})"


def increase(metric: str, by: str, window: str) -> str:
    return f"sum by ({by}) (increase(pageturn_{metric}[{window}]))"


def learning(quantity: str) -> str:
    return f'pageturn_trainer_learning{{quantity=~"{quantity}"}}'


def one(title: str, unit: str, legend: str, query: str) -> Panel:
    return Panel(title, unit, ((legend, query),))


_AGE = "time() - pageturn"
_SET_ASIDE = rate("monitor_set_aside_total", "fate, reason")
_EVENTS = rate('monitor_records_total{topic="events"}')
_PER_VISIT = "sum by (bucket) (deriv(pageturn_monitor_reward[1h]))"
_ACTIONS = "agent_action_in_range"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Pages": (
        one("Decided by", "reqps", "{{policy}} {{decided_by}}", rate("agent_decisions_total", "policy, decided_by")),
        one("Fallbacks", "reqps", "{{policy}} {{reason}}", rate("agent_fallbacks_total", "policy, reason")),
        Panel(
            "Time to decide",
            "s",
            (("p50", quantile(0.5, "agent_decide_seconds")), ("p99", quantile(0.99, "agent_decide_seconds"))),
        ),
        one("Predict, p99, by role of the version", "s", "{{role}}", quantile(0.99, "agent_predict_seconds", "role")),
        Panel(
            "Executed actions, of their range",
            "percentunit",
            tuple((f"p{round(100 * q)} {{{{policy}}}}", quantile(q, _ACTIONS, "policy")) for q in (0.1, 0.5, 0.9)),
        ),
        one(
            "Events lost before the log", "short", "{{reason}}", increase("agent_events_dropped_total", "reason", "5m")
        ),
    ),
    "The log": (
        one("Records", "reqps", "{{topic}}", rate("monitor_records_total", "topic")),
        one(
            "Set aside, of all events",
            "percentunit",
            "{{fate}} {{reason}}",
            f"{_SET_ASIDE} / on() group_left() {_EVENTS}",
        ),
        one("Dead letters", "reqps", "{{reason}}", rate("monitor_dead_letters_total", "reason")),
        one("Age of the last record", "s", "{{topic}}", f"{_AGE}_monitor_last_record_timestamp_seconds"),
        Panel(
            "Page to transition",
            "s",
            (("p50", quantile(0.5, "monitor_join_seconds")), ("p99", quantile(0.99, "monitor_join_seconds"))),
        ),
        one("Embedded stream: watermark behind", "s", "{{instance}}", f"{_AGE}_stream_watermark_timestamp_seconds"),
    ),
    "Learning": (
        Panel(
            "Transitions and updates",
            "reqps",
            (("transitions", rate("trainer_transitions_total")), ("updates", rate("trainer_updates_total"))),
        ),
        one(
            "Means of V, and of A by policy", "short", "{{quantity}} {{policy}}", learning("value_mean|advantage_mean")
        ),
        one("Losses", "short", "{{quantity}} {{policy}}", learning(".*_loss")),
        one("Mean action", "short", "{{policy}} {{action}}", learning("action_mean")),
        one("Drift of features (PSI)", "short", "{{feature}}", "pageturn_trainer_feature_drift_psi"),
        Panel(
            "Missing, and out of vocabulary",
            "percentunit",
            (
                ("{{feature}} missing", "pageturn_trainer_feature_missing_share"),
                ("{{feature}} unknown", "pageturn_trainer_out_of_vocabulary_share"),
            ),
        ),
        one(
            "Ids that were given a row",
            "short",
            "{{table}} {{start}}",
            increase("trainer_rows_begun_total", "table, start", "1h"),
        ),
    ),
    "Publishing": (
        one(
            "Verdicts",
            "short",
            "{{policy}} {{outcome}} {{reason}}",
            increase("controller_verdicts_total", "policy, outcome, reason", "15m"),
        ),
        one("Served version", "short", "{{policy}}", "max by (policy) (pageturn_controller_served_version)"),
        one("Served unchanged for", "s", "{{policy}}", f"{_AGE}_controller_served_since_timestamp_seconds"),
        one(
            "Candidate to served, p50",
            "s",
            "{{policy}}",
            quantile(0.5, "controller_candidate_to_served_seconds", "policy"),
        ),
        one("Who publishes", "short", "{{instance}}", "pageturn_controller_holds_lease"),
        one("Since the last checkpoint", "s", "trainer", f"{_AGE}_trainer_checkpoint_timestamp_seconds"),
    ),
    "Users, by bucket": (
        one(
            "Reward per visit",
            "short",
            "{{bucket}}",
            f"{_PER_VISIT} / on(bucket) {rate('monitor_visits_total', 'bucket', '1h')}",
        ),
        one("Users who click", "percentunit", "{{bucket}}", "pageturn_monitor_user_click_rate"),
        one("Pages shown", "percentunit", "{{bucket}}", ratio("monitor_pages_shown_total", "monitor_pages_total")),
        one(
            "With a click", "percentunit", "{{bucket}}", ratio("monitor_pages_with_click_total", "monitor_pages_total")
        ),
        one("Pages per visit", "short", "{{bucket}}", ratio("monitor_visit_pages_sum", "monitor_visit_pages_count")),
        one(
            "Reading time per page shown",
            "s",
            "{{bucket}}",
            ratio("monitor_dwell_seconds_total", "monitor_pages_shown_total"),
        ),
    ),
}


def dashboard() -> str:
    """Grafana's own form of it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": _ACROSS, "h": 1}, "panels": []}
        )
        for i, panel in enumerate(row):
            place = {
                "x": i * _WIDTH % _ACROSS,
                "y": top + 1 + i * _WIDTH // _ACROSS * _HEIGHT,
                "w": _WIDTH,
                "h": _HEIGHT,
            }
            panels.append(_panel(panel, place))
        top += 1 + -(-len(row) * _WIDTH // _ACROSS) * _HEIGHT
    for number, each in enumerate(panels, 1):
        each["id"] = number
    variable = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    whole = {
        "uid": "pageturn", "title": "Pageturn", "tags": ["pageturn"], "schemaVersion": 39, "editable": True,
        "time": {"from": "now-6h", "to": "now"}, "refresh": "30s", "timezone": "browser",
        "templating": {"list": [variable]}, "panels": panels,
    }  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
        for i, (legend, expression) in enumerate(panel.queries)
    ]
    defaults = {"unit": panel.unit, "custom": {"showPoints": "never", "spanNulls": False}}
    return {
        "type": "timeseries", "title": panel.title, "gridPos": place, "datasource": _SOURCE, "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": {"tooltip": {"mode": "multi"}},
    }  # fmt: skip


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(dashboard())
