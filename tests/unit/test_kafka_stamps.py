"""A reader that starts in the middle gives records the stamps that one from the start gives."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from pipeline.logs.kafka.stamps import highest_before


class Index:
    """First offset with a stamp of at least t, as a broker answers; counts the questions."""

    def __init__(self, stamps: list[int]) -> None:
        self.stamps, self.asked = stamps, 0

    def __call__(self, at_least: int) -> int | None:
        self.asked += 1
        return next((offset for offset, stamp in enumerate(self.stamps) if stamp >= at_least), None)


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=40), st.data())
def test_it_is_the_running_maximum(stamps: list[int], data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(stamps) - 1))
    expected = list(accumulate(stamps, max))[offset]
    assert max(highest_before(offset, stamps[offset], Index(stamps)), stamps[offset]) == expected


def test_clocks_that_were_never_set_back_cost_one_question() -> None:
    index = Index([10, 20, 20, 30])
    assert highest_before(2, 20, index) == 20
    assert index.asked == 1


def test_a_clock_that_was_far_ahead_costs_few() -> None:
    index = Index([10**9, 20])
    assert highest_before(1, 20, index) == 10**9
    assert index.asked < 70
