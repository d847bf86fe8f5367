"""What agents have said of the versions in use, kept on the model volume: a controller that takes over knows how the
version before did, and can blame the one that serves for what began with it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import astuple, replace

from pipeline import durable
from pipeline.stores.published import Usage

HEARD = "live.json"
_LOG = logging.getLogger(__name__)


class Heard(Struct, frozen=True, omit_defaults=True):
    """Of a policy: its version and what was last heard of it; the same of the version before.

    While another version is tried beside it: the same of that one, and what was known of both when what counts of it
    began. That is the beginning of the trial, or the last time that model servers were found to have been away.
    """

    version: int
    usage: Usage = Usage()
    before: Usage | None = None
    tried: Heard | None = None
    base: Usage = Usage()
    tried_base: Usage = Usage()
    anew_ms: int = 0  # when servers were found to have been away; 0: they were not
    usual: float = 1.0  # share of its pages that model servers answered in time, before the trial
    agents: dict[str, Usage] = {}  # what each said last of this version

    @property
    def beside(self) -> Usage:
        return _since(self.base, self.usage)

    @property
    def on_trial(self) -> Usage:
        return Usage() if self.tried is None else _since(self.tried_base, self.tried.usage)


def answered(usage: Usage) -> float:
    """Calls that model servers answered in time, per page. Pure."""
    return (usage.calls - usage.slow) / usage.pages if usage.pages else 0.0


def _since(then: Usage, now: Usage) -> Usage:
    return Usage(*(max(after - before, 0) for before, after in zip(astuple(then), astuple(now), strict=True)))


def _together(usages: Iterable[Usage]) -> Usage:
    return Usage(*(sum(numbers) for numbers in zip(*map(astuple, usages), strict=True)))


def heard(known: Heard | None, version: int, said: Mapping[str, Usage]) -> Heard:
    """With what agents say now. Those that are not heard of have not unsaid anything, for a moment or for good; one
    that says less than before has begun anew. Pure."""
    if known is None or known.version != version:
        known = Heard(version, before=None if known is None else known.usage)
    more = (_more(known.agents.get(agent), now) for agent, now in said.items())
    return replace(known, usage=_together([known.usage, *more]), agents={**known.agents, **said})


def _more(then: Usage | None, now: Usage) -> Usage:
    return now if then is None or now.pages < then.pages else _since(then, now)


def beginning(known: Heard | None, version: int, canary: int, min_pages: int) -> Heard:
    """Of the version that a trial begins beside, before anything of that time was heard. Pure.

    With fewer than `min_pages` pages before, one answered call per page is what is usual.
    """
    if known is None:
        return Heard(version, tried=Heard(canary))
    if known.version != version or (known.tried is not None and known.tried.version == canary):
        return known
    usual = answered(known.usage) if known.usage.pages >= min_pages else 1.0
    return replace(known, tried=Heard(canary), base=known.usage, tried_base=Usage(), anew_ms=0, usual=usual)


def anew(known: Heard, now_ms: int) -> Heard:
    """Nothing that was heard of a trial until now counts. Pure."""
    tried = known.tried.usage if known.tried else Usage()
    return replace(known, base=known.usage, tried_base=tried, anew_ms=now_ms)


def read_heard(models: Path) -> dict[str, Heard]:
    """Empty where it is not there, or is something else: then no version is blamed until the next one is out."""
    try:
        return msgspec.json.decode((models / HEARD).read_bytes(), type=dict[str, Heard])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        _LOG.warning("%s: not what agents said (%s); beginning anew", models / HEARD, error)
        return {}


def write_heard(models: Path, known: Mapping[str, Heard]) -> None:
    durable.write(models / HEARD, msgspec.json.encode(known))
