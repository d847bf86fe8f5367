"""What containers run that is no program of ours: scripts and probes."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.k8s.manifests import Object, at, containers

pytestmark = pytest.mark.k8s
ROOT = Path(__file__).resolve().parents[2]
Rendered = Callable[[str], list[Object]]


def test_retention_deletes_the_days_that_are_too_old_and_nothing_else(tmp_path: Path) -> None:
    days = ["events/date=2026-08-23", "events/date=2026-08-24", "damaged/topic=events/date=2025-12-31"]
    kept = ["events/date=2026-11-22", "damaged/topic=events/date=2026-11-01", "events/date=2027-01-01"]
    for day in (*days, *kept):
        (tmp_path / day / "hour=03").mkdir(parents=True)
        (tmp_path / day / "hour=03" / "p0.parquet").write_bytes(b"x")
    (tmp_path / ".staging").mkdir()
    (tmp_path / ".commit.json").write_text("{}")
    script = str(ROOT / "k8s" / "base" / "cronjobs" / "archive-retention.sh")
    env = os.environ | {"ARCHIVE": str(tmp_path), "KEEP_DAYS": "90", "TODAY": "2026-11-22"}
    done = subprocess.run(["sh", script], env=env, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(f"deleting {tmp_path}/{day}" for day in [days[0], days[2]])
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("date=*")}
    assert left == {days[1], *kept}
    assert (tmp_path / ".commit.json").exists()


def test_retention_of_an_empty_archive_is_no_error(tmp_path: Path) -> None:
    script = str(ROOT / "k8s" / "base" / "cronjobs" / "archive-retention.sh")
    env = os.environ | {"ARCHIVE": str(tmp_path), "KEEP_DAYS": "90"}
    subprocess.run(["sh", script], env=env, check=True)


def heartbeat_probes(objects: list[Object]) -> list[tuple[str, list[str], int]]:
    found = []
    for pod, container in containers(objects):
        command = at(container, ("livenessProbe", "exec", "command"))
        if command is not None:
            minutes = re.search(r"-mmin -(\d+)", str(command))
            assert minutes, command
            found.append((pod.name, command, int(minutes[1])))
    return found


def test_a_heart_that_stopped_is_told_from_one_that_beats(rendered: Rendered, tmp_path: Path) -> None:
    probes = heartbeat_probes(rendered("prod"))
    owners = {f"StatefulSet {name}" for name in ("stream", "trainer", "archiver")}
    owners |= {"Deployment version-controller", "Deployment monitor"}
    assert {owner for owner, _, _ in probes} == owners
    for _, command, minutes in probes:
        file = tmp_path / "heartbeat"
        here = [word.replace("/tmp/heartbeat", str(file)) for word in command]
        file.touch()
        assert subprocess.run(here, check=False).returncode == 0
        long_ago = time.time() - 60 * minutes - 90
        os.utime(file, (long_ago, long_ago))
        assert subprocess.run(here, check=False).returncode != 0
        file.unlink()
        assert subprocess.run(here, check=False, stderr=subprocess.DEVNULL).returncode != 0


def test_tf_serving_waits_until_there_are_models(rendered: Rendered, tmp_path: Path) -> None:
    [command] = [c["command"] for _, c in containers(rendered("prod")) if c["name"] == "await-models"]
    here = [word.replace("/models/", f"{tmp_path}/") for word in command]
    with subprocess.Popen(here) as waiting:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.3)
            (tmp_path / "models.config").write_text("model_config_list {}")
            assert waiting.wait(250) == 0
        finally:
            waiting.kill()


def test_secrets_are_other_ones_each_time_and_of_the_prefix_that_was_asked_for() -> None:
    script = str(ROOT / "k8s" / "make-secrets.sh")
    first, second = (subprocess.run([script, "feed"], capture_output=True, text=True, check=True).stdout for _ in "12")
    assert first != second
    assert "~feed:ptr:*" in first
    wrong = subprocess.run([script, "a b"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "expected the kv_prefix of a feature config, found 'a b'" in wrong.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "k8s").rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    shell = "bash" if script.read_text().startswith("#!/usr/bin/env bash") else "sh"
    subprocess.run([shell, "-n", str(script)], check=True)
