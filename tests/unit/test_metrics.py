"""Metrics: what they add up to, how they are named, and that Prometheus' own parser reads them off the port."""

from __future__ import annotations

import re
import socket
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pageturn.metrics_table import markdown
from pipeline.monitoring.catalogue import AGENT, CONTROLLER, PROCESSES, TRAINER, Kind
from pipeline.monitoring.metrics import Metrics, MetricsError, exposed

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def scraped(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=250) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_counts_add_up_over_the_labels_that_are_not_given() -> None:
    metrics = Metrics(AGENT)
    metrics.count("decisions", policy="rl", decided_by="policy")
    metrics.count("decisions", 2, policy="base", decided_by="baseline")
    assert metrics.total("decisions") == 3
    assert metrics.total("decisions", policy="rl") == 1
    assert metrics.total("retries") == 0


def test_a_count_kept_elsewhere_is_followed_and_never_falls() -> None:
    metrics = Metrics(TRAINER)
    for total in (100, 150, 120, 130):  # back to a checkpoint, and on again
        metrics.count_to("transitions", total)
    assert metrics.total("transitions") == 160


def test_what_the_catalogue_does_not_have_is_an_error() -> None:
    metrics = Metrics(AGENT)
    with pytest.raises(KeyError):
        metrics.count("decision")
    with pytest.raises(ValueError, match="label"):
        metrics.count("decisions", policy="rl")


def test_prometheus_reads_them_off_the_port() -> None:
    metrics = Metrics(AGENT)
    metrics.count("decisions", policy="rl", decided_by="policy")
    metrics.observe("decide_seconds", 0.0006, form="one")
    metrics.gauge("served_version", 7, policy="rl")
    with exposed(metrics, "127.0.0.1:0") as port:
        found = scraped(port)
    labels = frozenset({("policy", "rl"), ("decided_by", "policy")})
    assert found["pageturn_agent_decisions_total", labels] == 1
    assert found["pageturn_agent_served_version", frozenset({("policy", "rl")})] == 7
    buckets = {dict(its)["le"]: v for (name, its), v in found.items() if name == "pageturn_agent_decide_seconds_bucket"}
    assert (buckets["0.0005"], buckets["0.001"], buckets["+Inf"]) == (0, 1, 1)
    assert found["process_resident_memory_bytes", frozenset()] > 0


def test_the_port_is_closed_afterwards() -> None:
    with exposed(Metrics(AGENT), "127.0.0.1:0") as port:
        pass
    with closing(socket.socket()) as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0


def test_without_an_address_there_is_no_port() -> None:
    with exposed(Metrics(AGENT), None) as port:
        assert port is None


@pytest.mark.parametrize("address", ["9100", "host:", "host:70000", "http://host:1"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    with pytest.raises(MetricsError, match="expected HOST:PORT"), exposed(Metrics(AGENT), address):
        pass


def test_a_port_that_is_taken_is_explained() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MetricsError, match=rf"{address}: cannot listen: Address already in use"):
            exposed(Metrics(CONTROLLER), address).__enter__()


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_names_follow_the_conventions(process) -> None:
    """Prometheus, "Metric and label naming": base units, `_total` on counters only, snake case."""
    names = [process.full_name(family) for family in process.families]
    assert len(set(names)) == len(names)
    for family, name in zip(process.families, names, strict=True):
        assert re.fullmatch(r"pageturn(_[a-z]+)+", name)
        assert name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert not re.search(r"_(ms|milliseconds|kb|percent)\b", name)
        assert family.help.endswith(".")


def test_the_documentation_is_the_catalogue() -> None:
    assert markdown() in DOCS.read_text(), "docs/metrics.md is out of date: `make metrics`"
