"""What every fault has to show: no page fails, no decision mixes two versions, the policy decides again without a
person, and a metric says what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np

from pipeline.events import parse
from pipeline.logs.log import EVENTS
from pipeline.logs.opening import open_log
from pipeline.records import DecidedBy, Impression
from pipeline.streaming.outputs import read_all
from tests.e2e.faulty_loop import Loop, eventually

PAGES = 20  # at least, while a fault lasts
_MIXED = 1e-3  # what a mixture of two versions would be off by, at least somewhere; see the test of it
_EXACT = 1e-5


class Fault(NamedTuple):
    """`strike` does harm up to its yield. After that it does what supervisors do, no more: start what has ended, and
    let what stood still go on; also where the test fails, for the sake of the next ones."""

    strike: Callable[[Loop], Iterator[None]]
    sign: Callable[[Loop], float]  # the metric that an alert looks at: it rises while the fault lasts

    @property
    def name(self) -> str:
        return self.strike.__name__


def endure(loop: Loop, fault: Fault) -> None:
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since), "pages by the policy before the fault")
    eventually(lambda: loop.told("holds_lease") == 1, "a controller in charge before the fault")
    before, since = fault.sign(loop), len(loop.pages)
    with contextmanager(fault.strike)(loop):
        eventually(lambda: fault.sign(loop) > before, "a metric that says what happened")
        eventually(lambda: len(loop.pages) >= since + PAGES, "pages while the fault lasts")
    since = len(loop.pages)
    eventually(lambda: loop.policy_decides(since), "pages by the policy after the fault")
    assert loop.failed == []


def publish(loop: Loop) -> None:
    """A new version goes out as if nothing had happened."""
    candidate = loop.trainer.candidate()
    eventually(lambda: loop.verdicts().get(candidate) == "accepted", "a new version")
    version, since = loop.version_of(candidate), len(loop.pages)
    eventually(lambda: loop.policy_decides(since, version), f"pages by version {version}")
    assert loop.failed == []


def wait_for_fallback(loop: Loop, reason: str) -> None:
    before = fallbacks(reason)(loop)
    eventually(lambda: fallbacks(reason)(loop) > before, f"a page with reason {reason}")


def fallbacks(reason: str) -> Callable[[Loop], float]:
    return agent("fallbacks", reason=reason)


def agent(name: str, **labels: str) -> Callable[[Loop], float]:
    return lambda loop: loop.agent.metrics.total(name, **labels)


def controller(name: str, **labels: str) -> Callable[[Loop], float]:
    return lambda loop: loop.told(name, **labels)


def logged_pages(loop: Loop) -> list[Impression]:
    """Stops the loop. The decision log, which has every page that was asked for, once."""
    loop.stop()
    with closing(open_log(f"file://{loop.folder}/log")) as log:
        pages = [parse(record.payload, 10**6) for record in read_all(log, EVENTS)]
    assert sorted(page.request_id for page in pages if page.request_id in loop.asked) == sorted(loop.asked)
    return pages


def decided_pages(loop: Loop) -> dict[int, list[Impression]]:
    """Stops the loop. Those that a policy decided, by version."""
    decided: dict[int, list[Impression]] = {}
    for page in logged_pages(loop):
        if page.decision.decided_by is DecidedBy.POLICY:
            decided.setdefault(page.decision.model_version, []).append(page)
    return decided


def check_whole(loop: Loop, decided: dict[int, list[Impression]]) -> None:
    """What a version says about a page's state, by its own weights and its own parameters, is what the page was decided
    with; the parameters of another version would have said something else."""
    candidates = loop.candidates()
    for version, pages in decided.items():
        candidate = candidates[version]
        assert {page.decision.parameters for page in pages} == {loop.trainer.parameters(candidate)}
        means = np.array([page.decision.actions[0].propensity.mean for page in pages])
        states = [page.state for page in pages]
        np.testing.assert_allclose(means, loop.trainer.means(candidate, states), rtol=0, atol=_EXACT)
        if version > 1:  # the baseline, whatever its parameters
            others = [other for other in candidates.values() if other != candidate]
            mixed = [loop.trainer.means(candidate, states, parameters_of=other) for other in others]
            assert min(np.abs(means - each).max() for each in mixed) > _MIXED
