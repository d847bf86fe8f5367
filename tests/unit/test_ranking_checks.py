"""The checks of weights that rank items: whole, finite, and not too many other items on a page."""

from __future__ import annotations

import math

import msgspec
import pytest

from model_export.candidate import Candidate, Probe
from model_export.checks import Check, Reference, first_failure
from model_export.ranking_checks import every_ranking, moved_pages
from pipeline.features.snapshot import Snapshot
from pipeline.records import Item, State
from tests.unit.test_ranking_agent import CONFIG

PARAMETERS = Snapshot.initial(CONFIG)
ITEMS = tuple(Item(f"i{n}") for n in range(6))
RISING, FALLING = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), (5.0, 4.0, 3.0, 2.0, 1.0, 0.0)
HALF = (0.0, 0.0, 0.0, 3.0, 4.0, 1.0)  # 4, 3, 5


def candidate(*q: tuple[float | None, ...], **changes: object) -> Candidate:
    made = Candidate(
        id="000000000002-r", policy="rl", model_name="feed_rl", config_sha="c", parameters="p", created_ms=1, seed=1,
        transitions=500, explored=10, updates=3, first_transition="a", last_transition="b", losses={"loss": 0.1},
        value_mean=0.2, advantage_mean=None, pages={"policy": 9, "fallback": 1},
        probes=tuple(Probe(State(), (), ITEMS, each) for each in q),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def accepted(*q: tuple[float, ...], transitions: int = 300) -> Reference:
    return Reference(4, transitions, q, PARAMETERS)


def failed(made: Candidate, reference: Reference | None) -> Check | None:
    return first_failure(every_ranking(CONFIG, made, PARAMETERS, reference))


def test_a_candidate_that_ranks_much_as_before_passes() -> None:
    made, reference = candidate(RISING, FALLING), accepted(RISING, FALLING)
    assert failed(made, reference) is None
    assert [check.name for check in every_ranking(CONFIG, made, PARAMETERS, reference)] == [
        "probes", "finite", "loss", "divergence", "new_transitions", "page_change", "drift", "fallback_share",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (candidate(), "probes"),
        (candidate(RISING[:5]), "probes"),
        (candidate(RISING, probes=(Probe(State(), (), (), ()),)), "probes"),
        (candidate((None, *RISING[1:])), "finite"),
        (candidate(RISING, losses={"loss": None}), "finite"),
        (candidate(RISING, losses={"loss": 1e9}), "loss"),
        (candidate(RISING, losses={"diverged": 1.0}), "divergence"),
        (candidate(RISING, transitions=350), "new_transitions"),
        (candidate(FALLING), "page_change"),
        (candidate(RISING, pages={"policy": 1, "fallback": 1}), "fallback_share"),
    ],
)
def test_what_is_wrong_is_named(made: Candidate, name: str) -> None:
    found = failed(made, accepted(RISING))
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("made", "names"), [(candidate(RISING[:5]), ["probes"]), (candidate((None, *RISING[1:])), ["probes", "finite"])]
)
def test_of_numbers_that_are_not_there_nothing_else_is_said(made: Candidate, names: list[str]) -> None:
    assert [check.name for check in every_ranking(CONFIG, made, PARAMETERS, accepted(RISING))] == names


def test_a_page_is_changed_by_what_is_on_it_and_not_by_the_order() -> None:
    """The page of three: 5, 4, 3 before. The same in another order is no change; one of three is another."""
    shuffled = (0.0, 0.0, 0.0, 5.0, 4.0, 3.0)
    one_other = (9.0, 0.0, 0.0, 5.0, 4.0, 3.0)
    for q, expected in ((shuffled, 0.0), (one_other, 1 / 3), (FALLING, 1.0)):
        checks = every_ranking(CONFIG, candidate(q), PARAMETERS, accepted(RISING))
        (change,) = (check for check in checks if check.name == "page_change")
        assert math.isclose(change.value, expected)
    assert math.isclose(moved_pages(3, candidate(RISING, FALLING)), 0.5)  # of the received order: 0, 1, 2


def test_the_first_weights_that_rank_at_all_may_change_every_page() -> None:
    assert failed(candidate(RISING), accepted(FALLING, transitions=0)) is None
    assert failed(candidate(RISING), None) is None


def test_nothing_is_said_of_a_candidate_that_cannot_be_read() -> None:
    assert moved_pages(3, candidate()) is None
    assert moved_pages(3, candidate((None, *RISING[1:]))) is None
