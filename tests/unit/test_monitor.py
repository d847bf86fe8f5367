"""`pageturn monitor`: what it counts of a log that a stream has written, from where it begins on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from msgspec.structs import replace

from pageturn.monitor import Memory, count_record, watch
from pageturn.user_clicks import HOUR_MS, UserClicks
from pageturn.waiting_clicks import WaitingClicks
from pipeline.events import EventError, encode
from pipeline.logs.log import (
    DEAD_LETTERS,
    EPISODES,
    EVENTS,
    LATE,
    SAMPLES,
    TRANSITIONS,
    Entry,
    EventLog,
    LogError,
    Record,
)
from pipeline.logs.opening import open_log
from pipeline.monitoring.catalogue import MONITOR
from pipeline.monitoring.metrics import Metrics
from pipeline.records import (
    DeadLetter,
    DecidedBy,
    Decision,
    Ending,
    Episode,
    Fate,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Labels,
    Page,
    SetAside,
    State,
    Step,
    Transition,
)
from tests.unit.agent_fakes import eventually

DECISION = Decision(DecidedBy.POLICY, "rl", "rl_a")


def page(clicks: int = 0, shown: bool = True, user: str = "u", time_ms: int = 1_000) -> Page:
    impression = Impression(1, "r", user, "s", time_ms, 0, (Item("i"), Item("j")), State(), DECISION)
    dwell = Feedback(1, "e", "r", "u", "s", 2_000, FeedbackKind.DWELL, value=2.5)
    return Page(impression, (Labels(clicks=clicks), Labels(orders=1, order_value=7.5)), (dwell,), 9_000, shown)


def transition(reward: float) -> Transition:
    return Transition("r@1", "r", "u", "s", 1_000, 0, State(), DECISION, reward, "1", 0.0, None, Ending.LEAVE)


def counted(topic: str, *records: object, appended_at_ms: int = 8_000) -> Metrics:
    metrics, memory = Metrics(MONITOR), Memory()
    for i, record in enumerate(records):
        count_record(topic, Record(0, i, appended_at_ms, "s", encode(record)), metrics, memory)
    return metrics


def test_a_page_counts_for_its_bucket() -> None:
    metrics = counted(SAMPLES, page(clicks=2), page(), page(shown=False))
    assert metrics.total("pages", bucket="rl_a", decided_by="policy") == 3
    expected = {"pages_shown": 2, "pages_with_click": 1, "clicks": 2, "orders": 3, "order_value": 22.5}
    assert {name: metrics.total(name, bucket="rl_a") for name in expected} == expected
    assert metrics.total("dwell_seconds", bucket="rl_a") == 7.5


def test_rewards_are_summed_with_their_sign_and_the_way_to_the_log_is_timed() -> None:
    metrics = counted(TRANSITIONS, transition(2.0), transition(-0.5))
    assert metrics.total("reward", bucket="rl_a") == 1.5
    assert metrics.total("transitions", bucket="rl_a") == 2
    sums = {s.name: s.value for metric in metrics.registry.collect() for s in metric.samples if "join" in s.name}
    assert sums["pageturn_monitor_join_seconds_sum"] == 14.0  # twice from 1,000 ms to 8,000 ms


def test_visits_by_how_they_ended() -> None:
    step = Step("r", 1_000, 0, State(), DECISION, 1.0)
    metrics = counted(EPISODES, Episode("r@1", "u", "s", (step,), "1", Ending.INFERRED_LEAVE, 0.0))
    assert metrics.total("visits", bucket="rl_a", ending="inferred_leave") == 1
    deep = {
        s.labels["le"]: s.value
        for m in metrics.registry.collect()
        for s in m.samples
        if s.name.endswith("pages_bucket")
    }
    assert (deep["1.0"], deep["+Inf"]) == (1, 1)


def test_a_user_who_clicks_counts_once_in_the_hour() -> None:
    pages = [page(clicks=1, user="a"), page(clicks=2, user="a"), page(user="a"), page(user="b"), page(user="c")]
    unseen = page(clicks=1, shown=False, user="d")
    assert counted(SAMPLES, *pages, unseen).total("user_click_rate") == 0  # the hour is not over
    after = page(user="e", time_ms=HOUR_MS)
    late = page(clicks=1, user="b")
    assert counted(SAMPLES, *pages, unseen, after, late).total("user_click_rate", bucket="rl_a") == pytest.approx(1 / 3)


def test_of_many_users_a_part_is_remembered_from_all_of_the_hour() -> None:
    users = UserClicks(kept=1_000)
    for number in range(40_000):
        assert not list(users.add(0, "a", f"u{number}", number >= 20_000))
    [(bucket, share)] = users.add(HOUR_MS, "a", "u", False)
    assert bucket == "a"
    assert share == pytest.approx(0.5, abs=0.09)  # four standard errors of 500 users or more


def test_how_long_a_click_takes_to_its_transition() -> None:
    """Each click of the page once, however often its transition is written."""
    metrics, memory = Metrics(MONITOR), Memory()
    clicks = tuple(Feedback(1, f"e{ms}", "r", "u", "s", ms, FeedbackKind.CLICK) for ms in (2_000, 5_000))
    closed = replace(page(clicks=2), feedback=(*page().feedback, *clicks))
    for topic, record in ((SAMPLES, closed), (TRANSITIONS, transition(1.0)), (TRANSITIONS, transition(1.0))):
        count_record(topic, Record(0, 0, 65_000, "s", encode(record)), metrics, memory)
    samples = {s.name: s.value for m in metrics.registry.collect() for s in m.samples if "le" not in s.labels}
    assert samples["pageturn_monitor_click_to_transition_seconds_count"] == 2
    assert samples["pageturn_monitor_click_to_transition_seconds_sum"] == 63 + 60


def test_of_clicks_that_wait_the_oldest_are_given_up() -> None:
    waiting = WaitingClicks(kept=2)
    for name in ("a", "b", "c"):
        waiting.closed(name, (1,))
    waiting.closed("d", ())
    assert [waiting.arrived(name) for name in "abcd"] == [(), (1,), (1,), ()]


def test_what_was_set_aside_and_what_could_not_be_read_by_reason() -> None:
    event = page().feedback[0]
    assert counted(LATE, SetAside("0:1", Fate.LATE, "transport", 1, event)).total("set_aside", reason="transport") == 1
    letter = DeadLetter("0:2", "malformed", "", 1, "k", b"{")
    assert counted(DEAD_LETTERS, letter).total("dead_letters", reason="malformed") == 1


def test_a_record_of_another_kind_is_an_error() -> None:
    with pytest.raises(EventError):
        counted(SAMPLES, transition(1.0))


# Following a log -------------------------------------------------------------------------------------------------


@contextmanager
def watching(log: EventLog) -> Iterator[Metrics]:
    metrics, stop = Metrics(MONITOR), threading.Event()
    thread = threading.Thread(target=watch, args=(log, metrics, stop))
    thread.start()
    try:
        yield metrics
    finally:
        stop.set()
        thread.join(timeout=250)
        assert not thread.is_alive()


def test_it_begins_at_the_end_and_waits_for_topics(tmp_path) -> None:
    with closing(open_log(f"file://{tmp_path}")) as log:
        log.create(SAMPLES, 2)
        log.append(SAMPLES, [Entry("old", encode(page()))])
        with watching(log) as metrics:
            log.create(EVENTS, 1)
            eventually(lambda: _grows(log, metrics, EVENTS, b"{}"))
            eventually(lambda: _grows(log, metrics, SAMPLES, encode(page(clicks=1))))
        assert metrics.total("pages") == metrics.total("clicks") == metrics.total("records", topic=SAMPLES)


def _grows(log: EventLog, metrics: Metrics, topic: str, payload: bytes) -> bool:
    """It may not have looked at the topic yet, and then begins behind what is appended here."""
    log.append(topic, [Entry("k", payload)])
    return metrics.total("records", topic=topic) >= 1


def test_a_record_that_is_none_is_counted_and_passed_over(tmp_path) -> None:
    with closing(open_log(f"file://{tmp_path}")) as log:
        log.create(SAMPLES, 1)
        with watching(log) as metrics:
            eventually(lambda: _grows(log, metrics, SAMPLES, b"?"))
            eventually(lambda: _grows(log, metrics, SAMPLES, encode(page())) and metrics.total("pages") >= 1)
        assert metrics.total("records", topic=SAMPLES) > metrics.total("pages")


def test_a_log_out_of_reach_is_waited_for(tmp_path, caplog) -> None:
    with closing(open_log(f"file://{tmp_path}")) as log:
        log.create(SAMPLES, 1)
        flaky = _Flaky(log, failures=3)
        with watching(flaky) as metrics:
            eventually(lambda: _grows(log, metrics, SAMPLES, encode(page())))
    assert flaky.failures == 0
    assert "trying again" in caplog.text


class _Flaky:
    def __init__(self, log: EventLog, failures: int) -> None:
        self._log, self.failures = log, failures

    def start_offset(self, topic: str, partition: int) -> int:
        if self.failures:
            self.failures -= 1
            message = "no broker"
            raise LogError(message)
        return self._log.start_offset(topic, partition)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)
