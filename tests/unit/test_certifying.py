"""The controller's second tier: evidence from the log's transitions, and what follows from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from model_export.certifying import _told, read_evidence
from model_export.checks import Verdict
from model_export.controller import ControllerError, Summary
from model_export.evaluation.evidence import Epoch
from model_export.served import serving
from model_export.status import status
from model_export.switches import freeze, pin, release
from model_export.verdicts import read_verdicts
from pageturn.operating import _policy_rows
from pipeline.config.schema import Certification, Stream
from pipeline.events import encode
from pipeline.logs.log import SAMPLES, TRANSITIONS, Entry, EventLog, LogError
from pipeline.logs.opening import open_log
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics
from pipeline.records import DecidedBy, Decision, Ending, Impression, Item, Labels, Page, State, Transition
from pipeline.stores.published import BOOTSTRAP, GoBack

UNITS = 1_500


class Feed:
    """A world with a log of transitions."""

    def __init__(self, world: Any, log: EventLog) -> None:
        self.world, self.log = world, log
        self.rng = np.random.default_rng(1)
        self.users = 0

    def earn(self, ours: float, theirs: float, units: int = UNITS) -> None:
        """New users from now on, half of them in the policy's bucket; and one later page, so that they settle."""
        pages = []
        for _ in range(units):
            bucket, mean = ("r", ours) if self.rng.random() < 0.5 else ("b", theirs)
            pages.append(self.page(bucket, mean + float(self.rng.normal())))
        self.world.now_ms += 100_000
        self.append(*pages, self.page("elsewhere", 0.0))

    def page(self, bucket: str, reward: float) -> Transition:
        self.users += 1
        self.world.now_ms += 1
        name, when = f"u{self.users}", self.world.now_ms
        decision = Decision(DecidedBy.POLICY, "rl", bucket)
        return Transition(
            f"{name}@1", name, name, name, when, 0, State(), decision, reward, "1", 0.0, None, Ending.LEAVE
        )

    def append(self, *pages: Transition) -> None:
        stamp = self.world.now_ms
        self.log.append(TRANSITIONS, [Entry(page.user_id, encode(page), stamp) for page in pages])

    def run(self, **arguments: Any) -> Summary:
        found: Summary = self.world.run(log=self.log, **arguments)
        return found

    def conclusions(self) -> list[Verdict]:
        return [verdict for verdict in read_verdicts(self.world.models) if verdict.tier == "bucket"]

    def epoch(self) -> Epoch:
        epoch: Epoch = self.world.desired().policies["rl"].epoch
        return epoch


@pytest.fixture
def feed(world: Any, tmp_path: Path) -> Iterator[Feed]:
    rules = Certification(unit_reward=(-5.0, 10.0), horizon=1_000)
    publish = replace(world.config.publish, certification=rules)
    stream = Stream(session_gap=1_000, lateness=0, clock_skew=0)
    world.config = replace(world.config, publish=publish, stream=replace(stream, attribution=_windows()))
    with closing(open_log(f"file://{tmp_path}/log")) as log:
        log.create(TRANSITIONS, 1)
        feed = Feed(world, log)
        world.bootstrap()
        feed.run()
        yield feed


def _windows() -> Any:
    return replace(Stream().attribution, click=1_000, order=1_000)


def published(feed: Feed, transitions: int, **fields: Any) -> int:
    feed.world.candidate(transitions, bias=1.0 + transitions / 10_000, **fields)
    feed.run()
    version: int = feed.world.pointer().stable.version
    return version


def test_an_epoch_begins_with_the_first_version_and_knows_nothing(feed: Feed) -> None:
    epoch = feed.epoch()
    assert epoch.number == 1
    assert 0 < epoch.started_ms <= feed.world.now_ms
    assert read_evidence(feed.world.models)["rl"].reason == "no_units"


def test_a_better_bucket_is_certified_as_it_now_stands(feed: Feed) -> None:
    version = published(feed, 1_000)
    assert feed.world.desired().policies["rl"].certified.version == 1
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}
    (verdict,) = feed.conclusions()
    assert (verdict.candidate, verdict.outcome, verdict.reason) == ("epoch-1", "certified", "better")
    assert (verdict.version, verdict.certified) == (version, 1)
    assert verdict.bucket is not None
    assert verdict.bucket.policy.units + verdict.bucket.baseline.units == UNITS
    policy = feed.world.desired().policies["rl"]
    assert policy.certified.version == version == policy.pointer.stable.version
    assert not policy.pointer.frozen
    assert policy.epoch.number == 2


def test_a_worse_bucket_goes_back_to_the_certified_version_and_waits_for_an_operator(feed: Feed) -> None:
    version = published(feed, 1_000)
    feed.earn(1.0, 2.0)
    assert feed.run().concluded == {"ended": 1}
    pointer = feed.world.pointer()
    assert (pointer.stable.version, pointer.previous.version, pointer.frozen) == (1, version, True)
    assert feed.world.desired().policies["rl"].pointer == pointer
    feed.world.candidate(2_000, bias=1.3)
    assert pointer.back == GoBack(1, BOOTSTRAP)
    assert feed.run().kept == {"before_rollback": 1}
    release(feed.world.store, "fd", "rl")
    assert published(feed, 3_000, gone_back=1) > version


def test_after_an_end_nothing_is_judged_until_an_operator_lets_go(feed: Feed) -> None:
    """Users whom the policy has lost would end the next epoch, whatever serves, and freeze again what was released."""
    published(feed, 1_000)
    feed.earn(1.0, 2.0)
    feed.run()
    assert feed.epoch() is None
    feed.earn(1.0, 2.0)
    feed.run(holder="two")
    assert [verdict.candidate for verdict in feed.conclusions()] == ["epoch-1"]
    release(feed.world.store, "fd", "rl")
    feed.run(holder="two")
    assert (feed.epoch().number, feed.epoch().started_ms) == (2, pytest.approx(feed.world.now_ms, abs=60_000))
    assert read_evidence(feed.world.models)["rl"].policy.units == 0


def test_a_worse_bucket_that_is_pinned_stays_and_is_on_record(feed: Feed) -> None:
    version = published(feed, 1_000)
    pin(feed.world.store, "fd", "rl")
    feed.earn(1.0, 2.0)
    assert feed.run().concluded == {"ended": 1}
    pointer = feed.world.pointer()
    assert (pointer.stable.version, pointer.pinned, pointer.back) == (version, True, None)
    (verdict,) = feed.conclusions()
    assert verdict.detail.endswith("; it is pinned, and stays")
    assert serving(read_verdicts(feed.world.models)).version == version
    assert feed.epoch().number == 2


def test_of_a_frozen_version_nothing_is_judged_once_it_is_certified(feed: Feed) -> None:
    published(feed, 1_000)
    freeze(feed.world.store, "fd", "rl")
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}
    assert feed.epoch() is None
    release(feed.world.store, "fd", "rl")
    feed.run()
    assert feed.epoch().number == 2


def test_a_version_that_is_pinned_is_judged_on_when_it_is_certified(feed: Feed) -> None:
    published(feed, 1_000)
    pin(feed.world.store, "fd", "rl")
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}
    assert feed.world.pointer().frozen
    assert feed.epoch().number == 2


def test_a_version_that_is_frozen_and_not_certified_is_judged(feed: Feed) -> None:
    """Also where the controller begins anew: where desired state was lost, say."""
    published(feed, 1_000)
    freeze(feed.world.store, "fd", "rl")
    path = feed.world.models / "desired.json"
    kept = msgspec.json.decode(path.read_bytes())
    del kept["policies"]["rl"]["epoch"]
    path.write_bytes(msgspec.json.encode(kept))
    feed.run()
    assert feed.epoch() is not None


def test_the_status_says_how_the_open_epoch_stands(feed: Feed) -> None:
    assert told(feed) == "epoch 1, 0 units against 0: nothing yet"
    feed.earn(2.0, 2.0, units=50)
    feed.run()
    assert re.fullmatch(
        r"epoch 1, \d+ units against \d+: \S+ \[\S+, \S+\] per unit; not enough \(interval\)", told(feed)
    )


def told(feed: Feed) -> str:
    world = feed.world
    (policy,) = status(world.config, world.store, [world.server], world.models, now_ms=world.now_ms).policies
    return dict(_policy_rows(policy))["evidence"]


def test_where_nothing_is_shown_nothing_is_concluded(feed: Feed) -> None:
    version = published(feed, 1_000)
    feed.earn(2.0, 2.0)
    assert feed.run().concluded == {}
    standing = read_evidence(feed.world.models)["rl"]
    assert (standing.conclusion, standing.reason) == ("not_enough", "interval")
    assert standing.policy.units + standing.baseline.units == UNITS
    assert (feed.world.pointer().stable.version, feed.epoch().number) == (version, 1)


def test_an_epoch_counts_what_came_since_it_began(feed: Feed) -> None:
    """What certified the first is not counted in the second, which finds the opposite."""
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    second = published(feed, 2_000)
    feed.earn(1.0, 2.0)
    feed.run()
    assert [verdict.outcome for verdict in feed.conclusions()] == ["certified", "ended"]
    assert feed.conclusions()[1].bucket.policy.units < UNITS
    assert feed.world.pointer().stable.version == second - 1


def test_once_learned_versions_have_served_who_comes_again_is_their_doing(feed: Feed) -> None:
    assert not feed.epoch().served_before
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    assert (feed.epoch().number, feed.epoch().served_before) == (2, True)
    feed.earn(1.0, 2.0)
    feed.run()
    first, second = feed.conclusions()
    assert first.bucket.totals is None
    assert second.bucket.totals.difference.mean < 0
    assert re.fullmatch(r"reward per unit against the baseline: \S+ \[\S+ \S+\], a confidence.*", first.detail)
    assert re.fullmatch(r"reward per unit .*, by all that the slots bring -\S+ \[\S+, \S+\], a confi.*", second.detail)
    assert re.search(r" per unit, by all that the slots bring \S+ \[\S+, \S+\]; ended \(worse\)", told(feed))


def test_a_verdict_says_when_the_buckets_are_not_filled_as_hashed(feed: Feed) -> None:
    """A certificate by totals may be one of lost events."""
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    [verdict] = feed.conclusions()
    assert not verdict.detail.endswith("slots")
    assert _told(replace(verdict.bucket, mismatch=7.0)).endswith(
        "of the baseline, other shares than those of the slots"
    )


def test_an_epoch_that_begins_anew_while_the_baseline_serves_is_as_the_first(feed: Feed) -> None:
    resized(feed.world, 4)
    feed.run()
    assert (feed.epoch().number, feed.epoch().served_before) == (2, False)
    published(feed, 1_000)
    resized(feed.world, 49)
    feed.run()
    assert (feed.epoch().number, feed.epoch().served_before) == (3, True)


def test_evidence_goes_on_where_another_controller_left_off(feed: Feed) -> None:
    """Two halves, neither of which is enough."""
    published(feed, 1_000)
    feed.earn(2.4, 2.0, units=1_000)
    assert feed.run(holder="one").concluded == {}
    feed.earn(2.4, 2.0, units=1_000)
    assert feed.run(holder="two").concluded == {"certified": 1}
    assert feed.conclusions()[0].bucket.policy.units > 900


class Crash(Exception):
    pass


def crashes(feed: Feed, after: str) -> None:
    def crash(policy: str, step: str) -> None:
        if step == after:
            raise Crash

    quiet, feed.world.on_step = feed.world.on_step, crash
    with pytest.raises(Crash):
        feed.run()
    feed.world.on_step = quiet


def test_a_crash_after_the_verdict_does_what_it_says_and_judges_once(feed: Feed) -> None:
    version = published(feed, 1_000)
    feed.earn(1.0, 2.0)
    crashes(feed, "concluded")
    assert feed.world.pointer().stable.version == version
    feed.earn(5.0, 2.0)  # would be another conclusion
    feed.run()
    assert [verdict.outcome for verdict in feed.conclusions()] == ["ended"]
    assert feed.world.pointer().stable.version == 1
    release(feed.world.store, "fd", "rl")
    feed.run()
    assert feed.epoch().number == 2


def resized(world: Any, last: int) -> None:
    """The baseline's bucket ends at this slot; the policy's has the others."""
    base, ours = world.config.buckets.assign
    assign = (replace(base, slots=(0, last)), replace(ours, slots=(last + 1, 99)))
    world.config = replace(world.config, buckets=replace(world.config.buckets, assign=assign))


def test_buckets_of_another_size_begin_an_epoch_of_their_own(feed: Feed) -> None:
    """Otherwise units of before would be weighed with a share that they were not drawn with: of equal buckets one would
    look ten times as good, or as bad."""
    feed.earn(2.0, 2.0, units=400)
    assert feed.run().concluded == {}
    resized(feed.world, 4)
    metrics = Metrics(CONTROLLER)
    assert feed.run(metrics=metrics).concluded == {"superseded": 1}
    assert metrics.total("verdicts", outcome="superseded", reason="buckets") == 1
    (verdict,) = feed.conclusions()
    assert (verdict.candidate, verdict.outcome, verdict.reason) == ("epoch-1", "superseded", "buckets")
    assert feed.epoch().number == 2
    assert read_evidence(feed.world.models)["rl"].policy.units == 0
    feed.run()
    assert (feed.epoch().number, len(feed.conclusions())) == (2, 1)


def test_what_was_concluded_before_that_is_done_all_the_same(feed: Feed) -> None:
    published(feed, 1_000)
    feed.earn(1.0, 2.0)
    crashes(feed, "concluded")
    resized(feed.world, 4)
    feed.run()
    assert [verdict.outcome for verdict in feed.conclusions()] == ["ended"]
    assert (feed.world.pointer().stable.version, feed.world.pointer().frozen) == (1, True)
    assert feed.run().concluded == {}
    release(feed.world.store, "fd", "rl")
    feed.run()
    assert feed.epoch().number == 2


def test_a_crash_while_an_epoch_is_given_up_gives_up_one(feed: Feed) -> None:
    resized(feed.world, 4)
    crashes(feed, "superseded")
    feed.run()
    assert [verdict.outcome for verdict in feed.conclusions()] == ["superseded"]
    assert feed.epoch().number == 2


def test_evidence_on_versions_that_are_all_lost_ends_no_controller(feed: Feed) -> None:
    published(feed, 1_000)
    feed.earn(1.0, 2.0)
    for folder in (feed.world.models / "feed_rl").iterdir():
        shutil.rmtree(folder)
    for candidate in (feed.world.staging / "rl").iterdir():
        shutil.rmtree(candidate)
    assert feed.run().concluded == {}
    assert feed.world.pointer().stable is None
    assert feed.epoch() is None


def ruled(feed: Feed, **changes: Any) -> None:
    publish = feed.world.config.publish
    rules = replace(publish.certification, **changes)
    feed.world.config = replace(feed.world.config, publish=replace(publish, certification=rules))


def test_other_rules_do_not_look_at_the_same_units_again(feed: Feed) -> None:
    """Or whoever lowers the bar until it is passed has a certificate of whatever there is."""
    ruled(feed, certify_above=1.0)
    feed.run()
    first = feed.epoch().number
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {}
    ruled(feed, certify_above=0.0)
    assert feed.run().concluded == {"superseded": 1}
    assert (feed.conclusions()[-1].candidate, feed.conclusions()[-1].reason) == (f"epoch-{first}", "rules")
    assert feed.run().concluded == {}
    assert read_evidence(feed.world.models)["rl"].policy.units == 0
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}


def test_nor_does_another_reward(feed: Feed) -> None:
    feed.run()
    reward = feed.world.config.reward
    weights = {**reward.weights, "click": 7.0}
    feed.world.config = replace(feed.world.config, reward=replace(reward, weights=weights))
    assert feed.run().concluded == {"superseded": 1}
    assert feed.conclusions()[-1].reason == "rules"


def kept_from(feed: Feed, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has deleted what was before."""
    monkeypatch.setattr(feed.log, "start_offset", lambda topic, partition: offset)


def test_an_epoch_of_which_the_log_has_deleted_a_part_is_not_judged_again(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.earn(2.0, 2.0, units=1_000)
    assert feed.run(holder="one").concluded == {}
    feed.world.now_ms += 100_000
    feed.earn(4.0, 2.0)
    kept_from(feed, 1_001, monkeypatch)
    assert feed.run(holder="two").concluded == {"superseded": 1}
    (verdict,) = feed.conclusions()
    assert (verdict.candidate, verdict.reason) == ("epoch-1", "retention")
    assert "transitions" in verdict.detail
    assert feed.epoch().number == 2
    feed.run(holder="three")
    assert (feed.epoch().number, len(feed.conclusions())) == (2, 1)


def test_what_the_log_has_deleted_of_before_an_epoch_is_not_missed(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed.earn(2.0, 2.0, units=1_000)
    begins(feed, ahead_ms=0)
    feed.earn(2.0, 2.0, units=1_000)
    kept_from(feed, 1_000, monkeypatch)
    assert feed.run().concluded == {}
    assert feed.epoch().number == 1
    standing = read_evidence(feed.world.models)["rl"]
    assert standing.policy.units + standing.baseline.units == 1_000


def begins(feed: Feed, ahead_ms: int) -> None:
    """The open epoch, by a clock that was ahead by so much."""
    path, started_ms = feed.world.models / "desired.json", feed.epoch().started_ms
    path.write_text(path.read_text().replace(f"{started_ms}", f"{feed.world.now_ms + ahead_ms}"))
    assert feed.epoch().started_ms == feed.world.now_ms + ahead_ms


def test_a_clock_that_is_put_back_begins_an_epoch_that_has_pages(feed: Feed) -> None:
    version = published(feed, 1_000)
    begins(feed, ahead_ms=24 * 3_600_000)
    assert feed.run().concluded == {"superseded": 1}
    (verdict,) = feed.conclusions()
    assert (verdict.candidate, verdict.reason) == ("epoch-1", "clock")
    assert feed.epoch().started_ms <= feed.world.now_ms
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}
    assert feed.world.desired().policies["rl"].certified.version == version


def test_a_clock_that_is_put_back_by_less_than_clocks_differ_ends_no_epoch(feed: Feed) -> None:
    feed.world.config = replace(feed.world.config, stream=replace(feed.world.config.stream, clock_skew=500_000))
    begins(feed, ahead_ms=400_000)
    assert feed.run().concluded == {}
    assert feed.epoch().number == 1


def test_an_epoch_of_before_that_was_kept_goes_on(feed: Feed) -> None:
    begun = feed.epoch()
    path = feed.world.models / "desired.json"
    text = path.read_text().replace(f'"assigned": "{begun.assigned}"', '"assigned": null')
    path.write_text(text.replace(f'"rules": "{begun.rules}"', '"rules": null'))
    assert (feed.epoch().assigned, feed.epoch().rules) == (None, None)
    feed.run()
    assert feed.epoch() == begun
    assert feed.conclusions() == []


def test_of_a_later_one_of_before_that_was_kept_totals_are_looked_at(feed: Feed) -> None:
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    begun = feed.epoch()
    path = feed.world.models / "desired.json"
    text = path.read_text().replace(f'"rules": "{begun.rules}"', '"rules": null')
    path.write_text(text.replace('"served_before": true', '"served_before": false'))
    assert (feed.epoch().rules, feed.epoch().served_before) == (None, False)
    feed.run()
    assert feed.epoch() == begun


def test_a_lost_desired_state_does_not_spend_an_epoch_twice(feed: Feed) -> None:
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    (feed.world.models / "desired.json").unlink()
    feed.run()
    assert feed.epoch().number == 2
    assert len(feed.conclusions()) == 1


def test_nor_one_that_was_open_and_had_been_looked_at(feed: Feed) -> None:
    feed.earn(2.0, 2.0, units=200)
    assert feed.run().concluded == {}
    (feed.world.models / "desired.json").unlink()
    feed.run()
    assert feed.epoch().number == 2


def forgotten(feed: Feed, epoch: int) -> None:
    """As after very many candidates, of which only so many verdicts are kept."""
    path = feed.world.models / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if f'"epoch-{epoch}"' not in line))


def test_nor_does_one_whose_verdict_is_forgotten_while_the_policy_rests(feed: Feed) -> None:
    """Another policy's evidence has taken its place in the file."""
    published(feed, 1_000)
    feed.earn(1.0, 2.0)
    feed.run()
    forgotten(feed, 1)
    (feed.world.models / "evidence.json").unlink()
    release(feed.world.store, "fd", "rl")
    feed.run()
    assert feed.epoch().number == 2


def test_after_one_that_is_forgotten_none_begins_that_was_concluded_after_it(feed: Feed) -> None:
    """Or what was concluded of that one would be done again."""
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    feed.earn(1.0, 2.0)
    feed.run()
    assert [verdict.outcome for verdict in feed.conclusions()] == ["certified", "ended"]
    forgotten(feed, 1)
    for name in ("evidence.json", "desired.json"):
        (feed.world.models / name).unlink()
    release(feed.world.store, "fd", "rl")
    feed.run()
    assert feed.epoch().number == 3


def test_of_an_epoch_that_has_only_begun_those_before_are_spent(feed: Feed) -> None:
    published(feed, 1_000)
    feed.earn(3.0, 2.0)
    feed.run()
    assert read_evidence(feed.world.models)["rl"].policy.units == 0
    forgotten(feed, 1)
    (feed.world.models / "desired.json").unlink()
    feed.run()
    assert feed.epoch().number == 2


def test_a_log_out_of_reach_does_not_keep_versions_back(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        message = "no broker answers"
        raise LogError(message)

    with monkeypatch.context() as patched:
        patched.setattr(feed.log, "end_offsets", refuse)
        assert published(feed, 1_000) == 2
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}


def test_records_that_are_no_transitions_are_left_out(feed: Feed) -> None:
    published(feed, 1_000)
    feed.log.append(TRANSITIONS, [Entry("u", b"{}", feed.world.now_ms)])
    feed.earn(3.0, 2.0)
    assert feed.run().concluded == {"certified": 1}


def test_without_a_log_a_config_that_certifies_is_refused(feed: Feed) -> None:
    with pytest.raises(ControllerError, match="expected the event log"):
        feed.world.run()


def test_without_certification_no_evidence_is_gathered(world: Any) -> None:
    world.bootstrap()
    world.run()
    assert read_evidence(world.models) == {}
    assert world.desired().policies["rl"].epoch is None


# Rates -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rated(feed: Feed) -> Feed:
    """A feed whose closed pages are judged, too."""
    publish = feed.world.config.publish
    rules = replace(publish.certification, click_budget=0.05, exposure_budget=0.05)
    feed.world.config = replace(feed.world.config, publish=replace(publish, certification=rules))
    feed.log.create(SAMPLES, 1)
    feed.run()
    return feed


def close(feed: Feed, clicks: tuple[float, float], shown: tuple[float, float], units: int = UNITS) -> None:
    """Pages of new users, one each; shares of (policy, baseline)."""
    pages = []
    for _ in range(units):
        bucket, side = ("r", 0) if feed.rng.random() < 0.5 else ("b", 1)
        pages.append(closed(feed, bucket, feed.rng.random() < clicks[side], feed.rng.random() < shown[side]))
    feed.world.now_ms += 100_000
    pages.append(closed(feed, "elsewhere", False, True))
    stamp = feed.world.now_ms
    feed.log.append(SAMPLES, [Entry(page.impression.user_id, encode(page), stamp) for page in pages])


def closed(feed: Feed, bucket: str, clicked: bool, shown: bool) -> Page:
    feed.users += 1
    feed.world.now_ms += 1
    name, when = f"u{feed.users}", feed.world.now_ms
    decision = Decision(DecidedBy.POLICY, "rl", bucket)
    impression = Impression(1, name, name, name, when, 0, (Item("i"),), State(), decision)
    return Page(impression, (Labels(clicks=int(clicked)),), (), when, shown)


@pytest.mark.parametrize(
    ("clicks", "shown", "reason"),
    [((0.2, 0.6), (1.0, 1.0), "clicks"), ((0.0, 0.0), (0.5, 1.0), "exposure")],
)
def test_a_bucket_whose_users_click_less_or_see_less_goes_back(
    rated: Feed, clicks: tuple[float, float], shown: tuple[float, float], reason: str
) -> None:
    version = published(rated, 1_000)
    close(rated, clicks, shown)
    assert rated.run().concluded == {"ended": 1}
    verdict = rated.conclusions()[-1]
    assert (verdict.reason, verdict.version) == (reason, version)
    assert verdict.detail.startswith(f"{reason} of 0.")
    assert verdict.bucket is not None
    assert verdict.bucket.alpha == pytest.approx(
        0.05 / 6 / 3
    )  # of the second epoch (the rules of the first were others), in three parts
    pointer = rated.world.pointer()
    assert (pointer.stable.version, pointer.frozen, pointer.back) == (1, True, GoBack(1, BOOTSTRAP))


def test_a_bucket_whose_users_do_as_the_baselines_do_stays(rated: Feed) -> None:
    close(rated, (0.5, 0.5), (0.9, 0.9))
    assert rated.run().concluded == {}
    found = read_evidence(rated.world.models)["rl"]
    assert [rate.name for rate in found.rates] == ["clicks", "exposure"]
    for rate, share in zip(found.rates, (0.45, 0.9), strict=True):  # who was shown nothing did not click
        assert (rate.policy, rate.baseline) == (pytest.approx(share, abs=0.05), pytest.approx(share, abs=0.05))
        assert rate.difference.low < 0 < rate.difference.high


def test_rates_that_are_not_asked_for_are_not_read(feed: Feed) -> None:
    feed.log.create(SAMPLES, 1)
    close(feed, (0.0, 0.9), (0.0, 1.0))
    assert feed.run().concluded == {}
    assert read_evidence(feed.world.models)["rl"].rates == ()
