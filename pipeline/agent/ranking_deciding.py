"""Requests to outcomes where policies choose the items: all candidates of a page are scored in one call, by the served
weights and by those that are tried beside them, and the page is interleaved from their orders.

The baseline is the order in which the candidates came, so no score is needed, and nothing can be wrong with one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from pipeline.agent.acting import exploration_salt
from pipeline.agent.asking import ask_q
from pipeline.agent.deciding import Decider, Draft, Mode, Outcome
from pipeline.agent.policies import Pinned
from pipeline.agent.reasons import Reason
from pipeline.config.schema import FeatureConfig
from pipeline.features.candidates import item_inputs
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.ranking.interleaving import uniform
from pipeline.ranking.pages import best_first, chosen, received
from pipeline.records import DecidedBy, Explorer, Impression, Ranked


class RankingDecider(Decider):
    def __init__(self, config: FeatureConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        assert config.ranking is not None
        self._ranking = config.ranking
        self._items = Encoder(config, part="item")

    def _read(self, draft: Draft) -> Draft:
        return draft

    def _prepared(self, draft: Draft) -> Draft:
        """Pages of the baseline too: what a policy could not have read is counted before one depends on it."""
        return super()._prepared(replace(draft, item_rows=self._items.prepare_items(draft.request.items)))

    def _inputs(self, drafts: list[Draft], snapshot: Snapshot) -> dict[str, np.ndarray]:
        rows = [draft.item_rows for draft in drafts if draft.item_rows is not None]
        return {**super()._inputs(drafts, snapshot), **item_inputs(self._items, rows, snapshot)}

    def _answers(
        self, drafts: list[Draft], pinned: Pinned, inputs: dict[str, np.ndarray], timeout_s: float
    ) -> list[Draft]:
        shape = len(drafts), max(len(draft.request.items) for draft in drafts)
        q = ask_q(self._server, pinned, inputs, shape, timeout_s)
        return [_scored(draft, of_page) for draft, of_page in zip(drafts, q, strict=True)]

    def _conclude(self, draft: Draft) -> Outcome:
        by_policy = draft.q is not None and draft.trouble is None and self._mode is Mode.LIVE
        if by_policy:
            decided_by, reason, ranked = DecidedBy.POLICY, None, self._chosen(draft)
        else:
            decided_by = DecidedBy.BASELINE if draft.trouble is None else DecidedBy.FALLBACK
            reason = None if draft.trouble is None else draft.trouble.reason
            ranked = self._received(draft)
        decision = replace(self._decision(draft, decided_by, (), reason), ranked=ranked)
        order = ranked.places or tuple(range(len(draft.request.items)))
        return Outcome(order, decision, draft.state, draft.tried)

    def _chosen(self, draft: Draft) -> Ranked:
        orders, explorers = _orders(draft)
        draw = uniform(exploration_salt(self._config, draft.bucket.policy), draft.request.request_id)
        how = self._ranking.interleaving
        return chosen(orders, explorers, self._ranking.page_size, how.by, how.tau, draw)

    def _received(self, draft: Draft) -> Ranked:
        """With what the policy would have done, where it was asked and the baseline was served."""
        ranked = received(len(draft.request.items), self._ranking.page_size)
        if draft.q is None:
            return ranked
        orders, explorers = _orders(draft)
        return replace(ranked, orders=orders, explorers=explorers)


def recompute(config: FeatureConfig, impression: Impression) -> Ranked:
    """How a page that a policy decided was made, once more from its log; for a page of several rankers."""
    ranked, decision = impression.decision.ranked, impression.decision
    assert config.ranking is not None
    assert ranked is not None
    draw = uniform(exploration_salt(config, decision.policy), impression.request_id)
    how = config.ranking.interleaving
    return chosen(ranked.orders, ranked.explorers, config.ranking.page_size, how.by, how.tau, draw)


def _scored(draft: Draft, q: np.ndarray) -> Draft:
    """[1 + explorers, N] of a page; what is said of padding is left out."""
    of_page = q[:, : len(draft.request.items)]
    if not np.isfinite(of_page).all():
        return draft.fails(Reason.BAD_REPLY, "q: expected finite numbers, found others")
    return replace(draft, q=of_page)


def _orders(draft: Draft) -> tuple[tuple[tuple[int, ...], ...], tuple[Explorer, ...]]:
    assert draft.q is not None
    assert draft.pinned is not None
    return tuple(best_first(scores) for scores in draft.q.tolist()), draft.pinned.snapshot.explorers
