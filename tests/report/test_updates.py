"""What the report says of policies that choose items: which updates were taken, by which evidence, and what became of
them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from model_export import checks
from pageturn.measuring.updates import Tally, decided, evidence, fate, tallies
from pageturn.report.chart import Clock
from pageturn.report.updates import tally_table, update_charts, update_table
from pipeline.ranking.candidates import Candidate
from pipeline.ranking.comparing import Outcome, Verdict
from pipeline.ranking.updates import Update

CLOCK = Clock.of(0, 300_000)


def outcome(verdict: Verdict, z: float, foreign: int = 0) -> Outcome:
    return Outcome(Candidate(1, 3), verdict, 90, 12, z / 10, z, foreign)


GRADIENT = Update("a", 1, 0, "minor", "gradient", True, time_ms=30_000, pages=64, loss=0.125)
WON = Update("b", 2, 1, "minor", "dbgd", True, (outcome(Verdict.CANDIDATE, 2.0),), 60_000)
TIED = Update("b", 3, 2, "minor", "dbgd", False, (outcome(Verdict.TIE, 0.5, foreign=4),), 90_000)
MAJOR = Update("a", 3, 2, "major", "replay", False, (outcome(Verdict.INCUMBENT, -3.0),), 90_000)
TAKEN = Update("a", 4, 3, "major", "replay", True, (outcome(Verdict.TIE, -0.5),), 120_000)
PAIR = Update("b", 4, 3, "minor", "es", True, (outcome(Verdict.TIE, 1.0), outcome(Verdict.TIE, -1.0)), 120_000)
ALL = (GRADIENT, WON, TIED, MAJOR, TAKEN)


def verdict(candidate: str, outcome: checks.Outcome, version: int | None = None, reason: str = "") -> checks.Verdict:
    return checks.Verdict(candidate, "b", "every_version", outcome, reason, "", version=version)


def test_evidence_is_said_in_words() -> None:
    assert evidence(GRADIENT) == "loss 0.125 on 64 pages"
    assert evidence(WON) == "users prefer what was tried"
    assert evidence(TIED) == "no clear preference"
    assert evidence(MAJOR) == "users prefer what is served"
    assert evidence(PAIR) == "no clear preference; no clear preference"
    assert evidence(msgspec.structs.replace(MAJOR, evidence=())) == "none: served at once"


def test_what_was_taken_is_counted_by_what_proposed_it() -> None:
    assert tallies(ALL) == (
        Tally("a", "major", "replay", 1, 2, 180, 24),
        Tally("a", "minor", "gradient", 1, 1, None, None),
        Tally("b", "minor", "dbgd", 1, 2, 180, 24),
    )
    assert tally_table(ALL).rows[1:] == (
        ("a", "minor", "gradient", "1", "1", "–", "–"),
        ("b", "minor", "dueling bandit", "2", "1", "180", "24"),
    )


def test_the_newest_update_comes_first_with_what_became_of_its_candidate() -> None:
    verdicts = (
        verdict("000000000001-x", "accepted", 2),
        verdict("000000000002-x", "refused", reason="page_change"),
        verdict("000000000004-x", "accepted", 3),
    )
    assert [fate(u, verdicts) for u in (WON, TIED)] == [
        "refused: page_change",
        "accepted as version 3, with later ones",
    ]
    assert fate(GRADIENT, verdicts) == "not judged yet"
    rows = update_table(ALL, verdicts, CLOCK).rows
    assert [row[:4] for row in rows[:3]] == [
        ("2.00", "a", "major, replay", "taken"),
        ("1.50", "a", "major, replay", "not taken"),
        ("1.50", "b", "minor, dueling bandit", "not taken"),
    ]
    assert rows[2][4:] == (
        "no clear preference",
        "+0.5",
        "+0.05",
        "12",
        "90",
        "4",
        "accepted as version 3, with later ones",
    )
    assert rows[4][4:] == ("loss 0.125 on 64 pages", "–", "–", "–", "–", "–", "not judged yet")
    assert update_table((PAIR,), (), CLOCK).rows[0][5:8] == ("+1.0, -1.0", "+0.10, -0.10", "12, 12")


def test_a_chart_has_every_decision_by_clicks_filled_where_it_was_taken() -> None:
    said, *_ = update_charts((*ALL, PAIR), (), ("a", "b"), {}, CLOCK)
    points = {
        trace["name"]: list(zip(trace["x"], trace["y"], trace["marker"]["symbol"], strict=True))
        for trace in said.figure["data"]
    }
    assert points == {
        "b: dueling bandit": [(1.0, 2.0, "circle"), (1.5, 0.5, "circle-open")],
        "a: replay": [(1.5, -3.0, "diamond-open"), (2.0, -0.5, "diamond")],
        "b: evolution strategies": [(2.0, 1.0, "circle"), (2.0, -1.0, "circle")],
    }
    assert not list(update_charts((GRADIENT,), (), ("a",), {}, CLOCK))


def test_losses_and_q_are_drawn_by_policy() -> None:
    rows = [
        {"time_ms": 60_000 * n, "transitions": n, "loss/a": 0.5 / n, "q_mean/a": 0.1 * n, "loss/b": 0.2} for n in (1, 2)
    ]
    loss, q = update_charts((GRADIENT,), rows, ("a", "b"), {}, CLOCK)
    assert [(trace["name"], list(trace["y"])) for trace in loss.figure["data"]] == [
        ("a", [0.5, 0.25]),
        ("b", [0.2, 0.2]),
    ]
    assert [list(trace["y"]) for trace in q.figure["data"]] == [[0.1, 0.2], [None, None]]
    assert loss.table.rows == (("1.0", "0.5000", "0.2000"), ("2.0", "0.2500", "0.2000"))


def test_what_a_killed_trainer_has_written_twice_is_there_once(tmp_path: Path) -> None:
    lines = [msgspec.json.encode(update) for update in (WON, TIED, WON)]
    (tmp_path / "updates.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert decided(tmp_path) == (WON, TIED)
    assert decided(tmp_path / "nowhere") == ()


@pytest.mark.parametrize("update", ALL)
def test_an_update_is_what_it_was_after_a_file(update: Update) -> None:
    assert msgspec.json.decode(msgspec.json.encode(update), type=Update) == update
