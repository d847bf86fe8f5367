"""One raw value -> one canonical value. Strict: a wrong type is an error, never a guess. Pure, Python's own math.

Transcendentals live here, one value at a time, because a vectorised log1p may differ in the last bit from a single
one, and agent and trainer must agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import xxhash

from pipeline.config.schema import Bits, Dense, Feature
from pipeline.features.errors import FeatureError, shown
from pipeline.records import FeatureValue, State

_FLOAT32_MAX = 3.4028234663852886e38
_MOST_DIGITS = 20  # of 2**64

_TRANSFORMS: dict[str, tuple[str, Callable[[float], float]]] = {
    "none": ("a finite number", float),
    "log1p": ("a finite number > -1 (for log1p)", math.log1p),
    "logit": ("a number between 0 and 1, both excluded (for logit)", lambda x: math.log(x) - math.log1p(-x)),
    "sqrt": ("a finite number >= 0 (for sqrt)", math.sqrt),
}


def raw_reader(feature: Feature) -> Callable[[State], FeatureValue]:
    """Gives the raw value; None where it is absent and the config has a rule for that, otherwise a FeatureError."""
    scope, field = feature.source.split(".", 1)  # of an item: see `Encoder.prepare_items`
    required = feature.missing is None

    def read(state: State) -> FeatureValue:
        features = state.user if scope == "user" else state.context if scope == "context" else state.page
        value = features.get(field)
        if value is None and required:
            raise FeatureError(feature.name, feature.source, "a value (the config has no `missing` rule)", "none")
        return value

    return read


def transform(feature: Dense) -> Callable[[FeatureValue], float]:
    """Gives the transformed number; it also fits a float32."""
    expected, function = _TRANSFORMS[feature.transform]

    def apply(value: FeatureValue) -> float:
        if type(value) is float or type(value) is int:
            try:
                y = function(value)
            except (ValueError, OverflowError):
                y = math.nan
            if -_FLOAT32_MAX <= y <= _FLOAT32_MAX:
                return y
        raise FeatureError(feature.name, feature.source, expected, shown(value))

    return apply


def canonical_id(feature: Feature, value: object) -> str:
    """The text of an id. An integer and its decimal text are the same id."""
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    raise FeatureError(feature.name, feature.source, "an id (text or an integer)", shown(value))


def id_hash(feature: Feature, value: object) -> int:
    """64 bits of the id, never 0: that stands for missing."""
    try:
        return xxhash.xxh3_64_intdigest(canonical_id(feature, value).encode()) or 1
    except UnicodeEncodeError:
        raise FeatureError(feature.name, feature.source, "an id that is valid Unicode", shown(value)) from None


def decimal(text: str) -> int | None:
    """The integer whose decimal text this is; None where it is that of no unsigned 64-bit integer."""
    if len(text) > _MOST_DIGITS or not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0"):
        return None
    return int(text)


def bit_field(feature: Bits, value: object) -> int:
    """The unsigned integer that packs a history."""
    bits = decimal(value) if type(value) is str else value
    if type(bits) is int and 0 <= bits < 1 << feature.width:
        return bits
    expected = f"an unsigned integer < 2**{feature.width}"
    raise FeatureError(feature.name, feature.source, expected, shown(value))
