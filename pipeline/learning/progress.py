"""What a trainer has done so far: the part of its state that is neither weights nor rows. Checkpointed as it is."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec import Struct, field, structs

from pipeline.config.schema import ExternalTable, Feature, FeatureConfig, GraphTable
from pipeline.features.inputs import config_sha
from pipeline.learning.errors import CheckpointError
from pipeline.learning.shelf import Spans
from pipeline.records import DecidedBy, Decision, Transition


class Progress(Struct, forbid_unknown_fields=True):
    ingested: int = 0  # transitions, each once
    duplicates: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    positions: dict[int, int] = field(default_factory=dict)  # next offset by partition
    first_transition: str | None = None
    last_transition: str | None = None
    explored: dict[str, int] = field(default_factory=dict)  # transitions that a learned policy decided itself
    pages: dict[str, dict[str, int]] = field(default_factory=dict)  # policy -> decided_by, since the last candidate
    reward_abs_max: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)  # ingested, but not learned from, by reason
    pretrained: str | None = None  # what the weights were trained on before the first transition
    owed: float = 0.0  # updates, a fraction of one
    updates: int = 0
    exported: int = 0  # `ingested` at the last candidate
    chosen: int = 0  # of the seeds: whose losses are reported, and which is handed out
    seeds: dict[str, float] = field(default_factory=dict)  # how they compared when they last were, by metric
    # Of a feed whose policies choose the items:
    samples: dict[int, int] = field(default_factory=dict)  # next offset by partition
    heard: int = 0  # samples
    versions: dict[str, int] = field(default_factory=dict)  # policy -> the weights it was last handed out with
    gone_back: dict[str, int] = field(default_factory=dict)  # policy -> number of the last request to go back, followed

    @property
    def read(self) -> int:
        """Records taken from the log: every one is ingested, heard, a duplicate, or refused with a reason."""
        return self.ingested + self.heard + self.duplicates + sum(self.refused.values())

    def count(self, transition: Transition) -> None:
        decision = transition.decision
        self.ingested += 1
        self.first_transition = self.first_transition or transition.id
        self.last_transition = transition.id
        self.reward_abs_max = max(self.reward_abs_max, abs(transition.reward))
        if decision.decided_by is DecidedBy.POLICY:
            self.explored[decision.policy] = self.explored.get(decision.policy, 0) + 1
        self.count_page(decision)

    def count_page(self, decision: Decision) -> None:
        pages = self.pages.setdefault(decision.policy, {})
        pages[decision.decided_by.value] = pages.get(decision.decided_by.value, 0) + 1

    def only_of(self, policies: Collection[str]) -> None:
        """Forget what was counted of other policies: one that comes, or comes back, begins anew."""
        for counts in (self.explored, self.pages, self.gone_back):
            for gone in counts.keys() - set(policies):
                del counts[gone]

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def leave_out(self, reason: str, pages: int = 1) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + pages


class Saved(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint beside its weights. Arrays are little-endian bytes."""

    format: str
    format_version: int
    identity: dict[str, str]
    progress: Progress
    losses: dict[str, float]
    statistics: bytes
    snapshot: bytes
    recent: bytes  # uint64
    partitions: bytes  # int32, int64: where the rows came from that there are to learn from, oldest first
    offsets: bytes
    rows: int  # taken in so far, to learn from
    spent: bytes = b""  # bool: rows that are held though nothing more is learned from them
    held_out_partitions: bytes = b""  # int32, int64: where the pages came from that seeds are compared on
    held_out_offsets: bytes = b""
    policies: tuple[str, ...] = ()  # the learned ones, in the order in which weights are stacked
    features: bytes = b""  # what `described` says of the config
    ranking: bytes = b""  # where policies stand that choose items
    shelf: Spans = ()  # which rows of tables had been put away


class _Described(Struct, frozen=True):
    features: tuple[Feature, ...]
    embeddings: dict[str, GraphTable | ExternalTable]


def described(config: FeatureConfig) -> bytes:
    """The features and their tables, for a config that has others later."""
    return msgspec.json.encode(_Described(config.features, dict(config.embeddings)), order="sorted")


def former_config(saved: Saved, config: FeatureConfig) -> FeatureConfig:
    """The config with the features of the checkpoint."""
    if not saved.features:
        return config
    known = msgspec.json.decode(saved.features, type=_Described)
    return structs.replace(config, features=known.features, embeddings=known.embeddings)


FORMAT, FORMAT_VERSION = "pageturn-trainer", 1


def identity(config: FeatureConfig, round_size: int) -> dict[str, str]:
    """What weights depend on besides the log and the learned policies, one text per part.

    A checkpoint belongs to one identity. Policies and features come and go: see `carrying.py`.
    """
    return {
        "features, embeddings, fusion and action (sha256)": config_sha(config),
        "algorithm": msgspec.json.encode(config.algorithm, order="sorted").decode(),
        "transitions per round": str(round_size),
    }


def check_identity(saved: Saved, expected: dict[str, str], where: str) -> None:
    differing = [
        f"{part}: expected {wanted}, found {saved.identity.get(part, 'nothing')}"
        for part, wanted in expected.items()
        if saved.identity.get(part) != wanted
    ]
    if differing:
        msg = f"{where} is a checkpoint of another config: {'; '.join(differing)}. Use another work directory"
        raise CheckpointError(msg)


def decode_saved(payload: bytes, where: str) -> Saved:
    try:
        saved = msgspec.msgpack.decode(payload, type=Saved)
    except msgspec.MsgspecError as error:
        msg = f"{where}: expected {FORMAT} of version {FORMAT_VERSION}, found {error}"
        raise CheckpointError(msg) from error
    if (saved.format, saved.format_version) != (FORMAT, FORMAT_VERSION):
        msg = f"{where}: expected {FORMAT} {FORMAT_VERSION}, found {saved.format} {saved.format_version}"
        raise CheckpointError(msg)
    return saved
