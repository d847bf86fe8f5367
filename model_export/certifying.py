"""The second tier at work: follows the transitions, and draws from the evidence of an epoch what follows from it.

certified   the policy as it now stands is the version to come back to, and a new epoch begins
ended       the bucket goes back to the last certified version, and its trainer with it; publishing is frozen until an
            operator has looked, and then a new epoch begins; a pinned version stays
superseded  from the epoch as it is nothing can be concluded; a new one begins, and nothing else happens:
  buckets     other slots: the units before are not to be weighed with those after
  rules       other rules of the certification, another reward, or a build that compares in another way: the same units
              must not be judged again by them
  clock       put back to before the epoch began, so no page would be in it for as long
  retention   the log has deleted what may be of the epoch: what was seen once cannot be seen again

Every conclusion is a verdict, on the candidate "epoch-<number>", with all numbers; how things stand meanwhile is in
<models>/evidence.json. All of it can be made again from the log, for as long as the log keeps it: a controller that
takes over reads it anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from model_export.checks import Verdict
from model_export.desired import DesiredState, PolicyState, follow, without_epoch
from model_export.evaluation.evidence import (
    Epoch,
    Evidence,
    Interval,
    Plan,
    assigned,
    budgets,
    evidence,
    filled_as_hashed,
    ruled,
)
from model_export.evaluation.units import SeenPage, SeenSample, Unit, Units, Window
from model_export.publisher import record
from model_export.sending_back import send_back
from model_export.site import Site
from model_export.verdicts import Judged, VerdictLog
from pipeline import durable
from pipeline.config.schema import Certification
from pipeline.events import EventError, decode
from pipeline.logs.log import SAMPLES, TRANSITIONS, EventLog, LogError, Record, has_topic
from pipeline.logs.ordered import OrderedReader
from pipeline.logs.reading import read_on

EVIDENCE = "evidence.json"
_EPOCH = "epoch-"
_READ = 2_000  # records between two looks at the candidates
_SHARE = 0.005  # of the units: so many new ones are worth another look, or looking would cost ever more
_LOG = logging.getLogger(__name__)


class _Case(Struct):
    """A policy's open epoch."""

    plan: Plan
    epoch: Epoch
    units: Units
    settled: list[Unit]
    rated: dict[str, Units]  # by rate: users who click, pages that are shown
    settled_rated: dict[str, list[Unit]]
    looked: int = -1  # how many had settled at the last look
    found: Evidence | None = None


class Looked(NamedTuple):
    state: DesiredState
    busy: bool  # there was something to read
    drawn: tuple[Verdict, ...]


class Certifier:
    """Of one term of a controller. Owns the reader, not the log."""

    def __init__(self, site: Site, log: EventLog, rules: Certification) -> None:
        self._site, self._log, self._rules = site, log, rules
        self._topics = (TRANSITIONS, SAMPLES) if budgets(rules) else (TRANSITIONS,)
        self._readers: dict[str, OrderedReader] = {}
        self._cases: dict[str, _Case] = {}
        self._read_ms = 0  # when records were last read
        self._from_ms: dict[str, int] = {}  # by topic: the first stamp that is left where some were deleted, else 0

    def look(self, verdicts: VerdictLog, state: DesiredState) -> Looked:
        """One round. A log out of reach is no reason not to publish: evidence waits for it."""
        state, drawn = self._begun(verdicts, state)
        self._open(state)
        try:
            read = {topic: self._read(topic) for topic in self._topics}
        except LogError as error:
            _LOG.warning("evidence: %s; reading the transitions again from their start", error)
            self._forget()
            return Looked(state, False, tuple(drawn))
        for topic, records in read.items():
            for each in records:
                self._take(topic, each)
        for policy in state.policies:
            if policy in self._cases and state.policies[policy].pending is None:
                state, verdict = self._conclude(verdicts, state, policy)
                drawn += [verdict] if verdict else []
        return Looked(state, any(read.values()), tuple(drawn))

    def _begun(self, verdicts: VerdictLog, state: DesiredState) -> tuple[DesiredState, list[Verdict]]:
        """Every policy that has its first version has an epoch, which begins now where it has none, unless it rests.
        It is the first, but for an end before, or a desired state that was lost: what earlier ones have spent is spent,
        also one that was open."""
        drawn: list[Verdict] = []
        for name, policy in state.policies.items():
            if policy.pointer.stable is not None and policy.epoch is None and not _rests(policy):
                spent = max(policy.spent, _looked_at(self._site.models, name), _last_judged(verdicts, name))
                state = self._site.write(state, name, replace(policy, epoch=self._epoch(name, policy, spent + 1)))
            state, verdict = self._superseded(verdicts, state, name)
            drawn += [verdict] if verdict else []
        return state, drawn

    def _epoch(self, name: str, policy: PolicyState, number: int) -> Epoch:
        config = self._site.config
        learned = policy.next_version > 2  # version 1 is the baseline
        return Epoch(number, self._site.clock_ms(), assigned(config, name), ruled(config), served_before=learned)

    def _superseded(self, verdicts: VerdictLog, state: DesiredState, name: str) -> tuple[DesiredState, Verdict | None]:
        """An epoch from which nothing can be concluded is followed by another. What a crash has left of one that was
        concluded is done all the same: see `_conclude`."""
        epoch = state.policies[name].epoch
        if epoch is None or verdicts.verdict_on(name, _name(epoch.number)) is not None:
            return state, None
        if epoch.assigned is None or epoch.rules is None:  # written by a build that did not note it
            known = epoch.assigned or assigned(self._site.config, name), epoch.rules or ruled(self._site.config)
            later = epoch.number > 1  # and learned versions served in the one before
            epoch = replace(epoch, assigned=known[0], rules=known[1], served_before=later or epoch.served_before)
            return self._site.write(state, name, replace(state.policies[name], epoch=epoch)), None
        why = self._why_superseded(epoch, name)
        if why is None:
            return state, None
        verdict = record(self._site, verdicts, Verdict(_name(epoch.number), name, "bucket", "superseded", *why))
        self._site.on_step(name, "superseded")
        epoch = self._epoch(name, state.policies[name], epoch.number + 1)
        return self._site.write(state, name, replace(state.policies[name], epoch=epoch)), verdict

    def _why_superseded(self, epoch: Epoch, name: str) -> tuple[str, str] | None:
        """Reason and detail."""
        if epoch.assigned != assigned(self._site.config, name):
            return "buckets", "its buckets, or the baseline's, have other slots than when it began"
        if epoch.rules != ruled(self._site.config):
            return "rules", "publish.certification, the reward, or how builds compare is not what it was when it began"
        ahead_ms = epoch.started_ms - self._site.clock_ms()
        if ahead_ms > self._site.config.stream.clock_skew:
            return "clock", f"the clock was put back: the epoch would begin in {ahead_ms / 1000:.0f} s"
        least_ms = epoch.started_ms + self._site.config.stream.clock_skew
        gone = next((topic for topic, from_ms in self._from_ms.items() if from_ms > least_ms), None)
        if gone is not None:
            return "retention", f"of {gone} the log has deleted what may be of after it began, and was seen then"
        return None

    def _open(self, state: DesiredState) -> None:
        """A case for every epoch. One that began before what was read needs all of it: the log is read again."""
        epochs = {name: policy.epoch for name, policy in state.policies.items() if policy.epoch is not None}
        if any(name not in self._cases and epoch.started_ms < self._read_ms for name, epoch in epochs.items()):
            self._forget()
        self._cases = {name: case for name, case in self._cases.items() if name in epochs}
        for name, epoch in epochs.items():
            if name not in self._cases or self._cases[name].epoch != epoch:
                self._cases[name] = self._case(name, epoch)

    def _forget(self) -> None:
        self._readers, self._cases, self._read_ms = {}, {}, 0

    def _case(self, policy: str, epoch: Epoch) -> _Case:
        plan = Plan.of(self._site.config, policy, self._rules)
        window = Window.of(self._site.config, epoch.started_ms, self._rules.horizon, plan.ours | plan.theirs)
        rates = budgets(self._rules)
        return _Case(plan, epoch, Units(window), [], {r: Units(window) for r in rates}, {r: [] for r in rates})

    def _read(self, topic: str) -> list[Record]:
        if topic not in self._readers:
            if not has_topic(self._log, topic):
                return []
            skew_ms = self._site.config.stream.clock_skew
            self._readers[topic] = OrderedReader(self._log, topic, None, self._site.clock_ms, skew_ms)
            self._from_ms[topic] = _first_stamp(self._log, topic, self._readers[topic].positions)
        self._read_ms = self._site.clock_ms()
        return self._readers[topic].poll(_READ)

    def _take(self, topic: str, each: Record) -> None:
        try:
            page = decode(each.payload, SeenPage if topic == TRANSITIONS else SeenSample)
        except EventError as error:
            where = f"{topic}, partition {each.partition}, offset {each.offset}"
            _LOG.warning("evidence: %s: %s; left out", where, error)
            return
        for case in self._cases.values():
            if isinstance(page, SeenPage):
                case.units.take(each.partition, page)
                continue
            for rate, units in case.rated.items():
                units.take(each.partition, page.rated(rate))

    def _conclude(self, verdicts: VerdictLog, state: DesiredState, policy: str) -> tuple[DesiredState, Verdict | None]:
        """The verdict first, so that a crash after it does what it says and does not judge again."""
        case, verdict = self._cases[policy], None
        judged = verdicts.verdict_on(policy, _name(case.epoch.number))
        if judged is None:
            if self._why_superseded(case.epoch, policy) is not None:  # found out since: the next look says so
                return state, None
            found = self._evidence(case)
            if found is None or found.conclusion == "not_enough":
                return state, None
            verdict = record(self._site, verdicts, _verdict(policy, state.policies[policy], found))
            judged = Judged(verdict.outcome, verdict.version, verdict.reason, verdict.detail)
        self._site.on_step(policy, "concluded")
        changed = _certified(state.policies[policy], judged)
        if judged.outcome == "ended":
            # Where that is what serves, its exploration is what costs: nothing else is left to take back but the policy
            # itself, which is for an operator to decide.
            assert changed.certified is not None  # since the first version
            changed = replace(changed, pointer=send_back(self._site, policy, changed.pointer, changed.certified))
        if _rests(changed):
            changed = without_epoch(changed)
        else:
            changed = replace(changed, epoch=self._epoch(policy, changed, case.epoch.number + 1))
        return self._site.write(state, policy, follow(changed, changed.pointer, self._site.clock_ms())), verdict

    def _evidence(self, case: _Case) -> Evidence | None:
        """None where too little has settled since the last look for another."""
        case.settled += case.units.settle()
        for rate, units in case.rated.items():
            case.settled_rated[rate] += units.settle()
        settled = len(case.settled) + sum(map(len, case.settled_rated.values()))
        if settled <= case.looked * (1 + _SHARE):
            return None
        case.looked = settled
        case.found = evidence(case.plan, case.epoch, case.settled, case.units.late, case.settled_rated)
        standing = {name: each.found for name, each in self._cases.items() if each.found is not None}
        durable.write(self._site.models / EVIDENCE, msgspec.json.format(msgspec.json.encode(standing), indent=1))
        return case.found


def read_evidence(models: Path) -> dict[str, Evidence]:
    """How the open epochs stood at the last look; empty where no evidence is gathered, or by another build."""
    try:
        return msgspec.json.decode((models / EVIDENCE).read_bytes(), type=dict[str, Evidence])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def _first_stamp(log: EventLog, topic: str, starts: Mapping[int, int]) -> int:
    """The latest that a partition begins with, of those of which something was deleted; 0 where nothing was."""
    return max((_stamp_at(log, topic, number, offset) for number, offset in starts.items() if offset > 0), default=0)


def _stamp_at(log: EventLog, topic: str, partition: int, offset: int) -> int:
    """Of the first record from `offset` on; 0 where there is none."""
    records, after = read_on(log, topic, partition, offset, 1)
    if not records and after > offset:
        records, _ = read_on(log, topic, partition, after, 1)
    return records[0].appended_at_ms if records else 0


def _looked_at(models: Path, policy: str) -> int:
    """The number of the last epoch of which units were seen; 0 of none. One that has only begun follows that one."""
    found = read_evidence(models).get(policy)
    if found is None:
        return 0
    return found.epoch if found.policy.units + found.baseline.units > 0 else found.epoch - 1


def _last_judged(verdicts: VerdictLog, policy: str) -> int:
    """The number of the last epoch of which the verdict is remembered, 0 of none: not of all that are before it."""
    numbers = (name.removeprefix(_EPOCH) for name in verdicts.judged(policy) if name.startswith(_EPOCH))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _rests(policy: PolicyState) -> bool:
    """Frozen on the version that is certified, as after an end, until an operator lets go of it: there is nothing to
    learn of it but which users the policy lost before, and that would end the next epoch, and freeze again what was
    released. One that an operator has pinned is there to be looked at."""
    pointer = policy.pointer
    return pointer.frozen and not pointer.pinned and pointer.stable == policy.certified


def _name(epoch: int) -> str:
    return f"{_EPOCH}{epoch}"


def _verdict(policy: str, state: PolicyState, found: Evidence) -> Verdict:
    stable, pinned = state.pointer.stable, state.pointer.pinned
    ended = found.conclusion != "certified"
    return Verdict(
        candidate=_name(found.epoch),
        policy=policy,
        tier="bucket",
        outcome="ended" if ended else "certified",
        reason=found.reason,
        detail=f"{_told(found)}{'; it is pinned, and stays' if ended and pinned else ''}",
        version=stable.version if stable else None,
        accepted_before=stable.version if stable else None,
        certified=state.certified.version if state.certified and not (ended and pinned) else None,  # what serves then
        bucket=found,
    )


def _told(found: Evidence) -> str:
    units = f"{found.policy.units} units of the policy, {found.baseline.units} of the baseline"
    rate = next((rate for rate in found.rates if rate.name == found.reason), None)
    what = "reward per unit" if rate is None else f"{rate.name} of {rate.policy:.4g}"
    judged = found if rate is None else rate
    bounds = _bounds(judged.difference)
    if judged.totals is not None:
        bounds = f"{bounds}, by all that the slots bring {_bounds(judged.totals.difference)}"
    odd = "" if filled_as_hashed(found) else ", other shares than those of the slots"
    return f"{what} against the baseline: {bounds}, a confidence sequence of alpha {found.alpha:.3g}; {units}{odd}"


def _bounds(difference: Interval) -> str:
    return f"{difference.mean:+.4g} [{difference.low:+.4g}, {difference.high:+.4g}]"


def _certified(state: PolicyState, judged: Judged) -> PolicyState:
    """The version that served when the verdict was made, unless the pointer has moved since: then nothing is certified
    by it."""
    stable = state.pointer.stable
    if judged.outcome == "certified" and stable is not None and stable.version == judged.version:
        return replace(state, certified=stable)
    return state
