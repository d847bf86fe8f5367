"""One record as one line of JSON: {"at": stamp, "key": ..., "value": payload} or "base64" in the place of "value".

A payload that is JSON on one line is embedded byte for byte, so that a log can be read with any JSON tool; any other
payload (a producer may send anything) is base64. Either way the same bytes come back.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

_HEAD = re.compile(rb'\{"at":(\d{1,18}),"key":("(?:[^"\\]|\\.)*"),"value":')
_BLANK = b" \t\n\r"


class Line(NamedTuple):
    at: int
    key: str
    payload: bytes


class _Envelope(Struct, forbid_unknown_fields=True):
    at: Annotated[int, Meta(ge=0)]
    key: str
    value: Raw = Raw()
    base64: bytes | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_Envelope)


def encode_line(at: int, key: str, payload: bytes) -> bytes:
    """The line, with its newline."""
    name, value = (b"value", payload) if _is_json_line(payload) else (b"base64", b'"%b"' % base64.b64encode(payload))
    return b'{"at":%d,"key":%b,"%b":%b}\n' % (at, msgspec.json.encode(key), name, value)


def decode_line(line: bytes) -> Line | None:
    """The record of a line without its newline; None when the line is corrupt."""
    try:
        envelope = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except RecursionError:  # deeper than this stack allows, though not too deep for the writer's
        return _split(line)
    value = bytes(envelope.value)
    if bool(value) == (envelope.base64 is not UNSET):
        return None
    return Line(envelope.at, envelope.key, value if envelope.base64 is UNSET else envelope.base64)


def _split(line: bytes) -> Line | None:
    head = _HEAD.match(line)
    if head is None or not line.endswith(b"}"):
        return None
    return Line(int(head[1]), msgspec.json.decode(head[2], type=str), line[head.end() : -1])


def _is_json_line(payload: bytes) -> bool:
    """Whether the payload can stand in the line as it is; blanks around it would be lost."""
    if not payload or payload[0] in _BLANK or payload[-1] in _BLANK or b"\n" in payload or b"\r" in payload:
        return False
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
