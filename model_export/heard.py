"""What agents have said of the versions in use, kept on the model volume: a controller that takes over knows how the
version before did, and can blame the one that serves for what began with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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

    While another version is tried beside it: which, and what was known of both when what counts of that began. That is
    the beginning of the trial, or the last time that model servers were found to have been away.
    """

    version: int
    usage: Usage = Usage()
    before: Usage | None = None
    trial: int | None = None
    base: Usage = Usage()
    tried_base: Usage = Usage()
    anew_ms: int = 0  # when servers were found to have been away; 0: they were not
    usual: float = 1.0  # share of its pages that model servers answered in time, before the trial

    @property
    def beside(self) -> Usage:
        return _since(self.base, self.usage)

    def tried(self, usage: Usage) -> Usage:
        """Of the other version, by all that was heard of it."""
        return _since(self.tried_base, usage)


def answered(usage: Usage) -> float:
    """Calls that model servers answered in time, per page: below 1 where one call is for several pages. Pure."""
    return (usage.calls - usage.slow) / usage.pages if usage.pages else 0.0


def _since(then: Usage, now: Usage) -> Usage:
    return Usage(*(max(after - before, 0) for before, after in zip(astuple(then), astuple(now), strict=True)))


def heard(known: Heard | None, version: int, usage: Usage) -> Heard:
    """Agents that were not heard of for a moment have not unsaid anything. Pure."""
    if known is None or known.version != version:
        known = Heard(version, before=None if known is None else known.usage)
    return replace(known, usage=usage) if usage.pages >= known.usage.pages else known


def beginning(known: Heard | None, version: int, canary: int, min_pages: int) -> Heard:
    """Of the version that a trial begins beside, before anything of that time was heard. Pure.

    With fewer than `min_pages` pages before, one answered call per page is what is usual.
    """
    if known is None:
        return Heard(version, trial=canary)
    if known.version != version or known.trial == canary:
        return known
    usual = answered(known.usage) if known.usage.pages >= min_pages else 1.0
    return replace(known, trial=canary, base=known.usage, tried_base=Usage(), anew_ms=0, usual=usual)


def anew(known: Heard, tried: Usage, now_ms: int) -> Heard:
    """Nothing that was heard of a trial until now counts. Pure."""
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
