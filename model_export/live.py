"""A version that goes wrong when users meet it is sent back within seconds: the first tier's last check, on live pages.

Agents say in their heartbeats how many of its pages fell back through its fault (refused, mismatched, not finite), and
how many of its Predict calls were slow. It is blamed for what began with it: a share beyond its bound, and beyond twice
that of the version before. What was wrong before, or is wrong with a server or a store, is no version's fault.
"""

from __future__ import annotations

import logging

from msgspec import Struct
from msgspec.structs import replace

from model_export.checks import Check, Verdict, at_most, explain, first_failure
from model_export.desired import DesiredState, PolicyState, follow
from model_export.housekeeping import HEARTBEAT_MS
from model_export.publisher import record
from model_export.sending_back import send_back
from model_export.site import Site
from model_export.verdicts import VerdictLog
from pipeline.config.schema import Guard
from pipeline.stores.published import Heartbeat, Pointer, Served, Usage, read_heartbeats

LOOK_MS = 1_000
_TIMES = 2.0  # what a version's share has to be of that before, to be its fault
_CALLED = 0.5  # of the pages: where fewer ask, the server is left alone, and the calls say nothing about a version
_LOG = logging.getLogger(__name__)


class _Seen(Struct):
    """Of a policy: its version and what agents have said of it last; the same of the version before."""

    version: int
    usage: Usage = Usage()
    before: Usage | None = None


class LiveWatch:
    """Of one term of a controller. What agents said of the version before is in its memory: after a new start the
    version that serves is not blamed for anything until the next one is out."""

    def __init__(self, site: Site, rules: Guard) -> None:
        self._site, self._rules = site, rules
        self._seen: dict[str, _Seen] = {}
        self._looked_ms = 0

    def look(self, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, tuple[Verdict, ...]]:
        now_ms = self._site.clock_ms()
        if 0 <= now_ms - self._looked_ms < LOOK_MS:
            return state, ()
        self._looked_ms = now_ms
        beats = [b for b in read_heartbeats(self._site.store, self._site.prefix) if now_ms - b.time_ms < HEARTBEAT_MS]
        drawn: list[Verdict] = []
        for name, policy in state.policies.items():
            stable = policy.pointer.stable
            if stable is not None and policy.pending is None:
                self.hear(name, stable.version, beats)
                state, verdict = self._conclude(verdicts, state, name, policy, stable)
                drawn += [verdict] if verdict else []
        return state, tuple(drawn)

    def checks(self, policy: str) -> tuple[Check, ...]:
        seen = self._seen[policy]
        return live_checks(self._rules, seen.usage, seen.before)

    def hear(self, name: str, version: int, beats: list[Heartbeat]) -> None:
        seen = self._seen.get(name)
        if seen is None or seen.version != version:
            seen = self._seen[name] = _Seen(version, before=None if seen is None else seen.usage)
        usage = total([b.usage[name] for b in beats if b.versions.get(name) == version and name in b.usage])
        if usage.pages >= seen.usage.pages:  # agents that were not heard of for a moment have not unsaid anything
            seen.usage = usage

    def _conclude(
        self, verdicts: VerdictLog, state: DesiredState, name: str, policy: PolicyState, stable: Served
    ) -> tuple[DesiredState, Verdict | None]:
        """The pointer first: users do not wait for the verdict to be written."""
        back_to = policy.pointer.previous
        if policy.pointer.frozen or policy.pointer.off or back_to is None:
            return state, None
        failed = first_failure(self.checks(name))
        if failed is None:
            return state, None
        _LOG.warning("%s version %d: %s; back to version %d", name, stable.version, explain(failed), back_to.version)
        pointer = send_back(self._site, name, back_to)
        after = follow(replace(policy, pointer=pointer), pointer, self._site.clock_ms())
        state = self._site.write(state, name, after)
        return state, record(self._site, verdicts, _verdict(name, policy, pointer, failed))


def total(usages: list[Usage]) -> Usage:
    return Usage(*(sum(getattr(usage, name) for usage in usages) for name in Usage.__struct_fields__))


def live_checks(rules: Guard, now: Usage, before: Usage | None) -> tuple[Check, ...]:
    """Empty where there are too few pages, of this version or of the one before, to say anything."""
    if before is None or min(now.pages, before.pages) < rules.min_pages:
        return ()
    checks = [_share("live_fallbacks", now.faults, now.pages, before.faults / before.pages, rules.max_fault_share)]
    if now.calls >= _CALLED * now.pages and before.calls >= _CALLED * before.pages:
        checks.append(_share("live_latency", now.slow, now.calls, before.slow / before.calls, rules.max_slow_share))
    return tuple(checks)


def _share(name: str, count: int, of: int, before: float, bound: float) -> Check:
    return at_most(name, count / of, max(bound, _TIMES * before), n=of, note=f"{before:g} with the version before")


def _verdict(name: str, before: PolicyState, pointer: Pointer, failed: Check) -> Verdict:
    left = before.pointer.stable
    assert left is not None
    return Verdict(
        candidate=f"live-{left.version}-{pointer.back.number if pointer.back else 0}",
        policy=name,
        tier="live",
        outcome="sent_back",
        reason=failed.name,
        detail=explain(failed),
        version=left.version,
        accepted_before=pointer.stable.version if pointer.stable else None,
        certified=before.certified.version if before.certified else None,
        checks=(failed,),
    )
