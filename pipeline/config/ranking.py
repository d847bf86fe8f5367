"""How a policy that chooses items ranks, explores and is updated: `ranking` in the config. See docs/drn.md."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from pipeline.config.values import Count, DurationMs, Fraction, Name, NonNegative, Positive, Value


class Activeness(Value, frozen=True):
    """How alive a user is, by a survival model: S is `initial` at a first request, decays, and is lifted by returns so
    that who returns once in an `absence` keeps coming back to `initial`."""

    initial: Annotated[float, Meta(gt=0, le=1)] = 0.5  # S0
    absence: DurationMs = 86_400_000  # T0, the mean life of a user who does not return
    remember: DurationMs = 604_800_000  # who stays away for longer is a new user


class Interleaving(Value, frozen=True):
    by: Literal["probabilistic", "team_draft"] = "probabilistic"
    tau: Positive | None = None  # with probabilistic: ranks are drawn by 1 / rank^tau; 3


class Gradient(Value, frozen=True, tag_field="by", tag="gradient"):
    """A TD step on every page that was completed since the last update, once."""

    every: DurationMs = 1_800_000
    batch: Count = 32  # pages of a step


class _Exploring(Value, frozen=True):
    """Candidates near the served weights, interleaved with them for a period; see `pipeline/ranking/perturbing.py`."""

    every: DurationMs = 1_800_000  # from the first page with a candidate
    alpha: Positive = 0.1  # of the noise, relative to a weight
    floor: NonNegative = 0.01  # to which smaller weights are raised where the noise is scaled by them
    layers: tuple[str, ...] = ("advantage",)  # beginnings of the names of the weights that explore
    eta: Annotated[float, Meta(gt=0, le=1)] = 0.05  # how far the weights go towards a winner


class Dbgd(_Exploring, frozen=True, tag_field="by", tag="dbgd"):
    """One candidate: a step towards it where it has won."""

    min_decisive: Count = 10  # users whose clicks speak for one side; with fewer it is a tie
    confidence: NonNegative = 1.0  # in standard errors of the sum of preferences under equal rankers


class EvolutionStrategies(_Exploring, frozen=True, tag_field="by", tag="es"):
    """Pairs of opposite candidates: a step along their noise, weighted by how they were clicked."""

    pairs: Annotated[int, Meta(ge=1, le=16)] = 2
    min_decisive: Count = 10  # users whose clicks speak for or against a candidate, of each


class NoMinor(Value, frozen=True, tag_field="by", tag="none"):
    """Major updates only."""

    every: DurationMs = 1_800_000  # how long a major update is tried


Minor = Gradient | Dbgd | EvolutionStrategies | NoMinor


_BY_DEFAULT = Gradient()  # what the benchmark recommends: docs/drn.md


class Major(Value, frozen=True):
    """Replay from the served weights on, at the first minor update after `every`; the result is tried on pages before
    it takes their place."""

    every: DurationMs = 3_600_000
    updates: Count = 100
    batch: Count = 64  # pages
    history: DurationMs = 86_400_000  # older pages are not learned from
    start: Literal["served", "scratch"] = "served"
    # It is interleaved with the served weights until the next minor update, and refused where clicks speak against it;
    # without a trial it is served at once.
    trial: bool = True
    min_decisive: Count = 10  # as of dbgd, for the trial
    confidence: NonNegative = 1.0


class Ranking(Value, frozen=True):
    """What a learned policy shows, and how its weights move."""

    # By learned policy: each has weights and updates of its own. A policy that is not named here: by gradient.
    minor: dict[Name, Minor] = field(default_factory=dict)
    page_size: Annotated[int, Meta(ge=1, le=1000)] = 10  # places of a page; the other candidates follow
    activeness: Activeness = Activeness()
    interleaving: Interleaving = Interleaving()
    major: Major | None = Major()
    max_page_change: Fraction = 0.8  # of a page's places, over the probes against the last accepted version

    def minor_of(self, policy: str) -> Minor:
        return self.minor.get(policy, _BY_DEFAULT)

    def explorers(self, policy: str) -> int:
        """The most that a policy's model holds beside the served weights."""
        match self.minor_of(policy):
            case Dbgd():
                noise = 1
            case EvolutionStrategies(pairs=pairs):
                noise = 2 * pairs
            case _:
                noise = 0
        return noise + (self.major is not None and self.major.trial)
