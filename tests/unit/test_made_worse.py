"""A policy that is made worse on purpose, on simulated users: the first tier stops it when it jumps, the second when it
creeps. With the checks off it lowers what users bring.

The controller, its checks and its evidence are the real ones, and so is the log; users are the simulator's, who come
back less when they are served badly. A policy is a line: its action by how deep in a visit a page is. What the same
users would have brought under the baseline is known here, so what was lost is, too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from model_export.checks import Verdict
from model_export.controller import run_controller
from model_export.verdicts import read_verdicts
from pipeline.agent.buckets import slot_of
from pipeline.config.schema import (
    ActionDimension,
    Attribution,
    Bucket,
    Buckets,
    Certification,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Penalties,
    Policy,
    Publish,
    Reward,
    Stream,
)
from pipeline.events import encode
from pipeline.features.inputs import config_sha
from pipeline.features.snapshot import Snapshot
from pipeline.logs.log import TRANSITIONS, Entry
from pipeline.logs.opening import open_log
from pipeline.records import DecidedBy, Decision, Ending, State, Transition
from pipeline.simulation.draws import Array
from pipeline.simulation.feed import Sessions
from pipeline.simulation.outcomes import Estimate, clustered
from pipeline.simulation.params import World
from pipeline.simulation.people import exposed, next_loyalty
from pipeline.simulation.rollout import Policy as Actions
from pipeline.simulation.rollout import constant, play

SEED = 5
DEPTHS = (0.0, 1 / 3, 2 / 3, 1.0)  # of the pages 0, 1, 2 and all later ones
VISITS, HORIZON_MS = 8, 86_400_000
READ = 2_000  # records that a controller reads in a round


class Line(NamedTuple):
    at_first: float
    more: float

    def towards(self, other: Line, part: float) -> Line:
        return Line(*(a + part * (b - a) for a, b in zip(self, other, strict=True)))

    def actions(self, sessions: Sessions) -> Array:
        return np.asarray(self.at_first + self.more * np.minimum(sessions.page, 3) / 3)


BASELINE, GOOD, BAD = Line(1.0, 0.0), Line(0.75, 1.0), Line(1.9, -1.9)
FIRST, BATCH, BATCHES = 9_000, 1_000, 12  # users who meet the good one; then, of each batch
STEPS = 4  # from the good to the bad one, by a batch each
CREEP = [GOOD.towards(BAD, min(1.0, (batch + 1) / STEPS)) for batch in range(BATCHES)]
CHECKS_OFF = {"max_step_change": 1.0, "max_total_change": 1.0, "certification": None}
MOST_LOST = 0.15  # of what the baseline would have brought, from the first step to the way back


class Crowd:
    """The same users for every story: what they bring under a policy. Many at once cost little, few cost much, so what
    is sure to be asked for is played beforehand."""

    def __init__(self, world: World, buckets: Buckets) -> None:
        self._world, self._played = world, {}
        count = FIRST + BATCH * BATCHES
        self.treated = np.array([slot_of(buckets, f"u{user}") >= 50 for user in range(count)])
        self.baseline = brings(world, constant(1.0), np.arange(count))
        firsts = range(FIRST, count, BATCH)
        self._foresee({0: GOOD} | dict(zip(firsts, CREEP, strict=True)))

    def brings(self, first: int, end: int, line: Line) -> Array:
        """Of the policy's users among these."""
        if (first, line) not in self._played:
            self._played[first, line] = brings(self._world, line.actions, self.ours(first, end))
        return self._played[first, line]

    def ours(self, first: int, end: int) -> Array:
        return first + np.flatnonzero(self.treated[first:end])

    def _foresee(self, lines: dict[int, Line]) -> None:
        """`lines`: of the users from a first one up to the next."""
        firsts, ends = list(lines), [*list(lines)[1:], len(self.treated)]
        groups = [self.ours(*group) for group in zip(firsts, ends, strict=True)]
        at_first, more = np.zeros(len(self.treated)), np.zeros(len(self.treated))
        for group, line in zip(groups, lines.values(), strict=True):
            at_first[group], more[group] = line

        def actions(sessions: Sessions) -> Array:
            user = sessions.visitors.user
            return np.asarray(Line(at_first[user], more[user]).actions(sessions))

        played = brings(self._world, actions, np.concatenate(groups))
        parts = np.split(played, np.cumsum([len(group) for group in groups])[:-1])
        self._played |= {(first, lines[first]): part for first, part in zip(firsts, parts, strict=True)}


def brings(world: World, policy: Actions, who: Array) -> Array:
    """[users], of all their visits; one that does not look at the feed brings nothing, which is a policy's doing."""
    brought, loyalty = np.zeros(len(who)), np.full(len(who), world.params.loyalty_start)
    for visit in range(VISITS):
        when = np.full(len(who), visit)
        seen = exposed(world.params, SEED, who, when, loyalty)
        played = play(world, policy, SEED, who[seen], when[seen])
        clicked = (played.clicks > 0).astype(np.float64)
        loyalty[seen] = next_loyalty(world.params, loyalty[seen], played.buyer.astype(np.bool_), clicked)
        brought[seen] += played.reward
    return brought


class Met(NamedTuple):
    """What some users of the policy's bucket brought by a version, and would have brought under the baseline."""

    version: int
    brought: Array
    baseline: Array


class Users(threading.Event):
    """Comes and goes as a story says: on to its next word whenever the controller has done a round."""

    def __init__(self, story: Iterator[None]) -> None:
        super().__init__()
        self._story = story

    def wait(self, timeout: float | None = None) -> bool:
        return next(self._story, self) is self


class Feed:
    def __init__(self, world: Any, folder: Path, crowd: Crowd, **publish: Any) -> None:
        self.world, self.folder, self.crowd = world, folder, crowd
        world.config = configured(**publish)
        world.states = tuple(State(page={"depth": depth}) for depth in DEPTHS)
        self.snapshot = Snapshot(config_sha(world.config), {}, {}, {})
        self.met: list[Met] = []
        self.made = self.next_user = 0

    def live(self, story: Iterator[None]) -> None:
        """One controller, from the first version on."""
        world = self.world
        world.candidate(0, *BASELINE, snapshot=self.snapshot)
        world.bootstrap()
        with closing(open_log(f"file://{self.folder}/log")) as self.log:
            self.log.create(TRANSITIONS, 1)
            run_controller(
                world.config, world.store, world.servers, world.staging, world.models, holder="one",
                clock_ms=world.clock, stop=Users(story), poll_s=0.0, log=self.log, lease_ms=10**12,
            )  # fmt: skip

    # What stories are made of

    def publish(self, line: Line) -> Iterator[None]:
        self.made += 1_000
        self.world.candidate(self.made, *line, snapshot=self.snapshot)
        yield from (None for _ in range(3))

    def come(self, users: int) -> Iterator[None]:
        """New users, half of them in the policy's bucket, on all of their visits; until the controller has read it."""
        first, end = self.next_user, self.next_user + users
        self.next_user = end
        version, line = self.serving()
        treated, brought = self.crowd.treated[first:end], self.crowd.baseline[first:end].copy()
        brought[treated] = self.crowd.brings(first, end, line)
        self.met.append(Met(version, brought[treated], self.crowd.baseline[first:end][treated]))
        self._log(first, treated, brought)
        yield from (None for _ in range(users // READ + 3))

    def serving(self) -> tuple[int, Line]:
        version = self.world.pointer().stable.version
        found = json.loads((self.world.models / "feed_rl" / str(version) / "saved_model.pb").read_text())
        return version, Line(found["bias"], found["slope"])

    def verdicts(self, *tiers: str) -> list[Verdict]:
        return [verdict for verdict in read_verdicts(self.world.models) if verdict.tier in tiers]

    def _log(self, first: int, treated: Array, brought: Array) -> None:
        """All that a user brought is one page here: a unit is the sum, whatever of. A later page, which is nobody's,
        says that theirs are over."""
        self.world.now_ms += 1_000
        pages = [
            _page(f"u{first + n}", self.world.now_ms + n, "r" if ours else "b", float(reward))
            for n, (ours, reward) in enumerate(zip(treated, brought, strict=True))
        ]
        self.world.now_ms += HORIZON_MS + 60_000
        pages.append(_page("nobody", self.world.now_ms, "elsewhere", 0.0))
        self.log.append(TRANSITIONS, [Entry(page.user_id, encode(page), self.world.now_ms) for page in pages])


def configured(**publish: Any) -> FeatureConfig:
    """The first tier's bounds are those that a config has by default."""
    rules = Certification(unit_reward=(-10.0, 40.0), horizon=HORIZON_MS, budget=0.02)
    return FeatureConfig(
        schema_version=1,
        name="feed",
        kv_prefix="fd",
        features=(Dense(name="depth", source="page.depth"),),
        fusion=PayPlusAPhi(phi=0.07),
        action=(ActionDimension(name="a", baseline=1.0, range=(0.0, 2.0)),),
        reward=Reward(
            weights={"click": 1.0, "order": 4.0},
            penalties=Penalties(page_without_conversion=0.45, leave_without_conversion=0.9),
        ),
        stream=Stream(session_gap=1_000, lateness=0, clock_skew=0, attribution=Attribution(click=1_000, order=1_000)),
        algorithm=Ddpg(gamma=0.95),
        policies=(Policy("baseline", "baseline"), Policy("rl", "learned")),
        buckets=Buckets(salt="s", assign=(Bucket("b", "baseline", (0, 49)), Bucket("r", "rl", (50, 99)))),
        publish=Publish(min_transitions=10, **{"certification": rules, **publish}),
    )


def _page(user: str, time_ms: int, bucket: str, reward: float) -> Transition:
    decision = Decision(DecidedBy.POLICY if bucket == "r" else DecidedBy.BASELINE, "rl", bucket)
    return Transition(
        f"{user}@1", user, user, user, time_ms, 0, State(), decision, reward, "1", 0.0, None, Ending.LEAVE
    )


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    config = configured()
    return Crowd(World.of(config), config.buckets)


@pytest.fixture
def feed(world: Any, tmp_path: Path, crowd: Crowd) -> Iterator[Callable[..., Feed]]:
    """Makes one after another, each with a world of its own and the same users."""
    made: list[Feed] = []

    def make(**publish: Any) -> Feed:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Feed(type(world)(folder), folder, crowd, **publish))
        return made[-1]

    yield make
    for each in made:
        each.world.store.close()


def lost(found: Sequence[Met], other: Sequence[Array] | None = None) -> Estimate:
    """Per user, against what the same users brought otherwise (under the baseline, if nothing is said)."""
    otherwise = [met.baseline for met in found] if other is None else other
    pairs = np.concatenate(otherwise) - np.concatenate([met.brought for met in found])
    return clustered(pairs, np.arange(len(pairs)))


# When it jumps ---------------------------------------------------------------------------------------------------


def jumps(feed: Feed) -> Iterator[None]:
    yield from feed.come(BATCH)
    yield from feed.publish(BAD)
    yield from feed.come(3 * BATCH)


def test_a_jump_is_stopped_by_the_first_tier_before_any_page(feed: Callable[..., Feed]) -> None:
    found = feed()
    found.live(jumps(found))
    _, verdict = found.verdicts("bootstrap", "every_version")
    assert (verdict.outcome, verdict.reason) == ("refused", "step_change")
    assert [met.version for met in found.met] == [1, 1]
    assert found.world.served_versions() == (1,)
    assert lost(found.met).mean == 0


def test_without_the_checks_the_jump_costs(feed: Callable[..., Feed]) -> None:
    found = feed(**CHECKS_OFF)
    found.live(jumps(found))
    assert [met.version for met in found.met] == [1, 2]
    assert lost(found.met[1:]).low > 0


# When it creeps --------------------------------------------------------------------------------------------------


def creeps(feed: Feed) -> Iterator[None]:
    yield from feed.publish(GOOD)
    yield from feed.come(FIRST)
    for line in CREEP:
        yield from feed.publish(line)
        yield from feed.come(BATCH)


@pytest.fixture
def both(feed: Callable[..., Feed]) -> tuple[Feed, Feed]:
    """With the checks, and without."""
    made = feed(), feed(**CHECKS_OFF)
    for each in made:
        each.live(creeps(each))
    return made


def test_a_policy_that_creeps_passes_the_first_tier_and_is_sent_back_by_the_second(both: tuple[Feed, Feed]) -> None:
    checked, unchecked = both
    certified, ended = checked.verdicts("bucket")
    assert (certified.outcome, certified.version) == ("certified", 2)  # the good one, by what users brought
    assert (ended.outcome, ended.reason, ended.certified) == ("ended", "worse", 2)
    *crept, (last, _) = takes_turns([met.version for met in checked.met[1:]])
    assert [version for version, _ in crept] == list(range(3, ended.version + 1))
    assert last == 2
    accepted = [v for v in checked.verdicts("every_version") if v.outcome == "accepted"]
    steps = {v.version: check for v in accepted for check in v.checks if check.name == "step_change"}
    assert all(steps[version].bound == 0.2 and steps[version].value > 0.1 for version in range(3, 3 + STEPS))
    assert {v.reason for v in checked.verdicts("every_version") if v.outcome != "accepted"} == {"before_rollback"}

    on_the_way = checked.met[1 : 1 + len(crept)]
    share = lost(on_the_way).mean / float(np.mean(np.concatenate([met.baseline for met in on_the_way])))
    assert 0 < share < MOST_LOST
    assert lost(checked.met[1 + len(crept) :]).high < 0  # better than the baseline, as it was certified

    assert [met.version for met in unchecked.met] == list(range(2, 3 + BATCHES))
    assert lost(unchecked.met[1:]).low > 0
    assert lost(unchecked.met[1:], [met.brought for met in checked.met[1:]]).low > 0


def takes_turns(versions: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of one version: which, and how long."""
    return [(version, len(list(run))) for version, run in groupby(versions)]
