"""`pageturn evaluate` over a log file, a store and a model server: the version that logged is worth what it logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from pageturn.__main__ import main
from pipeline.agent.agent import Agent, AgentSettings, PageRequest
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode, parse
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, Entry
from pipeline.records import Ending, Episode, Impression, Item, Step
from pipeline.serving.client import ModelServer
from pipeline.serving.launch import running_server
from pipeline.stores.opening import open_store
from pipeline.streaming.outputs import read_all
from pipeline.transitions.rewards import reward_version

CONFIG = """
schema_version: 1
name: feed
kv_prefix: fd
features: [{name: x, kind: dense, source: user.x, zscore: {min_count: 5}}]
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action: [{name: a, baseline: 1.0, range: [0.0, 2.0]}]
reward: {weights: {click: 1.0}}
algorithm: {kind: ddpg, gamma: 0.5, tower: [8], head: [8]}
policies: [{name: base, kind: baseline}, {name: rl, kind: learned}]
buckets:
  salt: s
  assign: [{name: control, policy: base, slots: [0, 1]}, {name: treated, policy: rl, slots: [2, 99]}]
"""
SESSIONS, PAGES, LONG_S = 80, 2, 60.0
PATIENT = AgentSettings(metadata_timeout_s=LONG_S)  # a version that is not built at the first look decides no page
pytestmark = pytest.mark.timeout(900)


def decided(config: FeatureConfig, target: str, store_url: str, log: FileLog) -> Iterator[Impression]:
    log.create(EVENTS, 1)
    with (
        closing(open_store(store_url)) as store,
        ModelServer(target) as server,
        Agent(config, store, server, log, agent_id="agent-0", settings=PATIENT) as agent,
    ):
        assert agent.wait_ready(LONG_S)
        for i in range(SESSIONS * PAGES):
            number, page = divmod(i, PAGES)
            request = PageRequest(
                request_id=f"{number}/{page}",
                user_id=f"u{number}",
                session_id=f"s{number}",
                page_index=page,
                items=(Item("x", 0.1, 0.5), Item("y", 0.9, 0.01)),
                user={"x": float(number % 7)},
                time_ms=1_000 * number + page,
            )
            agent.decide(request, timeout_s=LONG_S)
        assert agent.flush(LONG_S)
    for record in read_all(log, EVENTS):
        event = parse(record.payload, 10**6)
        assert isinstance(event, Impression)
        yield event


def episode(config: FeatureConfig, pages: list[Impression]) -> Entry:
    """Where a page earns its number in the session, and what was done on it."""
    steps = tuple(
        Step(p.request_id, p.time_ms, p.page_index, p.state, p.decision, p.page_index + p.decision.actions[0].value)
        for p in pages
    )
    version = reward_version(config.reward)
    name, first = pages[0].session_id, pages[0].request_id
    made = Episode(f"{first}@{version}", pages[0].user_id, name, steps, version, Ending.LEAVE, 0.0)
    return Entry(name, encode(made))


def test_the_version_that_logged_is_worth_what_it_logged(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    config, store = load_config(tmp_path / "config.yaml"), f"sqlite:///{tmp_path}/store.db"
    given = ("--config", str(tmp_path / "config.yaml"), "--store", store)
    models = ("--staging", str(tmp_path / "staging"), "--models", str(tmp_path / "models"))
    done = CliRunner().invoke(main, ["bootstrap", *given, *models])
    assert done.exit_code == 0, done.output
    with running_server(tmp_path / "models" / "models.config") as server:
        with closing(FileLog(tmp_path / "log")) as log:
            sessions: dict[str, list[Impression]] = {}
            for page in decided(config, server.target, store, log):
                sessions.setdefault(page.session_id, []).append(page)
            log.create(EPISODES, 1)
            log.append(EPISODES, [episode(config, pages) for pages in sessions.values()])
        places = ("--log", f"file://{tmp_path}/log", "--server", server.target)
        said = CliRunner().invoke(main, ["evaluate", "rl", *given, *places])
        missing = CliRunner().invoke(main, ["evaluate", "rl", *given, *places, "--version", "7"])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    ours = [pages for pages in sessions.values() if pages[0].decision.policy == "rl"]
    mean = sum(p.page_index + p.decision.actions[0].value for pages in ours for p in pages) / len(ours)
    assert lines[0] == f"rl version 1, from {len(ours)} sessions ({PAGES * len(ours)} pages) of version 1"
    for name in ("logged ", "per decision ", "per decision, self-normalised "):
        (value, *_, effective) = next(line for line in lines if line.startswith(name)).removeprefix(name).split()
        assert float(value) == pytest.approx(mean, rel=1e-3)
        assert float(effective) == pytest.approx(len(ours), rel=1e-3)
    assert "warning" not in said.output
    assert missing.exit_code == 1
    assert "found no record of version 7" in missing.output
