"""DRN as a method: it ranks by Q, explores, and is updated in the small and in the large.

A major update trains on replayed pages from the weights that are served, and takes until the next minor update to be
ready; what minor updates made of the weights meanwhile is put on top of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from benchmarks.news.history import History
from benchmarks.news.methods import best_first
from pipeline.learning.drn.learner import Drn, Settings
from pipeline.learning.drn.rankers import Rankers
from pipeline.learning.drn.towers import Widths
from pipeline.ranking.candidates import Candidate
from pipeline.ranking.comparing import Comparison, Rule, Verdict, outcome
from pipeline.ranking.interleaving import credit, preference, probabilistic, uniform
from pipeline.ranking.perturbing import Noise, Weights, dbgd, difference, evolved, mirrored_pairs, rebased
from pipeline.simulation.news.feed import Requests


class Plan(Struct, frozen=True):
    """One row of the table."""

    gamma: float = 0.4
    beta: float = 0.05
    double: bool = True
    minor: Literal["none", "epsilon", "dbgd", "gradient", "es"] = "none"
    epsilon: float = 0.1
    noise: Noise = Noise(layers=("advantage",))
    eta: float = 0.05
    rule: Rule = Rule()
    pairs: int = 2  # of candidates, for `es`
    hidden: tuple[int, ...] = (32, 16)
    learning_rate: float = 1e-3
    batch: int = 64  # pages
    updates: int = 60  # of a major update
    first_updates: int = 600  # on the log of others
    history: int = 16_000  # pages


class Answered(NamedTuple):
    """Who was interleaved with whom on a page, until its clicks are known."""

    user: int
    credits: tuple[tuple[float, ...], ...]


class DrnMethod:
    def __init__(self, plan: Plan, seed: int, users: int, places: int, requests: Requests) -> None:
        """Of `requests` only the widths matter."""
        self.plan, self._seed = plan, seed
        self._rng = np.random.default_rng([seed, 2])
        widths = Widths(requests.user_features.shape[1], requests.item_features.shape[2])
        self._learner = self._drn(widths)
        self._streaming = self._drn(widths) if plan.minor == "gradient" else None
        self._history = History(plan.history, users, places, requests)
        self._rankers = Rankers(widths, plan.hidden, len(self._generation(0)))
        self.weights: Weights = self._learner.online.weights()
        self._version, self._candidates = 0, self._generation(0)
        self.pending: Weights | None = None
        self._since: list[dict[str, np.ndarray]] = []  # accepted since the snapshot of the pending major update
        self._answered: list[Answered] = []
        self._comparisons: dict[Candidate, list[Comparison]] = {}
        self._updates: Counter[str] = Counter()
        self._publish(self.weights)

    # answering

    def show(self, requests: Requests, places: int) -> np.ndarray:
        scores = self._rankers.scores(requests.user_features, requests.item_features)
        q = scores["q"].numpy()
        if self._candidates:
            return self._interleaved(requests, q, scores["q_candidates"].numpy(), places)
        shown = best_first(q, requests.exists, places)
        return self._strayed(requests, q, shown) if self.plan.minor == "epsilon" else shown

    def heard(self, requests: Requests, shown: np.ndarray, clicked: np.ndarray) -> None:
        self._history.arrive(requests)
        self._history.add(requests, shown, clicked)
        for page, clicks in zip(self._answered, clicked, strict=False):  # pages of others were not interleaved
            found = credit(page.credits, np.flatnonzero(clicks).tolist())
            for i, candidate in enumerate(self._candidates, start=1):
                each = Comparison(candidate, str(page.user), preference(found, i))
                self._comparisons.setdefault(candidate, []).append(each)
        self._answered = []

    def _interleaved(self, requests: Requests, q: np.ndarray, others: np.ndarray, places: int) -> np.ndarray:
        shown = np.full((len(q), places), -1)
        stacked = np.concatenate([q[:, None], others], axis=1)  # [B, 1 + C, N]
        for page, (user, number) in enumerate(zip(requests.users, requests.numbers, strict=True)):
            n = int(requests.exists[page].sum())  # candidates come first, padding last
            orders = np.argsort(-stacked[page, :, :n], axis=1, kind="stable").tolist()
            leaving = probabilistic(orders, places, uniform(f"news{self._seed}", f"{user}/{number}"))
            shown[page, : len(leaving.shown)] = leaving.shown
            self._answered.append(Answered(int(user), leaving.credits))
        return shown

    def _strayed(self, requests: Requests, q: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Of the places a share of epsilon gets any of the candidates that stand further down."""
        order = best_first(q, requests.exists, q.shape[1])
        strays = self._rng.random(shown.shape) < self.plan.epsilon
        for page, place in np.argwhere(strays & (shown >= 0)):
            other = self._rng.integers(place, requests.exists[page].sum())
            order[page, [place, other]] = order[page, [other, place]]
        return order[:, : shown.shape[1]]

    # updates

    def begin(self) -> None:
        self._train(self.plan.first_updates)
        self._publish(self._learner.online.weights())

    def minor(self, now_min: int) -> None:
        self._history.expire(now_min)
        updated = self._updated()
        if self.pending is not None:
            self._since.append(difference(updated, self.weights))
            updated = rebased(self.pending, self._since)
            self.pending = None
        self._publish(updated)

    def major(self, now_min: int) -> None:
        self._learner.online.assign(self.weights)
        self._train(self.plan.updates)
        self.pending, self._since = self._learner.online.weights(), []

    def updates(self) -> dict[str, int]:
        return dict(self._updates)

    def _updated(self) -> Weights:
        match self.plan.minor:
            case "dbgd":
                return self._after_duel()
            case "es":
                return self._after_generation()
            case "gradient":
                return self._after_stream()
        return self.weights

    def _after_duel(self) -> Weights:
        (candidate,) = self._candidates
        found = outcome(candidate, self._comparisons.get(candidate, ()), self.plan.rule)
        self._updates[found.verdict.value] += 1
        if found.verdict is not Verdict.CANDIDATE:
            return self.weights
        return dbgd(candidate, self.weights, self.plan.noise, self.plan.eta)

    def _after_generation(self) -> Weights:
        rule = self.plan.rule
        found = [outcome(c, self._comparisons.get(c, ()), rule) for c in self._candidates]
        enough = min((each.decisive for each in found), default=0) >= rule.min_decisive
        self._updates["step" if enough else "tie"] += 1
        if not enough:
            return self.weights
        scores = {each.candidate: each.mean * each.decisive for each in found}
        return evolved(scores, self.weights, self.plan.noise, self.plan.eta)

    def _after_stream(self) -> Weights:
        """TD steps on the pages completed since the last update, each page once; what fills no batch is left out."""
        assert self._streaming is not None
        fresh = self._history.fresh()
        size = max(1, min(self.plan.batch // 2, len(fresh)))
        batches = [fresh[i : i + size] for i in range(0, len(fresh) - size + 1, size)]
        self._updates["step" if batches else "tie"] += 1
        if not batches:
            return self.weights
        self._streaming.online.assign(self.weights)
        self._streaming.target.networks.assign(self.weights)
        self._streaming.steps(self._history.pages(np.stack(batches), self.plan.beta))
        return self._streaming.online.weights()

    def _train(self, updates: int) -> None:
        if self._history.added:
            self._history.fresh()
            numbers = self._history.sample(self._rng, updates, self.plan.batch)
            for some in np.array_split(numbers, max(1, updates // 50)):
                self._learner.steps(self._history.pages(some, self.plan.beta))

    def _publish(self, weights: Weights) -> None:
        self._version += 1
        self.weights, self._comparisons = weights, {}
        self._candidates = self._generation(self._version)
        self._rankers.serve(weights, self._candidates, self.plan.noise)

    def _generation(self, version: int) -> tuple[Candidate, ...]:
        if self.plan.minor == "dbgd":
            return (Candidate(version, self._seed),)
        return mirrored_pairs(version, self._seed, self.plan.pairs) if self.plan.minor == "es" else ()

    def _drn(self, widths: Widths) -> Drn:
        plan = self.plan
        return Drn(widths, Settings(plan.gamma, plan.double, plan.hidden, plan.learning_rate, seeds=(self._seed,)))
