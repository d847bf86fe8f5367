"""Faults between a version's trial on a share and its being given to all, with users there. See faulty_matrix.py."""

from __future__ import annotations

import signal

import pytest

from model_export.desired import PolicyState, read_desired
from model_export.heard import read_heard
from model_export.verdicts import read_verdicts
from pipeline.stores.published import Served, read_heartbeats
from tests.e2e.faulty_loop import Loop, eventually
from tests.e2e.faulty_matrix import PAGES, check_whole, decided_pages
from tests.e2e.faulty_trainer import CONFIG, POLICY, PREFIX

RULES = "guard: {min_pages: 20, slow: 1m}, canary: {share: 0.3, hold: 1s}"
LOOP_CONFIG = CONFIG.replace("load_timeout: 60s}", f"load_timeout: 60s, {RULES}}}")
PUBLISHED = "settled"  # the last step before a version is on its share: the trial is over a second later
STEPS = ("decided", "turned", "recorded", "followed")
pytestmark = [pytest.mark.timeout(600), pytest.mark.needs_redis]


def desired(loop: Loop) -> PolicyState:
    state = read_desired(loop.models)
    assert state is not None
    return state.policies[POLICY]


def on_trial(loop: Loop) -> bool:
    """Published, with nothing left to do but to wait."""
    policy = desired(loop)
    return policy.pointer.canary is not None and policy.pending is None


def promoted(loop: Loop, version: int) -> int:
    return sum(v.outcome == "promoted" and v.version == version for v in read_verdicts(loop.models))


@pytest.mark.parametrize("step", STEPS)
def test_no_page_fails_and_it_is_promoted_once(loop: Loop, step: str) -> None:
    before = loop.pointer().stable
    assert before is not None
    loop.order("one", f"{int(signal.SIGKILL)} {PUBLISHED} {step}")
    candidate = loop.trainer.candidate()
    try:
        eventually(lambda: loop.ended("one") is not None, f"death of the controller after {step}")
        assert loop.ended("one") == -signal.SIGKILL
        version = loop.version_of(candidate)
        assert version is not None
        tried = Served(version, loop.trainer.parameters(candidate))
        turned, recorded = STEPS.index(step) >= 1, STEPS.index(step) >= 2
        left = loop.pointer()
        assert (left.stable, left.canary) == ((tried, None) if turned else (before, tried))
        assert promoted(loop, tried.version) == int(recorded)
        assert (desired(loop).turn is None) == (step == STEPS[-1])

        since = len(loop.pages)
        eventually(lambda: len(loop.pages) >= since + PAGES and loop.policy_decides(since), "pages with no controller")
    finally:
        loop.bring_back()
    eventually(lambda: loop.told("served_version") == tried.version, "a controller that knows what is served")
    assert (loop.pointer().stable, loop.pointer().canary, loop.pointer().previous) == (tried, None, before)
    assert (promoted(loop, tried.version), desired(loop).turn, desired(loop).pointer) == (1, None, loop.pointer())
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since, tried.version), f"pages by version {tried.version}")
    assert loop.failed == []


def test_nothing_is_promoted_while_no_model_server_answers(loop: Loop) -> None:
    since = len(loop.pages)
    loop.order("one", f"{int(signal.SIGSTOP)} {PUBLISHED}")
    loop.trainer.candidate()
    try:
        eventually(lambda: loop.stands_still("one"), "a controller that stands still")  # it would promote meanwhile
        assert on_trial(loop)
        tried = desired(loop).pointer.canary
        assert tried is not None
        eventually(lambda: any(page.version == tried.version for page in loop.pages[since:]), "a page by it")
        loop.kill("model server")
        eventually(lambda: unanswered_on_trial(loop, tried.version), "an agent that says what it meets")
        loop.bring_back()
        eventually(lambda: away_noted(loop) or promoted(loop, tried.version) > 0, "a controller that knows of it")
        assert (loop.pointer().canary, promoted(loop, tried.version)) == (tried, 0)
    finally:
        loop.bring_back()
        loop.kill("model server")
        loop.start_server()
    eventually(lambda: promoted(loop, tried.version) == 1, "a version that goes to all")
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since, tried.version), f"pages by version {tried.version}")
    assert loop.failed == []


def unanswered_on_trial(loop: Loop, version: int) -> bool:
    """By far the most of its pages, of which there are enough to judge it by."""
    beats = [beat for beat in read_heartbeats(loop.store, PREFIX) if beat.canaries.get(POLICY) == version]
    tried = [beat.canary_usage[POLICY] for beat in beats if POLICY in beat.canary_usage]
    return any(usage.pages >= 2 * PAGES and usage.calls < 0.2 * usage.pages for usage in tried)


def away_noted(loop: Loop) -> bool:
    return read_heard(loop.models)[POLICY].anew_ms > 0


def test_every_decision_was_made_with_one_version_whole(loop: Loop) -> None:
    decided = decided_pages(loop)
    assert set(decided) == {*range(1, len(STEPS) + 3)}
    check_whole(loop, decided)
