"""Which transitions can be learned from, and why the others cannot."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from pipeline.events import encode
from pipeline.features.encoder import Encoder
from pipeline.learning.ingestion import Example, Unusable, read_transition, to_example
from pipeline.records import Action, DecidedBy, Decision, State, Transition


def decided(by: DecidedBy, *actions: Action) -> Decision:
    return Decision(by, "p1", "bucket", actions)


@pytest.fixture
def ingest(make_config):
    config = make_config()
    encoder = Encoder(config)

    def ingest(transition: Transition) -> Example | Unusable:
        read = read_transition(encode(transition))
        return read if isinstance(read, Unusable) else to_example(read, config, encoder)

    return ingest


def test_an_example_holds_the_executed_action(ingest, make_transition) -> None:
    example = ingest(make_transition(1, decision=decided(DecidedBy.POLICY, Action("a", 1.75))))
    np.testing.assert_array_equal(example.action, np.array([1.75], "f4"))
    assert not example.by_baseline


@pytest.mark.parametrize("by", [DecidedBy.BASELINE, DecidedBy.FALLBACK])
def test_whoever_served_the_baseline_its_page_teaches_v(ingest, make_transition, by: DecidedBy) -> None:
    example = ingest(make_transition(0, decision=decided(by, Action("a", 1.0))))
    assert example.by_baseline
    np.testing.assert_array_equal(example.action, np.array([1.0], "f4"))


def test_a_page_of_the_baseline_need_not_name_the_action(ingest, make_transition) -> None:
    example = ingest(make_transition(0, decision=decided(DecidedBy.BASELINE)))
    assert example.by_baseline
    np.testing.assert_array_equal(example.action, np.array([1.0], "f4"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"discount": 0.9}, "discount"),
        ({"discount": 1.0, "next_state": None}, "next_state"),
        ({"discount": 0.0, "next_state": State(user={"x": 1.0})}, "next_state"),
        ({"reward": 1e300}, "reward"),
        ({"state": State()}, "feature"),
        ({"next_state": State(user={"x": "much"})}, "feature"),
        ({"decision": decided(DecidedBy.POLICY)}, "action"),
        ({"decision": decided(DecidedBy.FALLBACK)}, "no_action"),  # served as received: not the baseline's order
        ({"decision": decided(DecidedBy.POLICY, Action("b", 1.0))}, "action"),
        ({"decision": decided(DecidedBy.POLICY, Action("a", 1.0), Action("b", 1.0))}, "action"),
        ({"decision": decided(DecidedBy.POLICY, Action("a", 2.1))}, "action"),
        ({"decision": decided(DecidedBy.POLICY, Action("a", -0.1))}, "action"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_a_reason(ingest, make_transition, changes, reason) -> None:
    unusable = ingest(structs.replace(make_transition(1), **changes))
    assert isinstance(unusable, Unusable)
    assert unusable.reason == reason
    assert "expected" in unusable.detail
    assert "found" in unusable.detail


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"id": 1}', b"\xff\xfe"])
def test_bytes_that_are_no_transition(payload: bytes) -> None:
    assert read_transition(payload).reason == "malformed"
