"""Groups of sessions: what the pieces say, when they are written anew, when a group is to be woken."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

from pipeline.streaming.groups import Group, Open, Piece, group_of, ladder

Sessions = dict[str, Open | None]


def random_pieces(rng: random.Random, count: int) -> list[Piece]:
    """Sessions that come, change, are woken at other times, and go."""

    def change() -> Open | None:
        return Open(rng.randbytes(rng.randrange(100)), rng.randrange(20)) if rng.random() < 0.7 else None

    return [
        Piece(bytes([number]), {f"s{rng.randrange(9)}": change() for _ in range(rng.randrange(1, 4))})
        for number in range(count)
    ]


def told(pieces: Iterable[Piece]) -> Sessions:
    sessions: Sessions = {}
    for piece in pieces:
        sessions.update(piece.sessions)
    return {name: session for name, session in sessions.items() if session is not None}


def test_a_group_is_what_its_pieces_say_last_whether_read_at_once_or_one_by_one_or_written_anew() -> None:
    rng = random.Random(1)
    for _ in range(50):
        pieces = random_pieces(rng, 20)
        group = Group()
        for number, piece in enumerate(pieces):
            group.add(piece)
            there = told(pieces[: number + 1])
            assert group.sessions == Group(pieces[: number + 1]).sessions == there
            assert group.next_due_ms == min((session.wake_ms for session in there.values()), default=None)
        anew = group.anew(b"new")
        assert Group(anew).sessions == group.sessions == told(anew)
        assert group.mark == Group(anew).mark


def test_who_is_due_is_told_once_and_nobody_else() -> None:
    rng = random.Random(2)
    for _ in range(50):
        group = Group(random_pieces(rng, 20))
        due = {name for name, session in group.sessions.items() if session.wake_ms <= 9}
        assert sorted(group.take_due(9)) == sorted(due)
        assert group.take_due(9) == []
        assert sorted(group.take_due(20)) == sorted(group.sessions.keys() - due)


def test_pieces_are_written_anew_when_most_in_them_is_over() -> None:
    """What is written in all stays a multiple of what is appended; what is there, of what is open."""
    group, there, written, appended = Group(), 0, 0, 0
    for number in range(5_000):
        piece = Piece(b"m%d" % number, {f"s{number % 50}": Open(bytes(1_000), number)})
        group.add(piece)
        appended += 1_000
        pieces = group.anew(b"n%d" % number) if group.is_wasteful else [piece]
        size = sum(len(session.state) for piece in pieces for session in piece.sessions.values() if session)
        there = size if pieces != [piece] else there + size
        written += size
        assert there <= 3 * 50 * 1_060 + 17_000
    assert appended < written < 1.6 * appended


def test_a_group_without_sessions_is_nothing() -> None:
    group = Group([Piece(b"1", {"a": Open(b"x", 1)})])
    assert not group.is_wasteful
    group.add(Piece(b"2", {"a": None}))
    assert group.is_wasteful
    assert group.anew(b"2") == []
    assert (group.mark, group.sessions, group.next_due_ms) == (None, {}, None)
    group.add(Piece(b"3", {"b": Open(b"", 1)}))
    assert not group.is_wasteful


def test_what_is_not_due_any_more_is_forgotten() -> None:
    group = Group()
    for number in range(10_000):
        group.add(Piece(b"%d" % number, {"first": Open(b"", 0), "a": Open(b"", 10_000 - number)}))
    assert len(group._agenda) < 200
    assert group.take_due(0) == ["first"]


def test_a_group_is_woken_at_the_end_of_its_second_and_at_rungs_that_stay_where_they_are() -> None:
    assert ladder(None) == {}
    assert ladder(3_600_001)["1000"] == ladder(3_600_000)["1000"] == 3_600_999
    assert ladder(3_599_999)["1000"] == 3_599_999
    rungs = [ladder(second * 1_000) for second in range(1, 1_000)]
    assert all(due_ms >= second * 1_000 for second, rung in enumerate(rungs, 1) for due_ms in rung.values())
    changes = sum(one[name] != other[name] for one, other in itertools.pairwise(rungs) for name in one)
    assert changes < 1.4 * len(rungs)


def test_a_leap_of_time_takes_few_turns() -> None:
    """However many decisions it passes: here one each second, for some hours."""
    for leap_s in (1, 10, 100, 1_000, 10_000):
        due_ms, turns, fired = 777_000, 0, 0
        until_ms = due_ms + leap_s * 1_000
        while due_ms <= until_ms:
            reached = [rung for rung in ladder(due_ms).values() if rung <= until_ms]
            turns, fired = turns + 1, fired + len(reached)
            due_ms = max(reached) + 1_000
        assert turns <= 25, leap_s
        assert fired <= 80, leap_s


def test_sessions_are_spread_evenly() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[int(group_of(f"session-{number}", 16))] += 1
    assert 800 < min(counts) <= max(counts) < 1_200
