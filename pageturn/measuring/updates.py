"""Updates of policies that choose items: what the trainer decided, by which evidence, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from model_export.checks import Verdict
from pageturn.lines import lines_of
from pipeline.ranking.updates import Update

UPDATES = "updates.jsonl"


class Tally(Struct, frozen=True):
    policy: str
    kind: str
    by: str
    taken: int
    decided: int
    decisive: int  # users whose clicks spoke for one side, over all of them


def decided(trainer: Path) -> tuple[Update, ...]:
    """In order; what a trainer that was killed has written twice is there once."""
    found = {
        (update.policy, update.version, update.kind, update.by): update
        for update in lines_of(trainer / UPDATES, Update)
    }
    return tuple(found.values())


def tallies(updates: Iterable[Update]) -> tuple[Tally, ...]:
    """By policy and what proposed them."""
    groups: dict[tuple[str, str, str], list[Update]] = {}
    for update in updates:
        groups.setdefault((update.policy, update.kind, update.by), []).append(update)
    return tuple(
        Tally(*key, sum(u.taken for u in group), len(group), sum(o.decisive for u in group for o in u.evidence))
        for key, group in sorted(groups.items())
    )


def fate(update: Update, verdicts: Sequence[Verdict]) -> str:
    """What the version controller said of the candidate that an update led to."""
    for verdict in verdicts:
        number = verdict.candidate.partition("-")[0]
        if verdict.policy == update.policy and number.isdigit() and int(number) >= update.version:
            version = f" as version {verdict.version}" if verdict.outcome == "accepted" else f": {verdict.reason}"
            later = "" if int(number) == update.version else ", with later ones"
            return f"{verdict.outcome}{version}{later}"
    return "not judged yet"


def evidence(update: Update) -> str:
    """In words."""
    if not update.evidence:
        return f"loss {update.loss:.4g} on {update.pages} pages" if update.loss is not None else "none: served at once"
    return "; ".join(
        f"{o.verdict.value}: {o.mean:+.2f} per user, z {o.z:+.1f}, of {o.decisive} decisive users and {o.pages} pages"
        for o in update.evidence
    )
