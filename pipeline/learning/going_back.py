"""Going back: the learner becomes what it was when it handed out a candidate, with its optimisers, the statistics of
features and the choice of a seed. The log's positions, the replay and the counters stay where they are. Without that a
policy that was rolled back would be published again as it was.

All policies go back together: they share a tower, and the one whose rollback it was is what it was only with the tower
of then. What is served of the others stays; their next candidates begin from a little earlier.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.learning.carrying import carry_over
from pipeline.learning.checkpoint import Loaded
from pipeline.learning.errors import CheckpointError
from pipeline.learning.learners import learner_of
from pipeline.learning.past import Past
from pipeline.learning.progress import check_identity, decode_saved, former_config, identity
from pipeline.learning.training import Training
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.published import (
    BOOTSTRAP,
    GoBack,
    candidate_id,
    must_go_back,
    read_candidates,
    read_pointers,
)
from pipeline.stores.store import KeyValueStore, StoreError

_log = logging.getLogger(__name__)
_LOOK_S = 1.0

Numbers = Mapping[str, int]  # policy -> of the requests to go back, the last that was followed


class GoingBack:
    """Follows the requests of one trainer. Without a store there are none."""

    def __init__(self, training: Training, directory: Path, store: KeyValueStore | None, metrics: Metrics) -> None:
        self._training, self._store, self._metrics = training, store, metrics
        self._past = Past(directory)
        for outcome in ("restored", "lost"):  # before a counter is there Prometheus sees no event
            metrics.count("went_back", 0, outcome=outcome)
        self._looked_s: float | None = None
        self._in_vain: dict[str, GoBack] = {}  # requests that cannot be followed: said once
        self._has_learned = training.progress.ingested > 0

    def remember(self, checkpoint: Path) -> None:
        """Before candidates are made of it."""
        training = self._training
        if self._store is None or not training.progress.ingested:
            return
        self._past.add(candidate_id(training.progress.ingested, training.run_id), checkpoint)
        try:
            named = read_candidates(self._store, training.config.kv_prefix, training.config.learned_policies())
        except StoreError as error:
            _log.warning("candidates that a rollback may go to: %s; none is forgotten", error)
            return
        self._past.keep_only({candidate for of_policy in named.values() for candidate in of_policy.values()})

    def look(self) -> bool:
        """Whether the learner has gone back: then it is to be checkpointed at once."""
        now_s = time.monotonic()
        if self._store is None or (self._looked_s is not None and now_s - self._looked_s < _LOOK_S):
            return False
        self._looked_s = now_s
        asked = self._asked(self._store)
        if not self._has_learned:  # nothing that could be given up
            self._has_learned = True
            self._acknowledge(asked)
        new = {policy: back for policy, back in asked.items() if self._is_new(policy, back)}
        return bool(new) and self._follow(asked, new)

    def _asked(self, store: KeyValueStore) -> dict[str, GoBack]:
        config = self._training.config
        try:
            pointers = read_pointers(store, config.kv_prefix, config.learned_policies())
        except StoreError as error:
            _log.warning("requests to go back: %s; looking again", error)
            return {}
        return {policy: p.back for policy, p in pointers.items() if p.back is not None and must_go_back(p, 0)}

    def _is_new(self, policy: str, back: GoBack) -> bool:
        return back.number > self._training.progress.gone_back.get(policy, 0) and self._in_vain.get(policy) != back

    def _follow(self, asked: Mapping[str, GoBack], new: Mapping[str, GoBack]) -> bool:
        try:
            target = chosen(asked, new, self._followed_by)
            self._become(target)
        except CheckpointError as error:
            _log.error(
                "%s; the learner stays as it is, and nothing of it is published until an operator says so", error
            )
            self._metrics.count("went_back", outcome="lost")
            self._in_vain.update(new)
            return False
        self._acknowledge(asked)
        self._metrics.count("went_back", outcome="restored")
        _log.info("went back to candidate %s, as asked for %s; the log goes on from here", target, ", ".join(new))
        return True

    def _acknowledge(self, asked: Mapping[str, GoBack]) -> None:
        self._training.progress.gone_back.update({policy: back.number for policy, back in asked.items()})

    def _become(self, candidate: str) -> None:
        training = self._training
        learner = learner_of(training.config)
        saved = None
        if candidate != BOOTSTRAP:
            loaded = self._find(candidate)
            saved = decode_saved(loaded.state, str(loaded.path))
            former = former_config(saved, training.config)
            check_identity(saved, identity(former, training.round_size), str(loaded.path))
            carry_over(learner, loaded, training.config, former, saved.policies)
        for mine, theirs in zip(training.learner.variables, learner.variables, strict=True):
            mine.assign(theirs)
        training.go_back(saved)

    def _find(self, candidate: str) -> Loaded:
        loaded = self._past.find(candidate)
        if loaded is None:
            msg = f"candidate {candidate}: what the learner was then is no longer kept, or was another trainer's"
            raise CheckpointError(msg)
        return loaded

    def _followed_by(self, candidate: str) -> Numbers:
        """The requests that it had followed when it was made."""
        loaded = self._find(candidate)
        return decode_saved(loaded.state, str(loaded.path)).progress.gone_back


def chosen(asked: Mapping[str, GoBack], new: Mapping[str, GoBack], followed_by: Callable[[str], Numbers]) -> str:
    """The candidate to go back to: the oldest of those that are newly asked for, and older still where that one holds
    what another policy has given up since."""
    target = min(back.candidate for back in new.values() if back.candidate is not None)
    while target != BOOTSTRAP:
        followed = followed_by(target)
        older = [
            back.candidate
            for policy, back in asked.items()
            if back.candidate is not None and back.number > followed.get(policy, 0) and back.candidate < target
        ]
        if not older:
            break
        target = min(older)
    return target
