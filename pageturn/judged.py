"""`pageturn versions` and `pageturn verdict`: what became of every candidate, from the model volume alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pageturn.options import FOLDER, options

if TYPE_CHECKING:
    from model_export.checks import Check, Verdict
    from model_export.desired import PolicyState

_NEWEST = 20
_MODELS = click.option("--models", type=FOLDER, help="Model volume that the servers read; with it, no run.")


@click.command()
@click.argument("policy")
@options("run")
@_MODELS
@click.option("--newest", default=_NEWEST, type=click.IntRange(1), help="How many.")
def versions(policy: str, folder: Path | None, models: Path | None, newest: int) -> None:
    """List the newest versions of POLICY: when each went out, of which candidate, and what it is loaded as."""
    from model_export.desired import read_desired
    from model_export.served import went_out
    from pageturn.table import render

    models = _volume(folder, models)
    state = read_desired(models)
    loaded = _loaded_as(state.policies[policy]) if state is not None and policy in state.policies else {}
    verdicts = _of(policy, models)
    out = {each.verdict.version: _when(each.since_ms) for each in went_out(verdicts)}
    accepted = [v for v in verdicts if v.outcome == "accepted"][-newest:]
    rows = [
        (v.version, _when(v.time_ms), out.get(v.version, "-"), v.candidate, loaded.get(v.version or 0, "not loaded"))
        for v in accepted
    ]
    click.echo(render([("version", "accepted", "served to all", "candidate", "role"), (), *rows], policy))


def _loaded_as(policy: PolicyState) -> dict[int, str]:
    held = ", pinned" if policy.pointer.pinned else ""
    return {entry.version: entry.role + held * (entry.role == "stable") for entry in policy.loaded}


@click.command()
@click.argument("policy")
@click.argument("what")
@options("run")
@_MODELS
def verdict(policy: str, what: str, folder: Path | None, models: Path | None) -> None:
    """Say why: every number behind the verdict on WHAT, a version's number or a candidate's name.

    epoch-1 is the first conclusion from evidence, live-3-1 version 3 as it was sent back from live pages.
    """
    from pageturn.table import render

    models = _volume(folder, models)
    found = [v for v in _of(policy, models) if what in (v.candidate, _number(v))]
    if not found:
        message = (
            f"{models}: no verdict on {what!r} of {policy}; `pageturn versions {policy}` lists the newest versions"
        )
        raise click.ClickException(message)
    for each in found:
        click.echo(render(_told(each), f"{policy} {each.candidate}: {each.outcome}") + "\n")


def _volume(folder: Path | None, models: Path | None) -> Path:
    if models is None:
        from pageturn.run import open_run

        return open_run(folder).models
    if folder is not None:
        message = "expected --models or --run, found both"
        raise click.UsageError(message)
    return models


def _of(policy: str, models: Path) -> list[Verdict]:
    from model_export.verdicts import read_verdicts

    found = [v for v in read_verdicts(models) if v.policy == policy]
    if not found:
        message = f"{models}: expected verdicts on policy {policy!r}, found none"
        raise click.ClickException(message)
    return found


def _number(verdict: Verdict) -> str | None:
    """Of candidates that were to become a version."""
    return str(verdict.version) if verdict.tier in ("bootstrap", "every_version") and verdict.version else None


def _told(verdict: Verdict) -> Iterator[tuple[object, ...]]:
    yield "when", _when(verdict.time_ms)
    yield "tier", verdict.tier.replace("_", " ")
    if verdict.reason:
        yield "reason", verdict.reason
    if verdict.detail:
        yield "detail", verdict.detail
    if verdict.version is not None:
        yield "version", verdict.version
    against = [("accepted", verdict.accepted_before), ("certified", verdict.certified)]
    yield "compared with", ", ".join(f"{name} {version}" for name, version in against if version) or "nothing"
    if verdict.evidence is not None:
        yield "evidence", verdict.evidence.replace("_", " ")
    if verdict.checks:
        yield ()
        yield from (_check(check) for check in verdict.checks)


def _check(check: Check) -> tuple[object, ...]:
    value = "-" if check.value is None else f"{check.value:.4g}"
    note = f"; {check.note}" if check.note else ""
    return "passed" if check.passed else "FAILED", check.name, value, f"{check.would_pass} (n = {check.n}){note}"


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
