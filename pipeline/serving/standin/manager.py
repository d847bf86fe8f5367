"""Desired versus actual versions: a pure state machine with the transitions of TF-Serving.

It follows the availability-preserving policy, the only one of the stock binary: the next version is loaded before the
last one is unloaded. One action at a time over all models, unloads first. No TensorFlow, no clock, no threads: the
core (`core.py`) performs the actions and tells what became of them.

Source: tensorflow/serving availability_preserving_policy.cc, aspired_versions_manager.cc, servable_state_monitor.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import NamedTuple


class State(IntEnum):
    """tensorflow.serving.ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class Failure(NamedTuple):
    """A status that is not OK. `name` is the code's gRPC name."""

    code: int
    name: str
    text: str


@dataclass(frozen=True)
class Managed:
    """A version that is wanted or still there."""

    path: str
    state: State = State.START
    aspired: bool = True


class Report(NamedTuple):
    """The last that was heard of a version. `sequence` orders all reports of a fleet."""

    state: State
    failure: Failure | None
    sequence: int


class Do(Enum):
    LOAD = "load"
    UNLOAD = "unload"


class Action(NamedTuple):
    do: Do
    model: str
    version: int
    path: str


@dataclass(frozen=True)
class Fleet:
    """All versions of all models. `reports` never forgets, like the status of TF-Serving."""

    managed: Mapping[str, Mapping[int, Managed]] = field(default_factory=dict)
    reports: Mapping[str, Mapping[int, Report]] = field(default_factory=dict)
    sequence: int = 0


def aspire(fleet: Fleet, model: str, wanted: Mapping[int, str]) -> Fleet:
    """Want exactly these versions (with their folders) of a model from now on.

    A version that failed stays wanted and failed while its folder stays: it is not tried again. One that comes back
    while it is on its way out waits until it is gone.
    """
    fleet = forget(fleet)
    known = dict(fleet.managed.get(model, {}))
    for version, managed in known.items():
        if version not in wanted:
            known[version] = replace(managed, aspired=False)
    for version in sorted(wanted.keys() - known.keys()):
        known[version] = Managed(wanted[version])
        fleet = _reported(fleet, model, version, State.START, None)
    return _with_managed(fleet, model, known)


def forget(fleet: Fleet) -> Fleet:
    """Stop managing versions that nobody wants and that are not, or no longer, loaded. Their reports stay."""
    for model, versions in fleet.managed.items():
        kept = {v: m for v, m in versions.items() if m.aspired or m.state not in (State.START, State.END)}
        for version in versions.keys() - kept.keys():
            if versions[version].state is State.START:
                fleet = _reported(fleet, model, version, State.END, None)
        fleet = _with_managed(fleet, model, kept)
    return fleet


def next_action(fleet: Fleet) -> Action | None:
    """The one thing to do now over all models; an unload comes before any load."""
    actions = [action for model in sorted(fleet.managed) if (action := _next_of(fleet, model)) is not None]
    return next((a for a in actions if a.do is Do.UNLOAD), actions[0] if actions else None)


def moved(fleet: Fleet, model: str, version: int, state: State, failure: Failure | None = None) -> Fleet:
    """What became of a version. END with a failure is a load that failed for good."""
    versions = fleet.managed[model]
    changed = {**versions, version: replace(versions[version], state=state)}
    return _reported(_with_managed(fleet, model, changed), model, version, state, failure)


def wanted(fleet: Fleet, model: str, version: int) -> bool:
    managed = fleet.managed.get(model, {}).get(version)
    return managed is not None and managed.aspired


def first_reached(fleet: Fleet, model: str, since: int) -> tuple[int, Report] | None:
    """The highest version that became available or ended after report number `since`: it decides a wait."""
    reports = fleet.reports.get(model, {})
    for version in sorted(reports, reverse=True):
        report = reports[version]
        if report.sequence > since and report.state in (State.AVAILABLE, State.END):
            return version, report
    return None


def _next_of(fleet: Fleet, model: str) -> Action | None:
    versions = fleet.managed[model]
    leaving = sorted(v for v, m in versions.items() if not m.aspired and m.state is State.AVAILABLE)
    aspired = [m for m in versions.values() if m.aspired]
    covered = not aspired or any(m.state is State.AVAILABLE for m in aspired) or len(leaving) > 1
    if leaving and covered:
        return Action(Do.UNLOAD, model, leaving[0], versions[leaving[0]].path)
    new = [v for v, m in versions.items() if m.aspired and m.state is State.START]
    return Action(Do.LOAD, model, max(new), versions[max(new)].path) if new else None


def _with_managed(fleet: Fleet, model: str, versions: Mapping[int, Managed]) -> Fleet:
    others = {name: old for name, old in fleet.managed.items() if name != model}
    return replace(fleet, managed={**others, model: versions} if versions else others)


def _reported(fleet: Fleet, model: str, version: int, state: State, failure: Failure | None) -> Fleet:
    sequence = fleet.sequence + 1
    reports = {**fleet.reports.get(model, {}), version: Report(state, failure, sequence)}
    return replace(fleet, reports={**fleet.reports, model: reports}, sequence=sequence)
