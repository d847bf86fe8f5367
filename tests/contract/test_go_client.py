"""The client for Go, built and run against the agent service."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.agent.access import TokenGate
from pipeline.agent.service import ServiceSettings, serve
from pipeline.records import DecidedBy, FeedbackKind
from pipeline.serving.launch import free_ports
from pipeline.serving.tls import server_credentials
from tests.conftest import ROOT, missing
from tests.contract.test_access import TOKEN, identity, ours
from tests.contract.test_agent_service import LONG_S, TREATED, World

CLIENT = ROOT / "clients" / "go"
BUILD_S = 800.0  # from nothing, on a slow machine
pytestmark = pytest.mark.timeout(1_000)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def go() -> str:
    found = shutil.which("go")
    if found is None:
        missing("go", "go is not on the PATH")
    return str(found)


@pytest.fixture(scope="module")
def example(go: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("go") / "example"
    command = [go, "build", "-mod=readonly", "-o", str(built), "./example"]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    return built


def test_its_own_tests_pass(go: str) -> None:
    command = [go, "test", "-mod=readonly", "-count=1", "."]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def run(example: Path) -> Run:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(example), "-timeout", f"{LONG_S:.0f}s", *words]
        env = os.environ | env
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=BUILD_S, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_a_page_is_decided_and_a_click_on_it_is_in_the_log(world: World, run: Run) -> None:
    running = serve(world.agent, 0, settings=ServiceSettings())
    words = ("-agent", f"127.0.0.1:{running.port}", "-session", TREATED[0], "-request", "r1")
    first, again = (json.loads(run(*words).stdout) for _ in range(2))
    running.stop()
    expected = {"shown": ["y", "x"], "decided_by": "DECIDED_BY_POLICY", "policy": "rl", "model_version": 7}
    assert first == again == expected
    impression, *clicks = sorted(world.events(), key=lambda event: not hasattr(event, "decision"))
    assert (impression.request_id, impression.decision.decided_by) == ("r1", DecidedBy.POLICY)
    assert impression.state.context == {"bits": 2**63}
    assert {(c.event_id, c.request_id, c.session_id, c.kind, c.item_id) for c in clicks} == {
        ("r1-click", "r1", TREATED[0], FeedbackKind.CLICK, "y")
    }
    assert len(clicks) == 2  # the second is the first again: the stream counts it once


def test_without_an_agent_the_rankers_order_is_shown(run: Run) -> None:
    done = run("-agent", f"127.0.0.1:{free_ports(1)[0]}", "-timeout", "2s")
    assert json.loads(done.stdout) == {"shown": ["x", "y"]}
    assert "the ranker's order is shown" in done.stderr


def test_it_speaks_tls_and_shows_a_token(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    credentials = server_credentials(identity(tmp_path / "agent", ours, None))
    running = serve(world.agent, 0, credentials=credentials, gates=[TokenGate(tmp_path / "tokens")])
    ca = identity(tmp_path / "caller", None, ours) / "ca.crt"
    words = ("-agent", f"localhost:{running.port}", "-ca", str(ca), "-session", TREATED[1])
    shown = json.loads(run(*words, "-request", "r2", PAGETURN_TOKEN=TOKEN).stdout)
    refused = run(*words, "-request", "r3", PAGETURN_TOKEN="wrong")
    running.stop()
    assert shown["decided_by"] == "DECIDED_BY_POLICY"
    assert json.loads(refused.stdout) == {"shown": ["x", "y"]}
    assert "Unauthenticated" in refused.stderr


def test_its_messages_are_those_of_the_service(go: str, tmp_path: Path) -> None:
    """`clients/go/generate.sh` makes them anew."""
    command = ["sh", str(CLIENT / "generate.sh"), str(tmp_path)]
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    names = ["agent.pb.go", "agent_grpc.pb.go"]
    assert filecmp.cmpfiles(tmp_path, CLIENT / "agentpb", names, shallow=False) == (names, [], [])
