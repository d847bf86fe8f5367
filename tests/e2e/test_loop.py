"""The replay of a log, as a user runs it, on a generated one; and what it leaves behind, served again."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.dataset as ds
import pytest
from click.testing import CliRunner, Result

from model_export.candidate import MODEL, PARAMETERS, Candidate, list_candidates, read_candidate
from model_export.verdicts import read_verdicts
from pageturn.__main__ import main
from pageturn.generated import generate
from pipeline.agent.agent import Agent, PageDecision, PageRequest
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.records import DecidedBy, Item, State
from pipeline.serving.client import ModelServer
from pipeline.serving.launch import running_server
from pipeline.stores.opening import open_store

ROOT = Path(__file__).resolve().parents[2]
STOCK_CLIENT = ROOT / "docs" / "examples" / "stock_client.py"
# All pages are the baseline's, which says nothing about other actions. Only a network moves on such a log, by chance:
# then there is something other than 1.0 to serve.
MOVING = "  advantage: network\n  actor_after: 0\n  actor_learning_rate: 1e-2\n"
PATIENCE_S = 250.0  # nothing rests on it
pytestmark = pytest.mark.timeout(900)
LENIENT = "  max_step_change: 1.0\n  max_total_change: 1.0\n  max_at_bounds: 1.0\n"


class Run:
    def __init__(self, folder: Path, result: Result) -> None:
        self.folder, self.output = folder, result.output
        self.config = load_config(folder.parent / "moving.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("loop")
    text = (ROOT / "feature_configs" / "ebnerd.yaml").read_text()
    text = text.replace("  kind: ddpg\n", f"  kind: ddpg\n{MOVING}").replace("publish:\n", f"publish:\n{LENIENT}")
    (base / "moving.yaml").write_text(text)
    generate(base / "data", sessions=300)
    arguments = [
        "replay",
        "--data",
        str(base / "data"),
        "--run",
        str(base / "run"),
        "--config",
        str(base / "moving.yaml"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return Run(base / "run", result)


def cell(output: str, row: str) -> str:
    match = re.search(rf"^ *{re.escape(row)}  +(.*)$", output, re.MULTILINE)
    assert match, f"no row {row!r} in\n{output}"
    return match[1].strip()


def test_the_table_accounts_for_every_event(run: Run) -> None:
    numbers = {row: int(cell(run.output, row)) for row in ("events in", "joined", "open", "lost", "pages", "sessions")}
    assert numbers["sessions"] == 300
    assert numbers["pages"] > 300
    assert numbers["joined"] > numbers["pages"]
    assert numbers["open"] == 1  # the page that the replay decided at the end
    assert numbers["lost"] == 0
    assert int(cell(run.output, "updates")) > 0


def test_a_learned_policy_decided_the_page(run: Run) -> None:
    assert re.search(r"policy rl_[ab], bucket [ab], version 2", cell(run.output, "decided by"))
    assert "far too small to prove a policy" in run.output


def test_every_candidate_has_a_verdict_with_its_numbers(run: Run) -> None:
    verdicts = list(read_verdicts(run.folder / "models"))
    accepted = {v.policy: v for v in verdicts if v.outcome == "accepted" and v.version == 2}
    assert set(accepted) == set(run.config.learned_policies())
    for verdict in accepted.values():
        assert verdict.evidence == "not_enough_evidence"
        assert all(check.passed for check in verdict.checks)
        assert {"finite", "step_change", "total_change", "served_probes"} < {check.name for check in verdict.checks}


def test_status_tells_what_is_served(run: Run) -> None:
    config, store = str(run.folder.parent / "moving.yaml"), f"sqlite:///{run.folder}/store.db"
    arguments = ["status", "--config", config, "--store", store, "--models", str(run.folder / "models")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for policy in run.config.learned_policies():
        assert f"{policy} (ebnerd_{policy})" in result.output
    assert cell(result.output, "serves") == "version 2"
    assert cell(result.output, "loaded") == "1 (previous), 2 (stable)"
    assert cell(result.output, "last verdict").startswith("accepted candidate")


def test_the_archive_is_readable_and_whole(run: Run) -> None:
    transitions = ds.dataset(run.folder / "archive" / "transitions", partitioning="hive").to_table()
    assert transitions.num_rows == int(cell(run.output, "transitions").split()[0])
    samples = ds.dataset(run.folder / "archive" / "samples", partitioning="hive").to_table()
    assert samples.num_rows > transitions.num_rows  # a row per item shown


@pytest.fixture(scope="module")
def served(run: Run) -> Iterator[tuple[Agent, ModelServer]]:
    with running_server(run.folder / "models" / "models.config") as server, ModelServer(server.target) as client:
        store = open_store(f"sqlite:///{run.folder}/store.db")
        with Agent(run.config, store, client, None, agent_id="test") as agent:
            assert agent.wait_ready(PATIENCE_S)
            for policy in run.config.learned_policies():
                await_versions(client, run.config.model_name(policy), {1, 2})
                await_policy(run, agent, policy)
            yield agent, client
        store.close()


def await_versions(client: ModelServer, model: str, versions: set[int]) -> None:
    """The port opens with the highest version; the one before it may still be loading."""
    deadline = time.monotonic() + PATIENCE_S
    while {s.version for s in client.status(model, PATIENCE_S) if s.state == "AVAILABLE"} != versions:
        assert time.monotonic() < deadline, client.status(model, PATIENCE_S)
        time.sleep(0.1)


def await_policy(run: Run, agent: Agent, policy: str) -> None:
    """What an agent could not have of a server a moment ago, it asks for again within a second."""
    state, deadline = newest(run, policy).probes[0].state, time.monotonic() + PATIENCE_S
    for k in itertools.count():
        decision = decide(run, agent, policy, f"first-{policy}-{k}", state).decision
        if decision.decided_by is DecidedBy.POLICY:
            return
        assert time.monotonic() < deadline, decision.fallback_reason
        time.sleep(0.1)


def decide(run: Run, agent: Agent, policy: str, request_id: str, state: State) -> PageDecision:
    items = tuple(Item(f"i{k}", 0.1 * k, 0.2) for k in range(1, 4))
    user = user_of(run.config, policy)
    request = PageRequest(request_id, user, f"s-{request_id}", 0, items, state.user, state.context, state.page)
    return agent.decide(request, timeout_s=PATIENCE_S)


def newest(run: Run, policy: str) -> Candidate:
    return read_candidate(list_candidates(run.folder / "staging", policy)[-1])


def user_of(config: FeatureConfig, policy: str) -> str:
    table = bucket_table(config.buckets)
    return next(u for u in map(str, range(10_000)) if table[slot_of(config.buckets, u)].policy == policy)


@pytest.mark.parametrize("policy", ["rl_a", "rl_b"])
def test_the_served_action_is_the_learners(run: Run, served: tuple[Agent, ModelServer], policy: str) -> None:
    agent, _ = served
    probes = newest(run, policy).probes
    served_actions = []
    for k, probe in enumerate(probes):
        decision = decide(run, agent, policy, f"{policy}{k}", probe.state).decision
        assert decision.decided_by is DecidedBy.POLICY, decision.fallback_reason
        assert decision.model_version == 2
        served_actions.append(tuple(action.propensity.mean for action in decision.actions if action.propensity))
    expected = [probe.action for probe in probes]
    assert any(abs(action[0] - 1.0) > 1e-3 for action in expected)  # else this would compare a constant with itself
    for served_action, learned in zip(served_actions, expected, strict=True):
        assert served_action == pytest.approx(learned, abs=1e-6)


def test_a_pinned_version_answers_and_without_a_pin_the_newest(run: Run, served: tuple[Agent, ModelServer]) -> None:
    _, client = served
    candidate = newest(run, "rl_a")
    encoder = Encoder(run.config)  # the probes' vectors are not asked for: their histories are left out
    parameters = list_candidates(run.folder / "staging", "rl_a")[-1] / MODEL / PARAMETERS
    state = candidate.probes[0].state
    state = msgspec.structs.replace(state, user={**state.user, "recent_reads": ()}, lookups={})
    inputs = encoder.finish(encoder.prepare(state).row, Snapshot.from_bytes(parameters.read_bytes(), run.config))
    first = client.predict(candidate.model_name, inputs, version=1, timeout_s=PATIENCE_S)
    newest_answer = client.predict(candidate.model_name, inputs, timeout_s=PATIENCE_S)
    assert (first.version, newest_answer.version) == (1, 2)
    assert first.outputs["action"].tolist() == [[1.0]]  # version 1 is the baseline, exactly
    assert newest_answer.outputs["action"].tolist() != [[1.0]]


def test_the_stock_client_asks_the_exported_model(run: Run, served: tuple[Agent, ModelServer]) -> None:
    """With TensorFlow's own packages only; first without a version, then with version 1 pinned, the exact baseline."""
    _, client = served
    command = [sys.executable, str(STOCK_CLIENT), client.target, run.config.model_name("rl_a"), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    unpinned, pinned = done.stdout.splitlines()
    assert unpinned.startswith("asked for None: version 2 answered [[")
    assert pinned == "asked for 1: version 1 answered [[1.0]]"
