"""Who comes when, and what happens to events on their way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct

from pipeline.records import Feedback
from pipeline.simulation import draws
from pipeline.simulation.draws import Array

_TRANSPORT = 6  # what the keys of a page are used for, after those of feed and reactions


class Flow(Struct, frozen=True, forbid_unknown_fields=True):
    seed: int = 1
    users: int = 3000  # they take turns, so each has visits / users of them
    visits_per_s: float = 10.0
    pace: float = 0.04  # seconds on the clock per second of the user's
    transport_ms: int = 20  # how long any event is on its way, at least
    disordered: float = 0.1  # share of events that take longer
    disorder_ms: int = 400  # by up to this
    duplicated: float = 0.05  # share of events that arrive a second time, as late as a disordered one may
    prefix: str = "sim"  # of session and request ids: runs that share a log need different ones


def deliveries(flow: Flow, events: Sequence[Feedback], page_keys: Array) -> Iterator[tuple[Feedback, int]]:
    """Events of one page with the times at which they arrive, in no order; some arrive twice."""
    keys = draws.key(draws.key(page_keys, _TRANSPORT), np.arange(len(events)))
    slow, slowness = draws.two_uniforms(keys)
    twice, lateness = draws.two_uniforms(draws.key(keys, 0))
    for number, event in enumerate(events):
        arrives_ms = event.time_ms + flow.transport_ms
        more_ms = int(slowness[number] * flow.disorder_ms) if slow[number] < flow.disordered else 0
        yield event, arrives_ms + more_ms
        if twice[number] < flow.duplicated:
            yield event, arrives_ms + int(lateness[number] * flow.disorder_ms)
