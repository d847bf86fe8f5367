"""What was served to all, by what verdicts say: not what was only tried."""

from __future__ import annotations

import pytest

from model_export.checks import CANARY, Outcome, Verdict
from model_export.served import Serving, serving, went_out

BOOTSTRAP = Verdict("0", "rl", "bootstrap", "accepted", "", "", time_ms=10, version=1)


def said(time_ms: int, outcome: Outcome, version: int, reason: str = "", before: int | None = None) -> Verdict:
    return Verdict(
        f"{time_ms}", "rl", "every_version", outcome, reason, "", time_ms=time_ms, version=version,
        accepted_before=before, certified=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param((), None, id="nothing yet"),
        pytest.param((said(20, "accepted", 2),), Serving(2, 20), id="accepted for all"),
        pytest.param((said(20, "accepted", 2, CANARY),), Serving(1, 10), id="only tried"),
        pytest.param((said(20, "accepted", 2, CANARY), said(30, "promoted", 2)), Serving(2, 30), id="promoted"),
        pytest.param(
            (said(20, "accepted", 2, CANARY), said(30, "sent_back", 2, "live_latency", before=1)),
            Serving(1, 10),
            id="tried, and sent back",
        ),
        pytest.param(
            (said(20, "accepted", 2), said(30, "sent_back", 2, "live_latency", before=1)),
            Serving(1, 30),
            id="sent back from all",
        ),
        pytest.param((said(20, "accepted", 3), said(30, "ended", 3, "worse")), Serving(1, 30), id="ended"),
        pytest.param((said(20, "refused", 2, "drift"), said(30, "superseded", 0)), Serving(1, 10), id="never out"),
    ],
)
def test_the_version_that_serves(verdicts: tuple[Verdict, ...], expected: Serving | None) -> None:
    assert serving((BOOTSTRAP, *verdicts) if verdicts else ()) == expected


def test_when_each_version_went_to_all() -> None:
    tried, other = said(20, "accepted", 2, CANARY), said(25, "accepted", 3)
    found = went_out((BOOTSTRAP, tried, other, said(60, "promoted", 2), said(70, "promoted", 9)))
    assert [(out.verdict, out.since_ms, out.tried_ms) for out in found] == [
        (BOOTSTRAP, 10, None),
        (other, 25, None),
        (tried, 60, 40),
    ]
