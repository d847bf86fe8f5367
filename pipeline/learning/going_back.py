"""Going back: the learner becomes what it was when it handed out a candidate, with its optimisers, the statistics of
features and the choice of a seed. The log's positions, the replay and the counters stay where they are. Without that a
policy that was rolled back would be published again as it was.

Policies that share a tower go back together: the one whose rollback it was is what it was only with the tower of then.
What is served of the others stays; their next candidates begin from a little earlier. A policy that ranks items shares
nothing, and goes back alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.learning.checkpoint import Loaded
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.errors import CheckpointError
from pipeline.learning.past import Past
from pipeline.learning.progress import decode_saved
from pipeline.learning.resuming import AnyTraining, become
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

Requests = Mapping[str, GoBack]  # by policy
Numbers = Mapping[str, int]  # policy -> of the requests to go back, the last that was followed


class _Group(NamedTuple):
    """Policies that go back together."""

    policies: tuple[str, ...]
    past: Past


class GoingBack:
    """Follows the requests of one trainer. Without a store there are none."""

    def __init__(self, training: AnyTraining, directory: Path, store: KeyValueStore | None, metrics: Metrics) -> None:
        self._training, self._store, self._metrics = training, store, metrics
        self._groups = _groups(training, directory)
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
        for group in self._groups:
            group.past.add(_candidate(training, group.policies[0]), checkpoint)
        try:
            named = read_candidates(self._store, training.config.kv_prefix, training.config.learned_policies())
        except StoreError as error:
            _log.warning("candidates that a rollback may go to: %s; none is forgotten", error)
            return
        for group in self._groups:
            group.past.keep_only({candidate for policy in group.policies for candidate in named[policy].values()})

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
        gone = [self._follow_of(group, asked) for group in self._groups]
        return any(gone)

    def _asked(self, store: KeyValueStore) -> Requests:
        config = self._training.config
        try:
            pointers = read_pointers(store, config.kv_prefix, config.learned_policies())
        except StoreError as error:
            _log.warning("requests to go back: %s; looking again", error)
            return {}
        return {policy: p.back for policy, p in pointers.items() if p.back is not None and must_go_back(p, 0)}

    def _follow_of(self, group: _Group, asked: Requests) -> bool:
        of_it = {policy: back for policy, back in asked.items() if policy in group.policies}
        new = {policy: back for policy, back in of_it.items() if self._is_new(policy, back)}
        return bool(new) and self._follow(group, of_it, new)

    def _is_new(self, policy: str, back: GoBack) -> bool:
        return back.number > self._training.progress.gone_back.get(policy, 0) and self._in_vain.get(policy) != back

    def _follow(self, group: _Group, asked: Requests, new: Requests) -> bool:
        try:
            target = chosen(asked, new, lambda candidate: _followed_by(group, candidate))
            become(self._training, None if target == BOOTSTRAP else _find(group, target), group.policies)
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

    def _acknowledge(self, asked: Requests) -> None:
        self._training.progress.gone_back.update({policy: back.number for policy, back in asked.items()})


def _groups(training: AnyTraining, directory: Path) -> tuple[_Group, ...]:
    policies = training.config.learned_policies()
    if isinstance(training, RankingTraining):
        return tuple(_Group((policy,), Past(directory / policy)) for policy in policies)
    return (_Group(policies, Past(directory)),)


def _candidate(training: AnyTraining, policy: str) -> str:
    """The id of what is to be handed out."""
    if isinstance(training, RankingTraining):
        return training.candidate_of(policy)
    return candidate_id(training.progress.ingested, training.run_id)


def _find(group: _Group, candidate: str) -> Loaded:
    loaded = group.past.find(candidate)
    if loaded is None:
        msg = f"candidate {candidate}: what the learner was then is no longer kept, or was another trainer's"
        raise CheckpointError(msg)
    return loaded


def _followed_by(group: _Group, candidate: str) -> Numbers:
    """The requests that the learner had followed when it made this one."""
    loaded = _find(group, candidate)
    return decode_saved(loaded.state, str(loaded.path)).progress.gone_back


def chosen(asked: Requests, new: Requests, followed_by: Callable[[str], Numbers]) -> str:
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
