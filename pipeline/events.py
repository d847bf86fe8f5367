"""Bytes <-> records: what a producer may write, and why an event was refused.

Events are JSON. Their schema is generated from `records.py` and published as `pipeline/events.schema.json`
(`python -m pipeline.events > pipeline/events.schema.json`).

How the schema evolves: any change, also a new optional field, raises `SCHEMA_VERSION`; a change is only ever a new
optional field, so that a reader of version n can be taught to read n - 1 by taking the default. A reader refuses
versions that it does not know (reason `schema_version`: the dead letter keeps the original bytes and is replayed
after the upgrade) and, at a version that it knows, refuses unknown fields (they are typos). Upgrade readers first.

JSON has no NaN and no infinity. `encode` writes both as null, which `parse` takes for "absent" where that is allowed:
a producer sees to it that its numbers are finite.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.records import SCHEMA_VERSION, Event, FeedbackKind, Impression

T = TypeVar("T")

MALFORMED = "malformed"  # not JSON, or not the JSON of an event
OVERSIZED = "oversized"
NON_FINITE = "non_finite"  # NaN, Infinity, or a number too large for 64 bits
UNKNOWN_KIND = "unknown_kind"  # of event, or of feedback
NEGATIVE_TIME = "negative_time"
SCHEMA_MISMATCH = "schema_version"
FUTURE_TIME = "future_time"  # it would keep its session open until then
REASONS = (MALFORMED, OVERSIZED, NON_FINITE, UNKNOWN_KIND, NEGATIVE_TIME, SCHEMA_MISMATCH, FUTURE_TIME)

_JSON = msgspec.json.Encoder()
_EVENT = msgspec.json.Decoder(Event)
_TYPES = ("impression", "feedback")
_KINDS = tuple(kind.value for kind in FeedbackKind)


class EventError(PageturnError):
    """A payload is not the record that it was taken for."""


class Refusal(NamedTuple):
    reason: str  # one of REASONS
    detail: str  # expected, found, where


def encode(record: Struct) -> bytes:
    """The record as JSON. Mappings keep their order, so a record that went through `decode` gives the same bytes."""
    return _JSON.encode(record)


def decode(payload: bytes, type_: type[T]) -> T:
    """A record that this system wrote (a Page, a Transition ...); EventError where it is none."""
    try:
        return msgspec.json.decode(payload, type=type_)
    except (ValueError, RecursionError) as error:
        message = f"expected a {type_.__name__}, found {_excerpt(payload)}: {error}"
        raise EventError(message) from error


def parse(payload: bytes, max_bytes: int, latest_ms: int | None = None) -> Event | Refusal:
    """The event in a payload from outside, at `latest_ms` or before, or why it is refused. Never raises."""
    if len(payload) > max_bytes:
        return Refusal(OVERSIZED, f"expected at most {max_bytes} bytes, found {len(payload)} - at `$`")
    try:
        event: Event = _EVENT.decode(payload)
        if isinstance(event, Impression):
            msgspec.msgpack.encode(event)  # the types leave integer features unbounded; a session's state does not
    except (ValueError, OverflowError, RecursionError) as error:
        reason, detail = _diagnose(payload, str(error))
        return Refusal(reason, _printable(detail))
    if event.schema_version != SCHEMA_VERSION:
        return _version_refusal(event.schema_version)
    if latest_ms is not None and event.time_ms > latest_ms:
        found = f"found {event.time_ms}, {event.time_ms - latest_ms} ms later"
        return Refusal(
            FUTURE_TIME, f"expected a time of at most {latest_ms} by the log's stamp, {found} - at `$.time_ms`"
        )
    return event


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the events that `parse` takes."""
    schema = json.loads(json.dumps(msgspec.json.schema(Event)))  # its defaults hold tuples, JSON arrays
    for name in ("Impression", "Feedback"):
        schema["$defs"][name]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:pageturn:event:{SCHEMA_VERSION}"}
    return {**head, "title": "Pageturn event", **schema}


# Why an event was refused ------------------------------------------------------------------------------------------


def _diagnose(payload: bytes, error: str) -> Refusal:
    """The reason behind a failed decoding. The version is looked at first: all else may be due to a newer schema."""
    try:
        document = json.loads(payload.decode(), parse_float=float, parse_int=_integer)
    except (ValueError, RecursionError):
        return Refusal(MALFORMED, f"expected a JSON event, found {_excerpt(payload)}: {error} - at `$`")
    if not isinstance(document, dict):
        return Refusal(MALFORMED, f"{error} - at `$`")
    return (
        _version_mismatch(document)
        or _non_finite(document)
        or _unknown_kind(document)
        or _negative_time(document)
        or Refusal(MALFORMED, _located(document, error))
    )


def _integer(digits: str) -> int | float:
    """Infinity in place of an integer that no 64-bit format holds."""
    value = int(digits) if len(digits) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else math.inf


def _version_mismatch(document: dict[str, Any]) -> Refusal | None:
    version = document.get("schema_version")
    if version == math.inf or (type(version) is int and version != SCHEMA_VERSION):
        return _version_refusal(version)
    return None


def _version_refusal(found: object) -> Refusal:
    return Refusal(SCHEMA_MISMATCH, f"expected schema version {SCHEMA_VERSION}, found {found} - at `$.schema_version`")


def _non_finite(document: dict[str, Any]) -> Refusal | None:
    for path, value in _leaves(document):
        if isinstance(value, float) and not math.isfinite(value):
            return Refusal(NON_FINITE, f"expected a finite number of 64 bits, found {value} - at `{path}`")
    return None


def _unknown_kind(document: dict[str, Any]) -> Refusal | None:
    type_, kind = document.get("type"), document.get("kind")
    if isinstance(type_, str) and type_ not in _TYPES:
        return Refusal(UNKNOWN_KIND, f"expected one of {', '.join(_TYPES)}, found {_shown(type_)} - at `$.type`")
    if type_ == "feedback" and isinstance(kind, str) and kind not in _KINDS:
        return Refusal(UNKNOWN_KIND, f"expected one of {', '.join(_KINDS)}, found {_shown(kind)} - at `$.kind`")
    return None


def _negative_time(document: dict[str, Any]) -> Refusal | None:
    time_ms = document.get("time_ms")
    if type(time_ms) is int and time_ms < 0:
        return Refusal(NEGATIVE_TIME, f"expected milliseconds since 1970, found {time_ms} - at `$.time_ms`")
    return None


def _leaves(document: object) -> Iterator[tuple[str, object]]:
    """All scalars with their paths, in no particular order."""
    stack: list[tuple[str, object]] = [("$", document)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += ((f"{path}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, list):
            stack += ((f"{path}[{index}]", inner) for index, inner in enumerate(value))
        else:
            yield path, value


def _located(document: dict[str, Any], error: str) -> str:
    """msgspec's message, with the place and what is there added where it leaves them out."""
    message, at, path = error.rpartition(" - at ")
    if not at:
        return f"{error} - at `$`"
    if "got" in message or "[...]" in path:
        return error
    try:
        return f"{message}, found {_shown(_value_at(document, path))}{at}{path}"
    except (LookupError, TypeError):  # a key given twice: msgspec met the first, `document` has the last
        return error


def _value_at(document: Any, path: str) -> object:
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        document = document[key] if key else document[int(index)]
    return document


def _printable(detail: str) -> str:
    """Short, and encodable also where a payload's key is half a surrogate pair."""
    return detail[:500].encode(errors="backslashreplace").decode()


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _excerpt(payload: bytes) -> str:
    return f"{payload[:40]!r}{'...' if len(payload) > 40 else ''}"


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
