"""The deterministic middle of the trainer: records in, weights out. No clock, no directory, no poll sizes.

Transitions are ingested one by one. After every `round_size` of them feature statistics are frozen into a snapshot
and the updates that are owed are done. So weights depend on the config and the order of transitions only.
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from pipeline.config.schema import FeatureConfig, OnPolicy
from pipeline.features.changing import change
from pipeline.features.encoder import Encoder
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.learning.dealing import DealtFeeding
from pipeline.learning.errors import DivergenceError
from pipeline.learning.feeding import Feeding, Losses, ReplayFeeding
from pipeline.learning.holdout import HELD_OUT, Holdout, named
from pipeline.learning.ingestion import NO_ACTION, Example, Unusable, read_transition, to_example
from pipeline.learning.intake import Intake, refused
from pipeline.learning.learner import Learner
from pipeline.learning.learners import learner_of
from pipeline.learning.progress import FORMAT, FORMAT_VERSION, Progress, Saved, described, former_config, identity
from pipeline.learning.rereading import origins_of
from pipeline.learning.rollouts import RolloutFeeding
from pipeline.learning.shelf import Shelf
from pipeline.learning.tables import Tables
from pipeline.logs.log import Record
from pipeline.records import DeadLetter, State, Transition

ROUND_SIZE = 64
_STATES_PER_PROBE = 16
_ROUNDS_PER_CHOICE = 16  # between comparisons of the seeds, each of which costs about as much as ten updates
_SLACK = 2.0  # of the bound on |Q|: approximation may overshoot it, divergence leaves it behind

Metrics = dict[str, float]


class Probing(NamedTuple):
    states: tuple[State, ...]
    covered: bool  # baseline traffic visits them, so V and "better than the baseline" mean something there


class Training:
    """Owns the learner and everything that it learns from."""

    def __init__(
        self,
        config: FeatureConfig,
        encoder: Encoder,
        *,
        round_size: int = ROUND_SIZE,
        learner: Learner | None = None,
        feeding: DealtFeeding | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        """`feeding`: of a trainer that is one of several. `shelf`: for rows that pass on to other ids."""
        self.config, self.encoder, self.round_size = config, encoder, round_size
        self.learner = learner or learner_of(config)
        self.snapshot = Snapshot.initial(config)
        self.progress = Progress()
        self.losses: Metrics = {}  # of the last round with updates
        self.feeding: Feeding = _feeding(config, encoder, round_size) if feeding is None else feeding
        self._workers = 1 if feeding is None else feeding.shares
        self.holdout = Holdout(config, encoder)
        self._statistics = Statistics(config)
        self.tables = Tables(config, self.learner, shelf)
        self._intake = Intake()
        self._policies = config.learned_policies()
        kept = config.publish.probes * _STATES_PER_PROBE
        self.seen: Callable[[np.ndarray, Snapshot], None] = lambda row, snapshot: None  # for who looks on
        self._states: dict[bool, deque[State]] = {covered: deque(maxlen=kept) for covered in (True, False)}

    # Ingestion -------------------------------------------------------------------------------------------------------

    def ingest(self, record: Record) -> DeadLetter | None:
        """Take one record of the transitions topic: learn from it, know it already, or give it back with a reason.

        A page that was served without an action is counted and left at that.
        """
        transition = self._intake.read(record, self.progress)
        if not isinstance(transition, Transition):
            return transition
        example = to_example(transition, self.config, self.encoder)
        if isinstance(example, Unusable) and example.reason != NO_ACTION:
            return refused(record, example, self.progress)
        self._intake.know(transition)
        if isinstance(example, Unusable):
            self.progress.refuse(NO_ACTION)
            self.progress.count_page(transition.decision)
            return None
        self._statistics.update(example.rows[:1])
        self.seen(example.rows[:1], self.snapshot)
        why = self._remember(example, record)
        if why is not None:
            self.progress.leave_out(why)
        self.progress.count(transition)
        if self.progress.ingested % self.round_size == 0:
            self._round()
        return None

    def _remember(self, example: Example, record: Record, spent: bool = False) -> str | None:
        if self.holdout.takes(example.transition):
            self.holdout.add(example, record.partition, record.offset)
            return HELD_OUT
        self._states[example.by_baseline].append(example.transition.state)
        return self.feeding.add(example, record.partition, record.offset, spent)

    # Learning --------------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        before, self.snapshot = self.snapshot, self._statistics.freeze()
        self.tables.hand_over(before, self.snapshot)
        explored, enough = self.progress.explored, self.config.algorithm.actor_after
        active = np.array([explored.get(policy, 0) >= enough for policy in self._policies])
        history = self.feeding.learn(self.learner, self.snapshot, self.progress, active)
        if history:
            self.losses = {**self.losses, **self._summary(history)}
        if len(self.config.algorithm.all_seeds) > 1 and self.rounds % _ROUNDS_PER_CHOICE == 0:
            self._choose()

    def _choose(self) -> None:
        """At fixed transitions, and not when a candidate is due, which a clock decides: runs agree on the seed, too."""
        choice = self.holdout.choose(self.learner, self.snapshot, self.chosen)
        self.progress.chosen, self.progress.seeds = choice.chosen, named(choice, self.config.algorithm.all_seeds)

    @property
    def chosen(self) -> int:
        """Of the seeds: whose losses are reported, and which is handed out."""
        return self.progress.chosen

    def _summary(self, history: list[Losses]) -> Metrics:
        """Means over the updates of a round, of the chosen seed. Raises DivergenceError where one is not finite."""
        names = dict.fromkeys(name for each in history for name in each)
        means = {name: np.mean([each[name] for each in history if name in each], axis=0) for name in names}
        if not all(np.isfinite(mean).all() for mean in means.values()):
            msg = f"losses are no longer finite at update {self.progress.updates}: lower the learning rates"
            raise DivergenceError(msg)
        metrics: Metrics = {}
        for name, mean in means.items():
            metrics |= dict(self._named(name, mean[self.chosen]))
            if len(mean) > 1:
                metrics |= dict(self._named(f"{name}_spread", mean.std(axis=0)))
        sizes = [mean.max(initial=0.0) for name, mean in means.items() if name.split("/")[0] == "q_abs"]
        metrics["diverged"] = float(max(sizes, default=0.0) > self.q_bound)
        return metrics

    def _named(self, name: str, mean: np.ndarray) -> Iterator[tuple[str, float]]:
        """[] under its name, [K] under name/policy, [K, N] under name/policy/action."""
        if mean.ndim == 0:
            yield name, float(mean)
            return
        for policy, of_policy in zip(self._policies, mean, strict=True):
            if mean.ndim == 1:
                yield f"{name}/{policy}", float(of_policy)
            else:
                actions = zip(self.config.action, of_policy, strict=True)
                yield from ((f"{name}/{policy}/{dimension.name}", float(x)) for dimension, x in actions)

    @property
    def run_id(self) -> str:
        """The same for all that learns the same: the config's share in it, and the transition it began with."""
        parts = {
            **identity(self.config, self.round_size),
            "learned policies": self._policies,
            "first transition": self.progress.first_transition,
            "pre-trained on": self.progress.pretrained,
            **({"workers": self._workers} if self._workers > 1 else {}),
        }
        return xxhash.xxh32_hexdigest(json.dumps(parts, sort_keys=True).encode())

    @property
    def rounds(self) -> int:
        return self.progress.ingested // self.round_size

    @property
    def q_bound(self) -> float:
        """Twice what the largest reward forever is worth: mean |Q| exceeds it only where learning diverges."""
        return _SLACK * self.progress.reward_abs_max / (1 - self.config.algorithm.gamma)

    def check_finite(self) -> None:
        for variable in self.learner.variables:
            if not np.isfinite(variable.numpy()).all():
                msg = f"{variable.name} is no longer finite at update {self.progress.updates}: lower the learning rates"
                raise DivergenceError(msg)

    # What others see -------------------------------------------------------------------------------------------------

    @property
    def news(self) -> int:
        """Transitions since the last candidate."""
        return self.progress.ingested - self.progress.exported

    def handed_out(self) -> None:
        """What there was to hand out has been."""

    def decided(self) -> tuple[()]:
        """Updates are decided about by the version controller."""
        return ()

    def probing(self) -> Probing:
        """States spread evenly over those seen of late, on pages of the baseline if there were any."""
        covered = bool(self._states[True])
        states, wanted = self._states[covered], self.config.publish.probes
        picks = np.linspace(0, len(states) - 1, min(wanted, len(states))).round().astype(int)
        return Probing(tuple(states[i] for i in picks), covered)

    def saved(self) -> Saved:
        """What it says of rows that were put away is durable."""
        held, held_out = self.feeding.held(), self.holdout.origins()
        return Saved(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            identity=identity(self.config, self.round_size),
            progress=copy.deepcopy(self.progress),
            losses=dict(self.losses),
            statistics=self._statistics.to_bytes(),
            snapshot=self.snapshot.to_bytes(),
            recent=self._intake.hashes(),
            partitions=held.origins.partitions.astype("<i4").tobytes(),
            offsets=held.origins.offsets.astype("<i8").tobytes(),
            spent=held.spent.tobytes(),
            rows=held.rows,
            held_out_partitions=held_out.partitions.astype("<i4").tobytes(),
            held_out_offsets=held_out.offsets.astype("<i8").tobytes(),
            policies=self._policies,
            features=described(self.config),
            shelf=self.tables.keep(),
        )

    def resume(self, saved: Saved, rows: Iterable[Record | None], held_out: Iterable[Record | None] = ()) -> int:
        """Everything but the weights, from a checkpoint of this identity.

        `rows` are the records of `origins_of(saved)`, in that order, `held_out` those of `held_out_origins_of(saved)`.
        Returns how many of `rows` the log no longer has, or cannot be encoded any more; with none missing the run goes
        on as if it had not been interrupted.
        """
        self.progress, self.losses = copy.deepcopy(saved.progress), dict(saved.losses)
        self._meet(saved.policies)
        self._know(saved)
        self.tables.go_on(saved.shelf)
        self._intake = Intake(saved.recent)
        expected = len(origins_of(saved).offsets)
        spent = np.frombuffer(saved.spent, bool) if saved.spent else np.zeros(expected, bool)
        self.feeding.start_at(saved.rows - expected)
        found = sum(self._put_back(record, bool(old)) for record, old in zip(rows, spent, strict=True))
        if found < expected:
            self.feeding.keep_last(found)
        for record in held_out:
            self._put_back(record, False)
        return expected - found

    def go_back(self, saved: Saved | None, policies: tuple[str, ...]) -> None:
        """What goes with the weights that the learner was given: a checkpoint's, or (None) those of a fresh one, whose
        actors wait as at first. What was learned before is not handed out any more."""
        if saved is None:
            self.progress.explored.clear()
        else:
            self.progress.chosen = saved.progress.chosen
            self._know(saved)
        self.tables.go_back(saved.shelf if saved else ())
        self.progress.exported = self.progress.ingested

    def _know(self, saved: Saved) -> None:
        """What was known of features. Where they changed since, a candidate is due: the served one wants the former."""
        former = former_config(saved, self.config)
        self._statistics = Statistics.from_bytes(saved.statistics, former)
        self.snapshot = Snapshot.from_bytes(saved.snapshot, former)
        if former != self.config:
            difference = change(former, self.config)
            self._statistics = self._statistics.carried(self.config, difference)
            self.snapshot = self.snapshot.carried(self.config, difference)
            self.progress.exported = 0

    def _meet(self, former: tuple[str, ...]) -> None:
        """Where policies came or went since the checkpoint: nothing that is known of those is of these."""
        if former != self._policies:
            self.progress.only_of(set(former) & set(self._policies))
            known = {name: [*name.split("/"), None][1] for name in self.losses}
            self.losses = {name: x for name, x in self.losses.items() if known[name] in (None, *self._policies)}

    def _put_back(self, record: Record | None, spent: bool) -> bool:
        transition = Unusable("gone", "") if record is None else read_transition(record.payload)
        if isinstance(transition, Unusable):
            return False
        example = to_example(transition, self.config, self.encoder)
        if isinstance(example, Unusable):
            return False
        self._remember(example, record, spent)
        return True


def _feeding(config: FeatureConfig, encoder: Encoder, round_size: int) -> Feeding:
    if isinstance(config.algorithm, OnPolicy):
        return RolloutFeeding(config, encoder)
    return ReplayFeeding(config, encoder, round_size)
