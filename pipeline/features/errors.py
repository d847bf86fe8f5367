"""Why features could not be encoded."""

from __future__ import annotations

from pipeline.errors import PageturnError


class FeatureError(PageturnError):
    """A raw value is not what the config promises."""

    def __init__(self, feature: str, source: str, expected: str, found: str) -> None:
        super().__init__(f"features[{feature}] ({source}): expected {expected}, found {found}")
        self.feature, self.source, self.expected, self.found = feature, source, expected, found


class MissingVector(FeatureError):
    """The vector source no longer has, or never gave, a vector that the log says was used."""


class SnapshotError(PageturnError):
    """Bytes are not a parameter snapshot, or not one of this config."""


def shown(value: object) -> str:
    """A raw value for an error message: short, with its type where that is the trouble."""
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
