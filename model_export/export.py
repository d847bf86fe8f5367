"""Learner -> candidates: one SavedModel per learned policy, with all that the version controller needs to judge it.

A model holds its own copy of the state tower and its policy's head, nothing of the critic.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from msgspec import structs
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from model_export.candidate import (
    EXTRA,
    MODEL,
    PARAMETERS,
    RECORD,
    WARM_UP,
    Candidate,
    CandidateError,
    Probe,
    encode_candidate,
    file_digests,
)
from pipeline import durable
from pipeline.config.schema import Bits, Dense, Feature, FeatureConfig
from pipeline.config.schema import Sequence as SequenceFeature
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import part_of
from pipeline.features.snapshot import Snapshot
from pipeline.learning.learner import Evaluation, inputs_spec
from pipeline.learning.learners import actor_of
from pipeline.learning.networks import Inputs
from pipeline.learning.training import Probing, Training
from pipeline.records import FeatureValue, Item, State
from pipeline.stores.published import BOOTSTRAP, candidate_id

_SIGNATURE = "serving_default"
_WARM_UP_REQUESTS = 4  # batch sizes and values do not matter on a CPU; the signature and the output filter do
_WAITING = 50  # candidates of a policy, in case no controller is there to judge them and clear them away
_log = logging.getLogger(__name__)


class PolicyModel(tf.Module):
    """What is served for one policy: inputs of the config -> action, inside its range."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="policy")
        self.actor = actor_of(config, seeds=(config.algorithm.seed,), policies=1)
        specs = {name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in inputs_spec(config).items()}
        serve = tf.function(lambda **inputs: {"action": self(inputs)}, autograph=False)
        self.serve = serve.get_concrete_function(**specs)

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        return self.actor({name: x[None] for name, x in inputs.items()})[0, 0]  # [B, N]


class Exporter:
    """Writes candidates to staging. Callable as the trainer's `export`.

    Raises: CandidateError where staging cannot be written, at the start rather than after the first round.
    """

    def __init__(self, config: FeatureConfig, staging: Path) -> None:
        self._config, self._staging = config, staging
        for policy in config.learned_policies():
            with explained(staging / policy):
                (staging / policy).mkdir(parents=True, exist_ok=True)
        self._model = PolicyModel(config)

    def __call__(self, training: Training, created_ms: int) -> tuple[Path, ...]:
        """One candidate per learned policy; those that are there already are left alone."""
        training.check_finite()
        judged, progress = _judge(training), training.progress
        candidates = [_candidate(training, k, judged, created_ms) for k in range(len(self._config.learned_policies()))]
        for k, candidate in enumerate(candidates):
            final = self._folder(candidate)
            if final.exists():
                _log.info("%s is there already", final)
                continue
            temporary = final.with_name(f".tmp-{candidate.id}")
            shutil.rmtree(temporary, ignore_errors=True)
            self._model.actor.copy_from(training.learner.actor, training.chosen, k)
            with explained(final):
                self._write(temporary, candidate, training.snapshot, judged.inputs)
                durable.rename(temporary, final)
                if progress.ingested:
                    clear_away(final)
        return tuple(self._folder(candidate) for candidate in candidates)

    def _folder(self, candidate: Candidate) -> Path:
        return self._staging / candidate.policy / candidate.id

    def _write(self, folder: Path, candidate: Candidate, snapshot: Snapshot, inputs: dict[str, np.ndarray]) -> None:
        model = folder / MODEL
        tf.saved_model.save(self._model, str(model), signatures={_SIGNATURE: self._model.serve})
        (model / EXTRA).mkdir()
        (model / PARAMETERS).write_bytes(snapshot.to_bytes())
        write_warm_up(model / WARM_UP, candidate.model_name, inputs)
        record = structs.replace(candidate, files=file_digests(model))
        (folder / RECORD).write_bytes(encode_candidate(record))
        durable.sync_tree(folder)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """TensorFlow reports a full disk with errors of its own."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        found = error.strerror if isinstance(error, OSError) else error.message
        message = f"staging folder {path}: cannot be written: {found}"
        raise CandidateError(message) from error


def clear_away(newest: Path) -> None:
    """What killed trainers left half written, and the oldest candidates. A trainer has its staging for itself, but for
    the controller, which may be quicker, and for a bootstrap."""
    beside = [path for path in newest.parent.iterdir() if path != newest and not path.name.endswith(BOOTSTRAP)]
    for path in beside:
        if path.name.startswith(".tmp-"):
            shutil.rmtree(path, ignore_errors=True)
    with suppress(FileNotFoundError):
        by_age = sorted((path.stat().st_mtime_ns, path) for path in beside if path.name[0].isdigit())
        for _, path in by_age[: -(_WAITING - 1)]:
            durable.remove_folder(path)


class _Judged(NamedTuple):
    """The probes and what the learner says about them."""

    probing: Probing
    inputs: dict[str, np.ndarray]
    evaluation: Evaluation  # by the chosen seed
    action_spread: np.ndarray  # [K] between the seeds, in ranges


def _judge(training: Training) -> _Judged:
    probing = training.probing()
    if not probing.states:
        probing = Probing((neutral_state(training.config),), covered=False)
    prepared = [training.encoder.prepare(state) for state in probing.states]
    inputs = training.encoder.finish(training.encoder.stack(prepared), training.snapshot)
    found = zip(probing.states, prepared, strict=True)
    probing = Probing(tuple(structs.replace(state, lookups=p.lookups) for state, p in found), probing.covered)
    by_all = Evaluation(*(x.numpy() for x in training.learner.evaluate(inputs)))
    spread = by_all.action.std(axis=0) / (2 * training.learner.space.half_range)  # [K, B, N]
    return _Judged(probing, inputs, Evaluation(*(x[training.chosen] for x in by_all)), spread.mean(axis=(1, 2)))


def bootstrap(config: FeatureConfig, staging: Path, created_ms: int) -> tuple[Path, ...]:
    """Candidates of a learner that has learned nothing: exactly the baseline, for version 1 of every model."""
    return Exporter(config, staging)(Training(config, Encoder(config)), created_ms)


def _candidate(training: Training, k: int, judged: _Judged, created_ms: int) -> Candidate:
    config, progress, (probing, _, evaluation) = training.config, training.progress, judged[:3]
    policy = config.learned_policies()[k]
    actions = evaluation.action[k].tolist()
    probes = (Probe(state, tuple(action)) for state, action in zip(probing.states, actions, strict=True))
    losses = {name.removesuffix(f"/{policy}"): x for name, x in training.losses.items()}
    return Candidate(
        id=candidate_id(progress.ingested, training.run_id),
        policy=policy,
        model_name=config.model_name(policy),
        config_sha=training.encoder.config_sha,
        parameters=training.snapshot.sha256,
        created_ms=created_ms,
        seed=config.algorithm.all_seeds[training.chosen],
        transitions=progress.ingested,
        explored=progress.explored.get(policy, 0),
        updates=progress.updates,
        first_transition=progress.first_transition,
        last_transition=progress.last_transition,
        losses={name: x for name, x in losses.items() if "/" not in name},
        value_mean=float(evaluation.value[k].mean()) if probing.covered else None,
        advantage_mean=float(evaluation.advantage[k].mean()) if probing.covered else None,
        pages=dict(progress.pages.get(policy, {})),
        probes=tuple(probes),
        seeds=dict(progress.seeds),
        seed_spread=float(judged.action_spread[k]) if len(config.algorithm.all_seeds) > 1 else None,
        gone_back=progress.gone_back.get(policy, 0),
    )


def write_warm_up(path: Path, model_name: str, inputs: dict[str, np.ndarray]) -> None:
    """Requests as agents make them: one state, no output filter. The server replays them before it serves."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in range(min(_WARM_UP_REQUESTS, len(next(iter(inputs.values()))))):
            request = PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model_name, _SIGNATURE
            for name, x in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(x[row : row + 1]))
            log = PredictionLog(predict_log=PredictLog(request=request))
            writer.write(log.SerializeToString())


def neutral_state(config: FeatureConfig) -> State:
    """A valid raw state where none was seen yet: 0.5 for numbers, id 0, no history, no items.

    Where features of several kinds read the same source the id or history decides.
    """
    scopes: dict[str, dict[str, FeatureValue]] = {"user": {}, "context": {}, "page": {}}
    for feature in sorted(part_of(config, "state").features, key=lambda f: not isinstance(f, Dense)):
        scope, field = feature.source.split(".", 1)
        scopes[scope][field] = _neutral(feature)
    return State(**scopes)


def neutral_item(config: FeatureConfig) -> Item:
    """The same of a candidate."""
    features = sorted(part_of(config, "item").features, key=lambda f: not isinstance(f, Dense))
    return Item("neutral", features={feature.source.split(".", 1)[1]: _neutral(feature) for feature in features})


def _neutral(feature: Feature) -> FeatureValue:
    match feature:
        case Dense():
            return 0.5
        case SequenceFeature():
            return ()
        case Bits():
            return 0
    return "0"
