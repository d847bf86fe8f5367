"""`pageturn power`: how much traffic it would take to see a lift, from what a run has measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from model_export.evaluation.contrast import Terms
from model_export.evaluation.evidence import budgets
from model_export.evaluation.power import all_the_time, one_look
from model_export.evaluation.units import Window
from pageturn.options import FOLDER
from pageturn.traffic_log import Visit
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.schema import Certification, FeatureConfig
from pipeline.errors import PageturnError
from pipeline.simulation.outcomes import clustered, t_quantile

LIFTS = (1.0, 2.0, 5.0, 10.0)  # per cent
_HOUR_MS = 3_600_000
_FEW = 30
_ALPHA = 0.05
_UNITS = ((24 * 365, "years"), (24, "days"), (1, "h"), (1 / 60, "min"))


class PowerError(PageturnError):
    """A run does not say what is needed; says what is missing."""


class Brought(NamedTuple):
    """What the baseline's draws (visits, or users) brought; numbers from `per_hour` on are of both buckets."""

    draws: int
    mean: float
    variance: float  # of one draw; of a visit with what the visits of one user have in common
    per_hour: float
    first: float = 0.0  # so many were there at the end of the run: users, who count once, and most come at first
    first_hours: float = 0.0  # and it took so long; `per_hour` is of those that come after them
    wait_hours: float = 0.0  # from the last one's coming until all that it brought is known

    def hours(self, number: float) -> float:
        """Until so many have come, and what they brought is known; infinite where no more come."""
        if number <= self.first:
            return self.wait_hours + self.first_hours * number / self.first
        more = number - self.first
        return self.wait_hours + self.first_hours + (more / self.per_hour if self.per_hour else math.inf)


class Traffic(NamedTuple):
    policy: str
    share: float  # of the policy's slots in those of both
    visits: Brought
    users: Brought  # each once, with what came within the horizon
    horizon_ms: int
    reward: tuple[float, float]  # range that a user's reward is cut to
    rules: Certification | None  # None: the range is what was seen

    @property
    def alpha(self) -> float:
        """Of all that a certificate's confidence sequence, and those beside it, may spend."""
        return self.rules.alpha if self.rules else _ALPHA


@click.command()
@click.option("--run", "folder", type=FOLDER, help="Folder of a run on this machine [default: the newest under runs/].")
@click.option("--policy", help="The learned policy to certify [default: the first].")
@click.option(
    "--lift", "lifts", type=click.FloatRange(0, min_open=True), multiple=True, default=LIFTS, help="Per cent."
)
@click.option("--power", default=0.8, type=click.FloatRange(0.05, 0.999), help="The chance of seeing it.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Of a wrong conclusion [default: that of publish.certification, or 0.05].",
)
def power(folder: Path | None, policy: str | None, lifts: Sequence[float], power: float, alpha: float | None) -> None:
    """Say how many sessions a lift needs at the traffic of a run.

    For a test at a size that was fixed beforehand, and for the confidence sequence that certifies a policy.
    """
    from pageturn.run import open_run
    from pageturn.table import render
    from pageturn.traffic_log import read_visits

    run = open_run(folder)
    config = run.config()
    learned = config.learned_policies()
    if policy is not None and policy not in learned:
        message = f"{run.config_path}: no learned policy {policy!r}; expected one of {', '.join(learned)}"
        raise click.ClickException(message)
    seen = traffic(config, policy or learned[0], list(read_visits(run.traffic)))
    click.echo(render(rows(seen, lifts, power, seen.alpha if alpha is None else alpha), str(run.folder)))


def traffic(config: FeatureConfig, policy: str, visits: Sequence[Visit]) -> Traffic:
    """Raises: PowerError."""
    if config.buckets.unit != "user_id":
        message = f"buckets.unit: expected user_id, by which visits can be put into buckets; got {config.buckets.unit}"
        raise PowerError(message)
    table, learned = bucket_table(config.buckets), config.learned_policies()
    who = [table[slot_of(config.buckets, visit.outcome.user_id)].policy for visit in visits]
    base = [visit for visit, name in zip(visits, who, strict=True) if name not in learned]
    both = [visit for visit, name in zip(visits, who, strict=True) if name not in learned or name == policy]
    hours = _span_ms(visits) / _HOUR_MS
    if len({visit.outcome.user_id for visit in base}) < _FEW or hours <= 0:
        message = f"expected visits of at least {_FEW} users of the baseline's buckets; found {len(base)} visits"
        raise PowerError(message)
    rules, slots = config.publish.certification, [bucket.policy for bucket in table]
    horizon_ms = rules.horizon if rules else _span_ms(visits) // 4
    rewards = _by_user(base, horizon_ms, max(visit.time_ms for visit in visits))
    if len(rewards) < _FEW:
        message = f"expected {_FEW} users of the baseline seen for a horizon of {horizon_ms} ms; found {len(rewards)}"
        raise PowerError(message)
    low, high = rules.unit_reward if rules else (min(0.0, float(rewards.min())), float(rewards.max()))
    rewards = np.clip(rewards, low, high)
    ours, theirs = sum(name == policy for name in slots), sum(name not in learned for name in slots)
    estimate = clustered([v.outcome.reward for v in base], [v.outcome.user_id for v in base])
    error = estimate.half / t_quantile(len({v.outcome.user_id for v in base}) - 1)
    came = _first_visits(both)
    middle_ms = min(visit.time_ms for visit in visits) + _span_ms(visits) // 2
    later = sum(time_ms > middle_ms for time_ms in came.values())
    return Traffic(
        policy=policy,
        share=ours / (ours + theirs),
        visits=Brought(len(base), estimate.mean, error**2 * len(base), len(both) / hours),
        users=Brought(
            draws=len(rewards),
            mean=float(rewards.mean()),
            variance=float(rewards.var(ddof=1)),
            per_hour=later / (hours / 2),
            first=len(came),
            first_hours=hours,
            wait_hours=(horizon_ms + Window.of(config, 0, horizon_ms, ()).delay_ms) / _HOUR_MS,
        ),
        horizon_ms=horizon_ms,
        reward=(low, high),
        rules=rules,
    )


def _span_ms(visits: Sequence[Visit]) -> int:
    times = [visit.time_ms for visit in visits]
    return max(times) - min(times) if times else 0


def _first_visits(visits: Sequence[Visit]) -> dict[str, int]:
    """When each user first looked at the feed: those who never do are no units."""
    first: dict[str, int] = {}
    for visit in visits:
        if visit.outcome.exposed:
            user = visit.outcome.user_id
            first[user] = min(visit.time_ms, first.get(user, visit.time_ms))
    return first


def _by_user(visits: Sequence[Visit], horizon_ms: int, until_ms: int) -> np.ndarray:
    """What each user brought within the horizon of the first visit, of those for whom it is over."""
    first = _first_visits(visits)
    earned: dict[str, float] = {}
    for visit in (v for v in visits if v.outcome.exposed):
        user = visit.outcome.user_id
        if visit.time_ms < first[user] + horizon_ms:
            earned[user] = earned.get(user, 0.0) + visit.outcome.reward
    return np.array([earned[user] for user, time_ms in first.items() if time_ms + horizon_ms <= until_ms])


def rows(seen: Traffic, lifts: Sequence[float], power: float, alpha: float) -> Iterator[tuple[object, ...]]:
    visits, users = seen.visits, seen.users
    yield f"{seen.policy} has {seen.share:.0%} of the users that it is compared on", ""
    yield _said("reward per visit", visits, "visits")
    yield _said(f"reward per user, {_time(seen.horizon_ms / _HOUR_MS)}", users, "users", "new ")
    low, high = seen.reward
    why = "" if seen.rules else ": what this run has seen, for the config has no publish.certification"
    yield "a user's reward is cut to", f"[{low:g}, {high:g}]{why}"
    if seen.rules:
        yield "a certificate takes", _certificate(seen.rules, alpha)
    yield ()
    every = "all the time, by user"
    yield f"to see, {power:.0%} of the time,", "one look, by visit", "one look, by user", every, "in the second epoch"
    for lift in lifts:
        yield f"a lift of {lift:g} %", *_needed(seen, lift / 100, power, alpha)


def _needed(seen: Traffic, lift: float, power: float, alpha: float) -> Iterator[str]:
    low, high = seen.reward
    bar, rates = (seen.rules.certify_above, len(budgets(seen.rules))) if seen.rules else (0.0, 0)
    terms, settings = Terms(seen.share, low, high, bar), {"alpha": alpha, "power": power}
    for brought, name in ((seen.visits, "visits"), (seen.users, "users")):
        yield _count(one_look(brought.variance, seen.share, lift * brought.mean, **settings), name, brought)
    users, beyond = seen.users, (lift - bar) * seen.users.mean
    for epoch, judged in ((1, 1 + rates), (2, 2 * (1 + rates))):  # by the second, totals are judged beside the means
        settings |= {"alpha": alpha / judged, "epoch": epoch}
        number = all_the_time(users.variance, terms, beyond, **settings) if lift > bar else math.inf
        yield _count(number, "users", users)


def _certificate(rules: Certification, alpha: float) -> str:
    beside = "".join(f", {name} judged beside the reward" for name in budgets(rules))
    return f"a lift of more than {rules.certify_above:.3%}, alpha {alpha:g}{beside}"


def _said(title: str, brought: Brought, name: str, new: str = "") -> tuple[str, str]:
    found = f"{brought.mean:.3f}, standard deviation {math.sqrt(brought.variance):.2f}"
    return (
        title,
        f"{found} ({brought.draws} {name} of the baseline; {brought.per_hour:,.0f} {new}{name} an hour in both)",
    )


def _count(number: float, name: str, brought: Brought) -> str:
    if not math.isfinite(number):
        return "never"
    hours = brought.hours(number)
    return f"{number:,.0f} {name}: {_time(hours) if math.isfinite(hours) else 'no more come'}"


def _time(hours: float) -> str:
    size, unit = next((each for each in _UNITS if hours >= 2 * each[0]), _UNITS[-1])
    return f"{hours / size:,.1f} {unit}"
