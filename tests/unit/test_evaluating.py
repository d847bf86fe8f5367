"""`pageturn evaluate`: pages that a policy's agents decided, weighed for a version that did not decide them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from model_export.evaluation.fitted import clipped_moments
from model_export.evaluation.logged import Sessions
from pageturn.__main__ import main
from pageturn.retrospect import EvaluationError, Read, newest_sessions
from pageturn.table import render
from pageturn.valued import Found, check, look_back, of_pages, of_sessions, rows, warnings
from pipeline.agent.acting import Explorer, sigma_of
from pipeline.agent.policies import Pinner
from pipeline.config.reading import parse_config
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.stored_vectors import StoredVectors
from pipeline.learning.held_out import is_held_out
from pipeline.logs.log import EPISODES, Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.records import Action, DecidedBy, Decision, Ending, Episode, State, Step
from pipeline.serving.client import Prediction
from pipeline.serving.errors import NotServed
from pipeline.stores.published import VersionRecord, version_key
from pipeline.transitions.rewards import reward_version
from tests.conftest import ROOT
from tests.unit.agent_fakes import CONFIG, World, raising

SHIFT = 0.1  # what version 2 does, above version 1
SIZE, PAGES = 300, 2
MADE_MS = 100_000  # version 2
MANY = 10**6  # episodes
KERNELS = "self-normalised", "doubly robust"


def mean_of(version: int, ctr: np.ndarray) -> np.ndarray:
    """Of the normalised rate that a model is told."""
    return 1.0 + 0.1 * np.tanh(ctr) + SHIFT * (version - 1)


def reply(inputs: Mapping[str, np.ndarray], version: int) -> Prediction:
    return Prediction(version, {"action": mean_of(version, inputs["dense"]).astype(np.float32)})


class Feed:
    """Sessions of version 1 on a log, where a page earns the action that was done on it; and version 2."""

    def __init__(self, folder: Path) -> None:
        self.world = World()
        self.world.server.reply = reply
        self.stable = self.world.publish(1, mean=0.4)
        for version, made_ms in ((1, 1), (2, MADE_MS)):
            record = VersionRecord("rl", version, "feed_rl", self.stable.parameters, "sha", "candidate", made_ms)
            self.world.store.put(version_key("fd", "rl", version), msgspec.json.encode(record))
        self.url = f"file://{folder}/log"
        self.log: EventLog = open_log(self.url)
        self.log.create(EPISODES, 2)
        self.encoder = Encoder(CONFIG, StoredVectors(self.world.store, "fd", capacity=10, monotonic=lambda: 0.0))
        self.explorer = Explorer(CONFIG)
        self.snapshot = Pinner(CONFIG, self.world.store, self.world.server, 1.0).pin("rl", self.stable).snapshot

    user_of: Callable[[str], str] = staticmethod(lambda session: f"u{session}")

    def step(self, session: str, page: int, **changes) -> Step:
        name = int(session.partition("-")[2])
        ctr = 0.1 * (name % 9)
        state = State(user={"ctr": ctr, "clicks": ("7", 8, "9")})
        prepared = self.encoder.prepare(state)
        told = self.encoder.finish(self.encoder.stack([prepared]), self.snapshot)
        mean = float(reply(told, 1).outputs["action"][0, 0])
        actions = self.explorer.act("rl", session, page, [mean])
        decision = Decision(
            DecidedBy.POLICY, "rl", "treated", actions, 1, self.stable.parameters, self.encoder.config_sha
        )
        state = replace(state, lookups=prepared.lookups)
        made = Step(f"{session}/{page}", 1_000 * name + page, page, state, decision, actions[0].value)
        return replace(made, **changes)

    def episode(self, session: str, steps: list[Step], rewards: str | None = None) -> Episode:
        version = rewards or reward_version(CONFIG.reward)
        return Episode(
            f"{steps[0].request_id}@{version}", self.user_of(session), session, tuple(steps), version, Ending.LEAVE, 0.0
        )

    def add(self, *episodes: Episode) -> None:
        self.log.append(EPISODES, [Entry(e.session_id, encode(e), 1) for e in episodes])

    def fill(self, size: int = SIZE) -> None:
        sessions = [f"s-{i}" for i in range(size)]
        self.add(*(self.episode(s, [self.step(s, page) for page in range(PAGES)]) for s in sessions))

    def look(self, version: int | None = None, count: int = SIZE, **more) -> Found:
        config = more.pop("config", CONFIG)
        served = self.world.store, self.world.server, "rl", version
        return look_back(config, self.log, *served, count=count, most=more.pop("most", MANY), **more)


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    with closing(made.log):
        yield made


def cells(found: Found) -> list[list[object]]:
    return [list(row) for row in rows(found) if row]


def number(cell: object) -> float:
    return float(str(cell).replace(",", ""))


def bounds(row: list[object]) -> tuple[float, float]:
    low, high = map(float, str(row[2]).strip("[]").split(","))
    return low, high


def truth(feed: Feed, found: Found) -> float:
    """Reward per session: the mean of a clipped Gaussian, on each page, around what the version does there."""
    (dimension,) = CONFIG.action
    low, high = dimension.range
    keep, turn = 1 - dimension.noise.theta, found.gathered.sessions.turn
    spread = sigma_of(dimension) * np.sqrt(1 + turn * keep**2)
    half = (high - low) / 2
    first, _ = clipped_moments((found.means[:, 0] - low) / half - 1, spread / half)
    return float((low + half * (first + 1)).sum() / SIZE)


# What it says ----------------------------------------------------------------------------------------------------


def test_the_version_that_logged_is_worth_what_was_logged(feed: Feed) -> None:
    feed.fill()
    found = feed.look()
    mean = sum(step.reward for step in found.gathered.steps) / SIZE
    table = cells(found)
    assert found.version == 1
    assert [row[0] for row in table[1:8]] == [
        "logged",
        "per session",
        "per session, self-normalised",
        "per decision",
        "per decision, self-normalised",
        "doubly robust",
        "doubly robust, self-normalised",
    ]
    for row in table[1:6]:
        assert number(row[1]) == pytest.approx(mean, rel=1e-3)
    for row in table[6:8]:  # without the luck of the draws, which the Q takes out
        assert number(row[1]) == pytest.approx(truth(feed, found), rel=0.005)
    assert {row[3] for row in table[1:8]} == {f"{SIZE:.1f}"}
    assert list(warnings(found)) == []


def test_another_version_is_worth_what_it_would_have_brought(feed: Feed) -> None:
    feed.fill()
    found = feed.look(2)
    assert found.means[:, 0] == pytest.approx(found.gathered.sessions.means[:, 0] + SHIFT, abs=1e-6)
    table, real = cells(found), truth(feed, found)
    for row in table[2:8]:
        low, high = bounds(row)
        assert low < real < high
        assert number(row[3]) < 0.9 * SIZE
    assert number(table[6][1]) == pytest.approx(real, rel=0.01)  # doubly robust
    assert real > 1.05 * truth(feed, feed.look(1))


def test_without_noise_a_page_is_worth_what_the_mean_earns(feed: Feed) -> None:
    feed.fill()
    found = feed.look(2)
    weighted, robust = (next(row for row in cells(found) if row[0] == f"kernel, {how}") for how in KERNELS)
    assert number(weighted[1]) == pytest.approx(found.means.mean(), rel=0.02)
    assert number(robust[1]) == pytest.approx(found.means.mean(), rel=0.005)
    (low, high), (lowest, highest) = bounds(robust), bounds(weighted)
    assert high - low < 0.5 * (highest - lowest)


def test_it_is_said_what_the_version_may_have_learned_from(feed: Feed) -> None:
    feed.fill()
    row = cells(feed.look(2))[-1]
    assert row == ["it may have learned from", "100 of the sessions: they are from before it was made"]


def test_sessions_of_one_user_are_one_draw_of_the_intervals(feed: Feed) -> None:
    feed.user_of = lambda session: f"u{session[-1]}"
    feed.fill(60)
    few = feed.look(2)
    sizes = {name: len(terms.sums) for name, terms in (*of_sessions(few), *of_pages(few))}
    assert set(sizes.values()) == {10}
    alone = few._replace(gathered=few.gathered._replace(sessions=each_its_own(few.gathered.sessions)))
    (row, *_), (other, *_) = ([r for r in cells(each) if r[0] == "per decision"] for each in (few, alone))
    assert row[1::2] == other[1::2]  # value and effective size
    assert bounds(row) != bounds(other)
    assert "the 60 sessions are of 10 users: too few" in " ".join(warnings(few))
    assert "users" not in " ".join(warnings(alone))


def each_its_own(sessions: Sessions) -> Sessions:
    return dataclasses.replace(sessions, users=sessions.names)


# Which sessions --------------------------------------------------------------------------------------------------


def test_sessions_that_say_nothing_are_counted_by_their_reason(feed: Feed) -> None:
    feed.fill(60)
    good = feed.step("s-100", 0)
    fallback = replace(good, decision=Decision(DecidedBy.FALLBACK, "rl", "treated", (Action("a", 1.0),)))
    (action,) = good.decision.actions
    assert action.propensity is not None
    other_noise = replace(action, propensity=replace(action.propensity, sigma=9.0))
    wrong = replace(good, decision=replace(good.decision, actions=(other_noise,)))
    other_config = replace(good, decision=replace(good.decision, config_sha="another"))
    for i, step in enumerate((fallback, wrong, other_config)):
        feed.add(feed.episode(f"s-{1000 + i}", [replace(step, request_id=f"odd-{i}")]))
    feed.add(feed.episode("s-2000", [replace(good, request_id="odd-4")], rewards="another"))
    found = feed.look(count=1_000)
    assert len(found.gathered.sessions.names) == 60
    assert found.left_out == {"fallback": 1, "density": 1, "other_config": 1, "other_reward": 1}
    said = render(rows(found))
    assert said.count("1 sessions: ") == 4
    assert "a page was a fallback's" in said


def test_many_fallbacks_and_few_sessions_are_warned_of(feed: Feed) -> None:
    feed.fill(10)
    for i in range(3):
        step = feed.step(f"s-{i + 50}", 0)
        fallback = replace(step, decision=Decision(DecidedBy.FALLBACK, "rl", "treated", (Action("a", 1.0),)))
        feed.add(feed.episode(f"s-{i + 50}", [fallback]))
    said = list(warnings(feed.look(2)))
    assert len(said) == 3
    assert said[0].startswith("10 sessions are worth no more than ")
    assert said[2].startswith("23% of the sessions had a fallback")


def test_a_server_that_says_something_else_than_it_did_is_noticed(feed: Feed) -> None:
    feed.fill(60)
    feed.world.server.reply = lambda inputs, version: reply(inputs, 2)._replace(version=version)
    assert "version 1 says something else on 120 of 120 pages" in " ".join(warnings(feed.look()))


def test_the_newest_sessions_are_read_from_the_end_and_only_whole_ones(feed: Feed) -> None:
    feed.fill(40)
    late = feed.step("s-50", 0)
    feed.add(feed.episode("s-50", [late]), feed.episode("s-50", [late]))  # once more
    found = newest_sessions(feed.log, "rl", 3, MANY)
    assert list(found.sessions) == ["s-38", "s-39", "s-50"]
    assert len(found.sessions["s-50"]) == 1
    assert newest_sessions(feed.log, "another", 3, MANY) == Read({}, 41, all=True)


def test_sessions_behind_many_of_other_policies_are_found(feed: Feed) -> None:
    feed.fill(3)
    other = Decision(DecidedBy.BASELINE, "base", "control")
    feed.add(*(feed.episode(f"s-{i}", [replace(feed.step(f"s-{i}", 0), decision=other)]) for i in range(10, 90)))
    assert list(newest_sessions(feed.log, "rl", 2, MANY).sessions) == ["s-1", "s-2"]
    with pytest.raises(EvaluationError, match=r"weighed in the newest 40 episodes, found none$"):
        feed.look(count=2, most=40)


def test_no_more_is_looked_through_than_was_asked_for(feed: Feed) -> None:
    feed.fill(40)
    few = newest_sessions(feed.log, "rl", 1_000, 20)
    assert (few.episodes, few.all, few.said) == (20, False, "the newest 20 episodes")
    assert newest_sessions(feed.log, "rl", 3, 2).episodes == 2
    everything = newest_sessions(feed.log, "rl", 1_000, 10_000)
    assert (len(everything.sessions), everything.said) == (40, "all 40 episodes on the log")
    assert ["read", "the newest 20 episodes"] in cells(feed.look(most=20))


def test_a_session_that_began_before_what_was_read_is_left_out(feed: Feed) -> None:
    first, second = feed.step("s-1", 0), feed.step("s-1", 1)
    feed.add(feed.episode("s-1", [first]))
    others = [f"s-{i}" for i in range(2, 60)]
    feed.add(*(feed.episode(s, [feed.step(s, 0)]) for s in others))
    feed.add(feed.episode("s-1", [replace(second, time_ms=10**6)]))
    assert "s-1" not in newest_sessions(feed.log, "rl", 2, MANY).sessions
    assert len(newest_sessions(feed.log, "rl", 1_000, MANY).sessions["s-1"]) == 2


def test_sessions_of_which_the_end_was_said_are_not_the_newest_for_that(feed: Feed) -> None:
    """Every second user leaves without a word, and the log has those sessions half an hour later."""
    gap_ms, now_ms = 1_800_000, 3_600_000
    made = []
    for i in range(3_600):
        silent, name = i % 2, f"s-{i}"
        steps = [replace(feed.step(name, 0), time_ms=1_000 * i)]
        ending = Ending.INFERRED_LEAVE if silent else Ending.LEAVE
        made.append((1_000 * i + silent * gap_ms, replace(feed.episode(name, steps), ending=ending)))
    known = sorted((each for each in made if each[0] <= now_ms), key=lambda each: each[0])
    feed.log.append(EPISODES, [Entry(e.session_id, encode(e), stamp) for stamp, e in known])
    newest = newest_sessions(feed.log, "rl", 400, MANY).sessions
    silent = sum(episodes[-1].ending is Ending.INFERRED_LEAVE for episodes in newest.values())
    assert silent == pytest.approx(200, abs=2)


def test_a_session_that_still_goes_on_is_left_out(feed: Feed) -> None:
    feed.fill(20)
    first, second = (feed.step("s-30", page) for page in range(2))
    feed.add(replace(feed.episode("s-30", [first]), ending=Ending.TRUNCATED, discount=1.0))
    assert len(newest_sessions(feed.log, "rl", 1_000, MANY).sessions) == 20
    feed.add(feed.episode("s-30", [second]))
    assert len(newest_sessions(feed.log, "rl", 1_000, MANY).sessions["s-30"]) == 2


def test_only_sessions_that_nothing_was_learned_from(feed: Feed) -> None:
    feed.fill()
    config = replace(CONFIG, algorithm=replace(CONFIG.algorithm, holdout=0.5))
    found = feed.look(2, config=config, held_out=True)
    assert "learned from" not in render(rows(found))
    names = found.gathered.sessions.names
    assert set(names) == {f"s-{i}" for i in range(SIZE) if is_held_out(f"s-{i}", 0.5)}
    assert 100 < len(names) < 200


# The command -----------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, config: str, *words: str) -> str:
    (tmp_path / "config.yaml").write_text(config)
    places = ("--log", f"file://{tmp_path}/no-log", "--store", f"sqlite:///{tmp_path}/no-store", "--server", "here:1")
    done = CliRunner().invoke(main, ["evaluate", *words, "--config", str(tmp_path / "config.yaml"), *places])
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    return done.output


def test_what_logs_no_density_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    plain = (ROOT / "feature_configs" / "ebnerd.yaml").read_text()
    assert "expected a learned policy (" in refused(tmp_path, plain, "nobody")
    ranking = (ROOT / "feature_configs" / "news_drn.yaml").read_text()
    (policy, *_) = parse_config(ranking).learned_policies()
    assert "found policies that choose items" in refused(tmp_path, ranking, policy)
    assert "found that training sees all sessions" in refused(tmp_path, plain, "rl_a", "--held-out")


def test_an_action_without_noise_cannot_be_valued() -> None:
    (action,) = CONFIG.action
    still = replace(CONFIG, action=(replace(action, noise=replace(action.noise, sigma=0.0)),))
    with pytest.raises(EvaluationError, match="expected noise on every action, found none on a"):
        check(still, "rl", False)


def test_a_version_that_is_not_there_is_named(feed: Feed) -> None:
    feed.fill(2)
    with pytest.raises(EvaluationError, match="found no record of version 9"):
        feed.look(9)
    feed.world.server.reply = raising(NotServed("not loaded"))
    with pytest.raises(EvaluationError, match=r"rl version 2 cannot be asked: not_served: not loaded; .*versions"):
        feed.look(2)
    feed.world.point()
    with pytest.raises(EvaluationError, match="expected a version that is served, found none"):
        feed.look()


def test_a_log_without_a_session_that_can_be_weighed_says_why(feed: Feed) -> None:
    with pytest.raises(EvaluationError, match=r"found none$"):
        feed.look()
    feed.add(feed.episode("s-1", [replace(feed.step("s-1", 0), decision=Decision(DecidedBy.BASELINE, "rl", "b"))]))
    with pytest.raises(EvaluationError, match="found none; 1 left out: a page was decided by the baseline"):
        feed.look()
