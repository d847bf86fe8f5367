"""The example that turns the second tier of checks on, and what a deployment needs for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.reading import load_config
from tests.k8s import contract, references, values
from tests.k8s.commands import commands
from tests.k8s.contract import mounted_config, option
from tests.k8s.manifests import Objects, load

ROOT = Path(__file__).resolve().parents[2]
PLAIN, CERTIFIED = (ROOT / "feature_configs" / folder / "guess_you_like.yaml" for folder in (".", "certified"))
OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{prod}]
components: [{component}]
"""


def uncertified(objects: Objects) -> Iterator[str]:
    """Controllers that are to gather evidence, and cannot."""
    for command in commands(objects):
        if command.is_ours and command.args[0] == "control":
            config = mounted_config(command, str(option(command, "--config")), objects)
            if config.publish.certification and option(command, "--log") is None:
                yield f"{command.where}: expected --log, where the evidence is"


def test_it_is_the_plain_example_and_one_more_block() -> None:
    assert CERTIFIED.read_text().startswith(PLAIN.read_text())
    assert load_config(PLAIN).publish.certification is None
    assert load_config(CERTIFIED).publish.certification is not None


@pytest.fixture
def certified(render: Callable[[Path], str], tmp_path: Path) -> list[dict[str, Any]]:
    """Production with the component, as an overlay would have it."""
    places = {"prod": ROOT / "k8s" / "overlays" / "prod", "component": CERTIFIED.parent}
    paths = {name: os.path.relpath(path, tmp_path.resolve()) for name, path in places.items()}
    (tmp_path / "kustomization.yaml").write_text(OVERLAY.format(**paths))
    return load(render(tmp_path))


@pytest.mark.k8s
def test_an_overlay_takes_it_and_the_controller_finds_the_evidence(certified: list[dict[str, Any]]) -> None:
    assert [problem for module in (references, values, contract) for problem in module.check(certified)] == []
    [control] = [c for c in commands(certified) if c.is_ours and c.args[0] == "control"]
    assert mounted_config(control, str(option(control, "--config")), certified) == load_config(CERTIFIED)
    assert list(uncertified(certified)) == []
    control.container["args"] = [word for word in control.container["args"] if not word.startswith("--log")]
    assert list(uncertified(certified)) == [f"{control.where}: expected --log, where the evidence is"]
