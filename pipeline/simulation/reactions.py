"""A reaction as the events that a feed would report: what a user did on one page, and when."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.records import SCHEMA_VERSION, Feedback, FeedbackKind, Item
from pipeline.simulation import draws
from pipeline.simulation.catalogue import item_id
from pipeline.simulation.feed import Offer, Reaction, Sessions
from pipeline.simulation.params import Params

_ORDER_DELAY = 5  # what the keys of a page are used for, after those of the feed


class Ids(NamedTuple):
    user_id: str
    session_id: str
    request_id: str


def user_id(number: int) -> str:
    return f"user-{number}"


def user_number(name: str) -> int:
    """The inverse of `user_id`."""
    return int(name.removeprefix("user-"))


def ids_of(sessions: Sessions, prefix: str = "sim") -> Ids:
    """Of the one session and its page. `prefix` tells runs apart that write to one log."""
    who, page = sessions.visitors, int(sessions.page[0])
    session_id = f"{prefix}-{who.user[0]}-{who.visit[0]}"
    return Ids(user_id(int(who.user[0])), session_id, f"{session_id}-{page}")


def user_of_request(request_id: str) -> str | None:
    """Of a request id as `ids_of` makes them; None of others."""
    parts = request_id.rsplit("-", 3)
    return user_id(int(parts[1])) if len(parts) == 4 and all(part.isdecimal() for part in parts[1:]) else None


def begins_session(request_id: str) -> bool:
    """Whether it is of a first page, as `ids_of` makes them."""
    return request_id.endswith("-0") and user_of_request(request_id) is not None


def candidates(page: Offer) -> tuple[Item, ...]:
    """The candidates of the one session, in no particular order."""
    rows = zip(page.items[:, 0], page.click_score[:, 0], page.pay_score[:, 0], strict=True)
    return tuple(Item(item_id(int(item)), float(click), float(pay)) for item, click, pay in rows)


def feedback(
    params: Params, ids: Ids, page: Offer, reaction: Reaction, *, time_ms: int = 0, pace: float = 1.0
) -> list[Feedback]:
    """Of the one session, by time. `pace`: how long a second of the user's takes on the clock.

    Clicks come while the page is read, from top to bottom; orders later, possibly pages later; at the end the dwell
    and whether the user turned the page or left.
    """
    scale_ms = 1000.0 * pace
    dwell_s = float(reaction.dwell_s[0])
    end_ms = time_ms + round(dwell_s * scale_ms)
    found = []
    for position in np.flatnonzero(reaction.clicked[:, 0]):
        at_s = dwell_s * (int(position) + 1) / (len(reaction.clicked) + 1)
        item = item_id(int(reaction.items[position, 0]))
        found.append(_event(ids, FeedbackKind.CLICK, time_ms + round(at_s * scale_ms), item))
        if reaction.ordered[position, 0]:
            at_s += _order_delay_s(params, page)
            found.append(_event(ids, FeedbackKind.ORDER, time_ms + round(at_s * scale_ms), item))
    found.append(_event(ids, FeedbackKind.DWELL, end_ms, value=dwell_s))
    found.append(_event(ids, FeedbackKind.LEAVE if reaction.left[0] else FeedbackKind.PAGE_TURN, end_ms))
    return sorted(found, key=lambda event: event.time_ms)


def _order_delay_s(params: Params, page: Offer) -> float:
    """A long-tailed delay: odds of a uniform number, cut at the longest."""
    luck = float(draws.uniform(draws.key(page.page_keys, _ORDER_DELAY))[0])
    return min(params.order_delay_s * luck / (1.0 - luck), params.order_delay_max_s)


def _event(ids: Ids, kind: FeedbackKind, time_ms: int, item: str | None = None, value: float = 1.0) -> Feedback:
    return Feedback(
        schema_version=SCHEMA_VERSION,
        event_id=f"{ids.request_id}-{kind.value}" + (f"-{item}" if item else ""),
        request_id=ids.request_id,
        user_id=ids.user_id,
        session_id=ids.session_id,
        time_ms=time_ms,
        kind=kind,
        item_id=item,
        value=value,
    )
