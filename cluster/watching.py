"""Prometheus and Alertmanager on this machine, with the rules, targets and routes of the manifests."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.place import Place, port_of
from pageturn.supervisor import Part
from pipeline.errors import PageturnError
from pipeline.serving.launch import uses_real_binary
from tests.k8s.manifests import Object, Objects, copied, matches, of_kind, pods

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEAST_S = 1.0  # between two looks
_EVALUATE_S = 15.0  # what the Prometheus operator and most installations have, give or take
_REPLY_S = 10.0


class ToolError(PageturnError):
    """A program is not installed."""


def seconds(duration: str) -> float:
    """Of one unit: 90s, 10m, 1h."""
    unit = duration.lstrip("0123456789.")
    return float(duration.removesuffix(unit)) * _UNITS[unit]


def rules(objects: Objects, factor: float) -> str:
    """Those of the manifests; what an alert waits until it fires is multiplied by the factor, and nothing else is."""
    groups = [group for rule in of_kind(copied(objects), "PrometheusRule") for group in rule["spec"]["groups"]]
    for group in groups:
        for rule in group["rules"]:
            rule["for"] = f"{round(1000 * factor * seconds(rule['for']))}ms"
    return yaml.safe_dump({"groups": groups}, sort_keys=False)


def scraping(objects: Objects, place: Place, alertmanager_port: int, factor: float) -> str:
    jobs = [*_pod_jobs(objects, place, factor)]
    if uses_real_binary():  # the stand-in has no REST port
        jobs += _service_jobs(objects, place, factor)
    every = f"{max(_EVALUATE_S * factor, _LEAST_S):g}s"
    return yaml.safe_dump(
        {
            "global": {"evaluation_interval": every, "scrape_interval": every},
            "rule_files": ["rules.yaml"],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]},
            "scrape_configs": jobs,
        },
        sort_keys=False,
    )


def _pod_jobs(objects: Objects, place: Place, factor: float) -> Iterator[Object]:
    for monitor in of_kind(objects, "PodMonitor"):
        for pod in pods(objects):
            if matches(monitor["spec"]["selector"], pod.labels):
                for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                    port = place.port(pod, port_of(pod, endpoint["port"]))
                    yield _job(pod.labels[monitor["spec"]["jobLabel"]], port, endpoint, factor)


def _service_jobs(objects: Objects, place: Place, factor: float) -> Iterator[Object]:
    for monitor in of_kind(objects, "ServiceMonitor"):
        for service in of_kind(objects, "Service"):
            if matches(monitor["spec"]["selector"], service["metadata"].get("labels") or {}):
                [pod] = [p for p in pods(objects) if matches({"matchLabels": service["spec"]["selector"]}, p.labels)]
                for endpoint in monitor["spec"]["endpoints"]:
                    port = place.port(pod, port_of(pod, endpoint["port"]))
                    yield _job(service["metadata"]["name"], port, endpoint, factor)


def _job(name: str, port: int, endpoint: Object, factor: float) -> Object:
    every_s = max(seconds(endpoint.get("interval", "15s")) * factor, _LEAST_S)
    return {
        "job_name": name,
        "metrics_path": endpoint.get("path", "/metrics"),
        "scrape_interval": f"{every_s:g}s",
        "scrape_timeout": f"{every_s:g}s",
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        **({"metric_relabel_configs": _relabelled(endpoint)} if "metricRelabelings" in endpoint else {}),
    }


def _relabelled(endpoint: Object) -> list[Object]:
    """The operator's spelling, in Prometheus' own."""
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return [{names.get(key, key): value for key, value in rule.items()} for rule in endpoint["metricRelabelings"]]


def routes(text: str) -> str:
    """Of Alertmanager's config: whoever would be told is named, but nobody is called."""
    config = yaml.safe_load(text)
    config["receivers"] = [{"name": receiver["name"]} for receiver in config["receivers"]]
    return yaml.safe_dump(config, sort_keys=False)


# Processes -------------------------------------------------------------------------------------------------------


def prometheus(folder: Path, port: int) -> Part:
    words = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    return Part("prometheus", [_program("prometheus"), *words, f"--web.listen-address=127.0.0.1:{port}"])


def alertmanager(folder: Path, port: int) -> Part:
    words = [f"--config.file={folder}/alertmanager.yaml", f"--storage.path={folder}/alertmanager", "--log.level=warn"]
    program = _program("alertmanager", "prometheus-alertmanager")  # the latter: Debian's
    return Part(
        "alertmanager", [program, *words, f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    )


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        message = f"expected {' or '.join(names)} on the PATH, found none; Debian: prometheus, prometheus-alertmanager"
        raise ToolError(message)
    return found


# What they say ---------------------------------------------------------------------------------------------------


def query(port: int, expression: str) -> float | None:
    """The value of an instant query that has one; None where there is no such series. OSError: out of reach."""
    result = _get(port, f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def alert_states(port: int) -> dict[str, str]:
    """Alerts that are pending or firing, by name: Prometheus' own API."""
    return {alert["labels"]["alertname"]: alert["state"] for alert in _get(port, "/api/v1/alerts")["data"]["alerts"]}


def told(port: int) -> dict[str, list[str]]:
    """Alertmanager's: alerts that are active, by name, and whom it would tell."""
    return {
        alert["labels"]["alertname"]: [receiver["name"] for receiver in alert["receivers"]]
        for alert in _get(port, "/api/v2/alerts?active=true")
    }


def _get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_REPLY_S) as reply:
        return json.load(reply)
