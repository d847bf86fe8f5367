"""Updates of policies that choose items: what the trainer decided, by which evidence, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from model_export import checks
from pageturn.lines import lines_of
from pipeline.ranking.comparing import Verdict
from pipeline.ranking.updates import Update

UPDATES = "updates.jsonl"
NAMES = {"gradient": "gradient", "dbgd": "dueling bandit", "es": "evolution strategies", "replay": "replay"}
_SAID = {
    Verdict.CANDIDATE: "users prefer what was tried",
    Verdict.INCUMBENT: "users prefer what is served",
    Verdict.TIE: "no clear preference",
}


class Tally(Struct, frozen=True):
    policy: str
    kind: str
    by: str
    taken: int
    decided: int
    pages: int | None  # on which candidates were shown, over all updates; None where nothing is asked of users
    decisive: int | None  # users whose clicks spoke for one side, over all updates


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
    return tuple(_tally(key, group) for key, group in sorted(groups.items()))


def _tally(key: tuple[str, str, str], group: Sequence[Update]) -> Tally:
    said = [outcome for update in group for outcome in update.evidence]
    asked = (sum(o.pages for o in said), sum(o.decisive for o in said)) if said else (None, None)
    return Tally(*key, sum(update.taken for update in group), len(group), *asked)


def fate(update: Update, verdicts: Sequence[checks.Verdict]) -> str:
    """What the version controller said of the candidate that an update led to."""
    for verdict in verdicts:
        number = verdict.candidate.partition("-")[0]
        if verdict.policy == update.policy and number.isdigit() and int(number) >= update.version:
            version = f" as version {verdict.version}" if verdict.outcome == "accepted" else f": {verdict.reason}"
            later = "" if int(number) == update.version else ", with later ones"
            return f"{verdict.outcome}{version}{later}"
    return "not judged yet"


def evidence(update: Update) -> str:
    """In words; of several candidates one after the other."""
    if update.evidence:
        return "; ".join(_SAID[outcome.verdict] for outcome in update.evidence)
    return f"loss {update.loss:.4g} on {update.pages} pages" if update.loss is not None else "none: served at once"
