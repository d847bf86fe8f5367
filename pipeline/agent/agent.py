"""The online agent as a library: answers pages, follows what is published, logs what it did.

with Agent(config, store, model_server, log, agent_id="agent-0") as agent:
    decision = agent.decide(request, timeout_s=0.1)

A page is never failed for trouble on the path to the policy: it gets the baseline, computed here, and its decision
says why. Only a request that is itself wrong raises (AgentRequestError).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from msgspec import Struct

from pipeline.agent.deciding import Decider, Mode, Outcome
from pipeline.agent.follower import Follower
from pipeline.agent.guarding import Breaker, GuardedServer, PredictionSource, noted
from pipeline.agent.impressions import LogWriter
from pipeline.agent.lookups import TimelyVectors
from pipeline.agent.memory import RetryMemory
from pipeline.agent.metering import Meter, MeteredServer
from pipeline.agent.policies import MetadataSource, Pinner
from pipeline.agent.ranking_deciding import RankingDecider
from pipeline.agent.reasons import Reason
from pipeline.agent.requests import AgentRequestError, PageDecision, PageRequest, admit, admit_feedback
from pipeline.config.schema import FeatureConfig
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.stored_vectors import StoredVectors
from pipeline.logs.log import Entry, EventLog
from pipeline.monitoring.catalogue import AGENT
from pipeline.monitoring.metrics import Metrics
from pipeline.records import SCHEMA_VERSION, DecidedBy, Feedback, Impression, Item
from pipeline.stores.published import Usage
from pipeline.stores.store import KeyValueStore

__all__ = ["Agent", "AgentRequestError", "AgentSettings", "Mode", "PageDecision", "PageRequest", "Server"]

_LOG = logging.getLogger(__name__)


class Server(PredictionSource, MetadataSource, Protocol):
    """What the agent needs of `pipeline.serving.client.ModelServer`."""


class AgentSettings(Struct, frozen=True, forbid_unknown_fields=True):
    follow_every_s: float = 1.0
    heartbeat_every_s: float = 3.0
    stale_after_s: float = 30.0  # pointers older than this are still followed, and counted
    metadata_timeout_s: float = 2.0
    reserve_s: float = 0.002  # of a deadline, at most a tenth of it: for what comes after the model
    reserve_page_s: float = 0.0005  # the same for each further page of a batch, at most half of the deadline
    breaker_failures: int = 5  # in a row, of the model server; then it is left alone,
    breaker_pause_s: float = 0.25  # but for one call in so long, until one is answered
    first_attempt: float = 1.0  # share of the time for the model; with less, another replica may make up for a slow one
    vectors_in_memory: int = 200_000
    retries_remembered: int = 20_000
    retried_items_remembered: int = 2_000_000  # of all pages together: 85 bytes each
    retries_for_s: float = 300.0
    events_queued: int = 20_000  # feedback that is waited for fills half of it at most,
    bytes_queued: int = 128 * 1024 * 1024  # and of this: what the log does not take for minutes is held in memory


class Agent:
    """Owns threads: close it. Neither the store, nor the model server, nor the log is closed with it."""

    def __init__(
        self,
        config: FeatureConfig,
        store: KeyValueStore,
        model_server: Server,
        log: EventLog | None,
        *,
        agent_id: str,
        mode: Mode | str = Mode.LIVE,
        settings: AgentSettings | None = None,
        metrics: Metrics | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or AgentSettings()
        self.metrics = metrics or Metrics(AGENT)
        self._config, self._settings = config, settings
        self._clock_ms, self._monotonic = clock_ms, monotonic
        self._memory = RetryMemory(
            settings.retries_remembered, settings.retried_items_remembered, settings.retries_for_s, monotonic
        )
        stored = StoredVectors(
            store, config.kv_prefix, capacity=settings.vectors_in_memory, monotonic=monotonic,
            fetched=lambda table, ids: self.metrics.count("vectors_fetched", ids, table=table),
        )  # fmt: skip
        self._vectors = TimelyVectors(stored, monotonic, self.metrics)
        guard = config.publish.guard
        self._meter = Meter(guard.slow / 1000) if guard else None
        self._follower = Follower(
            store,
            Pinner(config, store, model_server, settings.metadata_timeout_s),
            self.metrics,
            prefix=config.kv_prefix,
            policies=config.learned_policies(),
            agent_id=agent_id,
            every_s=settings.follow_every_s,
            heartbeat_s=settings.heartbeat_every_s,
            clock_ms=clock_ms,
            monotonic=monotonic,
            usage=self._usage,
        )
        encoder = Encoder(config, self._vectors)
        breaker = Breaker(settings.breaker_failures, settings.breaker_pause_s, monotonic, noted(self.metrics))
        timed = MeteredServer(model_server, self._meter, monotonic) if self._meter else model_server
        guarded = GuardedServer(timed, breaker, self.metrics, monotonic, settings.first_attempt)
        self._decider = (Decider if config.ranking is None else RankingDecider)(
            config, encoder, self._vectors, guarded, self._follower, self.metrics,
            mode=Mode(mode), monotonic=monotonic,
        )  # fmt: skip
        self._writer = None if log is None else LogWriter(
            log, self.metrics, capacity=settings.events_queued, capacity_bytes=settings.bytes_queued,
            monotonic=monotonic,
        )  # fmt: skip

    # deciding

    def decide(self, request: PageRequest, timeout_s: float) -> PageDecision:
        """The page's decision, within the time. Raises AgentRequestError where the request is wrong."""
        return _one(self.decide_many((request,), timeout_s))

    def decide_many(self, requests: Sequence[PageRequest], timeout_s: float) -> list[PageDecision | AgentRequestError]:
        """One answer per request, in order. Pages of one version go to the model together."""
        deadline_s = self._monotonic() + timeout_s - self._reserve_s(len(requests), timeout_s)
        return self._answer(requests, lambda pages: self._decided(pages, deadline_s))

    def _reserve_s(self, pages: int, timeout_s: float) -> float:
        """Every page of a batch is put in order, remembered and logged after the model has answered, or has not."""
        further_s = self._settings.reserve_page_s * max(pages - 1, 0)
        return min(self._settings.reserve_s, timeout_s / 10) + min(further_s, timeout_s / 2)

    def shed(self, request: PageRequest, reason: Reason = Reason.OVERLOADED) -> PageDecision:
        """The baseline at once: for a caller who has no capacity, or no time, left to wait for the policy."""
        return _one(self._answer((request,), lambda pages: self._fall_back(pages, reason)))

    def _answer(
        self, requests: Sequence[PageRequest], decide: Callable[[list[PageRequest]], list[Outcome]]
    ) -> list[PageDecision | AgentRequestError]:
        started_s = self._monotonic()
        admitted = [_admitted(request) for request in requests]
        answers = [self._memory.recall(each) if isinstance(each, PageRequest) else each for each in admitted]
        open_ = [i for i, answer in enumerate(answers) if answer is None]
        pages = [page for i in open_ if isinstance(page := admitted[i], PageRequest)]
        for i, page, outcome in zip(open_, pages, decide(pages) if pages else [], strict=True):
            answers[i] = self._settle(page, outcome)
        self._metric_latency(started_s, len(requests))
        return [answer for answer in answers if answer is not None]

    def _decided(self, pages: list[PageRequest], deadline_s: float) -> list[Outcome]:
        if self._follower.age_s() > self._settings.stale_after_s:
            self.metrics.count("pages_on_stale_pointers", len(pages))
        try:
            return self._decider.decide(pages, deadline_s)
        except Exception:  # the promise: no page fails for a fault of ours
            _LOG.exception("unexpected fault while deciding; the baseline was served")
            return self._fall_back(pages, Reason.INTERNAL)

    def _fall_back(self, pages: list[PageRequest], reason: Reason) -> list[Outcome]:
        return [self._decider.fall_back(page, reason) for page in pages]

    def _settle(self, request: PageRequest, outcome: Outcome) -> PageDecision | AgentRequestError:
        """Remember and log, unless a twin of the request was quicker: then its decision is the answer."""
        shown = tuple(map(request.items.__getitem__, outcome.order))
        payload = encode(self._impression(request, shown, outcome))
        limit = self._config.stream.max_event_bytes
        if len(payload) > limit:
            msg = f"request {request.request_id}: expected an impression of at most {limit} bytes, found {len(payload)}"
            return AgentRequestError(msg)
        ids = tuple([item.item_id for item in shown])
        decision = PageDecision(request.request_id, outcome.order, ids, outcome.decision)
        standing = self._memory.settle(request, decision)
        if standing is decision:
            self._count(outcome)
            self._submit(request.session_id, payload)
        return standing

    def _impression(self, request: PageRequest, shown: tuple[Item, ...], outcome: Outcome) -> Impression:
        return Impression(
            SCHEMA_VERSION,
            request.request_id,
            request.user_id,
            request.session_id,
            self._clock_ms() if request.time_ms is None else request.time_ms,
            request.page_index,
            shown,
            outcome.state,
            outcome.decision,
        )

    # feedback

    def report(self, feedback: Feedback) -> bool:
        """Take feedback in for the log, without waiting: what kills the process in the next moments loses it.

        False if it was dropped. Raises AgentRequestError where it is wrong.
        """
        admitted = admit_feedback(feedback)
        self.metrics.count("feedback", kind=admitted.kind.value)
        return self._submit(admitted.session_id, encode(admitted))

    def report_and_wait(self, feedback: Sequence[Feedback], timeout_s: float) -> bool:
        """Wait until all of it is in the log. False if it is not in time: send it again, with the same event ids.

        Raises AgentRequestError where one of the events is wrong; then none was taken in.
        """
        admitted = [admit_feedback(each) for each in feedback]
        entries = [Entry(each.session_id, encode(each)) for each in admitted]
        logged = self._writer is not None and self._writer.submit_and_wait(entries, timeout_s)
        for each in admitted if logged else ():
            self.metrics.count("feedback", kind=each.kind.value)
        if not logged:
            self.metrics.count("feedback_not_logged", len(admitted))
        return logged

    def now_ms(self) -> int:
        return self._clock_ms()

    def _submit(self, key: str, payload: bytes) -> bool:
        return self._writer.submit(key, payload) if self._writer else False

    # health, numbers, lifecycle

    @property
    def logs(self) -> bool:
        return self._writer is not None

    def problems(self) -> tuple[str, ...]:
        """What would be wrong with an agent that still answers every page."""
        found = []
        if not self._follower.alive:
            found.append("the thread that follows the pointers died")
        if self._follower.age_s() > self._settings.stale_after_s:
            found.append("the pointers could not be read for a while")
        if self._writer and not self._writer.alive:
            found.append("the thread that writes the event log died")
        return tuple(found)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the pointers were read and what they name was built or refused. Pages need not wait."""
        return self._follower.wait_ready(timeout_s)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was decided and reported is in the log."""
        return self._writer.flush(timeout_s) if self._writer else True

    def close(self, timeout_s: float = 10.0) -> bool:
        """Write what is left to the log; False if something had to be dropped."""
        self._follower.close(timeout_s)
        self._vectors.close()
        return self._writer.close(timeout_s) if self._writer else True

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, outcome: Outcome) -> None:
        decision = outcome.decision
        self.metrics.count("decisions", policy=decision.policy, decided_by=decision.decided_by.value)
        self._meter_page(outcome)
        if decision.fallback_reason is not None:
            self.metrics.count("fallbacks", policy=decision.policy, reason=decision.fallback_reason)
        if decision.decided_by is DecidedBy.POLICY:
            for dimension, action in zip(self._config.action, decision.actions, strict=True):
                low, high = dimension.range
                place = (action.value - low) / (high - low)
                self.metrics.observe("action_in_range", place, policy=decision.policy, action=action.name)

    def _meter_page(self, outcome: Outcome) -> None:
        """A page that fell back is one of the version that would have decided it."""
        decision = outcome.decision
        if self._meter is None or decision.policy not in self._config.learned_policies():
            return
        version, stable = outcome.tried, self._follower.route(decision.policy).stable
        if version is None and stable is not None:
            version = stable.served.version
        if version is not None:
            self._meter.page(self._config.model_name(decision.policy), version, decision.fallback_reason)

    def _usage(self, in_use: Collection[tuple[str, int]]) -> dict[tuple[str, int], Usage]:
        """Of versions of policies."""
        if self._meter is None:
            return {}
        models = {(policy, version): (self._config.model_name(policy), version) for policy, version in in_use}
        read = self._meter.read(models.values())
        return {key: read[model] for key, model in models.items()}

    def _metric_latency(self, started_s: float, pages: int) -> None:
        self.metrics.observe("decide_seconds", self._monotonic() - started_s, form="one" if pages == 1 else "batch")


def _admitted(request: PageRequest) -> PageRequest | AgentRequestError:
    try:
        return admit(request)
    except AgentRequestError as error:
        return error


def _one(answers: list[PageDecision | AgentRequestError]) -> PageDecision:
    [answer] = answers
    if isinstance(answer, AgentRequestError):
        raise answer
    return answer
