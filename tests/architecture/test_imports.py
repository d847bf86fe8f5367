"""The folders are the architecture: who may import whom, and which framework stays in which room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pageturn", "pipeline", "model_export")

VOCABULARY = {"pipeline.durable", "pipeline.errors", "pipeline.records", "pipeline.signals"}
GROUND = {
    "pipeline.config",
    "pipeline.logs",
    "pipeline.stores",
    "pipeline.serving",
    "pipeline.monitoring",
    "pipeline.ranking",
}
MIDDLE = {"pipeline.features", "pipeline.transitions", "pipeline.exploration", "pipeline.events"}
UPPER = {"pipeline.agent", "pipeline.streaming", "pipeline.learning"}
FLOORS = (VOCABULARY, GROUND, MIDDLE, UPPER, {"model_export", "pipeline.simulation"}, {"pageturn"})

FRAMEWORKS = {
    "apache_beam": ("pipeline.streaming",),
    "tensorflow": ("pipeline.learning", "model_export.export", "pipeline.serving.standin"),
    "tensorflow_serving": ("model_export.export", "pipeline.serving.standin", "pipeline.serving.build_descriptors"),
    "confluent_kafka": ("pipeline.logs.kafka",),
    "prometheus_client": ("pipeline.monitoring",),
    "redis": ("pipeline.stores",),
    "gymnasium": ("pipeline.simulation.env",),
    "ruamel": ("pipeline.config",),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in p.name]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {room(module_name(p)) for p in sources()} - {"pipeline"}
    assert rooms <= set().union(*FLOORS), rooms - set().union(*FLOORS)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_arrows_point_down(path: Path) -> None:
    here = room(module_name(path))
    if here == "pipeline":
        return
    for target in imports_of(path):
        if target.split(".")[0] not in PACKAGES or room(target) == here:
            continue
        there = room(target)
        peers = {here, there} <= MIDDLE or {here, there} <= VOCABULARY
        assert floor(there) < floor(here) or peers, f"{module_name(path)} imports {target}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    here = module_name(path)
    for target in imports_of(path):
        allowed = FRAMEWORKS.get(target.split(".")[0])
        if allowed is not None:
            assert any(here == a or here.startswith(a + ".") for a in allowed), f"{here} imports {target}"


HEAVY = ("tensorflow", "apache_beam", "keras")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pipeline.agent.service", HEAVY),
        ("pipeline.streaming.run", ("tensorflow", "keras")),
        ("pipeline.streaming.archiver", HEAVY),
        ("model_export.controller", HEAVY),
        ("pipeline.features.encoder", (*HEAVY, "grpc", "redis")),
        ("pipeline.transitions.session", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.events", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.records", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.exploration", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.ranking.activeness", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.ranking.comparing", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.ranking.interleaving", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.ranking.perturbing", (*HEAVY, "grpc", "redis")),
        ("pipeline.config.reading", (*HEAVY, "grpc", "redis", "numpy")),
        ("pipeline.logs.opening", (*HEAVY, "confluent_kafka")),
        ("pageturn.__main__", (*HEAVY, "redis")),
    ],
)
def test_a_fresh_interpreter_loads_only_what_it_needs(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(m for m in {forbidden!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", ["model_export", "pipeline/agent", "pipeline/learning"])
def test_a_large_package_says_where_to_find_what(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    named = set(re.findall(r"[a-z_0-9]+", ast.get_docstring(tree) or ""))
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert not modules - named
