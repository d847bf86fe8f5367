"""Log records as rows of Parquet tables, for pandas and DuckDB.

What one groups and filters by is a typed column; raw features, which differ from feed to feed, are JSON text. A page
becomes one row per item (a point-wise sample), an episode one row per step. Raw events keep their bytes and stamps:
a log can be made again from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from pipeline.events import EventError, decode
from pipeline.logs.log import EPISODES, EVENTS, SAMPLES, TRANSITIONS, Record
from pipeline.records import Decision, Episode, Labels, Page, State, Step, Transition

Row = dict[str, Any]
UNREADABLE = "unreadable"  # records of the other topics whose bytes are damaged
_LAST_MS = 253_402_300_799_999  # the end of the year 9999, and of the calendar


class TimedRow(NamedTuple):
    time_ms: int  # by which it is filed
    row: Row


class Table(NamedTuple):
    schema: pa.Schema
    rows: Callable[[Record], Iterator[TimedRow]]


def rows_of(topic: str, record: Record) -> tuple[str, list[TimedRow]]:
    """The table that a record belongs to, and its rows there."""
    try:
        return topic, list(TABLES[topic].rows(record))
    except EventError:
        return UNREADABLE, list(_raw_rows(record))


def _raw_rows(record: Record) -> Iterator[TimedRow]:
    yield TimedRow(_calendar(record.appended_at_ms), record._asdict())


def _sample_rows(record: Record) -> Iterator[TimedRow]:
    page = decode(record.payload, Page)
    impression = page.impression
    time_ms = _calendar(impression.time_ms)
    shared = {
        "request_id": impression.request_id,
        "session_id": impression.session_id,
        "user_id": impression.user_id,
        "time": time_ms,
        "closed": _calendar(page.closed_ms),
        "page_index": impression.page_index,
        "shown": page.shown,
        **_decision(impression.decision),
        **_state(impression.state),
    }
    for position, (item, labels) in enumerate(zip(impression.items, page.labels, strict=True)):
        scores = {"item_id": item.item_id, "click_score": item.click_score, "pay_score": item.pay_score}
        row = {**shared, "position": position, **scores, **_labels(labels), "item_features": _json(item.features)}
        yield TimedRow(time_ms, row)


def _transition_rows(record: Record) -> Iterator[TimedRow]:
    transition = decode(record.payload, Transition)
    row = {
        **_step(transition),
        "id": transition.id,
        "session_id": transition.session_id,
        "user_id": transition.user_id,
        "reward_version": transition.reward_version,
        "discount": transition.discount,
        "ending": transition.ending and transition.ending.value,
        "next_state": transition.next_state and _json(transition.next_state),
    }
    yield TimedRow(row["time"], row)


def _episode_rows(record: Record) -> Iterator[TimedRow]:
    """Filed under the time of the first step, so that an episode stays together."""
    episode = decode(record.payload, Episode)
    shared = {
        "episode_id": episode.id,
        "session_id": episode.session_id,
        "user_id": episode.user_id,
        "steps": len(episode.steps),
        "reward_version": episode.reward_version,
        "discount": episode.discount,
        "ending": episode.ending.value,
        "bootstrap_state": episode.bootstrap_state and _json(episode.bootstrap_state),
    }
    for number, step in enumerate(episode.steps):
        yield TimedRow(_calendar(episode.steps[0].time_ms), {**shared, "step": number, **_step(step)})


def _step(step: Step | Transition) -> Row:
    return {
        "request_id": step.request_id,
        "time": _calendar(step.time_ms),
        "page_index": step.page_index,
        "reward": step.reward,
        **_decision(step.decision),
        **_state(step.state),
    }


def _decision(decision: Decision) -> Row:
    return {
        "decided_by": decision.decided_by.value,
        "policy": decision.policy,
        "bucket": decision.bucket,
        "model_version": decision.model_version,
        "action": _json({action.name: action.value for action in decision.actions}),
        "decision": _json(decision),
    }


def _state(state: State) -> Row:
    return {
        "state_user": _json(state.user),
        "state_context": _json(state.context),
        "state_page": _json(state.page),
        "lookups": _json(state.lookups),
    }


def _labels(labels: Labels) -> Row:
    return msgspec.structs.asdict(labels)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _calendar(time_ms: int) -> int:
    return min(time_ms, _LAST_MS)


# Schemas -----------------------------------------------------------------------------------------------------------

_TEXT, _INT, _LONG, _REAL = pa.string(), pa.int32(), pa.int64(), pa.float64()
_TIME = pa.timestamp("ms", tz="UTC")

_RAW = [("partition", _INT), ("offset", _LONG), ("appended_at_ms", _LONG), ("key", _TEXT), ("payload", pa.binary())]
_WHO = [("request_id", _TEXT), ("session_id", _TEXT), ("user_id", _TEXT), ("time", _TIME), ("page_index", _LONG)]
_DECIDED = [
    ("decided_by", _TEXT),
    ("policy", _TEXT),
    ("bucket", _TEXT),
    ("model_version", _LONG),
    ("action", _TEXT),  # JSON: name -> value
]
_RAW_STATE = [
    ("state_user", _TEXT),
    ("state_context", _TEXT),
    ("state_page", _TEXT),
    ("lookups", _TEXT),
    ("decision", _TEXT),
]
_ITEM = [
    ("position", _INT),
    ("item_id", _TEXT),
    ("click_score", _REAL),
    ("pay_score", _REAL),
    ("clicks", _LONG),
    ("orders", _LONG),
    ("order_value", _REAL),
    ("dwell_s", _REAL),
]
_OUTCOME = [("reward", _REAL), ("reward_version", _TEXT), ("discount", _REAL), ("ending", _TEXT)]

TABLES = {
    EVENTS: Table(pa.schema(_RAW), _raw_rows),
    SAMPLES: Table(
        pa.schema(
            [*_WHO, *_ITEM, ("shown", pa.bool_()), ("closed", _TIME), *_DECIDED, ("item_features", _TEXT), *_RAW_STATE]
        ),
        _sample_rows,
    ),
    TRANSITIONS: Table(
        pa.schema([("id", _TEXT), *_WHO, *_OUTCOME, *_DECIDED, *_RAW_STATE, ("next_state", _TEXT)]), _transition_rows
    ),
    EPISODES: Table(
        pa.schema(
            [
                ("episode_id", _TEXT),
                ("step", _INT),
                ("steps", _INT),
                *_WHO,
                *_OUTCOME,
                *_DECIDED,
                *_RAW_STATE,
                ("bootstrap_state", _TEXT),
            ]
        ),
        _episode_rows,
    ),
    UNREADABLE: Table(pa.schema(_RAW), _raw_rows),
}
ARCHIVED = (EVENTS, SAMPLES, TRANSITIONS, EPISODES)
