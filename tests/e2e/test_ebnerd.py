"""The stream on a real log equals an independent count of that log with pandas."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from pageturn.ebnerd import SourceError, import_ebnerd
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.events import decode
from pipeline.logs.log import EPISODES, EVENTS, LATE, SAMPLES, TRANSITIONS, Entry, EventLog
from pipeline.logs.opening import open_log
from pipeline.records import Ending, Episode, Event, FeedbackKind, Impression, Page, SetAside, Transition
from pipeline.stores.opening import open_store
from pipeline.streaming.counts import count
from pipeline.streaming.run import run_stream

ROOT = Path(__file__).resolve().parents[2]
MINUTE_MS = 60_000
WINDOW_S = 600.0


@pytest.fixture(scope="module")
def behaviors(ebnerd_dir: Path) -> pd.DataFrame:
    frame = pd.read_parquet(ebnerd_dir / "behaviors.parquet")
    frame = frame.sort_values(["session_id", "impression_time", "impression_id"])
    frame["gap_s"] = frame.groupby("session_id").impression_time.diff().dt.total_seconds()
    frame["clicks"] = frame.article_ids_clicked.map(len)
    return frame


def stream(ebnerd_dir: Path, folder: Path, gap_minutes: int) -> tuple[EventLog, FeatureConfig]:
    config = load_config(ROOT / "feature_configs" / "ebnerd.yaml")
    windows = msgspec.structs.replace(config.stream, session_gap=gap_minutes * MINUTE_MS)
    config = msgspec.structs.replace(config, stream=windows)
    url = f"file://{folder}/log"
    log = open_log(url)
    log.create(EVENTS, 3)
    import_ebnerd(ebnerd_dir, config, log, None)
    run_stream(config, url, folder / "state", until_idle=True, stop=threading.Event())
    return log, config


def read(log: EventLog, topic: str, kind: type) -> list:
    return [
        decode(record.payload, kind)
        for partition in range(log.partitions(topic))
        for record in log.read(topic, partition, 0, 1_000_000)
    ]


@pytest.mark.parametrize(("gap_minutes", "episodes"), [(30, 485), (10, 501)])
def test_the_stream_counts_what_pandas_counts(
    ebnerd_dir: Path, behaviors: pd.DataFrame, tmp_path: Path, gap_minutes: int, episodes: int
) -> None:
    log, _ = stream(ebnerd_dir, tmp_path, gap_minutes)
    pages, transitions = read(log, SAMPLES, Page), read(log, TRANSITIONS, Transition)
    mc = read(log, EPISODES, Episode)
    visits = behaviors.session_id.nunique() + int((behaviors.gap_s > gap_minutes * 60).sum())

    assert visits == episodes
    assert len(pages) == len({p.id for p in pages}) == len(behaviors)
    assert len({p.impression.session_id for p in pages}) == behaviors.session_id.nunique()
    assert len(transitions) == len({t.id for t in transitions}) == len(behaviors)
    terminal = [t for t in transitions if t.discount == 0]
    assert len(terminal) == len(mc) == episodes
    assert {t.ending for t in terminal} == {Ending.INFERRED_LEAVE}
    assert sum(len(e.steps) for e in mc) == len(behaviors)


def test_clicks_within_their_window_are_joined_and_the_others_are_late(
    ebnerd_dir: Path, behaviors: pd.DataFrame, tmp_path: Path
) -> None:
    log, _ = stream(ebnerd_dir, tmp_path, 30)
    joined = [f.kind for p in read(log, SAMPLES, Page) for f in p.feedback]
    late = [s.event.kind for s in read(log, LATE, SetAside)]
    turns = behaviors.gap_s.dropna()
    expected = {
        FeedbackKind.CLICK: behaviors.clicks[behaviors.read_time <= WINDOW_S].sum(),
        FeedbackKind.PAGE_TURN: (turns <= WINDOW_S).sum(),
        FeedbackKind.DWELL: behaviors.clicks[(behaviors.read_time + behaviors.next_read_time) <= WINDOW_S].sum(),
    }
    assert {kind: joined.count(kind) for kind in expected} == expected
    assert late.count(FeedbackKind.CLICK) == behaviors.clicks.sum() - expected[FeedbackKind.CLICK]
    assert late.count(FeedbackKind.PAGE_TURN) == (turns > WINDOW_S).sum()


def test_a_state_holds_what_had_happened_by_then_and_nothing_later(
    ebnerd_dir: Path, behaviors: pd.DataFrame, tmp_path: Path
) -> None:
    config = load_config(ROOT / "feature_configs" / "ebnerd.yaml")
    log = open_log(f"file://{tmp_path}/log")
    log.create(EVENTS, 1)
    import_ebnerd(ebnerd_dir, config, log, None)
    states = {e.request_id: e.state for e in read(log, EVENTS, Event) if isinstance(e, Impression)}

    pages = behaviors.assign(clicked=behaviors.impression_time + pd.to_timedelta(behaviors.read_time, unit="s"))
    opened = pages.explode("article_ids_clicked").dropna(subset="article_ids_clicked")
    columns = ["article_id_fixed", "impression_time_fixed"]
    history = pd.read_parquet(ebnerd_dir / "history.parquet", columns=["user_id", *columns]).explode(columns)
    for page in pages.itertuples():
        now, state = page.impression_time, states[f"eb{page.impression_id}"]
        before = opened[(opened.user_id == page.user_id) & (opened.clicked <= now) & (opened.impression_time < now)]
        ago = history[history.user_id == page.user_id].sort_values(columns[::-1]).article_id_fixed
        articles = [*map(str, ago), *map(str, before.sort_values("clicked").article_ids_clicked)]
        assert state.user["history_len"] == len(articles)
        assert state.user["recent_reads"] == tuple(articles[-50:])
        visit = before[before.session_id == page.session_id].sort_values("impression_time")
        assert state.page["page_index"] == (pages[pages.session_id == page.session_id].impression_time < now).sum()
        if len(visit):
            last = visit.iloc[-1]
            open_s = min(last.next_read_time, (now - last.clicked).total_seconds())
            assert state.page["previous_clicked"] == str(last.article_ids_clicked)
            assert state.page["previous_read_s"] == (None if pd.isna(last.next_read_time) else open_s)
        else:
            assert state.page["previous_clicked"] is None


def test_nothing_is_lost_by_the_count_of_ids(ebnerd_dir: Path, tmp_path: Path) -> None:
    log, _ = stream(ebnerd_dir, tmp_path, 30)
    result = count(log, tmp_path / "state")
    assert result.read == sum(log.end_offset(EVENTS, p) for p in range(log.partitions(EVENTS)))
    assert result.read == (result.joined + result.duplicate + result.late + result.orphan + result.dead + result.open)
    assert result.open == 0


@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_an_import_that_was_killed_is_repeated_and_adds_what_is_missing(
    ebnerd_dir: Path, tmp_path: Path, kept: float
) -> None:
    config = load_config(ROOT / "feature_configs" / "ebnerd.yaml")
    log = open_log(f"file://{tmp_path}/whole")
    log.create(EVENTS, 3)
    first = import_ebnerd(ebnerd_dir, config, log, None)
    whole = [log.read(EVENTS, partition, 0, 1_000_000) for partition in range(3)]
    log.close()

    cut = open_log(f"file://{tmp_path}/cut")
    cut.create(EVENTS, 3)
    for records in (whole[0], whole[1][: int(kept * len(whole[1]))]):
        cut.append(EVENTS, [Entry(r.key, r.payload, r.appended_at_ms) for r in records])
    there = sum(cut.end_offset(EVENTS, partition) for partition in range(3))
    again = import_ebnerd(ebnerd_dir, config, cut, None)
    assert again.impressions + again.feedback == first.impressions + first.feedback - there
    assert [cut.read(EVENTS, partition, 0, 1_000_000) for partition in range(3)] == whole
    assert import_ebnerd(ebnerd_dir, config, cut, None)[:2] == (0, 0)


def test_a_second_import_into_a_log_that_was_streamed_adds_nothing(ebnerd_dir: Path, tmp_path: Path) -> None:
    log, config = stream(ebnerd_dir, tmp_path, 30)
    assert import_ebnerd(ebnerd_dir, config, log, None)[:2] == (0, 0)


def test_the_past_is_not_imported_behind_a_stream_that_has_read_on(ebnerd_dir: Path, tmp_path: Path) -> None:
    """It would have closed pages whose clicks are in a part of the log that it had not been given yet."""
    config = load_config(ROOT / "feature_configs" / "ebnerd.yaml")
    url = f"file://{tmp_path}/log"
    log = open_log(url)
    log.create(EVENTS, 3)
    run_stream(config, url, tmp_path / "state", until_idle=True, stop=threading.Event())
    with pytest.raises(SourceError, match=r"3673 events .* import into a new log, before a stream is started"):
        import_ebnerd(ebnerd_dir, config, log, None)
    assert [log.end_offset(EVENTS, partition) for partition in range(3)] == [0, 0, 0]


def test_events_delivered_again_change_no_page(ebnerd_dir: Path, tmp_path: Path) -> None:
    log, config = stream(ebnerd_dir, tmp_path, 30)
    before = {p.id: p for p in read(log, SAMPLES, Page)}
    delivered = [
        record for partition in range(log.partitions(EVENTS)) for record in log.read(EVENTS, partition, 0, 1_000_000)
    ]
    last = max(record.appended_at_ms for record in delivered)
    log.append(EVENTS, [Entry(r.key, r.payload, last) for r in delivered])
    run_stream(config, f"file://{tmp_path}/log", tmp_path / "state", until_idle=True, stop=threading.Event())
    assert {p.id: p for p in read(log, SAMPLES, Page)} == before


def test_states_say_which_vectors_there_were(ebnerd_dir: Path, tmp_path: Path) -> None:
    """Without that, what a transition teaches would depend on what the store holds by then."""
    config = load_config(ROOT / "feature_configs" / "ebnerd.yaml")
    log, store = open_log(f"file://{tmp_path}/log"), open_store(f"sqlite:///{tmp_path}/store.db")
    log.create(EVENTS, 1)
    import_ebnerd(ebnerd_dir, config, log, store)
    lookups = [e.state.lookups["recent_reads"] for e in read(log, EVENTS, Event) if isinstance(e, Impression)]
    table = config.embeddings["article"]
    assert {lookup.epoch for lookup in lookups} == {table.epoch}
    hits = [hit for lookup in lookups for hit in lookup.hits]
    assert 0 < sum(hits) < len(hits)  # articles read for the first time in the log itself have no vector
