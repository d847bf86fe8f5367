"""The line of a live loop: what it says, from the files as they grow."""

from __future__ import annotations

from typing import Any

from pageturn.progress import Progress
from pageturn.traffic_log import AskedPage
from pipeline.simulation.outcomes import clustered

SOME = [1.0, 1.2, 0.8, 1.1, 0.9]


def pages(made: Any, count: int, by: str | None, bucket: str) -> None:
    named = {"bucket": bucket} if by else {"user_id": made.user(bucket)}
    made.asked(*(AskedPage(made.start_ms, f"{bucket}-{by}-{n}", 1.0, decided_by=by, **named) for n in range(count)))


def test_shares_are_those_of_the_learned_buckets_since_the_last_line(made: Any):
    progress = Progress(made.run)
    assert progress.line().startswith("0 pages | 0 ingested, 0 updates | versions rl_a 1, rl_b 1 |")
    pages(made, 5, "policy", "rl_a")
    pages(made, 1, "fallback", "rl_b")
    pages(made, 2, None, "rl_a")
    pages(made, 7, None, "control")
    pages(made, 20, "baseline", "control")
    assert progress.line().startswith("35 pages | learned buckets: 62 % policy, 12 % fallback, 25 % unanswered |")
    pages(made, 3, "policy", "rl_b")
    assert progress.line().startswith("38 pages | learned buckets: 100 % policy |")
    pages(made, 1, "baseline", "control")
    assert progress.line().startswith("39 pages | 0 ingested")


def test_rewards_are_per_visit_with_half_of_their_interval(made: Any):
    progress = Progress(made.run)
    assert progress.line().endswith("reward per visit - learned, - baseline")
    made.visits("rl_a", *SOME, None)
    made.visits("control", 2.0)
    half = clustered([*SOME, 0.0], list("abcdef")).half
    assert progress.line().endswith(f"reward per visit 0.83 ± {half:.2f} learned, 2.00 baseline")


def test_what_was_learned_and_published_is_that_of_the_last_round(made: Any):
    progress = Progress(made.run)
    made.learned(*({"time_ms": n, "transitions": 64 * n, "updates": 16 * n} for n in (1, 2)))
    made.verdict(1, "accepted", version=2)
    made.verdict(2, "refused", reason="drift", version=3)
    assert "| 128 ingested, 32 updates | versions rl_a 2, rl_b 1 |" in progress.line()
    made.verdict(3, "accepted", version=4, reason="canary")  # tried, and not served yet
    assert "versions rl_a 2, rl_b 1 |" in progress.line()
    with (made.run.trainer / "metrics.jsonl").open("ab") as file:
        file.write(b'{"time_ms": 3, "trans')  # on its way to the disk
    assert "| 128 ingested, 32 updates |" in progress.line()
