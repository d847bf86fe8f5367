"""DRN in the loop: simulated readers, minor and major updates, and a report that says by which evidence they came.

Periods are seconds here. What is asserted is that each kind of update comes about, not how many or how good.
"""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from pageturn.loop import running
from pageturn.measures import measure, rows
from pageturn.measuring.updates import decided
from pageturn.processes import pageturn
from pageturn.report import write_report
from pageturn.run import Run, new_run
from pageturn.supervisor import Part
from pageturn.table import render
from pipeline.logs.log import TRANSITIONS
from pipeline.logs.opening import open_log
from pipeline.ranking.updates import Update

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "absence: 60s, remember: 10m": "absence: 10s, remember: 10m", "session_gap: 60s": "session_gap: 10s",
    "by: gradient, every: 10s": "by: gradient, every: 5s", "by: dbgd, every: 10s": "by: dbgd, every: 5s",
    "min_decisive: 8}\n  major": "min_decisive: 3}\n  major", "every: 20s, updates: 60": "every: 6s, updates: 20",
    "history: 2m, min_decisive: 8": "history: 1m, batch: 16, min_decisive: 3",
    "click: 2s, order: 2s": "click: 1s, order: 1s",
}  # fmt: skip
PATIENCE_S = 400.0
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = (ROOT / "feature_configs" / "news_drn.yaml").read_text()
    for old, new in QUICK.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tmp_path / "news.yaml").write_text(text)
    return new_run(tmp_path / "run", tmp_path / "news.yaml", redis=False)


def enough(updates: tuple[Update, ...]) -> bool:
    """A step by gradient, a candidate that users have seen, and a major update that they were asked about."""
    asked = [u for u in updates if any(o.pages for o in u.evidence)]
    kinds = {(u.kind, u.by) for u in asked} | {(u.kind, u.by) for u in updates if u.by == "gradient" and u.taken}
    return kinds == {("minor", "gradient"), ("minor", "dbgd"), ("major", "replay")}


def test_the_news_learn_in_the_loop(run: Run) -> None:
    stop = threading.Event()
    with running(run, stop, lambda _: None) as supervisor:
        words = ("--run", str(run.folder), "--visits-per-s", "4", "--patience-ms", "30000")
        supervisor.add(Part("traffic", pageturn("simulate", *words)))
        supervisor.watch(stop, PATIENCE_S, lambda: enough(decided(run.trainer)))
    assert enough(decided(run.trainer)), decided(run.trainer)
    measures = measure(run)
    assert measures.asked.unanswered == 0
    assert measures.accounting.missing == 0
    assert measures.asked.decided_by["policy"] > 0
    assert {v.outcome for v in measures.verdicts} >= {"accepted"}
    table = render(rows(measures), "news")
    for line in ("minor updates of gradient by gradient", "minor updates of dbgd by dbgd", "major updates of"):
        assert line in table
    html = write_report(run, measures).read_text()
    for said in (
        "Updates of the rankings",
        "What users said of what was tried",
        "accepted as version",
    ):
        assert said in html
    with closing(open_log(run.log_url)) as log:
        assert log.end_offset(TRANSITIONS, 0) > 0
