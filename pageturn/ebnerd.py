"""EB-NeRD (Ekstra Bladet news, RecSys Challenge 2024) as Pageturn events: sessions, pages, clicks, reading times.

What the log has: who was shown which articles when, what was clicked, how long it was read. What it lacks is made
here, and is good for proving the loop, not a policy:
- When a click happened: the time of the page plus the time that was spent on it (`read_time`).
- Ranker scores: the share of readers of an article (click) and its mean reading time (pay), both from the history.
- Article vectors: a truncated SVD of the reader-article matrix of the history.
- Who decided: the newspaper; so every page is the baseline's.
- Features of articles, for a config that ranks them: see `ebnerd_items.py`. Then a session is a user, as DRN has it.
Leaving is not in the log; the stream infers it from the session gap. Stamps are the times of the events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from msgspec import structs

from pageturn.ebnerd_items import item_features
from pageturn.ebnerd_rows import clicked_ms, clicked_of, ms, number, seconds_of
from pipeline.config.schema import ExternalTable, FeatureConfig
from pipeline.errors import PageturnError
from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.features.stored_vectors import StoredVectors, load_vectors
from pipeline.logs.log import EVENTS, SAMPLES, Entry, EventLog, has_topic
from pipeline.records import (
    SCHEMA_VERSION,
    Action,
    DecidedBy,
    Decision,
    Features,
    Feedback,
    FeedbackKind,
    Impression,
    Item,
    Ranked,
    State,
)
from pipeline.stores.store import KeyValueStore
from pipeline.streaming.outputs import read_all

TABLE = "article"
_HOUR_MS = 3_600_000
_VECTORS_IN_MEMORY = 100_000
_RECENT = 50  # read articles that an impression carries
_FILES = {
    "behaviors.parquet": (
        "impression_id", "user_id", "session_id", "impression_time", "read_time", "device_type", "age", "gender",
        "is_subscriber", "article_ids_inview", "article_ids_clicked", "next_read_time",
    ),
    "history.parquet": ("user_id", "article_id_fixed", "impression_time_fixed", "read_time_fixed"),
}  # fmt: skip


class SourceError(PageturnError):
    """The source is not what it should be; says which file, what was expected and what was found."""


class Imported(NamedTuple):
    impressions: int
    feedback: int
    vectors: int


@dataclass(frozen=True)
class _Read:
    """One article that a user read."""

    time_ms: int
    article: str
    seconds: float


def import_ebnerd(directory: Path, config: FeatureConfig, log: EventLog, store: KeyValueStore | None) -> Imported:
    """Append the log's events to the topic `events`, and put its article vectors into the store.

    Idempotent: events that are there already are left out, so that an import which was killed is just repeated.
    Returns what was added. SourceError where a stream has already read on past the stamps of what is missing.
    """
    behaviors = _rows(directory, "behaviors.parquet")
    history = _history(_rows(directory, "history.parquet"))
    vectors = _load_article_vectors(history, config, store)
    events = _looked_up(_events(behaviors, history, config), config, store)
    added = _append(log, sorted(events, key=lambda e: (e.time_ms, e.request_id, isinstance(e, Feedback))))
    impressions = sum(isinstance(e, Impression) for e in added)
    return Imported(impressions, len(added) - impressions, vectors)


def _looked_up(
    events: Iterable[Impression | Feedback], config: FeatureConfig, store: KeyValueStore | None
) -> Iterator[Impression | Feedback]:
    """With the outcome of embedding look-ups in the states, as an agent logs it; without a store there were none."""
    if store is None:
        yield from events
        return
    vectors = StoredVectors(store, config.kv_prefix, capacity=_VECTORS_IN_MEMORY, monotonic=monotonic)
    encoder = Encoder(config, vectors)
    for event in events:
        if isinstance(event, Impression):
            state = structs.replace(event.state, lookups=encoder.prepare(event.state).lookups)
            event = structs.replace(event, state=state)
        yield event


def _append(log: EventLog, events: list[Impression | Feedback]) -> list[Impression | Feedback]:
    """Add the events that the log does not hold, at the times at which they happened; returns these."""
    known = {record.payload for record in read_all(log, EVENTS)}
    missing = [(event, payload) for event in events if (payload := encode(event)) not in known]
    if missing and has_topic(log, SAMPLES):
        found = f"{len(missing)} events of the past are not in this log, and a stream has run on it: it would take them"
        msg = f"{found} for late or judge pages without their clicks; import into a new log, before a stream is started"
        raise SourceError(msg)
    log.append(EVENTS, [Entry(event.session_id, payload, event.time_ms) for event, payload in missing])
    return [event for event, _ in missing]


def _rows(directory: Path, name: str) -> list[dict[str, Any]]:
    path = directory / name
    if not path.is_file():
        msg = f"{path}: no such file; an EB-NeRD folder holds {' and '.join(_FILES)}"
        raise SourceError(msg)
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        msg = f"{path}: not a readable Parquet file: {error}"
        raise SourceError(msg) from error
    missing = sorted(set(_FILES[name]) - set(table.column_names))
    if missing:
        msg = f"{path}: no column {', '.join(missing)}; found {', '.join(table.column_names)}"
        raise SourceError(msg)
    return table.select(list(_FILES[name])).to_pylist()  # type: ignore[no-any-return]


def _history(rows: list[dict[str, Any]]) -> dict[int, list[_Read]]:
    """What each user read before the log begins, oldest first."""
    return {
        row["user_id"]: sorted(
            (
                _Read(ms(time), str(article), seconds_of(seconds))
                for time, article, seconds in zip(
                    row["impression_time_fixed"], row["article_id_fixed"], row["read_time_fixed"], strict=True
                )
            ),
            key=lambda read: (read.time_ms, read.article),
        )
        for row in rows
    }


# Events ----------------------------------------------------------------------------------------------------------


def _events(
    behaviors: list[dict[str, Any]], history: dict[int, list[_Read]], config: FeatureConfig
) -> Iterator[Impression | Feedback]:
    scores, ranks = _scores(history), config.ranking is not None
    before = {user: {read.article for read in reads} for user, reads in history.items()}
    features = item_features(behaviors, before) if ranks else {}
    decision = _baseline(config)
    by_user: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(behaviors, key=lambda row: (row["impression_time"], row["impression_id"])):
        by_user[row["user_id"]].append(row)
    for user, rows in by_user.items():
        reads = list(history.get(user, ()))
        sessions: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            session = sessions[row["session_id"]]
            page = _impression(row, session, reads, scores, decision)
            answers = [*_feedback(row), *([_page_turn(session[-1], row)] if session else [])]
            if ranks:
                page = _ranked(page, features[row["impression_id"]])
                answers = [structs.replace(answer, session_id=answer.user_id) for answer in answers]
            yield page
            yield from answers
            session.append(row)
            reads.extend(_Read(clicked_ms(row), str(a), seconds_of(row["next_read_time"])) for a in clicked_of(row))


def _impression(
    row: dict[str, Any],
    session: list[dict[str, Any]],
    reads: list[_Read],
    scores: dict[str, tuple[float, float]],
    decision: Decision,
) -> Impression:
    now = ms(row["impression_time"])
    known = sorted((read for read in reads if read.time_ms <= now), key=lambda read: read.time_ms)
    clicks = [r for r in session if clicked_ms(r) <= now]
    return Impression(
        schema_version=SCHEMA_VERSION,
        request_id=_request_id(row),
        user_id=str(row["user_id"]),
        session_id=str(row["session_id"]),
        time_ms=now,
        page_index=len(session),
        items=tuple(Item(str(a), *scores.get(str(a), scores[""])) for a in row["article_ids_inview"]),
        state=State(user=_user(row, known, now), context=_context(row), page=_page(session, clicks, now)),
        decision=decision,
    )


def _ranked(page: Impression, features: list[Features]) -> Impression:
    """All that were in view were shown, in an order that says nothing."""
    items = tuple(
        Item(item.item_id, features={**known, "readers": item.click_score})
        for item, known in zip(page.items, features, strict=True)
    )
    decision = structs.replace(page.decision, ranked=Ranked(len(items)))
    return structs.replace(page, items=items, decision=decision, session_id=page.user_id)


def _user(row: dict[str, Any], known: list[_Read], now: int) -> dict[str, Any]:
    bits = 0
    for read in known:
        hours = (now - read.time_ms) // _HOUR_MS
        bits |= 1 << hours if hours < 24 else 0
    return {
        "age": number(row["age"]),
        "gender": None if (gender := number(row["gender"])) is None else int(gender),
        "is_subscriber": int(row["is_subscriber"]),
        "history_len": len(known),
        "recent_reads": tuple(read.article for read in known[-_RECENT:]),
        "read_bits": bits,
    }


def _context(row: dict[str, Any]) -> dict[str, Any]:
    time = row["impression_time"]
    return {"device": int(row["device_type"]), "hour": time.hour, "weekday": time.weekday()}


def _page(session: list[dict[str, Any]], clicks: list[dict[str, Any]], now: int) -> dict[str, Any]:
    """Where the user is in the visit, the last article opened on it, and how long it had been read by then."""
    last = clicks[-1] if clicks else None
    return {
        "page_index": len(session),
        "previous_clicked": str(clicked_of(last)[-1]) if last and clicked_of(last) else None,
        "previous_read_s": None if last is None else _read_by(last, now),
    }


def _read_by(row: dict[str, Any], now: int) -> float | None:
    """The page asked for may come while the article is still open (in another tab)."""
    seconds = number(row["next_read_time"])
    return None if seconds is None else min(seconds, (now - clicked_ms(row)) / 1000)


def _feedback(row: dict[str, Any]) -> Iterator[Feedback]:
    clicked = clicked_ms(row)
    seconds = number(row["next_read_time"])
    for article in clicked_of(row):
        yield _answer(row, FeedbackKind.CLICK, clicked, article)
        if seconds is not None:
            yield _answer(row, FeedbackKind.DWELL, clicked + round(seconds * 1000), article, seconds)


def _page_turn(row: dict[str, Any], following: dict[str, Any]) -> Feedback:
    return _answer(row, FeedbackKind.PAGE_TURN, ms(following["impression_time"]))


def _answer(
    row: dict[str, Any], kind: FeedbackKind, time_ms: int, article: int | None = None, value: float = 1.0
) -> Feedback:
    about = "" if article is None else f"-{article}"
    return Feedback(
        schema_version=SCHEMA_VERSION,
        event_id=f"{_request_id(row)}-{kind.value}{about}",
        request_id=_request_id(row),
        user_id=str(row["user_id"]),
        session_id=str(row["session_id"]),
        time_ms=time_ms,
        kind=kind,
        item_id=None if article is None else str(article),
        value=value,
    )


def _baseline(config: FeatureConfig) -> Decision:
    policy = next(p.name for p in config.policies if p.kind == "baseline")
    bucket = next((b.name for b in config.buckets.assign if b.policy == policy), policy)
    actions = tuple(Action(dimension.name, dimension.baseline) for dimension in config.action)
    return Decision(DecidedBy.BASELINE, policy, bucket, actions)


# Scores and vectors ----------------------------------------------------------------------------------------------


def _scores(history: dict[int, list[_Read]]) -> dict[str, tuple[float, float]]:
    """(click, pay) per article; the entry "" is for articles that nobody had read."""
    readers: dict[str, set[int]] = defaultdict(set)
    seconds: dict[str, list[float]] = defaultdict(list)
    for user, reads in history.items():
        for read in reads:
            readers[read.article].add(user)
            seconds[read.article].append(min(read.seconds, 300.0) / 300.0)
    users = len(history)
    mean = float(np.mean([s for values in seconds.values() for s in values])) if seconds else 0.0
    scores = {a: ((len(readers[a]) + 1) / (users + 2), (sum(s) + mean) / (len(s) + 1)) for a, s in seconds.items()}
    return {"": (1 / (users + 2), mean), **scores}


def _load_article_vectors(history: dict[int, list[_Read]], config: FeatureConfig, store: KeyValueStore | None) -> int:
    table = config.embeddings.get(TABLE)
    if store is None or not isinstance(table, ExternalTable):
        return 0
    articles = sorted({read.article for reads in history.values() for read in reads})
    vectors = _article_vectors(articles, history.values(), table.dim)
    load_vectors(store, config.kv_prefix, TABLE, table.epoch, articles, vectors.astype(table.dtype))
    return len(articles)


def _article_vectors(articles: list[str], histories: Iterable[list[_Read]], dim: int) -> np.ndarray:
    """[articles, dim], rows of unit length: where an article lies among the readers it shares with others."""
    column = {article: i for i, article in enumerate(articles)}
    counts = np.zeros((len(articles), sum(1 for _ in histories)))
    for reader, reads in enumerate(histories):
        counts[[column[read.article] for read in reads], reader] = 1.0
    left, strengths, _ = np.linalg.svd(counts, full_matrices=False)
    vectors = np.zeros((len(articles), dim))
    width = min(dim, left.shape[1])
    vectors[:, :width] = left[:, :width] * strengths[:width]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)


# Values ----------------------------------------------------------------------------------------------------------


def _request_id(row: dict[str, Any]) -> str:
    return f"eb{row['impression_id']}"
