"""The deterministic middle of the trainer where policies choose the items: records in, weights and explorers out.

Transitions are what is learned from; samples are what is heard about explorers, for they are final as soon as a page
has closed, whereas a transition waits for the user to come back. Time is the records' stamps, so weights depend on the
config and the order of records only.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
import xxhash
from msgspec import structs

from pipeline.config.schema import FeatureConfig
from pipeline.events import EventError, decode
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import config_sha, part_of
from pipeline.features.snapshot import Snapshot
from pipeline.features.statistics import Statistics
from pipeline.learning.drn.examples import Encoders, PageExample, to_page
from pipeline.learning.drn.history import History
from pipeline.learning.drn.learners import Learners, Trained
from pipeline.learning.drn.method import Learning, Method
from pipeline.learning.drn.standing import Standing, decode_standing, encode_standing
from pipeline.learning.errors import DivergenceError
from pipeline.learning.ingestion import Unusable, read_transition
from pipeline.learning.intake import Intake, refused
from pipeline.learning.merging import Told
from pipeline.learning.progress import FORMAT, FORMAT_VERSION, Progress, Saved
from pipeline.logs.log import SAMPLES, Record
from pipeline.ranking.updates import Update
from pipeline.records import DeadLetter, Item, Page, State, Transition
from pipeline.stores.published import candidate_id

_ROUND = 64  # pages, between lines of the metrics
_PROBES_KEPT = 16  # per probe
_SLACK = 2.0  # of the bound on |Q|

Metrics = dict[str, float]


class RankingTraining:
    """Owns the learners and everything that they learn from."""

    def __init__(self, config: FeatureConfig, encoder: Encoder) -> None:
        assert config.ranking is not None
        self.config, self.encoder = config, encoder
        self.encoders = Encoders(encoder, Encoder(config, part="item"))
        self.learner = Learners(config)
        self.progress = Progress()
        self.losses: Metrics = {}
        self.feeding = History(config.algorithm.replay, self.encoders)
        self.seen: Callable[[np.ndarray, Snapshot], None] = lambda row, snapshot: None  # for who looks on
        self.methods = {
            policy: Method(policy, config.ranking, config.algorithm.seed, Standing(0, self.learner.fresh(policy)))
            for policy in config.learned_policies()
        }
        self.latest: dict[str, tuple[Update, ...]] = dict.fromkeys(self.methods, ())  # what led to what stands now
        self._statistics = {part: Statistics(part_of(config, part)) for part in ("state", "item")}
        self._intake = Intake()
        self._streamed: dict[str, int] = dict.fromkeys(self.methods, 0)  # pages taken in at the last minor update
        self._decided: list[Update] = []
        self._probes: deque[tuple[State, tuple[Item, ...]]] = deque(maxlen=config.publish.probes * _PROBES_KEPT)
        self.snapshot = self._freeze()

    # Ingestion -------------------------------------------------------------------------------------------------------

    def ingest(self, record: Told) -> DeadLetter | None:
        self._pass_to(record.appended_at_ms)
        return self._hear(record) if record.topic == SAMPLES else self._learn_from(record)

    def _hear(self, record: Told) -> DeadLetter | None:
        self.progress.samples[record.partition] = record.offset + 1
        try:
            page = decode(record.payload, Page)
        except EventError as error:
            return refused(record, Unusable("malformed", str(error)), self.progress, SAMPLES)
        self.progress.heard += 1
        if page.shown and page.impression.decision.policy in self.methods:
            self.methods[page.impression.decision.policy].hear(page, record.appended_at_ms)
        return None

    def _learn_from(self, record: Told) -> DeadLetter | None:
        transition = self._intake.read(record, self.progress)
        if not isinstance(transition, Transition):
            return transition
        page = to_page(transition, self.config, self.encoders, record.appended_at_ms)
        if isinstance(page, Unusable):
            return refused(record, page, self.progress)
        self._intake.know(transition)
        self._statistics["state"].update(page.user)
        self._statistics["item"].update(page.items)
        self.seen(page.user, self.snapshot)
        self._remember(page, transition, record)
        self.progress.count(transition)
        largest = float(np.abs(page.reward).max())
        self.progress.reward_abs_max = max(self.progress.reward_abs_max, largest)
        return None

    def _remember(self, page: PageExample, transition: Transition, record: Record | Told) -> None:
        self.feeding.add(page, record.partition, record.offset)
        if transition.next_state is not None and transition.next_items:
            self._probes.append((transition.next_state, transition.next_items))

    # Periods ---------------------------------------------------------------------------------------------------------

    def _pass_to(self, now_ms: int) -> None:
        for policy, method in self.methods.items():
            if method.due_ms is None:
                if self.progress.ingested:  # what is handed out is named after the first transition
                    method.begin(now_ms)
            elif method.due_ms <= now_ms:
                self._conclude(policy, method, now_ms)

    def _conclude(self, policy: str, method: Method, now_ms: int) -> None:
        self.snapshot = self._freeze()
        trained: list[Trained] = []

        def streamed(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
            numbers = self.feeding.since(self._streamed[policy])
            return kept(self.learner.streamed(policy, weights, self.feeding, numbers, self.snapshot))

        def replayed(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
            numbers = self.feeding.younger(now_ms - self.config.ranking.major.history)
            salt = method.standing.version
            return kept(self.learner.replayed(policy, weights, self.feeding, numbers, self.snapshot, salt))

        def kept(found: Trained | None) -> dict[str, np.ndarray] | None:
            if found is None:
                return None
            trained.append(found)
            return found.weights

        before = method.standing.version
        updates = method.conclude(now_ms, Learning(streamed, replayed))
        self._streamed[policy] = self.feeding.added
        self._count(policy, trained)
        pages, loss = (trained[0].pages, trained[0].losses["loss"]) if trained else (0, None)
        by_gradient = [u if u.by != "gradient" else structs.replace(u, pages=pages, loss=loss) for u in updates]
        stamped = tuple(structs.replace(update, time_ms=now_ms) for update in by_gradient)
        self._decided += stamped
        if method.standing.version != before:
            self.latest[policy] = stamped

    def _count(self, policy: str, trained: list[Trained]) -> None:
        for each in trained:
            self.progress.updates += each.updates
            self.losses |= {f"{name}/{policy}": x for name, x in each.losses.items()}
            if not np.isfinite(list(each.losses.values())).all():
                msg = f"losses are no longer finite at update {self.progress.updates}: lower the learning rate"
                raise DivergenceError(msg)
            self.losses[f"diverged/{policy}"] = float(each.losses["q_abs"] > self.q_bound)

    def _freeze(self) -> Snapshot:
        return Snapshot.of_parts(self.config, [each.freeze() for each in self._statistics.values()], ())

    @property
    def q_bound(self) -> float:
        """Twice what the largest reward forever is worth."""
        return _SLACK * self.progress.reward_abs_max / (1 - self.config.algorithm.gamma)

    @property
    def rounds(self) -> int:
        return self.progress.ingested // _ROUND

    def check_finite(self) -> None:
        for policy, method in self.methods.items():
            if not all(np.isfinite(w).all() for w in method.standing.weights.values()):
                msg = f"weights of {policy} are no longer finite at update {self.progress.updates}"
                raise DivergenceError(msg)

    # What others see -------------------------------------------------------------------------------------------------

    def snapshot_of(self, policy: str) -> Snapshot:
        """The parameters of what stands now, with the explorers beside it."""
        return dataclasses.replace(self.snapshot, explorers=self.methods[policy].explorers)

    @property
    def news(self) -> int:
        """As many as a candidate needs where weights or explorers were not handed out yet, else none."""
        new = any(m.standing.version > self.progress.versions.get(p, 0) for p, m in self.methods.items())
        return max(self.config.publish.min_transitions, 1) if new else 0

    def handed_out(self) -> None:
        self.progress.versions = {policy: method.standing.version for policy, method in self.methods.items()}

    def decided(self) -> list[Update]:
        """What was decided since it was last asked."""
        found, self._decided = self._decided, []
        return found

    def probes(self) -> tuple[tuple[State, tuple[Item, ...]], ...]:
        """Requests spread evenly over those seen of late."""
        wanted = min(self.config.publish.probes, len(self._probes))
        picks = np.linspace(0, len(self._probes) - 1, wanted).round().astype(int) if wanted else ()
        return tuple(self._probes[i] for i in picks)

    @property
    def identity(self) -> dict[str, str]:
        """What weights depend on besides the log, one text per part. A checkpoint belongs to one identity."""
        return {
            "features and embeddings (sha256)": config_sha(self.config),
            "algorithm": msgspec.json.encode(self.config.algorithm, order="sorted").decode(),
            "ranking": msgspec.json.encode(self.config.ranking, order="sorted").decode(),
            "reward": msgspec.json.encode(self.config.reward, order="sorted").decode(),
        }

    @property
    def run_id(self) -> str:
        """The same for all that learns the same: see `Training.run_id`."""
        parts = {**self.identity, "first transition": self.progress.first_transition}
        return xxhash.xxh32_hexdigest(json.dumps(parts, sort_keys=True).encode())

    def candidate_of(self, policy: str) -> str:
        """The id of what is to be handed out."""
        return candidate_id(self.methods[policy].standing.version, self.run_id)

    def go_back(self, saved: Saved | None, policies: tuple[str, ...]) -> None:
        """What goes with the optimisers that these policies' learners were given: a checkpoint's weights, or (None) the
        first ones. What is known of features is the other policies', too, and stays; so do the pages: those that were
        streamed since are not streamed again, but drawn in major updates."""
        then = _standings(saved) if saved else {}
        for policy in policies:
            self.methods[policy].go_back(then[policy][0].weights if then else self.learner.fresh(policy))
            self._streamed[policy], self.latest[policy] = self.feeding.added, ()

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def saved(self) -> Saved:
        origins = self.feeding.origins()
        return Saved(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            identity=self.identity,
            progress=copy.deepcopy(self.progress),
            losses=dict(self.losses),
            statistics=msgspec.msgpack.encode({part: each.to_bytes() for part, each in self._statistics.items()}),
            snapshot=self.snapshot.to_bytes(),
            recent=self._intake.hashes(),
            partitions=origins.partitions.astype("<i4").tobytes(),
            offsets=origins.offsets.astype("<i8").tobytes(),
            rows=self.feeding.added,
            policies=tuple(self.methods),
            ranking=msgspec.msgpack.encode(
                {p: (encode_standing(m.standing), self._streamed[p], self.latest[p]) for p, m in self.methods.items()}
            ),
        )

    def resume(self, saved: Saved, rows: Iterable[Record | None]) -> int:
        """Everything but the learners' variables, from a checkpoint of this identity; `rows` are the records of the
        pages that it held, in order. Returns how many of them the log no longer has."""
        self.progress, self.losses = copy.deepcopy(saved.progress), dict(saved.losses)
        of_parts = msgspec.msgpack.decode(saved.statistics, type=dict[str, bytes])
        self._statistics = {
            part: Statistics.from_bytes(of_parts[part], part_of(self.config, part)) for part in ("state", "item")
        }
        self.snapshot = Snapshot.from_bytes(saved.snapshot, self.config)
        self._intake = Intake(saved.recent)
        for policy, (standing, streamed, latest) in _standings(saved).items():
            self.methods[policy].standing = standing
            self._streamed[policy], self.latest[policy] = streamed, latest
        expected = len(saved.offsets) // 8
        self.feeding.start_at(saved.rows - expected)
        return expected - sum(self._put_back(record) for record in rows)

    def _put_back(self, record: Record | None) -> bool:
        transition = Unusable("gone", "") if record is None else read_transition(record.payload)
        if isinstance(transition, Unusable):
            return False
        page = to_page(transition, self.config, self.encoders, record.appended_at_ms)
        if isinstance(page, Unusable):
            return False
        self._remember(page, transition, record)
        return True


def _standings(saved: Saved) -> dict[str, tuple[Standing, int, tuple[Update, ...]]]:
    found = msgspec.msgpack.decode(saved.ranking, type=dict[str, tuple[bytes, int, tuple[Update, ...]]])
    return {policy: (decode_standing(standing), *rest) for policy, (standing, *rest) in found.items()}
