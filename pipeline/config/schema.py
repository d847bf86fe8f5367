"""The feature config as typed values. The types are the schema: `reading.py` turns YAML into them, `checks.py`
tests what types cannot say. Durations are written `30s`, `10m`, `12h`, `7d` and arrive here as milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from pipeline.config.algorithms import A2c as A2c
from pipeline.config.algorithms import A3c as A3c
from pipeline.config.algorithms import Algorithm as Algorithm
from pipeline.config.algorithms import Cell as Cell
from pipeline.config.algorithms import Ddpg as Ddpg
from pipeline.config.algorithms import DeepQ as DeepQ
from pipeline.config.algorithms import Discretised as Discretised
from pipeline.config.algorithms import DoubleDqn as DoubleDqn
from pipeline.config.algorithms import Dqn as Dqn
from pipeline.config.algorithms import Drn as Drn
from pipeline.config.algorithms import DuelingDqn as DuelingDqn
from pipeline.config.algorithms import OnPolicy as OnPolicy
from pipeline.config.algorithms import Ppo as Ppo
from pipeline.config.algorithms import QLearning as QLearning
from pipeline.config.algorithms import Replaying as Replaying
from pipeline.config.ranking import Ranking as Ranking
from pipeline.config.values import Count, DurationMs, Fraction, Magnitude, Name, NonNegative, Positive, Source
from pipeline.config.values import Value as _Value

# Embedding tables ------------------------------------------------------------------------------------------------


class DynamicVocabulary(_Value, frozen=True, tag_field="kind", tag="dynamic"):
    """Ids earn a row by being seen; row 0 is padding, row 1 missing, then `oov_buckets` rows, then ids.

    Without a half-life a row is its id's for good, and a full vocabulary admits no other. With one a sight of an id
    counts half after so many transitions, and where no row is free an id takes that of the least frequent one, once it
    is twice as frequent. It begins with the row that served it before: that of its out-of-vocabulary bucket; or where
    rows are remembered, and it had one, with that.
    """

    capacity: Count
    min_count: Count = 1
    oov_buckets: Count = 1
    half_life: Count | None = None  # transitions
    remember: bool = False  # rows that pass on are kept in the trainer's state folder, for when their ids come back


class RangeVocabulary(_Value, frozen=True, tag_field="kind", tag="range"):
    """Integers 0 .. size-1; row 0 is padding, row 1 missing, row 2 anything else, row 3 + v the integer v."""

    size: Count


class GraphTable(_Value, frozen=True, tag_field="lookup", tag="graph"):
    """Rows that are trained, inside the model."""

    dim: Count
    vocabulary: DynamicVocabulary | RangeVocabulary


class ExternalTable(_Value, frozen=True, tag_field="lookup", tag="external"):
    """Vectors that live in the key-value store, one immutable set per epoch; too many for a graph."""

    dim: Count
    epoch: Name
    dtype: Literal["float32", "float16"] = "float32"


# Features --------------------------------------------------------------------------------------------------------


class ZScore(_Value, frozen=True):
    """(x - mean) / std with statistics gathered as transitions come (Chan's merge); 0 until `min_count` were seen.

    Without a half-life all values ever count alike. With one the mean and the standard deviation follow what comes now;
    the latter shrinks more slowly than it grows (`pipeline/features/fading.py`), so that a feature that stayed the same
    for long does not run into `clip` with its next value.
    """

    min_count: Annotated[int, Meta(ge=2)] = 100
    min_std: Positive = 1e-3
    clip: Positive = 5.0
    half_life: Count | None = None  # transitions after which a value counts half


class Quantile(_Value, frozen=True):
    """Where a value lies among those that came: -1 the lowest, 0 the median, 1 the highest, by a sketch of their
    distribution (`pipeline/features/quantiles.py` gives its error); 0 until `min_count` were seen. For values with long
    tails, such as prices and distances, which a z-score only shifts and scales."""

    bins: Annotated[int, Meta(ge=2, le=1000)] = 100  # of equal shares of the values; linear inside each
    min_count: Annotated[int, Meta(ge=2)] = 100


class Missing(_Value, frozen=True):
    """What stands in for an absent value. Without this rule an absent value is an error.

    `fill` is a number for dense features (in raw units), "mean" or "median", and is left out for the other kinds, which
    have a row, a zero vector or a mask for it. `indicator` adds a 0/1 column to the dense input that says that the
    value was absent; ids have no use for it, their row says so.
    """

    fill: float | Literal["mean", "median"] | None = None
    indicator: bool = False


class Dense(_Value, frozen=True, tag_field="kind", tag="dense"):
    name: Name
    source: Source
    transform: Literal["none", "log1p", "logit", "sqrt"] = "none"
    zscore: ZScore | None = None
    missing: Missing | None = None
    quantile: Quantile | None = None  # in place of `zscore`


class IdFeature(_Value, frozen=True, tag_field="kind", tag="id"):
    name: Name
    source: Source
    embedding: Name
    missing: Missing | None = None


class HashedId(_Value, frozen=True, tag_field="kind", tag="hashed_id"):
    name: Name
    source: Source
    buckets: Count
    dim: Count
    missing: Missing | None = None


class Bits(_Value, frozen=True, tag_field="kind", tag="bits"):
    """A history of yes and no packed in one unsigned integer; bit 0 is the newest."""

    name: Name
    source: Source
    width: Annotated[int, Meta(ge=1, le=64)]
    missing: Missing | None = None


class ConvLayer(_Value, frozen=True):
    filters: Count
    kernel: Count


class Conv1d(_Value, frozen=True, tag_field="kind", tag="conv1d"):
    layers: Annotated[tuple[ConvLayer, ...], Meta(min_length=1)]
    pool: Literal["max", "mean"] = "max"


class Sequence(_Value, frozen=True, tag_field="kind", tag="sequence"):
    """Ids in the order in which they happened (oldest first), looked up in an external table outside the graph."""

    name: Name
    source: Source
    embedding: Name
    max_len: Count
    encoder: Conv1d
    keep: Literal["newest", "oldest"] = "newest"
    missing: Missing | None = None


Feature = Dense | IdFeature | HashedId | Bits | Sequence


# What the policy does --------------------------------------------------------------------------------------------


class OrnsteinUhlenbeck(_Value, frozen=True):
    """dt is 1. `sigma` is a fraction of half the action's range; left out, it is the largest for which a mean at
    the baseline leaves a tenth of the mass on the bounds."""

    theta: Annotated[float, Meta(gt=0, le=1)] = 0.15
    sigma: Annotated[float, Meta(ge=0, le=1)] | None = None


class ActionDimension(_Value, frozen=True):
    name: Name
    baseline: float
    range: tuple[float, float]
    noise: OrnsteinUhlenbeck = OrnsteinUhlenbeck()


class PayPlusAPhi(_Value, frozen=True, tag_field="kind", tag="pay_plus_a_phi"):
    """score = click * (pay + a * phi), Meituan 2018; one action dimension, a = 1 is the baseline."""

    phi: Positive


class Exponents(_Value, frozen=True, tag_field="kind", tag="exponents"):
    """score = click**a * pay**b; two action dimensions, both 1 at the baseline."""


class Penalties(_Value, frozen=True):
    """Magnitudes, subtracted. A page on which the user leaves without conversion pays both."""

    page_without_conversion: Magnitude = 0.0
    leave_without_conversion: Magnitude = 0.0


class Reward(_Value, frozen=True):
    weights: dict[Literal["click", "order", "dwell", "page_turn"], NonNegative]
    penalties: Penalties = Penalties()
    clip: tuple[float, float] | None = None


# Stream ----------------------------------------------------------------------------------------------------------


class Attribution(_Value, frozen=True):
    """How long after a page feedback of a kind still counts; other kinds have the longer of the two."""

    click: DurationMs = 600_000
    order: DurationMs = 1_800_000


class Stream(_Value, frozen=True):
    attribution: Attribution = Attribution()
    lateness: DurationMs = 5_000  # how long after its page's close the log may still stamp feedback
    clock_skew: DurationMs = 1_000  # how far the clocks of two producers may disagree
    session_gap: DurationMs = 1_800_000
    max_pages: Count = 200  # of an episode
    remember_closed: DurationMs = 3_600_000  # how long feedback for a closed page is known as late, not orphan
    activation: Literal["immediate", "deferred"] = "immediate"
    max_event_bytes: Count = 1_000_000
    max_ahead: DurationMs = 600_000  # of an event's time before the log's stamp: what is from further on is refused
    max_session_events: Count = 5_000  # of a session and a partition, stamped within one attribution window


# Policies and buckets -------------------------------------------------------------------------------------------------


class Policy(_Value, frozen=True):
    name: Name
    kind: Literal["baseline", "learned"]


class Bucket(_Value, frozen=True):
    name: Name
    policy: Name
    slots: tuple[int, int]  # first and last, both included


class Buckets(_Value, frozen=True):
    """Users are hashed with the salt into slots; a bucket is a run of slots that one policy decides."""

    salt: Annotated[str, Meta(min_length=1)]
    assign: Annotated[tuple[Bucket, ...], Meta(min_length=1)]
    slots: Count = 100
    unit: Literal["user_id", "session_id"] = "user_id"


class Certification(_Value, frozen=True):
    """When a policy's buckets are said to be better than the baseline's, or are sent back: a confidence sequence of
    what units (users, or sessions: `buckets.unit`) bring within a horizon of their first page."""

    unit_reward: tuple[float, float]  # a unit's reward is cut to it; the wider, the more units a first answer takes
    horizon: DurationMs = 86_400_000
    # chance that anything that is ever concluded about a policy is wrong
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    certify_above: NonNegative = 0.0  # lift, a fraction of the baseline's mean
    budget: Fraction = 0.0  # what exploring may cost, as such a fraction: it ends when it is shown to cost more
    max_fallback_share: Fraction = 0.2  # of the policy's pages, for a certificate
    # it ends, too, when so much smaller a share of its users is shown to click, as a fraction of the baseline's share
    click_budget: Fraction | None = None
    exposure_budget: Fraction | None = None  # the same of its pages that are shown to users


class Guard(_Value, frozen=True):
    """When a version is sent back because of what agents see of it: by shares beyond these bounds, and twice as large
    as those of the version before."""

    min_pages: Count = 1_000  # of it, and of the version before
    max_fault_share: Fraction = 0.05  # of its pages: those that fell back because it was refused, or answered nonsense
    slow: DurationMs = 50  # a Predict call that takes longer
    max_slow_share: Fraction = 0.05  # of its Predict calls


class Canary(_Value, frozen=True):
    """A new version is tried on a share of its policy's buckets first. The same units are always the first to try."""

    share: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # of the units of its buckets, by a hash of the unit
    hold: DurationMs = 60_000  # at least so long, and until `guard` has seen enough pages of it


class Publish(_Value, frozen=True):
    """When the trainer writes a candidate, and the bounds of the checks that every version has to pass."""

    every: DurationMs = 60_000
    min_transitions: Annotated[int, Meta(ge=0)] = 100  # new ones since the last candidate
    max_step_change: Fraction = (
        0.2  # mean change of action over the probes against the last accepted version, in ranges
    )
    max_total_change: Fraction = 0.5  # the same against the last certified version
    max_at_bounds: Fraction = 0.5  # share of probes whose action sits on a bound
    max_fallback_share: Fraction = 0.2  # of the pages decided since the last candidate
    max_loss: Positive = 1e6
    # of a feature's mean against the last accepted version, in its standard deviations; with quantiles of its ranks, as
    # the shift of a normal distribution that moves them as far (7 and above: not judged)
    max_drift: Positive = 1.0
    probes: Count = 32
    load_timeout: DurationMs = 60_000
    certification: Certification | None = None  # None: no evidence is gathered
    guard: Guard | None = None  # None: no version is sent back by itself
    canary: Canary | None = None  # None: a new version goes to all of its policy's buckets at once


class FeatureConfig(_Value, frozen=True, kw_only=True):
    """Of a feed whose policies weigh a ranker's scores (`fusion` and `action`), or choose the items (`ranking`)."""

    schema_version: Literal[1]
    name: Name
    kv_prefix: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]{0,15}$")]
    features: Annotated[tuple[Feature, ...], Meta(min_length=1)]
    fusion: PayPlusAPhi | Exponents | None = None
    action: Annotated[tuple[ActionDimension, ...], Meta(min_length=1)] = ()
    ranking: Ranking | None = None  # if and only if `algorithm.kind` is drn
    reward: Reward
    algorithm: Algorithm
    policies: Annotated[tuple[Policy, ...], Meta(min_length=1)]
    buckets: Buckets
    embeddings: dict[Name, GraphTable | ExternalTable] = field(default_factory=dict)
    stream: Stream = Stream()
    publish: Publish = Publish()

    def learned_policies(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.policies if p.kind == "learned")

    def model_name(self, policy: str) -> str:
        """The name under which TF-Serving knows a learned policy."""
        return f"{self.name}_{policy}"
