"""The vocabulary: what happened on a feed, and what a learner is taught from it.

Two records enter (`Impression`, `Feedback`); four leave: a closed `Page` with its point-wise labels, a TD
`Transition`, an MC `Episode`, and a `SetAside` for each event that could not be used. All are immutable values.
Times are integer milliseconds of event time, except those named `appended_at_ms`, which the log stamps.

`gc=False`: a record is in no reference cycle, and the garbage collector's walks took a third of the stream's time.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

SCHEMA_VERSION = 1

Time = Annotated[int, Meta(ge=0, le=253_402_300_799_999, description="event time, milliseconds since 1970 (UTC)")]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
Scalar = bool | int | float | str
FeatureValue = Scalar | tuple[Scalar, ...] | None
Features = dict[str, FeatureValue]  # raw values as the caller gave them; never normalised


class FeedbackKind(Enum):
    CLICK = "click"
    ORDER = "order"  # value = what the order is worth
    DWELL = "dwell"  # value = seconds spent reading
    PAGE_TURN = "page_turn"
    LEAVE = "leave"
    SHOWN = "shown"


class DecidedBy(Enum):
    POLICY = "policy"
    BASELINE = "baseline"
    FALLBACK = "fallback"  # trouble: the baseline was served and `Decision.fallback_reason` says why


class Stamp(NamedTuple):
    """Where and when the log took an event in. It never enters a payload; it orders copies of one event."""

    appended_at_ms: int
    partition: int
    offset: int


class Propensity(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How one action dimension was drawn: a Gaussian around the mean plus what is left of the last noise, clipped."""

    raw: float  # before clipping
    mean: float  # mu(s), what the policy would do without noise
    sigma: float
    theta: float
    previous_noise: float  # n_{i-1}; the raw action's expectation is mean + (1 - theta) * previous_noise
    log_density_raw: float  # of `raw`, a Gaussian density
    log_density_clipped: float  # of the executed value: the density inside, the log of a point mass at a bound


class Action(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One dimension of the executed action. Without a propensity it was not drawn (baseline and fallback pages)."""

    name: str
    value: float  # executed, inside the range
    propensity: Propensity | None = None


class Explorer(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Weights that are tried beside those that are served: noise around these, or what a major update has made."""

    version: int  # of the served weights: the trainer's count of those it has handed out
    seed: int | None = None  # of the noise; None: a major update's weights
    mirrored: bool = False  # with the opposite noise


class Ranked(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """How a page's items were chosen: enough to make the page again, and to say whose a click is."""

    shown: int  # how many of the items are the page; the others are candidates that were not shown
    by: Literal["received", "greedy", "probabilistic", "team_draft"] = "received"
    tau: float | None = None
    explorers: tuple[Explorer, ...] = ()
    orders: tuple[tuple[int, ...], ...] = ()  # of the served weights and of each explorer: positions in the request
    places: tuple[int, ...] = ()  # of each item its position in the request; none: they are as they were received
    teams: tuple[int, ...] = ()  # of each shown item the ranker that put it there: an index of `orders`


class Decision(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Who decided a page, and how: enough to recompute the decision from the log."""

    decided_by: DecidedBy
    policy: str
    bucket: str
    actions: tuple[Action, ...] = ()
    model_version: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None  # 64 bits, as the model server has it
    parameters: str | None = None  # content hash of the parameter snapshot the features were encoded with
    config_sha: str | None = None  # hash of the state, features and actions of the feature config
    fallback_reason: str | None = None
    shadow: tuple[float, ...] | None = None  # what the policy would have done, where the baseline was served
    ranked: Ranked | None = None  # of a feed whose policies choose the items


class Lookup(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Which rows of an external embedding table the agent had when it decided."""

    epoch: str
    hits: tuple[bool, ...]  # one per id of the sequence after truncation, in the raw order


class State(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """What the policy could see: raw features by scope, and the outcome of its embedding look-ups."""

    user: Features = {}
    context: Features = {}
    page: Features = {}
    lookups: dict[str, Lookup] = {}  # by feature name


class Item(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """A candidate on a page. A feed without a ranker leaves the scores out."""

    item_id: Id
    click_score: float | None = None
    pay_score: float | None = None
    features: Features = {}


class Impression(
    Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", tag="impression"
):
    """One page that was decided: one request, one step of the MDP. `items` are in the order they were shown in."""

    schema_version: int
    request_id: Id  # unique over all sessions; a retry repeats it
    user_id: Id
    session_id: Id
    time_ms: Time
    page_index: Annotated[int, Meta(ge=0, le=2**31 - 1)]  # increasing within the session
    items: tuple[Item, ...]
    state: State
    decision: Decision


class Feedback(
    Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", tag="feedback"
):
    """What a user did on a page."""

    schema_version: int
    event_id: Id
    request_id: Id  # the page it answers
    user_id: Id
    session_id: Id
    time_ms: Time
    kind: FeedbackKind
    item_id: Id | None = None  # the item it is about; None for the page as a whole
    value: Annotated[float, Meta(ge=-1e15, le=1e15)] = 1.0  # bounded, so that no sum of values is infinite


Event = Impression | Feedback


class Labels(Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of one item: the label half of a point-wise sample."""

    clicks: int = 0
    orders: int = 0
    order_value: float = 0.0
    dwell_s: float = 0.0


class Page(Struct, frozen=True, gc=False, omit_defaults=True):
    """A page whose attribution windows have ended: final. Its items and labels are the point-wise samples."""

    impression: Impression
    labels: tuple[Labels, ...]  # labels[i] belongs to impression.items[i]
    feedback: tuple[Feedback, ...]  # on time, without duplicates, by (time, event id)
    closed_ms: int
    shown: bool = True  # False: decided but never shown; it earns nothing and is in no transition

    @property
    def id(self) -> str:
        return self.impression.request_id


class Ending(Enum):
    """Why a step was the last of its episode."""

    LEAVE = "leave"
    INFERRED_LEAVE = "inferred_leave"  # the session gap expired in event time
    TRUNCATED = "truncated"  # the episode reached its maximal length; the session went on


class Transition(Struct, frozen=True, gc=False, omit_defaults=True):
    """One page turned: (s, a, r, discount, s'). `discount` is 0 after a leave, else 1; gamma is the learner's."""

    id: str  # request_id@reward_version
    request_id: str
    user_id: str
    session_id: str
    time_ms: int
    page_index: int
    state: State
    decision: Decision
    reward: float
    reward_version: str
    discount: float
    next_state: State | None = None  # None if and only if discount is 0
    ending: Ending | None = None  # set if and only if discount is 0
    # Of a feed whose policies choose the items:
    items: tuple[Item, ...] = ()  # those that were shown
    labels: tuple[Labels, ...] = ()  # of these
    next_items: tuple[Item, ...] = ()  # all candidates of the next page
    activeness: float | None = None  # the user's, right after the next request, or after a session gap without one


class Step(Struct, frozen=True, gc=False, omit_defaults=True):
    request_id: str
    time_ms: int
    page_index: int
    state: State
    decision: Decision
    reward: float


class Episode(Struct, frozen=True, gc=False, omit_defaults=True):
    """A visit from its first page to its end. Where it was cut, its value goes on from `bootstrap_state`."""

    id: str  # first request_id@reward_version
    user_id: str
    session_id: str
    steps: tuple[Step, ...]
    reward_version: str
    ending: Ending
    discount: float  # 0 after a leave, 1 where truncated
    bootstrap_state: State | None = None


class Fate(Enum):
    """Why an event is in no page. Every event read is joined, set aside, a dead letter, or still open."""

    LATE = "late"
    ORPHAN = "orphan"
    DUPLICATE = "duplicate"


class SetAside(Struct, frozen=True, gc=False, omit_defaults=True):
    id: str  # partition:offset of the raw event
    fate: Fate
    reason: str
    appended_at_ms: int
    event: Event


class DeadLetter(Struct, frozen=True, gc=False, omit_defaults=True):
    """An event that could not be read, with its original bytes."""

    id: str  # partition:offset of the raw event
    reason: str
    detail: str
    appended_at_ms: int
    key: str
    payload: bytes  # base64 in JSON
