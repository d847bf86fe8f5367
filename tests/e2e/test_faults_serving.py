"""Faults of the key-value store and of the model server, one after another in one loop. See faulty_matrix.py."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from pipeline.features.stored_vectors import read_table
from pipeline.records import DecidedBy
from pipeline.serving.client import Prediction
from pipeline.stores.published import parameters_key
from tests.e2e.faulty_loop import DEADLINE_S, PATIENCE_S, Loop, eventually
from tests.e2e.faulty_matrix import (
    Fault,
    agent,
    check_whole,
    controller,
    decided_pages,
    endure,
    fallbacks,
    publish,
    wait_for_fallback,
)
from tests.e2e.faulty_trainer import EPOCH, KNOWN, PREFIX, TABLE

SLOW_MS = 8_000
pytestmark = [pytest.mark.timeout(900), pytest.mark.needs_redis]


# The store -------------------------------------------------------------------------------------------------------


def redis_is_killed(loop: Loop) -> Iterator[None]:
    loop.kill("redis")
    try:
        wait_for_fallback(loop, "store")
        yield
    finally:
        loop.start_redis()


def redis_is_slow(loop: Loop) -> Iterator[None]:
    """For everything, and longer than a look at the pointers waits for its answer (2 s), whenever that look begins."""
    loop.store._client.execute_command("CLIENT", "PAUSE", SLOW_MS, "ALL")
    wait_for_fallback(loop, "store")
    yield


def redis_is_emptied(loop: Loop) -> Iterator[None]:
    stable = loop.pointer().stable
    assert stable is not None
    loop.store._client.flushall()
    yield
    eventually(lambda: loop.pointer().stable == stable, "the pointer")
    eventually(lambda: loop.store.get(parameters_key(PREFIX, stable.parameters)) is not None, "parameters")
    eventually(lambda: bool(loop.store.keys(f"{PREFIX}:verdict:")), "verdicts")
    eventually(lambda: _rows(loop) == len(KNOWN), "vectors")


def _rows(loop: Loop) -> int:
    table = read_table(loop.store, PREFIX, TABLE, EPOCH)
    return 0 if table is None else table.rows


def parameters_are_spoilt(loop: Loop) -> Iterator[None]:
    """In the store, under the right name. An agent that has them goes on; one that starts must not use them."""
    stable = loop.pointer().stable
    assert stable is not None
    with ExitStack() as rest:
        with loop.controller_stopped():  # it would mend them before anyone saw
            loop.store.put(parameters_key(PREFIX, stable.parameters), b"other bytes")
            starting = rest.enter_context(closing(loop.new_agent("agent-1")))
            assert starting.wait_ready(PATIENCE_S)
            decided = [starting.decide(each, DEADLINE_S).decision for each in _requests(loop)]
        assert starting.metrics.total("pin_failures", reason="store") > 0
        assert {each.decided_by for each in decided} == {DecidedBy.BASELINE, DecidedBy.FALLBACK}
        assert {each.fallback_reason for each in decided} == {None, "store"}
        eventually(lambda: starting.metrics.total("served_version") == stable.version, "parameters again")
    yield


def _requests(loop: Loop) -> list:
    return [loop.request(f"spoilt-{number}", random.Random(number)) for number in range(40)]


# The model server ------------------------------------------------------------------------------------------------


def server_is_killed(loop: Loop) -> Iterator[None]:
    loop.kill("model server")
    try:
        wait_for_fallback(loop, "unavailable")
        yield
    finally:
        loop.start_server()


def server_hangs(loop: Loop) -> Iterator[None]:
    loop.signal_server(signal.SIGSTOP)
    try:
        wait_for_fallback(loop, "timeout")
        wait_for_fallback(loop, "avoided")
        yield
    finally:
        loop.signal_server(signal.SIGCONT)


def server_answers_nan(loop: Loop) -> Iterator[None]:
    def nan(found: Prediction) -> Prediction:
        return found._replace(outputs={name: np.full_like(x, np.nan) for name, x in found.outputs.items()})

    loop.server.change = nan
    try:
        yield
    finally:
        loop.server.change = None


def another_version_answers(loop: Loop) -> Iterator[None]:
    loop.server.change = lambda found: found._replace(version=found.version + 1)
    try:
        yield
    finally:
        loop.server.change = None


# The tests -------------------------------------------------------------------------------------------------------

FAULTS = (
    Fault(redis_is_killed, agent("pointer_errors")),
    Fault(redis_is_slow, agent("pointer_errors")),
    Fault(redis_is_emptied, controller("store_refilled")),
    Fault(parameters_are_spoilt, controller("records_restored")),
    Fault(server_is_killed, agent("breaker_opened")),
    Fault(server_hangs, agent("breaker_opened")),
    Fault(server_answers_nan, fallbacks("bad_reply")),
    Fault(another_version_answers, fallbacks("version_mismatch")),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_page_fails_and_the_policy_decides_again(loop: Loop, fault: Fault) -> None:
    publish(loop)
    endure(loop, fault)


def test_after_all_of_it_versions_go_out_as_before(loop: Loop) -> None:
    publish(loop)


def test_every_decision_was_made_with_one_version_whole(loop: Loop) -> None:
    decided = decided_pages(loop)
    assert len(decided) > len(FAULTS)
    check_whole(loop, decided)
