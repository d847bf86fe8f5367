"""Requests to outcomes, many at once. Every page gets one: what the policy does, or the baseline and why.

Pages of the baseline bucket are encoded too, so that the look-ups logged with them are those a policy would have had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from pipeline.agent.acting import Explorer, baseline_actions
from pipeline.agent.asking import ask_means, usable_means
from pipeline.agent.buckets import bucket_table, on_canary, slot_of
from pipeline.agent.examples import Examples
from pipeline.agent.follower import Follower
from pipeline.agent.fusion import Scores, UnusableScores, order_by, read_scores
from pipeline.agent.guarding import PredictionSource
from pipeline.agent.lookups import TimelyVectors
from pipeline.agent.policies import Pinned
from pipeline.agent.reasons import Reason, Trouble
from pipeline.agent.requests import PageRequest
from pipeline.config.schema import Bucket, FeatureConfig
from pipeline.features.encoder import Encoder, Prepared
from pipeline.features.errors import FeatureError
from pipeline.features.snapshot import Snapshot
from pipeline.monitoring.metrics import Metrics
from pipeline.records import Action, DecidedBy, Decision, State
from pipeline.stores.store import StoreError

_LOG = logging.getLogger(__name__)


class Mode(Enum):
    LIVE = "live"
    SHADOW = "shadow"  # serve the baseline, log what the policy would have done
    OFF = "off"


class Outcome(NamedTuple):
    order: tuple[int, ...]
    decision: Decision
    state: State
    tried: int | None = None  # the version that was to decide it, whether it did or not


class Draft(Struct, frozen=True):
    """A page on its way to a decision."""

    request: PageRequest
    bucket: Bucket
    learned: bool  # whether the bucket's policy is
    state: State
    scores: Scores | None = None  # None: they cannot be used
    prepared: Prepared | None = None
    pinned: Pinned | None = None
    means: tuple[float, ...] | None = None
    item_rows: np.ndarray | None = None  # prepared, where the policy chooses items
    q: np.ndarray | None = None  # then: of the candidates, by the served weights and by each explorer
    trouble: Trouble | None = None  # the first one is the page's reason

    def fails(self, reason: Reason, detail: str = "") -> Draft:
        return self if self.trouble is not None else replace(self, trouble=Trouble(reason, detail))

    @property
    def answered(self) -> bool:
        return self.means is not None or self.q is not None

    @property
    def tried(self) -> int | None:
        return self.pinned.served.version if self.pinned is not None else None

    @property
    def ready_to_ask(self) -> bool:
        return self.pinned is not None and self.prepared is not None and not self.answered and self.trouble is None


class Decider:
    def __init__(
        self,
        config: FeatureConfig,
        encoder: Encoder,
        vectors: TimelyVectors,
        server: PredictionSource,
        follower: Follower,
        metrics: Metrics,
        *,
        mode: Mode,
        monotonic: Callable[[], float],
    ) -> None:
        self._config = config
        self._encoder, self._vectors, self._server = encoder, vectors, server
        self._follower, self._metrics = follower, metrics
        self._mode, self._monotonic = mode, monotonic
        self._buckets = bucket_table(config.buckets)
        self._learned = frozenset(config.learned_policies())
        self._explorer = Explorer(config)
        self._baseline = baseline_actions(config)
        self._baseline_values = tuple(action.value for action in self._baseline)
        self._examples = Examples(monotonic)

    def decide(self, requests: Sequence[PageRequest], deadline_s: float) -> list[Outcome]:
        """`deadline_s` on the monotonic clock. Half of the time is for look-ups, so that the model has the rest."""
        half_s = (self._monotonic() + deadline_s) / 2
        drafts = [self._encode(self._pin(self._draft(request)), half_s) for request in requests]
        drafts = self._ask(drafts, deadline_s)
        if any(_not_served(draft) for draft in drafts):
            self._metrics.count("retries")
            self._follower.refresh(deadline_s - self._monotonic())
            drafts = self._ask([self._again(draft) for draft in drafts], deadline_s)
        for draft in drafts:
            if draft.trouble is not None and draft.trouble.detail:
                self._show(draft, draft.trouble.reason, draft.trouble.detail)
        return [self._conclude(draft) for draft in drafts]

    def _show(self, draft: Draft, reason: Reason, detail: str) -> None:
        kind, page, bucket = reason.value, draft.request.request_id, draft.bucket.name
        self._examples.show(kind, "%s, for example page %s of bucket %s: %s", kind, page, bucket, detail)

    def fall_back(self, request: PageRequest, reason: Reason) -> Outcome:
        """Without store, encoder and model, none of which a page of the baseline bucket needs anyway."""
        draft = self._draft(request)
        return self._conclude(draft.fails(reason) if draft.learned else draft)

    def _draft(self, request: PageRequest) -> Draft:
        bucket = self._buckets[slot_of(self._config.buckets, self._unit(request))]
        return self._read(Draft(request, bucket, bucket.policy in self._learned, request.state))

    def _read(self, draft: Draft) -> Draft:
        """With what the ranker says of the items."""
        try:
            return replace(draft, scores=read_scores(draft.request.items))
        except UnusableScores as error:
            return draft.fails(Reason.SCORES, str(error))

    def _unit(self, request: PageRequest) -> str:
        return request.user_id if self._config.buckets.unit == "user_id" else request.session_id

    def _pin(self, draft: Draft) -> Draft:
        if not draft.learned:
            return draft
        if self._mode is Mode.OFF:
            return draft.fails(Reason.OFF)
        policy = draft.bucket.policy
        route = self._follower.route(policy)
        tries_canary = on_canary(self._config.buckets, policy, self._unit(draft.request), route.share)
        try:
            return replace(draft, pinned=route.choose(tries_canary))
        except Trouble as trouble:
            return draft.fails(trouble.reason, trouble.detail)

    def _encode(self, draft: Draft, deadline_s: float) -> Draft:
        if draft.trouble is not None and draft.trouble.reason is Reason.OFF:
            return draft  # switched off: lean on nothing
        try:
            with self._vectors.within(deadline_s):
                return self._prepared(draft)
        except FeatureError as error:
            return self._not_encoded(draft, Reason.BAD_FEATURES, str(error))
        except StoreError as error:
            return self._not_encoded(draft, Reason.STORE, str(error))
        except Exception as error:  # of one page: it takes none of the others of its batch with it
            _LOG.exception("unexpected fault while encoding page %s", draft.request.request_id)
            return self._not_encoded(draft, Reason.INTERNAL, repr(error))

    def _prepared(self, draft: Draft) -> Draft:
        prepared = self._encoder.prepare(draft.state)
        return replace(draft, prepared=prepared, state=replace(draft.state, lookups=prepared.lookups))

    def _not_encoded(self, draft: Draft, reason: Reason, detail: str) -> Draft:
        self._metrics.count("pages_not_encoded", reason=reason.value)
        if draft.learned:
            return draft.fails(reason, detail)
        self._show(draft, reason, detail)
        return draft

    def _ask(self, drafts: list[Draft], deadline_s: float) -> list[Draft]:
        """The drafts with their means, or why they have none. One call per version."""
        groups: dict[tuple[str, int], list[int]] = {}
        for i, draft in enumerate(drafts):
            if draft.ready_to_ask and draft.pinned is not None:
                groups.setdefault((draft.pinned.policy, draft.pinned.served.version), []).append(i)
        answered = list(drafts)
        for places in groups.values():
            for i, draft in zip(places, self._ask_version([drafts[i] for i in places], deadline_s), strict=True):
                answered[i] = draft
        return answered

    def _ask_version(self, drafts: list[Draft], deadline_s: float) -> list[Draft]:
        pinned = drafts[0].pinned
        assert pinned is not None
        inputs = self._inputs(drafts, pinned.snapshot)
        asked_s = self._monotonic()
        try:
            if deadline_s <= asked_s:
                raise Trouble(Reason.TIMEOUT, "no time was left for the model")
            answers = self._answers(drafts, pinned, inputs, deadline_s - asked_s)
        except Trouble as trouble:
            return [draft.fails(trouble.reason, trouble.detail) for draft in drafts]
        role = self._follower.route(pinned.policy).role(pinned)
        self._metrics.observe("predict_seconds", self._monotonic() - asked_s, policy=pinned.policy, role=role)
        return answers

    def _inputs(self, drafts: list[Draft], snapshot: Snapshot) -> dict[str, np.ndarray]:
        prepared = [draft.prepared for draft in drafts if draft.prepared is not None]
        return self._encoder.finish(self._encoder.stack(prepared), snapshot)

    def _answers(
        self, drafts: list[Draft], pinned: Pinned, inputs: dict[str, np.ndarray], timeout_s: float
    ) -> list[Draft]:
        means = ask_means(self._server, pinned, inputs, self._config.action, timeout_s)
        return [self._with_means(draft, row) for draft, row in zip(drafts, means, strict=True)]

    def _with_means(self, draft: Draft, row: np.ndarray) -> Draft:
        try:
            return replace(draft, means=usable_means(row, self._config.action))
        except Trouble as trouble:
            return draft.fails(trouble.reason, trouble.detail)

    def _again(self, draft: Draft) -> Draft:
        return self._pin(replace(draft, trouble=None, pinned=None)) if _not_served(draft) else draft

    def _conclude(self, draft: Draft) -> Outcome:
        if draft.scores is None:
            return self._received(draft)
        baseline = draft.trouble is not None or not draft.learned or self._mode is Mode.SHADOW
        try:
            return (
                self._baseline_outcome(draft, draft.scores) if baseline else self._policy_outcome(draft, draft.scores)
            )
        except UnusableScores as error:  # finite ones that the formula turns into infinite ones
            self._show(draft, Reason.SCORES, str(error))
            return self._received(draft)

    def _policy_outcome(self, draft: Draft, scores: Scores) -> Outcome:
        request = draft.request
        assert draft.means is not None
        actions = self._explorer.act(draft.bucket.policy, request.session_id, request.page_index, draft.means)
        order = order_by(self._config.fusion, [action.value for action in actions], scores)
        return Outcome(order, self._decision(draft, DecidedBy.POLICY, actions), draft.state, draft.tried)

    def _baseline_outcome(self, draft: Draft, scores: Scores) -> Outcome:
        order = order_by(self._config.fusion, self._baseline_values, scores)
        decided_by = DecidedBy.BASELINE if draft.trouble is None else DecidedBy.FALLBACK
        reason = None if draft.trouble is None else draft.trouble.reason
        return Outcome(order, self._decision(draft, decided_by, self._baseline, reason), draft.state, draft.tried)

    def _received(self, draft: Draft) -> Outcome:
        """The received order, of which no action can be said."""
        decision = self._decision(draft, DecidedBy.FALLBACK, (), Reason.SCORES)
        return Outcome(tuple(range(len(draft.request.items))), decision, draft.state, draft.tried)

    def _decision(
        self, draft: Draft, decided_by: DecidedBy, actions: tuple[Action, ...], reason: Reason | None = None
    ) -> Decision:
        served = draft.pinned.served if draft.pinned is not None and draft.answered else None
        return Decision(
            decided_by,
            draft.bucket.policy,
            draft.bucket.name,
            actions,
            served.version if served else None,
            served.parameters if served else None,
            self._encoder.config_sha,
            reason.value if reason else None,
            draft.means if decided_by is not DecidedBy.POLICY else None,
        )


def _not_served(draft: Draft) -> bool:
    return draft.trouble is not None and draft.trouble.reason is Reason.NOT_SERVED
