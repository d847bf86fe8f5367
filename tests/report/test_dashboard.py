"""The live page of a run: what it tells, that it follows the files, who may ask, and what a browser makes of it."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any

import msgspec
import pytest

from pageturn.dashboard.live import Live
from pageturn.dashboard.server import DashboardError, serving
from pageturn.report.policies import thinned
from pageturn.supervisor import PartEvent
from pageturn.traffic_log import AskedPage
from pipeline.serving.launch import free_port
from pipeline.simulation.outcomes import clustered

PATIENCE_S = 250.0  # nothing rests on it


class Clock:
    def __init__(self, made: Any, after_s: float) -> None:
        self.now_s = made.start_ms / 1000 + after_s

    def __call__(self) -> float:
        return self.now_s


def live_of(made: Any, after_s: float = 120) -> tuple[Live, Clock]:
    clock = Clock(made, after_s)
    return Live(made.run, clock), clock


# What it tells ---------------------------------------------------------------------------------------------------


def test_an_empty_run_is_told_as_one(made: Any) -> None:
    state = live_of(made)[0].state()
    assert (state.up, state.pages, state.ingested, state.parts, state.verdicts) == (False, 0, 0, (), ())
    assert [(b.bucket, b.visits, b.reward) for b in state.buckets] == [("control", 0, None), ("rl_a", 0, None),
                                                                       ("rl_b", 0, None)]  # fmt: skip
    assert [(p.policy, p.version, p.since_ms) for p in state.policies] == [("rl_a", 1, None), ("rl_b", 1, None)]


def test_rates_are_those_of_the_last_ten_seconds(lively: Any) -> None:
    """Pages come every two seconds, one in four unanswered; rounds every five, of 64 transitions and 16 updates."""
    rates = live_of(lively, after_s=95.5)[0].state().rates
    assert (rates.pages, rates.answered) == (1.7, 1.2)  # pages 43 to 59, of which 43, 47, 51, 55 and 59 had no answer
    assert (rates.transitions, rates.updates) == (64 / 5, 16 / 5)


def test_each_policys_version_verdicts_and_share(lively: Any) -> None:
    rl_a, rl_b = live_of(lively, after_s=100)[0].state().policies
    assert (rl_a.version, rl_a.accepted, rl_a.refused, rl_a.by_policy) == (3, 3, 1, 1.0)
    assert rl_a.since_ms == lively.start_ms + 90_000
    assert (rl_b.version, rl_b.by_policy) == (1, 0.0)  # its pages fell back
    lively.verdict(95, "accepted", version=4, reason="canary")  # tried, and not served yet
    assert live_of(lively, after_s=100)[0].state().policies[0].version == 3


def test_what_visits_earn_with_an_interval(lively: Any) -> None:
    control, rl_a, _ = live_of(lively)[0].state().buckets
    expected = clustered([2.0 + n % 3 for n in range(30)], [str(n) for n in range(30)])
    assert (rl_a.visits, rl_a.learned, control.learned) == (30, True, False)
    assert (rl_a.reward, rl_a.half) == (pytest.approx(expected.mean), pytest.approx(expected.half))
    known = [value for value in rl_a.over_time if value is not None]
    assert len(known) > 5
    assert min(known) >= 2.0
    assert max(known) <= 4.0


def test_parts_that_are_down_and_that_were_started_again(lively: Any) -> None:
    lively.parts(PartEvent(lively.start_ms + 40_000, "stream", "ended", 13, 1))
    parts = live_of(lively)[0].state().parts
    assert [(part.name, part.up, part.starts) for part in parts] == [("agent", True, 2), ("stream", False, 1)]


def test_curves_are_thinned_and_end_with_the_last_round(made: Any) -> None:
    made.learned(*({"time_ms": made.start_ms + n, "transitions": n, "value_mean": n / 2} for n in range(1, 1_001)))
    curves = live_of(made)[0].state().curves
    assert len(curves.transitions) <= 130
    assert (curves.transitions[-1], curves.learning["value_mean"][-1]) == (1_000, 500.0)


def test_what_begins_within_a_point_is_in_it() -> None:
    rows = [{"x": float(i)} | ({"loss": 2.0} if i % 2 else {}) for i in range(10_000)]
    assert all(row["loss"] == 2.0 for row in thinned(rows))


def test_it_goes_on_reading_where_it_was(lively: Any) -> None:
    live, clock = live_of(lively)
    before = live.state()
    assert [verdict.outcome for verdict in before.verdicts] == ["accepted", "refused", "accepted", "accepted"]
    lively.asked(AskedPage(int(clock.now_s * 1000), "new", 3.0, "rl_a", "policy"))
    lively.verdict(121, "accepted", version=4)
    lively.visits("control", 50.0, first_s=121)
    assert live.state() is before  # many may watch, the files are read twice a second at most
    clock.now_s += 4
    after = live.state()
    assert (after.pages, after.policies[0].version) == (before.pages + 1, 4)
    assert after.buckets[0].reward > before.buckets[0].reward


def test_values_that_are_no_numbers_are_no_numbers_of_json(made: Any) -> None:
    made.learned({"time_ms": made.start_ms, "transitions": 64, "updates": 1, "value_mean": 1e400, "q_abs/rl_a": 1.0})
    made.visits("control", 1.0)  # one user: no interval
    state = json.loads(msgspec.json.encode(live_of(made)[0].state()), parse_constant=pytest.fail)
    assert state["buckets"][0]["half"] is None


# Who may ask -----------------------------------------------------------------------------------------------------


def asked(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def test_page_and_state_are_served(lively: Any) -> None:
    with serving(live_of(lively)[0], free_port()) as port:  # none that others are given once it is free again
        assert "<title>Pageturn" in asked(port, "/")[1]
        status, body = asked(port, "/state.json")
        assert (status, json.loads(body)["pages"]) == (200, 60)
        assert asked(port, "/../run.json")[0] == asked(port, "/nothing")[0] == 404
    with closing(socket.socket()) as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0


def test_another_sites_name_for_this_machine_is_refused(lively: Any) -> None:
    """DNS rebinding: a page from elsewhere must not read the run through its visitor's browser."""
    with serving(live_of(lively)[0], 0) as port:
        assert asked(port, "/state.json", host=f"evil.example:{port}")[0] == 403


def test_a_port_that_is_taken_is_explained(lively: Any) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DashboardError, match="cannot be listened on: Address already in use"):
            serving(live_of(lively)[0], taken.getsockname()[1]).__enter__()


# What a browser makes of it --------------------------------------------------------------------------------------

GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_and_has_nothing_to_complain_about(lively: Any, chromium: Any, width: int) -> None:
    with serving(live_of(lively)[0], 0) as port:
        chromium.size(width, 900)
        chromium.scheme("light")
        chromium.open(f"http://127.0.0.1:{port}/")
        chromium.await_true("document.querySelectorAll('#verdicts tr').length === 4")
        assert chromium.value("document.getElementById('name').textContent") == "made"
        assert chromium.value("document.querySelectorAll('#loop rect.up').length") == 2
        assert chromium.value("document.querySelectorAll('#earning circle').length") == 3
        assert chromium.value("document.querySelectorAll('#reward path').length") == 3
        assert chromium.value("document.documentElement.scrollWidth") <= width
        light = chromium.value(GROUND)
        chromium.scheme("dark")
        chromium.await_true(f"{GROUND} !== {json.dumps(light)}")
        assert chromium.errors == []
        assert {url.split("/")[2] for url in chromium.requests if url.startswith("http")} == {f"127.0.0.1:{port}"}


def test_the_page_follows_and_says_when_nobody_answers(lively: Any, chromium: Any) -> None:
    live, clock = live_of(lively)
    with serving(live, 0) as port:
        chromium.open(f"http://127.0.0.1:{port}/")
        chromium.await_true("document.querySelectorAll('#verdicts tr').length === 4")
        lively.verdict(121, "refused", reason="drift", detail="<b>drift</b>: expected <= 1, found 2")
        clock.now_s += 4
        chromium.await_true("document.querySelectorAll('#verdicts tr').length === 5")
        assert "<b>drift</b>" in chromium.value("document.querySelector('#verdicts tr').textContent")
    chromium.await_true("document.getElementById('standing').textContent.includes('no answer')")
