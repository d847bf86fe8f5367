"""Configs of learners that choose from a grid of actions: what is refused, and in which words."""

from __future__ import annotations

import pytest

from pipeline.config.reading import parse_config
from pipeline.config.schema import Cell, Dqn, QLearning
from tests.unit.test_config import changed, problems

DDPG = "algorithm: {kind: ddpg, gamma: 0.9}"


def with_algorithm(algorithm: str, *changes: tuple[str, str]) -> str:
    return changed((DDPG, f"algorithm: {{kind: {algorithm}}}"), *changes)


def test_all_but_gamma_has_a_default() -> None:
    assert parse_config(with_algorithm("dqn, gamma: 0.9")).algorithm == Dqn(gamma=0.9)
    assert Dqn(gamma=0.9).levels == 11


def test_cells_of_every_kind_of_feature() -> None:
    cells = "[{feature: ctr, cuts: [-1, 1]}, {feature: city_id}, {feature: device}, {feature: hours}]"
    found = parse_config(with_algorithm(f"q_learning, gamma: 0.9, cells: {cells}")).algorithm
    expected = (Cell("ctr", (-1.0, 1.0)), Cell("city_id"), Cell("device"), Cell("hours"))
    assert found == QLearning(gamma=0.9, cells=expected)


TABLE = "q_learning, gamma: 0.9, cells: "


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            "dqn, gamma: 0.9, levels: 512",
            "levels: must leave at most 512 actions to choose from, got 513 = 513; take fewer levels",
        ),
        ("dqn, gamma: 0.9, levels: 1", "levels: must be >= 2, got 1"),
        (
            "double_dqn, gamma: 0.9, target: none",
            "target: none would make it dqn: double_dqn lets one network choose and another one value the choice",
        ),
        ("dqn, gamma: 0.9, target: none, target_period: 5", "target_period: is for target: periodic"),
        ("dqn, gamma: 0.9, replay: 8", "replay: must hold at least one batch of 256 transitions, got 8"),
        (TABLE + "[]", "cells: must not be empty"),
        (TABLE + "[{feature: cty_id}]", 'cells[0].feature: no feature "cty_id" (did you mean "city_id"?)'),
        (TABLE + "[{feature: hours}, {feature: hours}]", 'cells[1].feature: "hours" is named twice'),
        (
            TABLE + "[{feature: clicks}]",
            'cells[0].feature: "clicks" is a sequence, which has no cells; take another feature',
        ),
        (
            TABLE + "[{feature: city_id, cuts: [1]}]",
            'cells[0].cuts: are for dense features; every value of "city_id" is a cell of its own',
        ),
        (
            TABLE + "[{feature: ctr}]",
            'cells[0].cuts: are needed for dense feature "ctr": where its normalised value is cut',
        ),
        (TABLE + "[{feature: ctr, cuts: [1, 1]}]", "cells[0].cuts: must increase, got [1.0, 1.0]"),
        (
            TABLE + "[{feature: hours}], rows: 4000000",
            "rows: must leave a table of at most 33554432 entries, got 4000000 x 11 actions",
        ),
        (TABLE + "[{feature: hours}], rows: many", "rows: must be an integer, got 'many'"),
        (TABLE + "[{feature: hours}], levels: few", "levels: must be an integer, got 'few'"),
    ],
)
def test_one_mistake_is_one_problem(algorithm: str, expected: str) -> None:
    assert problems(with_algorithm(algorithm)) == [f"f.yaml:25: algorithm.{expected}"]


def test_with_several_dimensions_combinations_are_counted() -> None:
    two = (
        "  - {name: a, baseline: 1.0, range: [0.5, 1.5]}\n",
        "  - {name: a, baseline: 1.0, range: [0.5, 1.5]}\n  - {name: b, baseline: 1.0, range: [0, 2]}\n",
    )
    exponents = ("fusion: {kind: pay_plus_a_phi, phi: 0.05}", "fusion: {kind: exponents}")
    found = problems(with_algorithm("dqn, gamma: 0.9, levels: 24", two, exponents))
    assert found == [
        "f.yaml:26: algorithm.levels: must leave at most 512 actions to choose from, got 25 x 25 = 625; "
        "take fewer levels"
    ]
    parse_config(with_algorithm("dqn, gamma: 0.9, levels: 21", two, exponents))


@pytest.mark.parametrize("broken", ["[2, 1]", "wide"])
def test_a_broken_range_is_the_only_problem(broken: str) -> None:
    text = with_algorithm("dqn, gamma: 0.9", ("range: [0.5, 1.5]", f"range: {broken}"))
    assert [line.split(": ")[1] for line in problems(text)] == ["action[a].range"]
