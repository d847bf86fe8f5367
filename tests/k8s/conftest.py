"""The manifests as kustomize renders them, and the tools that look at them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.k8s.manifests import Object, copied, load
from tests.k8s.schemas import ROOT, TOOLS, crd_file

OVERLAYS = ("dev", "staging", "prod", "prod-flink")


@pytest.fixture(scope="session")
def k8s_tools() -> Path:
    if not (TOOLS / ".ready").exists():
        missing("k8s", f"`make k8s-tools` has not put the tools into {TOOLS}")
    return TOOLS


@pytest.fixture(scope="session")
def crds() -> Path:
    path = crd_file()
    if path is None:
        missing(
            "crds",
            "no file with the schemas of custom resources: PAGETURN_CRD_SCHEMAS names none, none is in ../shared",
        )
    assert path is not None
    return path


@pytest.fixture(scope="session")
def render(k8s_tools: Path) -> Callable[[Path], str]:
    def rendered(folder: Path) -> str:
        command = [str(k8s_tools / "bin" / "kustomize"), "build", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # warnings of fields that will go
        return done.stdout

    return rendered


@pytest.fixture(scope="session")
def rendered(render: Callable[[Path], str]) -> Callable[[str], list[Object]]:
    """The objects of an overlay, by its name; a copy each time."""

    @functools.cache
    def once(overlay: str) -> list[Object]:
        return load(render(ROOT / "k8s" / "overlays" / overlay))

    return lambda overlay: copied(once(overlay))
