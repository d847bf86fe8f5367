"""`pageturn versions` and `pageturn verdict`, on what a controller has left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model_export.switches import pin
from pageturn.__main__ import main
from pageturn.run import new_run
from tests.conftest import ROOT


@pytest.fixture
def judged(world: Any) -> Any:
    """Version 2 is served, a jump was refused."""
    world.bootstrap()
    world.candidate(50, bias=1.2)
    world.run()
    world.candidate(90, bias=3.9)
    world.run()
    return world


def said(world: Any, *words: str, status: int = 0) -> str:
    done = CliRunner().invoke(main, [*words, "--models", str(world.models)])
    assert done.exit_code == status, done.output
    return done.output


def test_versions_with_when_what_of_and_what_as(judged: Any) -> None:
    rows = [line.split() for line in said(judged, "versions", "rl").splitlines()[-2:]]
    assert [(row[0], row[5], row[6]) for row in rows] == [
        ("1", f"{0:012d}", "previous"),
        ("2", f"{50:012d}", "stable"),
    ]
    assert (rows[0][1], rows[0][1:3]) == ("1970-01-01", rows[0][3:5])
    assert said(judged, "versions", "rl", "--newest", "1").count("stable") == 1
    assert "previous" not in said(judged, "versions", "rl", "--newest", "1")


def test_a_pinned_version_is_told_from_the_others(judged: Any) -> None:
    pin(judged.store, "fd", "rl", to=1)
    judged.run()
    rows = [line.rstrip() for line in said(judged, "versions", "rl").splitlines()[-2:]]
    assert [row.split("  ")[-1] for row in rows] == ["stable, pinned", "previous"]


def test_a_verdict_by_version_or_by_candidate_with_every_number(judged: Any) -> None:
    by_version = said(judged, "verdict", "rl", "2")
    assert by_version == said(judged, "verdict", "rl", f"{50:012d}")
    assert by_version.startswith(f"rl {50:012d}: accepted\n")
    refused = said(judged, "verdict", "rl", f"{90:012d}")
    assert "reason         step_change" in refused
    [failed] = [line.split() for line in refused.splitlines() if line.startswith("FAILED")][:1]
    assert failed[1:3] == ["step_change", "0.675"]
    assert " ".join(failed[3:]) == "<= 0.2 (n = 3); against version 2"


def test_what_is_not_there_is_said(judged: Any) -> None:
    assert "no verdict on '9' of rl" in said(judged, "verdict", "rl", "9", status=1)
    assert "expected verdicts on policy 'other', found none" in said(judged, "versions", "other", status=1)


def test_of_a_run_it_is_the_model_volume_there(judged: Any, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ROOT / "feature_configs" / "simulated.yaml")
    run.models.symlink_to(judged.models)
    for words in (["versions", "rl"], ["verdict", "rl", "2"]):
        done = CliRunner().invoke(main, [*words, "--run", str(run.folder)])
        assert done.output == said(judged, *words)
    assert "--models or --run, found both" in said(judged, "versions", "rl", "--run", str(run.folder), status=2)
