"""A new version on a share of its bucket first, with users there: a good one goes to all of them, a bad one not."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.verdicts import read_verdicts
from pipeline.agent.buckets import on_canary
from pipeline.records import DecidedBy, Impression
from pipeline.serving.client import Prediction
from tests.e2e.faulty_loop import Loop, Page, eventually
from tests.e2e.faulty_matrix import check_whole, decided_pages, logged_pages
from tests.e2e.faulty_trainer import CONFIG, POLICY

SHARE = 0.3
PAGES = 100  # of the canary, and of the version beside it
RULES = f"guard: {{min_pages: {PAGES}, slow: 1m}}, canary: {{share: {SHARE}, hold: 1s}}"
LOOP_CONFIG = CONFIG.replace("load_timeout: 60s}", f"load_timeout: 60s, {RULES}}}")
pytestmark = [pytest.mark.timeout(600), pytest.mark.needs_redis]


def on_share(loop: Loop, page: Impression) -> bool:
    return on_canary(loop.config.buckets, POLICY, page.session_id, SHARE)


def fallbacks_since(loop: Loop, since: int) -> list[Page]:
    return [page for page in loop.pages[since:] if (page.bucket, page.decided_by) == ("treated", "fallback")]


def outcome(loop: Loop, candidate: str) -> str:
    return loop.verdicts().get(candidate, "")


def test_most_users_meet_a_version_only_when_it_has_done_well_on_a_share(loop: Loop) -> None:
    first = loop.trainer.candidate()
    eventually(lambda: outcome(loop, first) == "canary", "a version on its share")
    eventually(lambda: outcome(loop, "canary-2") == "promoted", "a version that goes to all")
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since, version=2), "pages by it")

    def nonsense(found: Prediction) -> Prediction:
        if found.version == 2:
            return found
        return found._replace(outputs={name: np.full_like(x, np.nan) for name, x in found.outputs.items()})

    loop.server.change = nonsense
    since = len(loop.pages)
    second = loop.trainer.candidate()
    eventually(lambda: loop.told("verdicts", outcome="sent_back") == 1, "a version that is sent back")
    assert outcome(loop, second) == "canary"
    [verdict] = [v for v in read_verdicts(loop.models) if v.outcome == "sent_back"]
    assert (verdict.version, verdict.reason, verdict.checks[0].value > 0.9) == (3, "live_fallbacks", True)
    eventually(lambda: len(fallbacks_since(loop, since)) >= PAGES, "the pages that it was judged by, with their users")
    treated = [page for page in loop.pages[since:] if page.bucket == "treated"]
    assert len(fallbacks_since(loop, since)) < 0.5 * len(treated)
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since, version=2), "pages by the version beside it")
    assert (loop.pointer().canary, loop.pointer().frozen, loop.failed) == (None, True, [])

    decided = decided_pages(loop)
    assert set(decided) == {1, 2}
    check_whole(loop, decided)
    check_shares(loop, decided)


def check_shares(loop: Loop, decided: dict[int, list[Impression]]) -> None:
    """While version 2 was tried: who was on the share, and only they, had it."""
    began_ms = min(page.time_ms for page in decided[2])
    ended_ms = min(page.time_ms for page in decided[2] if not on_share(loop, page))
    tried = [page for page in decided[2] if page.time_ms < ended_ms]
    beside = [page for page in decided[1] if began_ms < page.time_ms < ended_ms]
    assert all(on_share(loop, page) for page in tried)
    assert sum(on_share(loop, page) for page in beside) <= 3  # under way when it came: a page for each visitor
    assert len(tried) + fallbacks_on_trial(loop, ended_ms) >= PAGES
    assert 0.2 < len(tried) / (len(tried) + len(beside)) < 0.4


def fallbacks_on_trial(loop: Loop, ended_ms: int) -> int:
    """Of users on the share, while version 2 was tried: a page is one of the version that would have decided it."""
    [began_ms] = [v.time_ms for v in read_verdicts(loop.models) if (v.version, v.reason) == (2, "canary")]
    pages = [p for p in logged_pages(loop) if began_ms <= p.time_ms < ended_ms and on_share(loop, p)]
    return sum((p.decision.bucket, p.decision.decided_by) == ("treated", DecidedBy.FALLBACK) for p in pages)
