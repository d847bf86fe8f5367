"""What all config types are made of: names, bounded numbers, durations, and the base of every value."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Source = Annotated[str, Meta(pattern=r"^(user|context|page|item)\.[A-Za-z_][A-Za-z0-9_]*$")]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Magnitude = Annotated[float, Meta(ge=0, extra={"magnitude": True})]  # subtracted where it is used
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]  # table rows are int32
DurationMs = Annotated[int, Meta(ge=0, le=315_360_000_000, extra={"duration": True})]  # at most 3650 days


class Value(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all config values: immutable, and a misspelt key is an error."""
