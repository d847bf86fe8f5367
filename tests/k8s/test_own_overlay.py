"""The overlay that k8s/README.md shows to copy: it renders, and is as sound as ours."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.reading import load_config
from tests.k8s import contract, hardening, network, references, values
from tests.k8s.commands import commands
from tests.k8s.contract import mounted_config, option
from tests.k8s.manifests import Object, load, matches, of_kind

pytestmark = pytest.mark.k8s
ROOT = Path(__file__).resolve().parents[2]
FEED = ROOT / "docs" / "examples" / "feed.yaml"
# What the reader has already: a check knows of no Secret and no service that no manifest makes.
_THERE = re.compile(r"nobody makes a Secret 'kafka-password'$|to b[12]\.example:9093: there is no such service$")
_BLOCK = re.compile(r"^```yaml\n# (k8s/overlays/recipes/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def own(render: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    place = tmp_path_factory.mktemp("clone")
    for folder in ("k8s", "feature_configs", "serving_config"):
        shutil.copytree(ROOT / folder, place / folder)
    overlay = place / "k8s" / "overlays" / "recipes"
    overlay.mkdir()
    shutil.copy(FEED, overlay / "recipes.yaml")
    files = dict(_BLOCK.findall((ROOT / "k8s" / "README.md").read_text()))
    assert len(files) == 2
    for name, text in files.items():
        (place / name).write_text(text)
    rendered = render(overlay)
    assert not re.search(r"image: pageturn/", rendered)
    return load(rendered.replace("registry.example/", ""))  # the checks know our images by their names


@pytest.mark.parametrize("module", [references, values, hardening, network, contract], ids=lambda m: m.__name__[10:])
def test_what_a_reader_copies_is_sound(module: Any, own: list[Object]) -> None:
    assert [problem for problem in module.check(own) if not _THERE.search(problem)] == []


def test_every_process_has_the_readers_config_and_every_client_of_kafka_the_password(own: list[Object]) -> None:
    ours = [command for command in commands(own) if command.is_ours]
    for command in ours:
        if (path := option(command, "--config")) is not None:
            assert mounted_config(command, str(path), own) == load_config(FEED)
    assert len(ours) == 7
    have = {c.args[0] for c in ours for each in c.container.get("env") or () if each["name"].endswith("SASL_PASSWORD")}
    assert have == {command.args[0] for command in ours if option(command, "--log") is not None}


def test_every_client_of_kafka_may_leave_the_namespace(own: list[Object]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(own, "NetworkPolicy")}
    selector = policies["clients-of-kafka"]["podSelector"]
    clients = [each.pod for each in commands(own) if each.is_ours and option(each, "--log") is not None]
    assert [pod.name for pod in clients if not matches(selector, pod.labels)] == []
