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

    While another version is tried beside it: which, and what was known of this one when that began.
    """

    version: int
    usage: Usage = Usage()
    before: Usage | None = None
    trial: int | None = None
    base: Usage = Usage()

    @property
    def beside(self) -> Usage:
        """Since the trial began."""
        return Usage(*(max(now - then, 0) for now, then in zip(astuple(self.usage), astuple(self.base), strict=True)))


def heard(known: Heard | None, version: int, usage: Usage) -> Heard:
    """Agents that were not heard of for a moment have not unsaid anything. Pure."""
    if known is None or known.version != version:
        known = Heard(version, before=None if known is None else known.usage)
    return replace(known, usage=usage) if usage.pages >= known.usage.pages else known


def beginning(known: Heard | None, version: int, canary: int) -> Heard:
    """Of the version that a trial begins beside, before anything of that time was heard. Pure."""
    if known is None:
        return Heard(version, trial=canary)
    if known.version != version or known.trial == canary:
        return known
    return replace(known, trial=canary, base=known.usage)


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
