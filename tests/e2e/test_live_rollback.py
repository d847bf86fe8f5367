"""A version that passes all checks and goes wrong on live pages: it is sent back while users are there."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.heard import read_heard
from model_export.switches import release
from model_export.verdicts import read_verdicts
from pipeline.serving.client import Prediction
from tests.e2e.faulty_loop import Loop, eventually
from tests.e2e.faulty_matrix import check_whole, decided_pages, publish
from tests.e2e.faulty_trainer import CONFIG, POLICY, PREFIX

PAGES = 50
LOOP_CONFIG = CONFIG.replace("load_timeout: 60s}", f"load_timeout: 60s, guard: {{min_pages: {PAGES}, slow: 1m}}}}")
pytestmark = [pytest.mark.timeout(600), pytest.mark.needs_redis]


def heard_of(loop: Loop, version: int) -> bool:
    """Whether the controller knows enough of a version to blame the next one for what begins with it. It looks every
    second, and not while it is publishing: what the agent has said by now may come too late for that."""
    known = read_heard(loop.models).get(POLICY)
    return known is not None and known.version == version and known.usage.pages >= PAGES


def test_a_version_that_answers_nonsense_on_live_pages_goes_back(loop: Loop) -> None:
    publish(loop)
    eventually(lambda: heard_of(loop, 2), "what the agent saw of a version that is fine")
    before = loop.pointer().stable

    def nonsense(found: Prediction) -> Prediction:
        if found.version == 2:
            return found
        return found._replace(outputs={name: np.full_like(x, np.nan) for name, x in found.outputs.items()})

    loop.server.change = nonsense
    given_up = loop.trainer.candidate()
    eventually(lambda: loop.told("verdicts", outcome="sent_back") == 1, "a version that is sent back")
    [verdict] = [v for v in read_verdicts(loop.models) if v.tier == "live"]
    assert (verdict.version, verdict.reason) == (3, "live_fallbacks")
    assert verdict.checks[0].value > 0.9
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since, version=2), "pages by the version before")
    assert (loop.pointer().stable, loop.pointer().frozen) == (before, True)
    eventually(lambda: loop.told("frozen") == 1, "a gauge that says so")
    assert loop.verdicts()[given_up] == "accepted"

    loop.server.change = None
    release(loop.store, PREFIX, POLICY)
    stubborn = loop.trainer.candidate()
    eventually(lambda: loop.verdicts().get(stubborn) == "before_rollback", "a candidate of a trainer that goes on")
    loop.trainer.go_back()
    publish(loop)
    check_whole(loop, decided_pages(loop))
