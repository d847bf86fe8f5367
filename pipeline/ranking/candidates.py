from __future__ import annotations

from msgspec import Struct


class Candidate(Struct, frozen=True):
    """Names a set of weights near those of a version. Of two that differ in `mirrored` the noise is opposite."""

    version: int
    seed: int
    mirrored: bool = False
