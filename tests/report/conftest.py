"""A run's folder made by hand, so that every figure is known beforehand."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from model_export.checks import Check, Verdict
from pageturn.run import Run, new_run
from pageturn.supervisor import PartEvent
from pageturn.traffic_log import AskedPage, TrafficLog, Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.events import encode
from pipeline.logs.log import EVENTS, OUTPUTS, SAMPLES, TRANSITIONS, Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.records import (
    SCHEMA_VERSION,
    Action,
    DecidedBy,
    Decision,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Labels,
    Page,
    Propensity,
    Stamp,
    State,
    Transition,
)
from pipeline.simulation.outcomes import Outcome
from pipeline.streaming.progress import Progress, SavedKey, SavedStep
from pipeline.streaming.snapshot import SESSION_STATE, SESSIONS_STEP, Snapshot, SnapshotStore
from pipeline.transitions.session import Rules, Stamped, encode_state, on_events

ROOT = Path(__file__).resolve().parents[2]
START_MS = 1_700_000_000_000
CLOSE_MS = 5_000  # the config's longest window


class MadeRun:
    """Each method adds one thing to the folder."""

    start_ms = START_MS

    def __init__(self, folder: Path) -> None:
        self.run: Run = new_run(folder, ROOT / "feature_configs" / "simulated.yaml", seed=3, redis=False)
        self.config = self.run.config()
        self._table = bucket_table(self.config.buckets)
        self._users = {bucket.name: iter(self._of(bucket.name)) for bucket in self.config.buckets.assign}

    def _of(self, bucket: str) -> list[str]:
        names = [f"user-{number}" for number in range(3000)]
        return [name for name in names if self._table[slot_of(self.config.buckets, name)].name == bucket]

    def user(self, bucket: str) -> str:
        return next(self._users[bucket])

    def visits(self, bucket: str, *rewards: float | None, first_s: float = 0, every_s: float = 10) -> None:
        """One user each; None: did not look at the feed."""
        with TrafficLog(self.run.traffic) as log:
            for number, reward in enumerate(rewards):
                who, when = self.user(bucket), START_MS + int(1000 * (first_s + every_s * number))
                outcome = Outcome(who, True, reward is not None, 3, 1, 0, 9.0, reward or 0.0)
                log.visit(Visit(when, 1, outcome))

    def visit(self, outcome: Outcome, time_ms: int) -> None:
        with TrafficLog(self.run.traffic) as log:
            log.visit(Visit(time_ms, 1, outcome))

    def asked(self, *pages: AskedPage) -> None:
        with TrafficLog(self.run.traffic) as log:
            for page in pages:
                log.page(page)

    def acknowledged(self, *events: Feedback) -> None:
        with TrafficLog(self.run.traffic) as log:
            log.acknowledged(events)

    # The log ---------------------------------------------------------------------------------------------------------

    def impression(self, name: str, time_s: float = 0, action: float | None = None, by: str = "policy") -> Impression:
        drawn = () if action is None else (Action("a", action, Propensity(action, 1.0, 0.2, 0.15, 0.0, 0.0, 0.0)),)
        decision = Decision(DecidedBy(by), "rl_a", "rl_a", drawn)
        when = START_MS + int(1000 * time_s)
        return Impression(SCHEMA_VERSION, name, "user-1", "s-1", when, 0, (Item("i"),), State(), decision)

    def feedback(self, name: str, event_id: str, time_s: float, kind: str = "click") -> Feedback:
        when = START_MS + int(1000 * time_s)
        return Feedback(SCHEMA_VERSION, event_id, name, "user-1", "s-1", when, FeedbackKind(kind), "i")

    def page(self, impression: Impression, *feedback: Feedback) -> Page:
        return Page(impression, (Labels(),), feedback, impression.time_ms + CLOSE_MS)

    def transition(self, impression: Impression) -> Transition:
        i = impression
        return Transition(
            f"{i.request_id}@1", i.request_id, i.user_id, i.session_id, i.time_ms, 0, i.state, i.decision, 1.0, "1", 0.0
        )

    def append(self, topic: str, *records: Any) -> None:
        with closing(open_log(self.run.log_url)) as log:
            self._create(log)
            entries = [Entry("s-1", r if isinstance(r, bytes) else encode(r), START_MS) for r in records]
            log.append(topic, entries)

    def _create(self, log: EventLog) -> None:
        for topic in (EVENTS, *OUTPUTS):
            log.create(topic, 1)

    def closed(self, *pages: Page) -> None:
        """The stream has made of each page what it makes."""
        self.append(SAMPLES, *pages)
        self.append(TRANSITIONS, *(self.transition(page.impression) for page in pages))

    def snapshot(self, read: int, *still_open: Impression | Feedback) -> None:
        """The stream has read so many events, of which some are in no page yet."""
        stamped = [Stamped(Stamp(START_MS, 0, offset), event) for offset, event in enumerate(still_open)]
        state = on_events(Rules.of(self.config), None, stamped).state
        assert state is not None
        step = SavedStep([SESSION_STATE], [], {"s-1": SavedKey({SESSION_STATE: [encode_state(state)]}, [])})
        self.run.stream.mkdir(exist_ok=True)
        with closing(SnapshotStore(self.run.stream)) as store:
            store.save(Snapshot({}, Progress(0, {0: read}, {SESSIONS_STEP: step}, read), {}))

    # Learning --------------------------------------------------------------------------------------------------------

    def verdict(self, time_s: float, outcome: str, **fields: Any) -> None:
        values: dict[str, Any] = {
            "candidate": f"{int(time_s):012d}-x", "policy": "rl_a", "tier": "every_version", "reason": "", "detail": "",
            "evidence": "not_enough_evidence", "time_ms": START_MS + int(1000 * time_s),
        }  # fmt: skip
        check = Check("step_change", 0.01, 0.2, True, 32, "<= 0.2", "against version 1")
        verdict = Verdict(**(values | {"outcome": outcome, "checks": (check,)} | fields))
        self.run.models.mkdir(exist_ok=True)
        with (self.run.models / "verdicts.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(verdict) + b"\n")

    def learned(self, *rows: dict[str, Any]) -> None:
        self.run.trainer.mkdir(exist_ok=True)
        with (self.run.trainer / "metrics.jsonl").open("ab") as file:
            file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)

    def parts(self, *events: PartEvent) -> None:
        self.run.logs.mkdir(exist_ok=True)
        with self.run.journal.open("ab") as file:
            file.writelines(msgspec.json.encode(event) + b"\n" for event in events)


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return MadeRun(tmp_path / "made")


@pytest.fixture
def lively(made: MadeRun) -> MadeRun:
    """Something of everything; the agent was killed once."""
    for bucket, reward in (("control", 1.0), ("rl_a", 2.0), ("rl_b", 1.5)):
        made.visits(bucket, *(reward + n % 3 for n in range(30)), every_s=4)
    who = [("policy", "rl_a", None), ("baseline", "control", None), ("fallback", "rl_b", "unavailable"), (None,) * 3]
    for number in range(60):
        by, bucket, reason = who[number % 4]
        made.asked(
            AskedPage(START_MS + 2000 * number, f"p{number}", 4.0 + number % 5, bucket, by, reason,
                      trouble=None if by else "UNAVAILABLE")
        )  # fmt: skip
    shown = [made.impression(f"p{n}", 2 * n, 0.8 + n % 5 / 10) for n in range(0, 60, 4)]
    pages = [
        made.page(each, made.feedback(each.request_id, f"c-{each.request_id}", 2 * n)) for n, each in enumerate(shown)
    ]
    made.closed(*pages)
    made.acknowledged(*(feedback for page in pages for feedback in page.feedback))
    made.verdict(1, "accepted", tier="bootstrap", version=1)
    made.verdict(30, "accepted", version=2, last_transition="p12@1")
    made.verdict(50, "refused", reason="step_change", detail="step_change: expected <= 0.2, found 0.3")
    made.verdict(90, "accepted", version=3, last_transition="p40@1")
    for number in range(1, 20):
        made.learned(
            {"time_ms": START_MS + 5000 * number, "transitions": 64 * number, "updates": 16 * number,
             "refused": {}, "value_loss": 1 / number, "value_mean": 2.0, "advantage_loss/rl_a": 0.5,
             "actor_loss/rl_a": -0.1, "advantage_mean/rl_a": 0.25}
        )  # fmt: skip
    made.parts(
        PartEvent(START_MS, "agent", "started", 11),
        PartEvent(START_MS + 30_000, "agent", "ended", 11, -9),
        PartEvent(START_MS + 31_000, "agent", "started", 12),
        PartEvent(START_MS, "stream", "started", 13),
    )
    return made


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        _conftest().missing("chromium", "no chromium is on the PATH")
    with _load(Path(__file__).with_name("browser.py")).running(str(binary), tmp_path / "profile") as browser:
        yield browser


def _conftest() -> ModuleType:
    return _load(ROOT / "tests" / "conftest.py")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
