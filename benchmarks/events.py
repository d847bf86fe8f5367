"""A log of simulated feed traffic as it is in production: twice, in disorder, too late, not to be read at all."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pipeline.agent.requests import PageRequest
from pipeline.config.schema import (
    ActionDimension,
    Attribution,
    Bucket,
    Buckets,
    Ddpg,
    Dense,
    FeatureConfig,
    PayPlusAPhi,
    Policy,
    Stream,
)
from pipeline.events import encode
from pipeline.logs.log import Entry
from pipeline.records import DecidedBy, Decision, Event, Feedback, Impression, State
from pipeline.simulation.params import World
from pipeline.simulation.traffic import Flow, Traffic, VirtualClock

START_MS = 1_700_000_000_000
_LATE, _MALFORMED = 0.01, 0.001  # shares of events
USERS_OWN_TIME = Flow(visits_per_s=20.0, pace=1.0, disordered=0.1, disorder_ms=4_000, duplicated=0.05)


def _config(stream: Stream) -> FeatureConfig:
    world = World()
    return FeatureConfig(
        schema_version=1,
        name="benchmark",
        kv_prefix="bench",
        features=(Dense("page", "page.index"),),
        fusion=PayPlusAPhi(world.objective.phi),
        action=(ActionDimension("a", world.objective.baseline, (world.objective.low, world.objective.high)),),
        reward=world.objective.reward,
        algorithm=Ddpg(gamma=world.objective.gamma),
        policies=(Policy("base", "baseline"),),
        buckets=Buckets("benchmark", (Bucket("all", "base", (0, 99)),)),
        stream=stream,
    )


MINUTES = _config(  # windows of the length that a feed has
    Stream(attribution=Attribution(click=600_000, order=1_800_000), lateness=5_000, session_gap=1_800_000)
)


def simulated(visits: int, flow: Flow = USERS_OWN_TIME, late_ms: int = 3_600_000) -> list[Entry]:
    """Entries in the order of their stamps, keyed by session; `late_ms`: late ones come by up to this."""
    clock = VirtualClock(START_MS)
    sent: list[tuple[int, Event]] = []
    size = World().params.page_size

    def decide(request: PageRequest) -> Sequence[int]:
        sent.append((request.time_ms + flow.transport_ms, _impression(request, size)))
        return range(len(request.items))

    Traffic(World(), flow, decide, lambda event: sent.append((clock.now_ms(), event)), clock).run(visits)
    return sorted(_entries(sent, random.Random(flow.seed), late_ms), key=_stamp)


def _impression(request: PageRequest, size: int) -> Impression:
    """All candidates' places are their own: the baseline's order matters to nobody here."""
    state = State(user=request.user, context=request.context, page=request.page)
    decision = Decision(DecidedBy.BASELINE, "base", "all")
    return Impression(
        1, request.request_id, request.user_id, request.session_id, request.time_ms, request.page_index,
        tuple(request.items[:size]), state, decision,
    )  # fmt: skip


def _entries(sent: list[tuple[int, Event]], rng: random.Random, late_ms: int) -> Iterator[Entry]:
    for stamp, event in sent:
        payload = encode(event)
        if rng.random() < _MALFORMED:
            yield Entry(event.session_id, payload[:-9], stamp)
        elif isinstance(event, Feedback) and rng.random() < _LATE:
            yield Entry(event.session_id, payload, stamp + rng.randrange(late_ms))
        else:
            yield Entry(event.session_id, payload, stamp)


def _stamp(entry: Entry) -> int:
    return entry.appended_at_ms or 0
