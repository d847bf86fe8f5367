"""What a caller asks and is answered, and which requests are a caller's mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.records import (
    SCHEMA_VERSION,
    Decision,
    Features,
    Feedback,
    FeedbackKind,
    Item,
    Scalar,
    State,
)

MAX_ID_LENGTH = 256
MAX_PAGE_INDEX = 2**31 - 1
MAX_TIME_MS = 253_402_300_799_999  # the year 9999, as records.Time
MAX_VALUE = 1e15  # as records.Feedback
MAX_ITEMS = 1_000


class AgentRequestError(PageturnError, ValueError):
    """The request itself is wrong and would be so again; says which field, what was expected and what was found."""


class PageRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A page to decide. `items` in the order in which the ranker gave them; features are raw values."""

    request_id: str
    user_id: str
    session_id: str
    page_index: int
    items: tuple[Item, ...]
    user: Features = {}
    context: Features = {}
    page: Features = {}
    time_ms: int | None = None  # None: the agent's clock

    @property
    def state(self) -> State:
        return State(self.user, self.context, self.page)


class PageDecision(Struct, frozen=True):
    request_id: str
    order: tuple[int, ...]  # positions of the request's items, best first
    item_ids: tuple[str, ...]  # the same, as ids
    decision: Decision


def admit(request: PageRequest) -> PageRequest:
    """The request as it will be logged: checked, of plain types, numbers that JSON has no word for taken as absent."""
    if not 1 <= len(request.items) <= MAX_ITEMS:
        _refuse("items", f"1 to {MAX_ITEMS} items", str(len(request.items)))
    return PageRequest(
        _id("request_id", request.request_id),
        _id("user_id", request.user_id),
        _id("session_id", request.session_id),
        _integer("page_index", request.page_index, MAX_PAGE_INDEX),
        _items(request.items),
        _features("user", request.user),
        _features("context", request.context),
        _features("page", request.page),
        None if request.time_ms is None else _integer("time_ms", request.time_ms, MAX_TIME_MS),
    )


def admit_feedback(feedback: Feedback) -> Feedback:
    if not isinstance(feedback.kind, FeedbackKind):
        _refuse("kind", f"one of {', '.join(kind.value for kind in FeedbackKind)}", repr(feedback.kind))
    value = _number("value", feedback.value)
    if value is None or abs(value) > MAX_VALUE:
        _refuse("value", f"a number from {-MAX_VALUE:g} to {MAX_VALUE:g}", repr(feedback.value))
    return Feedback(
        SCHEMA_VERSION,
        _id("event_id", feedback.event_id),
        _id("request_id", feedback.request_id),
        _id("user_id", feedback.user_id),
        _id("session_id", feedback.session_id),
        _integer("time_ms", feedback.time_ms, MAX_TIME_MS),
        feedback.kind,
        None if feedback.item_id is None else _id("item_id", feedback.item_id),
        value,
    )


def _items(items: Sequence[Item]) -> tuple[Item, ...]:
    """A page has a hundred, of which nearly always nothing is to be changed: all at once, if that says enough."""
    if _are_plain(items):
        return tuple(items)
    return tuple([_item(position, item) for position, item in enumerate(items)])


def _are_plain(items: Sequence[Item]) -> bool:
    """Nothing to check further. A sum that is finite has finite terms."""
    names = [item.item_id for item in items]
    scores = [item.click_score for item in items] + [item.pay_score for item in items]
    return (
        set(map(type, names)) == {str}
        and set(map(type, scores)) == {float}
        and all(names)
        and max(map(len, names)) <= MAX_ID_LENGTH
        and "".join(names).isascii()
        and math.isfinite(sum(scores))  # type: ignore[arg-type]
        and not any(item.features for item in items)
    )


def _item(position: int, item: Item) -> Item:
    where = f"items[{position}]"
    click, pay = item.click_score, item.pay_score
    return Item(
        _id(f"{where}.item_id", item.item_id),
        None if click is None else _number(f"{where}.click_score", click),
        None if pay is None else _number(f"{where}.pay_score", pay),
        _features(f"{where}.features", item.features),
    )


def _features(where: str, features: Features) -> Features:
    admitted: Features = {}
    for name, value in features.items():
        try:
            admitted[_name(name)] = _list(value) if isinstance(value, tuple | list) else _scalar(value)
        except AgentRequestError as error:
            msg = f"{where}.{name!s}{error}"
            raise AgentRequestError(msg) from error
    return admitted


def _name(name: object) -> str:
    if not isinstance(name, str):
        _refuse("", "a name that is text", repr(name))
    return _text("", name)


def _list(values: Sequence[object]) -> tuple[Scalar, ...] | None:
    """A list with one number that JSON has no word for is absent as a whole."""
    if set(map(type, values)) == {str} and "".join(values).isascii():  # type: ignore[arg-type]
        return tuple(values)  # type: ignore[arg-type]
    absent = sum(value is None for value in values)
    if absent:
        _refuse("", "a list of numbers, texts, true and false", f"{absent} without a value")
    scalars = [_scalar(value) for value in values]
    admitted = tuple(scalar for scalar in scalars if scalar is not None)
    return admitted if len(admitted) == len(scalars) else None


def _scalar(value: object) -> Scalar | None:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None  # type: ignore[arg-type, return-value]
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # as a long double's still is
        return _scalar(value.item())
    if isinstance(value, str):
        return _text("", value)
    if value is None or isinstance(value, bool):
        return value
    if kind is int and -(2**63) <= value < 2**64:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    return _refuse("", "a number of 64 bits, text, true or false, or a list of them", repr(value))


def _number(where: str, value: object) -> float | None:
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        _refuse(where, "a number", repr(value))
    try:
        return float(number) if math.isfinite(number) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _id(field: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LENGTH:
        found = f"{len(value)} characters" if isinstance(value, str) else repr(value)
        _refuse(field, f"text of 1 to {MAX_ID_LENGTH} characters", found)
    return _text(field, value)


def _text(field: str, value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(field, "text that UTF-8 can encode", ascii(value))
    return str(value)


def _integer(field: str, value: object, limit: int) -> int:
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= limit:
        _refuse(field, f"an integer from 0 to {limit}", repr(value))
    return number


def _refuse(field: str, expected: str, found: str) -> NoReturn:
    msg = f"{field}: expected {expected}, found {found}"
    raise AgentRequestError(msg)
