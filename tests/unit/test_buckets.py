from __future__ import annotations

from collections import Counter

import pytest

from pipeline.agent.buckets import bucket_table, on_canary, slot_of
from pipeline.config.schema import Bucket, Buckets


def buckets(*slots: tuple[int, int], salt: str = "salt", of: int = 100) -> Buckets:
    assign = tuple(Bucket(f"b{i}", f"p{i}", run) for i, run in enumerate(slots))
    return Buckets(salt=salt, assign=assign, slots=of)


HALVES = buckets((0, 49), (50, 99))


def test_slots_are_fixed_for_good():
    """Another hash would shuffle all users between policies."""
    assert [slot_of(HALVES, user) for user in ("u1", "u2", "ü", "")] == [85, 13, 93, 68]


def test_every_slot_gets_its_share_of_users():
    counts = Counter(slot_of(HALVES, f"user-{i}") for i in range(50_000))
    assert sorted(counts) == list(range(100))
    chi_square = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi_square < 148  # 99 degrees of freedom, 0.1 %


def test_another_salt_shuffles_the_users_anew():
    other = buckets((0, 49), (50, 99), salt="salt2")
    users = [f"user-{i}" for i in range(10_000)]
    same = sum((slot_of(HALVES, u) < 50) == (slot_of(other, u) < 50) for u in users)
    assert 4_700 < same < 5_300


def test_the_table_names_the_bucket_of_each_slot():
    table = bucket_table(HALVES)
    assert [table[slot].name for slot in (0, 49, 50, 99)] == ["b0", "b0", "b1", "b1"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (buckets((0, 49), (49, 99)), "slot 49 belongs to b0 and to b1"),
        (buckets((0, 48), (50, 99)), r"missing or outside: \[49\]"),
        (buckets((0, 49), (50, 100)), r"missing or outside: \[100\]"),
    ],
)
def test_a_slot_has_exactly_one_bucket(wrong: Buckets, message: str):
    with pytest.raises(ValueError, match=message):
        bucket_table(wrong)


def test_the_canary_takes_its_share():
    tries = sum(on_canary(HALVES, "rl_a", f"user-{i}", 0.1) for i in range(20_000))
    assert 1_850 < tries < 2_150


def test_nobody_is_on_a_canary_with_no_share_and_everybody_with_all():
    users = [f"user-{i}" for i in range(1_000)]
    assert not any(on_canary(HALVES, "rl_a", user, 0.0) for user in users)
    assert all(on_canary(HALVES, "rl_a", user, 1.0) for user in users)


def test_a_growing_share_sends_nobody_back():
    users = [f"user-{i}" for i in range(2_000)]
    assert {u for u in users if on_canary(HALVES, "rl_a", u, 0.1)} < {
        u for u in users if on_canary(HALVES, "rl_a", u, 0.3)
    }


def test_the_canary_does_not_depend_on_the_slot_or_on_other_policies():
    users = [f"user-{i}" for i in range(20_000)]
    on = [u for u in users if on_canary(HALVES, "rl_a", u, 0.5)]
    assert 0.47 < sum(slot_of(HALVES, u) < 50 for u in on) / len(on) < 0.53
    assert 0.47 < sum(on_canary(HALVES, "rl_b", u, 0.5) for u in on) / len(on) < 0.53
