"""A candidate: what the trainer leaves in staging for the version controller to judge.

<staging>/<policy>/<candidate id>/
  candidate.json                                  the `Candidate` record
  model/saved_model.pb, model/variables/          the SavedModel
  model/assets.extra/tf_serving_warmup_requests   requests that the model server replays before it serves the version
  model/assets.extra/parameters.msgpack           the parameter snapshot its features must be encoded with
The folder is renamed into place when it is complete, so what has no leading dot is whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.ranking.updates import Update
from pipeline.records import Explorer, Item, State
from pipeline.stores.published import BOOTSTRAP as BOOTSTRAP

RECORD = "candidate.json"
MODEL = "model"
EXTRA = "assets.extra"
PARAMETERS = f"{EXTRA}/parameters.msgpack"
WARM_UP = f"{EXTRA}/tf_serving_warmup_requests"
_MODEL_FILES = ("saved_model.pb", "variables/variables.index", PARAMETERS, WARM_UP)


class CandidateError(PageturnError):
    """A candidate's folder is not usable; says what is missing or wrong, and where."""


class Probe(Struct, frozen=True, omit_defaults=True):
    """A raw state and the action that the exported model gave for it; or a state with candidates, and their Q."""

    state: State
    action: tuple[float | None, ...] = ()  # None: not finite (JSON has no NaN)
    items: tuple[Item, ...] = ()
    q: tuple[float | None, ...] = ()  # of the served weights

    @property
    def answer(self) -> tuple[float | None, ...]:
        return self.q if self.items else self.action


class Candidate(Struct, frozen=True):
    id: str  # see `published.candidate_id`
    policy: str
    model_name: str
    config_sha: str
    parameters: str  # sha256 of the snapshot's bytes
    created_ms: int
    seed: int
    transitions: int  # ingested in all
    explored: int  # of them decided by this policy
    updates: int
    first_transition: str | None  # ids; None for the bootstrap, which learned from nothing
    last_transition: str | None
    losses: dict[str, float | None]  # None: not finite
    value_mean: float | None  # over the probes; None while no page of the baseline was seen
    advantage_mean: float | None
    pages: dict[str, int]  # decided_by -> pages since the last candidate
    probes: tuple[Probe, ...]
    files: dict[str, str] = {}  # sha256 of each file of the model, by its path in there
    seeds: dict[str, float] = {}  # how those trained side by side compared on held-out sessions, when they last were
    seed_spread: float | None = None  # of actions: standard deviation over seeds, mean over probes, in ranges
    explorers: tuple[Explorer, ...] = ()  # what the model holds beside the served weights, where it ranks items
    decided: tuple[Update, ...] = ()  # then: what the trainer decided when it made these weights, and by which evidence
    gone_back: int = 0  # of the requests to go back, the number of the last that its trainer had followed


def file_digests(model: Path) -> dict[str, str]:
    """For `Candidate.files`."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return {path.relative_to(model).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode_candidate(candidate: Candidate) -> bytes:
    """The bytes of candidate.json."""
    return msgspec.json.format(msgspec.json.encode(candidate), indent=1)


def read_candidate(path: Path) -> Candidate:
    """The record in a candidate's folder, after making sure that everything it promises is there.

    Raises: CandidateError naming every missing file, or what does not agree.
    """
    candidate = decode_candidate(path / RECORD)
    model = path / MODEL
    missing = [name for name in dict.fromkeys((*_MODEL_FILES, *candidate.files)) if not (model / name).is_file()]
    if missing:
        message = f"{model}: expected a complete SavedModel; missing {', '.join(missing)}"
        raise CandidateError(message)
    found = (candidate.policy, candidate.id)
    if found != (path.parent.name, path.name):
        message = f"{path / RECORD}: expected policy and id of its folder, found {'/'.join(found)}"
        raise CandidateError(message)
    torn = [name for name, digest in candidate.files.items() if _sha256(model / name) != digest]
    if torn:
        message = f"{model}: expected the files that the trainer wrote; not as written: {', '.join(torn)}"
        raise CandidateError(message)
    read_parameters(model, candidate)
    return candidate


def decode_candidate(path: Path) -> Candidate:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Candidate)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise CandidateError(message) from error
    except msgspec.MsgspecError as error:
        message = f"{path}: expected a candidate record: {error}"
        raise CandidateError(message) from error


def read_parameters(model: Path, candidate: Candidate) -> bytes:
    """The snapshot's bytes from a SavedModel's folder; CandidateError when they are not the candidate's."""
    payload = (model / PARAMETERS).read_bytes()
    found = hashlib.sha256(payload).hexdigest()
    if found != candidate.parameters:
        message = f"{model / PARAMETERS}: expected sha256 {candidate.parameters}, found {found}"
        raise CandidateError(message)
    return payload


def list_candidates(staging: Path, policy: str) -> list[Path]:
    """The complete candidates of a policy, oldest first. Folders still being written start with a dot."""
    folder = staging / policy
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
