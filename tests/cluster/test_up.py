"""`make up`, the drill and `make down`: the production shape from the manifests, watched by Prometheus, and gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.leftovers import left
from cluster.record import Record, read_record
from cluster.watching import alert_states, query
from pageturn.supervisor import read_journal
from tests.conftest import ROOT, missing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
JOBS = {"agent", "monitor", "stream", "trainer", "version-controller"}
SAID = [
    "pages decided by a policy",
    "a learned version served",
    "trainer is stopped",
    "PageturnTrainerDown fires",
    "it would tell: tickets",
    "trainer is started",
    "PageturnTrainerDown is resolved",
    "Alertmanager knows",
]


def run(*words: str | Path) -> str:
    command = [sys.executable, "-m", "cluster", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shape(kafka_jars: Path, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None:
        missing("prometheus", "prometheus or prometheus-alertmanager is not on the PATH")
    folder = tmp_path_factory.mktemp("shape") / "up"
    try:
        said = run("up", "--folder", folder, "--overlay", "prod", "--factor", "0.01", "--visits-per-s", "5")
        assert said.splitlines()[-1].startswith(f"up: {folder}; Prometheus at ")
        yield folder
    finally:
        run("down", "--folder", folder)


def value(record: Record, expression: str) -> float:
    found = query(record.prometheus, expression)
    assert found is not None, expression
    return found


def test_an_alert_fires_on_purpose_and_is_resolved(shape: Path) -> None:
    said = run("drill", "--folder", shape)
    places = [said.find(what) for what in SAID]
    assert -1 not in places, said
    assert places == sorted(places), said
    assert "PageturnTrainerDown" not in alert_states(read_record(shape).prometheus)


def test_every_process_of_the_shape_is_watched_and_none_has_fallen(shape: Path) -> None:
    record = read_record(shape)
    assert {job for job in JOBS if value(record, f'up{{job="{job}"}}') == 1} == JOBS
    assert value(record, "sum(pageturn_agent_events_dropped_total) or vector(0)") == 0
    assert value(record, 'sum(pageturn_monitor_records_total{topic="dead_letters"}) or vector(0)') == 0
    journal = list(read_journal(shape / "logs" / "parts.jsonl"))
    assert {event.part for event in journal} >= {*JOBS, "kafka", "redis", "tf-serving", "archiver", "prometheus"}


def test_down_leaves_nothing_behind(shape: Path) -> None:
    assert left(shape)
    assert run("down", "--folder", shape) == "down; nothing of it is left\n"
    assert left(shape) == []
    assert not shape.exists()


def test_what_does_not_come_up_leaves_nothing_behind(kafka_jars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    command = [sys.executable, "-m", "cluster", "up", "--folder", str(folder), "--overlay", "production"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert "expected the overlay" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert left(folder) == []
