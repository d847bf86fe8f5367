"""What a version would have brought, by the estimators of off-policy evaluation, and what to think of their numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from model_export.evaluation import estimators, logged
from model_export.evaluation.estimators import OffPolicy, Terms, estimate
from model_export.evaluation.fitted import fit_q
from model_export.evaluation.kernels import blurred, page_kernel_weights
from model_export.evaluation.logged import Gathered, Sessions, gather
from model_export.evaluation.ratios import Target, session_ratios
from pageturn.retrospect import (
    OTHER_CONFIG,
    OTHER_REWARD,
    EvaluationError,
    ask_all,
    comparable,
    find_version,
    newest_sessions,
)
from pipeline.agent.acting import sigma_of
from pipeline.agent.agent import Server
from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder
from pipeline.features.stored_vectors import StoredVectors
from pipeline.learning.held_out import is_held_out
from pipeline.logs.log import EventLog
from pipeline.records import Step
from pipeline.stores.store import KeyValueStore

BANDWIDTH = 0.5  # of the kernel, in spreads of the logged noise
_VECTORS = 100_000  # kept in memory
_FEW = 50.0  # effective sessions, or pages: below it the bootstrap's interval is not to be believed
_MANY_FALLBACKS = 0.1
_ROUNDING = 1e-3  # of an action's range: float32, and another size of batch
_WHY: Mapping[str, str] = {
    OTHER_CONFIG: "decided with other features, actions or noise than the config's",
    OTHER_REWARD: "rewarded by another rule than the config's",
    logged.HELD_BACK: "not held out from training",
    logged.FALLBACK: "a page was a fallback's",
    logged.NOT_DRAWN: "a page was decided by the baseline, or for another policy",
    logged.ACTIONS: "an action was not drawn: no density",
    logged.DENSITY: "the logged density is not that of what was drawn",
    logged.NOISE: "the noise does not go on from page to page",
    logged.ORDER: "page indices do not increase",
    logged.UNFINISHED: "cut at its maximal length, and not known to its end",
}


def check(config: FeatureConfig, policy: str, held_out: bool) -> None:
    """Raises: EvaluationError where the config's policies log no density."""
    learned = config.learned_policies()
    if policy not in learned:
        message = f"{config.name}: expected a learned policy ({', '.join(learned)}), found {policy!r}"
        raise EvaluationError(message)
    fixed = [dimension.name for dimension in config.action if sigma_of(dimension) == 0]
    if config.ranking is not None:
        expected = "policies that draw an action, found policies that choose items, of which no density is logged"
    elif fixed:
        expected = f"noise on every action, found none on {', '.join(fixed)}: what was never tried cannot be valued"
    elif held_out and config.algorithm.held_out == 0:
        expected = "algorithm.holdout above 0 for --held-out, found that training sees all sessions"
    else:
        return
    message = f"{config.name}: expected {expected}"
    raise EvaluationError(message)


# Looking back ----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    version: int
    gathered: Gathered
    left_out: Mapping[str, int]
    means: np.ndarray  # [n, d] what the version says to the logged states
    states: np.ndarray  # [n, f]
    seen: int | None  # sessions from before the version was made; None: nobody knows, or all were held out
    changed: int  # pages of the same version with another mean than logged
    read_said: str

    @property
    def sessions_said(self) -> str:
        sessions = self.gathered.sessions
        versions = sorted({step.decision.model_version or 0 for step in self.gathered.steps})
        span = f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else f"{versions[0]}"
        return f"{len(sessions.names)} sessions ({len(sessions.rewards)} pages) of version {span}"


def look_back(
    config: FeatureConfig,
    log: EventLog,
    store: KeyValueStore,
    server: Server,
    policy: str,
    version: int | None,
    *,
    count: int,
    most: int,
    held_out: bool = False,
) -> Found:
    """`most`: as for `newest_sessions`. Raises: EvaluationError, and those of log, store and encoder."""
    encoder = _encoder(config, store)
    asked = find_version(config, store, server, policy, version)
    read = newest_sessions(log, policy, count, most)
    kept, differing = comparable(read.sessions, config, encoder.config_sha)
    share = config.algorithm.held_out
    gathered = gather(kept, config.action, policy, lambda name: not held_out or is_held_out(name, share))
    left_out = {**differing, **gathered.left_out}
    if not gathered.steps:
        message = f"{policy}: expected sessions that can be weighed in {read.said}, found none"
        raise EvaluationError("; ".join([message, *(f"{n} left out: {_WHY[why]}" for why, n in left_out.items())]))
    means, states = ask_all(config, encoder, server, asked.pinned, gathered.steps)
    served = asked.pinned.served
    return Found(
        served.version,
        gathered,
        left_out,
        means,
        states,
        None if asked.made_ms is None or held_out else _before(gathered, asked.made_ms),
        _changed(gathered, means, (served.version, served.parameters)),
        read.said,
    )


def _encoder(config: FeatureConfig, store: KeyValueStore) -> Encoder:
    vectors = StoredVectors(store, config.kv_prefix, capacity=_VECTORS, monotonic=time.monotonic)
    return Encoder(config, vectors)


def _before(gathered: Gathered, made_ms: int) -> int:
    starts: Sequence[int] = gathered.sessions.starts[:-1].tolist()
    return sum(gathered.steps[start].time_ms < made_ms for start in starts)


def _changed(gathered: Gathered, means: np.ndarray, version: tuple[int, str]) -> int:
    sessions = gathered.sessions
    far = np.any(np.abs(means - sessions.means) > _ROUNDING * (sessions.high - sessions.low), axis=1)
    return int(np.sum(far & np.array([_decided_by(step) == version for step in gathered.steps])))


def _decided_by(step: Step) -> tuple[int | None, str | None]:
    return step.decision.model_version, step.decision.parameters


# Saying it -------------------------------------------------------------------------------------------------------


def of_sessions(found: Found) -> Iterator[tuple[str, Terms]]:
    """Users are the draws of the intervals: what one does in a session says what the next will be like."""
    users = found.gathered.sessions.users
    return ((name, estimators.clustered(terms, users)) for name, terms in _of_sessions(found))


def _of_sessions(found: Found) -> Iterator[tuple[str, Terms]]:
    sessions = found.gathered.sessions
    target = Target.like(sessions, found.means)
    logs, fitted = session_ratios(sessions, target), fit_q(sessions, target, found.states)
    yield "logged", estimators.importance(sessions, np.zeros(len(logs)))
    yield "per session", estimators.importance(sessions, logs)
    yield "per session, self-normalised", estimators.self_normalised(sessions, logs)
    yield "per decision", estimators.per_decision(sessions, logs)
    yield "per decision, self-normalised", estimators.per_decision_self_normalised(sessions, logs)
    yield "doubly robust", estimators.doubly_robust(sessions, logs, *fitted)
    yield "doubly robust, self-normalised", estimators.doubly_robust_self_normalised(sessions, logs, *fitted)


def of_pages(found: Found) -> Iterator[tuple[str, Terms]]:
    """Each page by itself, after what was logged before it."""
    sessions: Sessions = found.gathered.sessions
    weights = page_kernel_weights(sessions, found.means, BANDWIDTH)
    fitted = fit_q(sessions, blurred(sessions, found.means, BANDWIDTH), found.states, gamma=0.0)
    _, users = np.unique(np.asarray(sessions.users), return_inverse=True)
    whose = users[sessions.owner]
    every, logged_pages = np.ones(len(weights)), (sessions.rewards, whose)
    yield "logged", estimators.weighted_mean(every, *logged_pages)
    yield "kernel, self-normalised", estimators.weighted_self_normalised(weights, *logged_pages)
    yield "kernel, doubly robust", estimators.weighted_doubly_robust(weights, sessions.rewards, *fitted, whose)


def rows(found: Found) -> Iterator[tuple[object, ...]]:
    head = "value", "95 % interval", "effective"
    yield "reward per session, with the noise", *head
    yield ()
    yield from (_row(name, estimate(terms)) for name, terms in of_sessions(found))
    yield ()
    yield "reward per page, that page without noise", *head
    yield ()
    yield from (_row(name, estimate(terms)) for name, terms in of_pages(found))
    yield ()
    yield "read", found.read_said
    if found.seen:
        yield "it may have learned from", f"{found.seen} of the sessions: they are from before it was made"
    for reason, count in found.left_out.items():
        yield "left out", f"{count} sessions: {_WHY[reason]}"


def _row(name: str, found: OffPolicy) -> tuple[str, ...]:
    return name, f"{found.value:.4g}", f"[{found.low:.4g}, {found.high:.4g}]", f"{found.effective:,.1f}"


def warnings(found: Found) -> Iterator[str]:
    sessions = found.gathered.sessions
    for what, terms in (("sessions", of_sessions), ("pages", of_pages)):
        least = min((estimate(each, replicates=2) for _, each in terms(found)), key=lambda each: each.effective)
        if least.effective < _FEW:
            worth = f"{least.draws} {what} are worth no more than {least.effective:.1f}"
            yield f"{worth}: too few to say anything of this version, whatever the intervals say"
    users = len(set(sessions.users))
    if users < min(_FEW, len(sessions.names)):
        yield f"the {len(sessions.names)} sessions are of {users} users: too few for the intervals to be believed"
    if found.gathered.fallback_share > _MANY_FALLBACKS:
        share = f"{found.gathered.fallback_share:.0%} of the sessions had a fallback and were left out"
        yield f"{share}: those that are left are not the traffic"
    if found.changed:
        pages = f"{found.changed} of {len(sessions.rewards)} pages"
        yield f"the server's version {found.version} says something else on {pages} than it did when it decided them"
