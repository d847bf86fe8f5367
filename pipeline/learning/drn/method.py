"""One learned policy's weights: which are served, which are tried beside them, and what becomes of them. No TensorFlow.

A period begins with weights and explorers that are handed out, and ends some time after the first page that has seen
them. Then users' clicks decide about what was tried, a gradient step may be taken, a major update may begin, and the
next weights and explorers are handed out. Times are stamps of the log, so that two runs over one log agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec import structs

from pipeline.config.ranking import Dbgd, EvolutionStrategies, Gradient, Major, Ranking
from pipeline.learning.drn.standing import Heard, Standing
from pipeline.ranking.candidates import Candidate
from pipeline.ranking.comparing import Comparison, Outcome, Rule, Verdict, outcome
from pipeline.ranking.interleaving import credit, preference
from pipeline.ranking.pages import credits_of
from pipeline.ranking.perturbing import Noise, Weights, dbgd, difference, evolved, mirrored_pairs, moved, noise
from pipeline.ranking.updates import Update
from pipeline.records import DecidedBy, Explorer, Page

_PATIENCE = 6  # periods, for the first page that has seen what was handed out

Train = Callable[[Weights], Weights | None]  # None: there is nothing to learn from


class Learning(NamedTuple):
    """What a method cannot do without a learner."""

    streamed: Train  # TD steps on the pages that were completed since it was last asked
    replayed: Train  # a major update


class Method:
    def __init__(self, policy: str, ranking: Ranking, seed: int, standing: Standing) -> None:
        self.policy, self.standing = policy, standing
        self.minor, self._major, self._seed = ranking.minor_of(policy), ranking.major, seed

    # What is handed out ----------------------------------------------------------------------------------------------

    @property
    def explorers(self) -> tuple[Explorer, ...]:
        """In the order in which a model holds them."""
        standing = self.standing
        named = tuple(Explorer(c.version, c.seed, c.mirrored) for c in standing.noise)
        return (*named, Explorer(standing.version)) if standing.trial is not None else named

    def explorer_weights(self) -> tuple[Weights, ...]:
        standing = self.standing
        found = tuple(moved(standing.weights, noise(c, standing.weights, self._noise)) for c in standing.noise)
        return (*found, standing.trial) if standing.trial is not None else found

    def begin(self, now_ms: int) -> None:
        """With the first record."""
        noise = self._generation(1)
        if noise:
            heard = tuple(Heard() for _ in noise)
            self.standing = structs.replace(self.standing, version=1, noise=noise, heard=heard)
        self.standing = structs.replace(self.standing, handed_ms=now_ms)

    def go_back(self, weights: Weights) -> None:
        """To these, under a number that no version had: what is tried beside them is new. Explorers of what was given
        up, and a trial, end without a verdict."""
        standing = self.standing
        self.standing = self._next(standing.handed_ms, weights, None, standing.major_ms, True)

    # What users say --------------------------------------------------------------------------------------------------

    def hear(self, page: Page, now_ms: int) -> None:
        """A page that is final. One of other explorers than the present ones counts for nothing."""
        decision, standing = page.impression.decision, self.standing
        ranked = decision.ranked
        if ranked is None or decision.policy != self.policy or decision.decided_by is not DecidedBy.POLICY:
            return
        if not self.explorers or ranked.explorers != self.explorers:
            self.standing = structs.replace(standing, foreign=standing.foreign + bool(ranked.explorers))
            return
        clicked = [place for place, label in enumerate(page.labels[: ranked.shown]) if label.clicks]
        credits = credit(credits_of(ranked), clicked)
        for i, heard in enumerate(standing.heard):
            heard.add(page.impression.user_id, preference(credits, i + 1))
        if standing.began_ms is None:
            self.standing = structs.replace(standing, began_ms=now_ms)

    @property
    def due_ms(self) -> int | None:
        """When the period is over; None before the first record."""
        standing, every = self.standing, self.minor.every
        if standing.handed_ms is None or not self.explorers:
            return None if standing.handed_ms is None else standing.handed_ms + every
        return standing.handed_ms + _PATIENCE * every if standing.began_ms is None else standing.began_ms + every

    # What becomes of it ----------------------------------------------------------------------------------------------

    def conclude(self, now_ms: int, learning: Learning) -> list[Update]:
        """The period is over."""
        before = self.standing
        weights, updates = self._after_minor(learning)
        delta = difference(weights, before.weights)
        trial = None if before.trial is None else moved(before.trial, delta)
        if trial is not None and before.began_ms is not None:
            update = self._after_trial()
            updates.append(update)
            weights, trial = trial if update.taken else weights, None
        major_ms = before.major_ms
        if trial is None and self._major is not None and _is_due(self._major, major_ms, now_ms):
            trained = learning.replayed(weights)
            if trained is not None:
                major_ms = now_ms
                if self._major.trial:
                    trial = trained
                else:
                    weights = trained
                    updates.append(self._update("major", "replay", True))
        changed = bool(self.explorers) or trial is not None or any(update.taken for update in updates)
        self.standing = self._next(now_ms, weights, trial, major_ms, changed)
        return updates

    def _next(
        self, now_ms: int | None, weights: Weights, trial: Weights | None, major_ms: int | None, changed: bool
    ) -> Standing:
        """Without anything new the version in use stays."""
        before = self.standing
        if not changed:
            return structs.replace(before, handed_ms=now_ms)
        version = before.version + 1
        noise = self._generation(version)
        heard = tuple(Heard() for _ in range(len(noise) + (trial is not None)))
        return Standing(version, dict(weights), noise, _copied(trial), heard, now_ms, None, major_ms)

    def _after_minor(self, learning: Learning) -> tuple[Weights, list[Update]]:
        match self.minor:
            case Gradient():
                streamed = learning.streamed(self.standing.weights)
                if streamed is None:
                    return self.standing.weights, []
                return streamed, [self._update("minor", "gradient", True)]
            case Dbgd():
                return self._after_duel(self.minor)
            case EvolutionStrategies():
                return self._after_generation(self.minor)
        return self.standing.weights, []

    def _after_duel(self, rules: Dbgd) -> tuple[Weights, list[Update]]:
        standing = self.standing
        (candidate,) = standing.noise
        found = self._outcome(0, Rule(rules.min_decisive, rules.confidence))
        won = found.verdict is Verdict.CANDIDATE
        weights = dbgd(candidate, standing.weights, self._noise, rules.eta) if won else standing.weights
        return weights, [self._update("minor", "dbgd", won, found)]

    def _after_generation(self, rules: EvolutionStrategies) -> tuple[Weights, list[Update]]:
        standing = self.standing
        found = [self._outcome(i, Rule(rules.min_decisive, 0.0)) for i in range(len(standing.noise))]
        enough = min(each.decisive for each in found) >= rules.min_decisive
        scores = {each.candidate: each.mean * each.decisive for each in found}
        weights = evolved(scores, standing.weights, self._noise, rules.eta) if enough else standing.weights
        return weights, [self._update("minor", "es", enough, *found)]

    def _after_trial(self) -> Update:
        """It takes the place of the served weights unless clicks say that it is worse."""
        assert self._major is not None
        found = self._outcome(len(self.standing.noise), Rule(self._major.min_decisive, self._major.confidence))
        return self._update("major", "replay", found.verdict is not Verdict.INCUMBENT, found)

    def _outcome(self, i: int, rule: Rule) -> Outcome:
        standing, heard = self.standing, self.standing.heard[i]
        candidate = (*standing.noise, Candidate(standing.version, 0))[i]
        said = [Comparison(candidate, user, preferred) for user, preferred in heard.users.items()]
        return structs.replace(outcome(candidate, said, rule), pages=heard.pages, foreign=standing.foreign)

    def _update(self, kind: str, by: str, taken: bool, *evidence: Outcome) -> Update:
        return Update(self.policy, self.standing.version + 1, self.standing.version, kind, by, taken, evidence)

    @property
    def _noise(self) -> Noise:
        assert isinstance(self.minor, Dbgd | EvolutionStrategies)
        return Noise(self.minor.alpha, self.minor.floor, layers=self.minor.layers)

    def _generation(self, version: int) -> tuple[Candidate, ...]:
        match self.minor:
            case Dbgd():
                return (Candidate(version, self._seed),)
            case EvolutionStrategies(pairs=pairs):
                return mirrored_pairs(version, self._seed, pairs)
        return ()


def _is_due(major: Major, last_ms: int | None, now_ms: int) -> bool:
    return last_ms is None or now_ms - last_ms >= major.every


def _copied(weights: Weights | None) -> dict[str, object] | None:
    return None if weights is None else dict(weights)
