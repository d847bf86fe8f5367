"""A version that users meet: what agents say of it, when that sends it back, and what the agents count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from model_export.heard import Heard, heard
from model_export.live import LiveWatch, live_checks, unanswered
from model_export.verdicts import read_verdicts
from pipeline.agent.metering import Meter, MeteredServer
from pipeline.config.schema import Guard
from pipeline.serving.client import Prediction
from pipeline.serving.errors import TooLate, Unavailable
from pipeline.stores.published import GoBack, Heartbeat, Usage, read_heartbeats, write_heartbeat

RULES = Guard(min_pages=100, max_fault_share=0.05, max_slow_share=0.05)
FINE = Usage(pages=200, faults=0, calls=200, slow=2)


# The rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "before", "failed"),
    [
        pytest.param(FINE, FINE, [], id="fine"),
        pytest.param(Usage(200, 10, 200, 10), FINE, [], id="exactly at both bounds"),
        pytest.param(Usage(200, 11, 200, 0), FINE, ["live_fallbacks"], id="beyond the bound of faults"),
        pytest.param(Usage(200, 0, 200, 11), FINE, ["live_latency"], id="beyond the bound of slow calls"),
        pytest.param(Usage(200, 200, 0, 0), FINE, ["live_fallbacks"], id="never called, for it is refused"),
        pytest.param(Usage(99, 99, 99, 99), FINE, [], id="too few pages"),
        pytest.param(Usage(200, 200, 200, 200), Usage(99, 0, 99, 0), [], id="too few pages of the one before"),
        pytest.param(Usage(200, 200, 200, 200), None, [], id="nothing known of the one before"),
        pytest.param(Usage(200, 0, 200, 40), Usage(200, 0, 200, 20), [], id="twice as slow as a slow one"),
        pytest.param(Usage(200, 0, 200, 42), Usage(200, 0, 200, 20), ["live_latency"], id="more than twice as slow"),
        pytest.param(Usage(200, 0, 99, 99), FINE, [], id="a server that is left alone"),
    ],
)
def test_a_version_is_blamed_for_what_began_with_it(now: Usage, before: Usage | None, failed: list[str]) -> None:
    assert [check.name for check in live_checks(RULES, now, before) if not check.passed] == failed


# The controller --------------------------------------------------------------------------------------------------


@pytest.fixture
def served(world: Any) -> Any:
    """Version 2, after a version 1 of which agents said that it was fine."""
    world.config = replace(world.config, publish=replace(world.config.publish, guard=RULES))
    world.bootstrap()
    say(world, 1, FINE)
    world.candidate(50, bias=1.2)
    return world


def say(world: Any, version: int, usage: Usage, agent: str = "agent") -> None:
    write_heartbeat(world.store, "fd", Heartbeat(agent, world.now_ms, {"rl": version}, {"rl": usage}))


def meet(world: Any, *usages: Usage) -> None:
    """Agents that have followed the pointer to version 2 say what they see of it, in the same term of a controller."""

    def on_step(policy: str, step: str) -> None:
        if step == "settled" and world.pointer().stable.version == 2:
            world.now_ms += 2_000
            for number, usage in enumerate(usages):
                say(world, 2, usage, f"agent-{number}")
            world.candidate(70, bias=1.3)

    world.on_step = on_step


def test_a_version_that_is_refused_goes_back_and_its_trainer_with_it(served: Any) -> None:
    meet(served, Usage(60, 30, 30, 0), Usage(60, 20, 40, 0))
    done = served.run()
    assert (done.accepted, done.concluded, done.kept) == (1, {"sent_back": 1}, {"before_rollback": 1})
    pointer = served.pointer()
    assert (pointer.stable.version, pointer.previous.version, pointer.frozen) == (1, 2, True)
    assert pointer.back == GoBack(1, f"{0:012d}")
    assert served.desired().policies["rl"].pointer == pointer
    (verdict,) = [v for v in read_verdicts(served.models) if v.tier == "live"]
    assert (verdict.outcome, verdict.reason, verdict.version) == ("sent_back", "live_fallbacks", 2)
    assert verdict.checks[0].value == pytest.approx(50 / 120)


def test_a_version_that_is_fine_stays(served: Any) -> None:
    meet(served, FINE)
    assert served.run().concluded == {}
    assert served.pointer().stable.version == 3


def test_what_is_said_of_another_version_does_not_count(served: Any) -> None:
    meet(served, FINE)
    say(served, 1, FINE, "agent-9")
    write_heartbeat(served.store, "fd", Heartbeat("slow", served.now_ms, {"rl": 1}, {"rl": Usage(9_000, 9_000, 0, 0)}))
    served.run()
    assert served.pointer().stable.version == 3


def test_what_agents_said_holds_while_they_are_not_heard_of(world: Any) -> None:
    """On a busy machine: otherwise the next version could be blamed for nothing."""
    watch = LiveWatch(world.site()[0], RULES)
    for version, usages in ((2, [FINE]), (2, []), (3, [Usage(120, 120, 120, 0)])):
        beats = [Heartbeat("agent", world.now_ms, {"rl": version}, {"rl": usage}) for usage in usages]
        watch.hear("rl", version, beats)
    assert [check.name for check in watch.checks("rl") if not check.passed] == ["live_fallbacks"]


def test_what_agents_say_adds_up() -> None:
    """One goes on, one begins anew under its name, one is gone, one comes."""
    first = heard(None, 2, {"a": Usage(100, 1, 90, 3), "b": Usage(50, 0, 50, 0), "c": Usage(10, 10, 0, 0)})
    assert first.usage == Usage(160, 11, 140, 3)
    second = heard(first, 2, {"a": Usage(120, 1, 110, 4), "b": Usage(7, 0, 7, 0), "d": Usage(3, 0, 3, 0)})
    assert second.usage == Usage(160 + 20 + 7 + 3, 11, 140 + 20 + 7 + 3, 4)
    assert heard(second, 2, {"c": Usage(11, 10, 1, 0)}).usage == Usage(191, 11, 171, 4)
    assert heard(second, 3, {"a": Usage(1, 0, 1, 0)}) == Heard(
        3, Usage(1, 0, 1, 0), second.usage, agents={"a": Usage(1, 0, 1, 0)}
    )


def test_a_controller_that_takes_over_knows_how_the_version_before_did(served: Any) -> None:
    """Told while version 1 served; then version 2 went out, and the controller ended before it heard of it."""
    served.run("one")
    assert served.pointer().stable.version == 2
    served.now_ms += 2_000
    say(served, 2, Usage(200, 100, 100, 0))
    assert served.run("two").concluded == {"sent_back": 1}
    assert served.pointer().stable.version == 1


def test_and_how_the_one_that_serves_does(served: Any) -> None:
    meet(served, FINE)
    served.run("one")  # version 3 is out, and nothing was heard of it
    served.now_ms += 2_000
    say(served, 3, Usage(200, 100, 100, 0))
    assert served.run("two").concluded == {"sent_back": 1}
    assert served.pointer().stable.version == 2


def test_a_file_that_is_something_else_is_begun_anew(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    (served.models / "live.json").write_bytes(b"{")
    meet(served, Usage(200, 200, 0, 0))
    assert served.run().concluded == {"sent_back": 1}
    assert "not what agents said" in caplog.text


def test_without_a_guard_nothing_goes_back(served: Any) -> None:
    served.config = replace(served.config, publish=replace(served.config.publish, guard=None))
    meet(served, Usage(200, 200, 0, 0))
    assert served.run().concluded == {}


# The agent -------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.answers: list[float | Exception] = []

    def predict(self, model: str, inputs: Any, *, version: int | None = None, timeout_s: float) -> Prediction:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self._clock[0] += answer
        return Prediction(version or 0, {})


def test_calls_are_timed_by_version_and_a_server_that_is_away_has_not_answered() -> None:
    clock = [0.0]
    server, meter = Server(clock), Meter(slow_s=0.05)
    metered = MeteredServer(server, meter, lambda: clock[0])
    server.answers = [0.01, 0.06, TooLate("late"), Unavailable("away")]
    for _ in range(2):
        metered.predict("m", {"x": np.zeros(1)}, version=2, timeout_s=1)
    for error in (TooLate, Unavailable):
        with pytest.raises(error):
            metered.predict("m", {"x": np.zeros(1)}, version=2, timeout_s=1)
    assert meter.read({("m", 2)}) == {("m", 2): Usage(calls=3, slow=2)}


def test_calls_for_several_pages_are_judged_as_those_for_one_are() -> None:
    clock = [0.0]
    server, meter = Server(clock), Meter(slow_s=0.05)
    metered = MeteredServer(server, meter, lambda: clock[0])
    batch = {"x": np.zeros((10, 3))}
    server.answers = [*([0.01] * 20), *([0.06] * 20), TooLate("late")]
    for version in (1, 2):
        for _ in range(20):
            metered.predict("m", batch, version=version, timeout_s=1)
            for _ in range(10):
                meter.page("m", version, None)
    fine, slow = (meter.read({("m", version), ("m", 2)})[("m", version)] for version in (1, 2))
    assert (fine, slow) == (Usage(200, 0, 200, 0), Usage(200, 0, 200, 200))
    assert [c.name for c in live_checks(RULES, slow, fine) if not c.passed] == ["live_latency"]
    assert unanswered(fine, usual=1.0).passed
    with pytest.raises(TooLate):
        metered.predict("m", batch, version=2, timeout_s=1)
    assert meter.read({("m", 2)})[("m", 2)] == Usage(200, 0, 210, 210)


def test_a_version_that_is_no_longer_in_use_is_forgotten() -> None:
    meter = Meter(slow_s=1.0)
    for version, reason in ((1, None), (2, "bad_reply"), (2, "store"), (2, None)):
        meter.page("m", version, reason)
    assert meter.read({("m", 1), ("m", 2)}) == {("m", 1): Usage(pages=1), ("m", 2): Usage(pages=3, faults=1)}
    assert meter.read({("m", 2)}) == {("m", 2): Usage(pages=3, faults=1)}
    assert meter.read({("m", 1)}) == {("m", 1): Usage()}


def test_a_heartbeat_of_before_there_was_usage_is_understood(world: Any) -> None:
    write_heartbeat(world.store, "fd", Heartbeat("agent", 5, {"rl": 2}))
    assert b"usage" not in (world.store.get("fd:agent:agent") or b"usage")
    assert read_heartbeats(world.store, "fd")[0].usage == {}
