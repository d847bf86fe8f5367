"""Parsing: every event that is refused is refused for a reason that a producer can act on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.events import REASONS, EventError, Refusal, decode, encode, json_schema, parse
from pipeline.records import Event, Feedback, Impression, Labels, Page

ROOT = Path(__file__).resolve().parents[2]
MAX = 100_000

IMPRESSION: dict[str, Any] = {
    "type": "impression",
    "schema_version": 1,
    "request_id": "r1",
    "user_id": "u1",
    "session_id": "s1",
    "time_ms": 1_700_000_000_000,
    "page_index": 0,
    "items": [{"item_id": "i1", "click_score": 0.1, "pay_score": 0.02, "features": {"price": 12}}],
    "state": {"user": {"age": 33, "seen": ["a", "b"]}, "context": {}, "page": {"bits": 2**64 - 1}},
    "decision": {"decided_by": "baseline", "policy": "baseline", "bucket": "control"},
}
FEEDBACK: dict[str, Any] = {
    "type": "feedback",
    "schema_version": 1,
    "event_id": "e1",
    "request_id": "r1",
    "user_id": "u1",
    "session_id": "s1",
    "time_ms": 1_700_000_000_500,
    "kind": "order",
    "item_id": "i1",
    "value": 12.5,
}


def with_(event: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**event, **changes}).encode()


def without(event: dict[str, Any], key: str) -> bytes:
    return json.dumps({k: v for k, v in event.items() if k != key}).encode()


def feature(text: str) -> bytes:
    """An impression with a raw JSON text as a feature's value."""
    return with_(IMPRESSION, state={"user": {"x": "@"}}).replace(b'"@"', text.encode())


@pytest.mark.parametrize("event", [IMPRESSION, FEEDBACK])
def test_an_event_survives_the_round_trip(event: dict[str, Any]) -> None:
    parsed = parse(json.dumps(event).encode(), MAX)
    assert isinstance(parsed, Impression | Feedback)
    assert parse(encode(parsed), MAX) == parsed
    assert encode(decode(encode(parsed), type(parsed))) == encode(parsed)


def test_the_examples_for_producers_are_events() -> None:
    examples = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "events.md").read_text(), re.DOTALL)
    assert [type(parse(example.encode(), MAX)) for example in examples] == [Impression, Feedback]


REFUSED = {
    "empty": (b"", "malformed", "found b''"),
    "not_json": (b"click!", "malformed", "expected a JSON event, found b'click!'"),
    "cut_short": (json.dumps(FEEDBACK).encode()[:-2], "malformed", "JSON is malformed"),
    "trailing": (json.dumps(FEEDBACK).encode() + b"{}", "malformed", "trailing"),
    "not_utf_8": (with_(FEEDBACK, event_id="@").replace(b"@", b"\xff"), "malformed", "utf-8"),
    "half_a_surrogate_pair": (with_(FEEDBACK, event_id="\ud800"), "malformed", "JSON"),
    "an_array": (b"[]", "malformed", "Expected `object`, got `array` - at `$`"),
    "deep_nesting": (feature("[" * 50_000), "malformed", "at `$.state"),
    "missing_field": (without(FEEDBACK, "request_id"), "malformed", "missing required field `request_id` - at `$`"),
    "missing_type": (without(FEEDBACK, "type"), "malformed", "missing required field `type`"),
    "misspelt_field": (with_(FEEDBACK, itemid="i1"), "malformed", "unknown field `itemid`"),
    "wrong_type": (with_(FEEDBACK, time_ms="12"), "malformed", "Expected `int`, got `str` - at `$.time_ms`"),
    "fractional_time": (with_(FEEDBACK, time_ms=1.5), "malformed", "Expected `int`, got `float` - at `$.time_ms`"),
    "empty_id": (with_(FEEDBACK, session_id=""), "malformed", '>= 1, found "" - at `$.session_id`'),
    "long_id": (with_(FEEDBACK, session_id="s" * 257), "malformed", "<= 256, found"),
    "nested_id": (with_(IMPRESSION, items=[{"item_id": ""}]), "malformed", 'found "" - at `$.items[0].item_id`'),
    "time_in_microseconds": (with_(FEEDBACK, time_ms=1_700_000_000_000_000), "malformed", "found 1700000000000000"),
    "huge_version": (
        with_(IMPRESSION, decision={**IMPRESSION["decision"], "model_version": 2**63}),  # no archive has a place for it
        "malformed",
        "at `$.decision.model_version`",
    ),
    "huge_value": (with_(FEEDBACK, value=1e16), "malformed", "found 1e+16 - at `$.value`"),
    "a_key_twice": (with_(IMPRESSION, items=[{"item_id": ""}])[:-1] + b',"items":[]}', "malformed", "item_id"),
    "oversized": (with_(FEEDBACK, event_id="e" * MAX), "oversized", f"expected at most {MAX} bytes, found 100"),
    "nan": (with_(FEEDBACK, value=float("nan")), "non_finite", "found nan - at `$.value`"),
    "infinity": (with_(FEEDBACK, value=float("inf")), "non_finite", "found inf - at `$.value`"),
    "minus_infinity": (with_(FEEDBACK, value=float("-inf")), "non_finite", "found -inf - at `$.value`"),
    "nan_in_a_feature": (feature("[1, NaN]"), "non_finite", "at `$.state.user.x[1]`"),
    "number_out_of_range": (feature("1e999"), "non_finite", "found inf - at `$.state.user.x`"),
    "integer_beyond_64_bits": (feature(str(2**64)), "non_finite", "at `$.state.user.x`"),
    "integer_below_64_bits": (feature(str(-(2**63) - 1)), "non_finite", "at `$.state.user.x`"),
    "integer_of_5000_digits": (feature("1" * 5000), "non_finite", "at `$.state.user.x`"),
    "unknown_event": (with_(FEEDBACK, type="purchase"), "unknown_kind", 'found "purchase" - at `$.type`'),
    "unknown_feedback": (with_(FEEDBACK, kind="hover"), "unknown_kind", 'found "hover" - at `$.kind`'),
    "negative_time": (with_(FEEDBACK, time_ms=-1), "negative_time", "found -1 - at `$.time_ms`"),
    "newer": (with_(FEEDBACK, schema_version=2), "schema_version", "expected schema version 1, found 2"),
    "older": (with_(IMPRESSION, schema_version=0), "schema_version", "found 0 - at `$.schema_version`"),
    "newer_with_new_field": (with_(FEEDBACK, schema_version=2, mood="good"), "schema_version", "found 2"),
    "newer_with_new_kind": (with_(FEEDBACK, schema_version=2, kind="hover"), "schema_version", "found 2"),
    "version_is_no_number": (with_(FEEDBACK, schema_version="1"), "malformed", "at `$.schema_version`"),
    "version_is_true": (with_(FEEDBACK, schema_version=True), "malformed", "at `$.schema_version`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str) -> None:
    payload, reason, detail = REFUSED[case]
    refusal = parse(payload, MAX)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert detail in refusal.detail
    assert len(refusal.detail) <= 1000


def test_every_reason_is_given_for_something() -> None:
    assert {reason for _, reason, _ in REFUSED.values()} | {"future_time"} == set(REASONS)


@pytest.mark.parametrize("event", [IMPRESSION, FEEDBACK])
def test_an_event_from_the_future_is_refused_one_ms_beyond_what_is_allowed(event: dict[str, Any]) -> None:
    time_ms = event["time_ms"]
    assert isinstance(parse(json.dumps(event).encode(), MAX, time_ms), Impression | Feedback)
    detail = (
        f"expected a time of at most {time_ms - 1} by the log's stamp, found {time_ms}, 1 ms later - at `$.time_ms`"
    )
    assert parse(json.dumps(event).encode(), MAX, time_ms - 1) == ("future_time", detail)


def test_a_detail_is_short_and_can_be_encoded() -> None:
    payload = b'{"schema_version": 1, "\\ud800' + b"k" * 5_000 + b'": NaN}'
    refusal = parse(payload, MAX)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "non_finite"
    assert len(refusal.detail.encode()) <= 1000


def test_exactly_the_maximal_size_is_read() -> None:
    payload = json.dumps(FEEDBACK).encode()
    assert isinstance(parse(payload, len(payload)), Feedback)
    assert isinstance(parse(payload, len(payload) - 1), Refusal)


def test_decode_says_what_it_expected() -> None:
    page = Page(decode(with_(IMPRESSION), Impression), (Labels(),), (), 5)
    assert decode(encode(page), Page) == page
    with pytest.raises(EventError, match=r"expected a Page, found b'\{\}': .*missing required field"):
        decode(b"{}", Page)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(deadline=None, derandomize=True)
def test_no_payload_raises(payload: bytes) -> None:
    assert isinstance(parse(payload, MAX), Refusal)


# The published schema ----------------------------------------------------------------------------------------------

_floats = st.floats(-1e15, 1e15)
_scalars = st.booleans() | st.integers(-(2**63), 2**64 - 1) | _floats | st.text(max_size=5)
_features = st.dictionaries(st.text(max_size=5), _scalars | st.none() | st.lists(_scalars, max_size=3), max_size=3)
_ids = st.text(min_size=1, max_size=8)
_items = st.fixed_dictionaries({"item_id": _ids}, optional={"click_score": st.none() | _floats, "features": _features})
_changes = {
    "request_id": _ids,
    "session_id": _ids,
    "time_ms": st.integers(0, 253_402_300_799_999),
}


def _variants(event: dict[str, Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={**_changes, **fields}).map(lambda changes: {**event, **changes})


_states = st.fixed_dictionaries({}, optional={"user": _features, "context": _features, "page": _features})
_events = _variants(IMPRESSION, items=st.lists(_items, max_size=3), state=_states) | _variants(
    FEEDBACK, value=_floats, item_id=st.none() | _ids, kind=st.sampled_from(["click", "leave", "shown", "dwell"])
)


def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_the_committed_schema_is_current() -> None:
    assert json.loads((ROOT / "pipeline" / "events.schema.json").read_text()) == json_schema()
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$id"].endswith(":1")


@given(_events)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_what_parse_accepts_the_schema_accepts(event: dict[str, Any]) -> None:
    parsed = parse(json.dumps(event).encode(), MAX)
    assert isinstance(parsed, Impression | Feedback), parsed
    _validator().validate(event)
    _validator().validate(json.loads(encode(parsed)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(parsed), type=Event) == parsed


BEYOND_JSON_SCHEMA = {"number_out_of_range", "a_key_twice", "oversized", "nan", "infinity", "minus_infinity",
                      "nan_in_a_feature", "integer_beyond_64_bits", "integer_below_64_bits",
                      "integer_of_5000_digits"}  # fmt: skip
NOT_JSON = {"empty", "not_json", "cut_short", "trailing", "not_utf_8", "half_a_surrogate_pair", "deep_nesting"}


@pytest.mark.parametrize("case", sorted(set(REFUSED) - BEYOND_JSON_SCHEMA - NOT_JSON))
def test_what_parse_refuses_the_schema_refuses(case: str) -> None:
    assert not _validator().is_valid(json.loads(REFUSED[case][0]))
