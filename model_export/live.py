"""A version that goes wrong when users meet it is sent back within seconds: the first tier's last check, on live pages.

Agents say in their heartbeats how many of its pages fell back through its fault (refused, mismatched, not finite), and
how many of its Predict calls were slow. It is blamed for what began with it: a share beyond its bound, and beyond twice
that of the version before. What was wrong before, or is wrong with a server or a store, is no version's fault.

With `publish.canary` a version is on a share of its policy's buckets first. Then it is compared with the version that
serves the rest at the same time; within the bounds it is promoted, beyond them sent back before most users met it.
What is heard while model servers are away says nothing of either: then the trial begins anew, up to a limit.
"""

from __future__ import annotations

import logging

from msgspec.structs import replace

from model_export.checks import Check, Verdict, at_most, explain, first_failure
from model_export.desired import DesiredState, PolicyState, Turn
from model_export.heard import Heard, anew, answered, beginning, heard, read_heard, write_heard
from model_export.housekeeping import HEARTBEAT_MS
from model_export.promoting import promote
from model_export.site import Server, Site
from model_export.turning import tried_since_ms, turn
from model_export.verdicts import VerdictLog
from pipeline.config.schema import Guard
from pipeline.serving.errors import ServingError, Unavailable
from pipeline.stores.published import Heartbeat, Pointer, Served, Usage, read_heartbeats

UNUSED = "live_pages"
LOOK_MS = 1_000
KNOWN_MS = 10_000  # agents look at a pointer every second; building a version takes seconds, and clocks differ
_WRITE_MS = 5_000  # what was heard, while the versions are the same
_TIMES = 2.0  # what a version's share has to be of that before, to be its fault
_CALLED = 0.5  # of the pages: where fewer ask, the server is left alone, and the calls say nothing about a version
_TRIALS = 10  # how often a trial may last before it ends for servers that are away
_ANSWER_S = 1.0
_LOG = logging.getLogger(__name__)


class LiveWatch:
    """Of one term of a controller."""

    def __init__(self, site: Site, rules: Guard) -> None:
        self._site, self._rules = site, rules
        self._heard = read_heard(site.models)
        self._written, self._written_ms = dict(self._heard), 0
        self._looked_ms = 0

    def look(self, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, tuple[Verdict, ...]]:
        now_ms = self._site.clock_ms()
        if 0 <= now_ms - self._looked_ms < LOOK_MS:
            return state, ()
        self._looked_ms = now_ms
        beats = [b for b in read_heartbeats(self._site.store, self._site.prefix) if now_ms - b.time_ms < HEARTBEAT_MS]
        drawn: list[Verdict] = []
        for name, policy in state.policies.items():
            self._note_trial(name, policy.pointer)
            for conclude in (self._conclude, self._conclude_trial):
                state, verdict = conclude(verdicts, state, name, beats)
                drawn += [verdict] if verdict else []
        self._keep(now_ms)
        return state, tuple(drawn)

    def checks(self, policy: str) -> tuple[Check, ...]:
        known = self._heard[policy]
        return live_checks(self._rules, known.usage, known.before)

    def hear(self, name: str, version: int, beats: list[Heartbeat]) -> None:
        said = {b.agent: b.usage[name] for b in beats if b.versions.get(name) == version and name in b.usage}
        self._heard[name] = heard(self._heard.get(name), version, said)

    def _note_trial(self, name: str, pointer: Pointer) -> None:
        """Before this look's figures: a bad hour before the trial, or a good one, is not to be compared with."""
        if pointer.stable is not None and pointer.canary is not None:
            versions = pointer.stable.version, pointer.canary.version
            self._heard[name] = beginning(self._heard.get(name), *versions, self._rules.min_pages)

    def _hear_trial(self, name: str, version: int, beats: list[Heartbeat]) -> None:
        using = [b for b in beats if b.canaries.get(name) == version and name in b.canary_usage]
        tried = heard(self._heard[name].tried, version, {b.agent: b.canary_usage[name] for b in using})
        self._heard[name] = replace(self._heard[name], tried=tried)

    def _keep(self, now_ms: int) -> None:
        """At once when a version has changed, else every few seconds."""
        changed = _versions(self._heard) != _versions(self._written)
        due = self._heard != self._written and not 0 <= now_ms - self._written_ms < _WRITE_MS
        if changed or due:
            self._site.lease.check()
            write_heard(self._site.models, self._heard)
            self._written, self._written_ms = dict(self._heard), now_ms

    def _conclude(
        self, verdicts: VerdictLog, state: DesiredState, name: str, beats: list[Heartbeat]
    ) -> tuple[DesiredState, Verdict | None]:
        policy = state.policies[name]
        pointer = policy.pointer
        if pointer.stable is None or policy.pending is not None:
            return state, None
        self.hear(name, pointer.stable.version, beats)
        failed = first_failure(self.checks(name))
        if pointer.frozen or pointer.off or pointer.previous is None or failed is None:
            return state, None
        return self._send_back(verdicts, state, name, (pointer.stable, pointer.previous), failed)

    def _conclude_trial(
        self, verdicts: VerdictLog, state: DesiredState, name: str, beats: list[Heartbeat]
    ) -> tuple[DesiredState, Verdict | None]:
        policy = state.policies[name]
        stable, canary, since_ms = policy.pointer.stable, policy.pointer.canary, tried_since_ms(policy)
        if stable is None or canary is None or since_ms is None or policy.pending is not None or policy.pointer.off:
            return state, None
        rules = self._site.config.publish.canary
        if rules is None:
            return promote(self._site, verdicts, state, name, "publish.canary is no longer in the config")
        self._hear_trial(name, canary.version, beats)
        now_ms, known = self._site.clock_ms(), self._heard[name]
        if known.anew_ms > now_ms:  # the clock was put back
            self._heard[name] = replace(known, anew_ms=now_ms)
        began_ms = max(since_ms, self._heard[name].anew_ms)
        held = now_ms - began_ms >= rules.hold
        checks = self._trial_checks(name, policy, beats, began_ms if held else None)
        failed = first_failure(checks)
        if failed is not None and failed.name != UNUSED:
            return self._send_back(verdicts, state, name, (canary, stable), failed)
        nobody = now_ms - began_ms >= KNOWN_MS and not any(name in beat.versions for beat in beats)
        if not held or not (checks or nobody):
            return state, None
        away = self._away(name, failed) if checks else self._silent(policy.model_name, stable)
        if away is not None:
            limit_ms = _TRIALS * max(rules.hold, KNOWN_MS)
            return self._try_anew(verdicts, state, name, away, over=now_ms - since_ms >= limit_ms)
        if failed is not None:
            return self._send_back(verdicts, state, name, (canary, stable), failed)
        on_share = f"within its bounds on {policy.pointer.share:.0%} of its buckets"
        detail = on_share if checks else "no agent follows the policy: there is nobody to try it on"
        return promote(self._site, verdicts, state, name, detail, checks)

    def _trial_checks(
        self, name: str, policy: PolicyState, beats: list[Heartbeat], began_ms: int | None
    ) -> tuple[Check, ...]:
        """`began_ms`: None before it has lasted for long enough."""
        tried, beside = self._heard[name].on_trial, self._heard[name].beside
        checks = live_checks(self._rules, tried, beside)
        if checks or began_ms is None or tried.pages:
            return checks
        return taken_up(self._rules, uses(name, policy, beats, began_ms), beside, policy.pointer.share)

    def _away(self, name: str, failed: Check | None) -> Check | None:
        """Whether servers left pages unanswered: of the version that is tried, or, if no agent uses it, of the other,
        which every agent can use that reaches a server."""
        known = self._heard[name]
        found = unanswered(known.on_trial if failed is None else known.beside, known.usual)
        return None if found.passed else found

    def _silent(self, model: str, stable: Served) -> Check | None:
        """Agents that have just begun cannot follow the policy while no server has its version."""
        servers = [_has(server, model, stable.version) for server in _now(self._site)]
        found = Check("live_servers", float(sum(servers)), 1.0, any(servers), len(servers), ">= 1")
        return None if found.passed else found

    def _try_anew(
        self, verdicts: VerdictLog, state: DesiredState, name: str, away: Check, *, over: bool
    ) -> tuple[DesiredState, Verdict | None]:
        policy, now_ms = state.policies[name], self._site.clock_ms()
        stable, canary = policy.pointer.stable, policy.pointer.canary
        assert stable is not None
        assert canary is not None
        _LOG.warning("%s version %d: model servers were away (%s)", name, canary.version, explain(away))
        if over and not policy.pointer.frozen:
            draft = _given_up(name, policy, (canary, stable), away)
            return turn(self._site, verdicts, state, name, Turn(draft, left=canary, to=stable))
        self._heard[name] = anew(self._heard[name], now_ms)
        return state, None

    def _send_back(
        self, verdicts: VerdictLog, state: DesiredState, name: str, way: tuple[Served, Served], failed: Check
    ) -> tuple[DesiredState, Verdict | None]:
        (left, back_to), policy = way, state.policies[name]
        _LOG.warning("%s version %d: %s; back to version %d", name, left.version, explain(failed), back_to.version)
        draft = _verdict(name, policy, way, failed)
        return turn(self._site, verdicts, state, name, Turn(draft, left=left, to=back_to))


def _versions(known: dict[str, Heard]) -> dict[str, tuple[int, int | None]]:
    return {name: (each.version, each.tried and each.tried.version) for name, each in known.items()}


def live_checks(rules: Guard, now: Usage, before: Usage | None) -> tuple[Check, ...]:
    """Empty where there are too few pages, of this version or of the one before, to say anything."""
    if before is None or min(now.pages, before.pages) < rules.min_pages:
        return ()
    checks = [_share("live_fallbacks", now.faults, now.pages, before.faults / before.pages, rules.max_fault_share)]
    if now.calls >= _CALLED * now.pages and before.calls >= _CALLED * before.pages:
        checks.append(_share("live_latency", now.slow, now.calls, before.slow / before.calls, rules.max_slow_share))
    return tuple(checks)


def unanswered(usage: Usage, usual: float) -> Check:
    """Fails where servers answered less than half of what they usually do, in time."""
    found, bound = answered(usage), _CALLED * usual
    wanted = f">= {bound:g} answered calls per page"
    return Check("live_answered", found, bound, found >= bound, usage.pages, wanted)


def uses(name: str, policy: PolicyState, beats: list[Heartbeat], began_ms: int) -> tuple[bool, ...]:
    """Whether it uses the canary, of each agent that has had the time to: pages of before it could know of it say
    nothing about it."""
    canary = policy.pointer.canary
    if canary is None:
        return ()
    knowing = [beat for beat in beats if name in beat.versions and beat.time_ms - began_ms >= KNOWN_MS]
    return tuple(beat.canaries.get(name) == canary.version for beat in knowing)


def taken_up(rules: Guard, uses: tuple[bool, ...], beside: Usage, share: float) -> tuple[Check, ...]:
    """A version that no agent can use has no pages, and would be tried for ever: its share has the version beside."""
    due = beside.pages * share
    if not uses or any(uses) or due < rules.min_pages:
        return ()
    note = f"{due:.0f} were due: none of {len(uses)} agents uses it"
    return (Check(UNUSED, 0.0, 1.0, False, beside.pages, ">= 1", note),)


def _share(name: str, count: int, of: int, before: float, bound: float) -> Check:
    return at_most(name, count / of, max(bound, _TIMES * before), n=of, note=f"{before:g} with the other version")


def _now(site: Site) -> tuple[Server, ...]:
    try:
        return tuple(site.servers)
    except Unavailable:
        return ()


def _has(server: Server, model: str, version: int) -> bool:
    try:
        return any(s.version == version and s.state == "AVAILABLE" for s in server.status(model, _ANSWER_S))
    except ServingError:
        return False


def _verdict(name: str, policy: PolicyState, way: tuple[Served, Served], failed: Check) -> Verdict:
    (left, back_to), back = way, policy.pointer.back
    return Verdict(
        candidate=f"live-{left.version}-{back.number + 1 if back else 1}",
        policy=name,
        tier="live",
        outcome="sent_back",
        reason=failed.name,
        detail=explain(failed),
        version=left.version,
        accepted_before=back_to.version,
        certified=policy.certified.version if policy.certified else None,
        checks=(failed,),
    )


def _given_up(name: str, policy: PolicyState, way: tuple[Served, Served], away: Check) -> Verdict:
    (canary, stable) = way
    return Verdict(
        candidate=f"canary-{canary.version}",
        policy=name,
        tier="live",
        outcome="kept",
        reason="server_unreachable",
        detail=f"model servers were away too long to try it; {explain(away)}",
        version=canary.version,
        accepted_before=stable.version,
        certified=policy.certified.version if policy.certified else None,
        checks=(away,),
    )
