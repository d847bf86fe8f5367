"""What is served for each policy: a model version and the parameters of exactly that version, never used apart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from pipeline.agent.reasons import Reason, Trouble
from pipeline.config.schema import FeatureConfig
from pipeline.features.errors import SnapshotError
from pipeline.features.inputs import Input, config_sha, served_inputs
from pipeline.features.snapshot import Snapshot
from pipeline.serving.client import Signature, TensorSpec
from pipeline.serving.errors import BadRequest, ServingError
from pipeline.stores.published import Pointer, Served, parameters_key
from pipeline.stores.store import KeyValueStore, StoreError

_LOG = logging.getLogger(__name__)
OUTPUT = "action"
Q, Q_EXPLORERS = "q", "q_explorers"  # of a policy that chooses items
_PERMANENT = {Reason.VERSION_MISMATCH, Reason.BAD_SIGNATURE}  # what a version is does not change


class MetadataSource(Protocol):
    def metadata(self, model: str, version: int | None, timeout_s: float) -> Signature: ...


class Pinned(NamedTuple):
    policy: str
    model_name: str
    served: Served
    snapshot: Snapshot


class Route(NamedTuple):
    """How one policy is served now. Immutable: a request works with one from its beginning to its end."""

    stable: Pinned | None = None
    canary: Pinned | None = None
    share: float = 0.0
    off: bool = False
    trouble: Reason = Reason.STARTING  # why there is no stable version

    def has(self, pointer: Pointer) -> bool:
        """Whether everything that it names is built."""
        ours = (each.served if each else None for each in (self.stable, self.canary))
        return all(
            named in (None, served) for named, served in zip((pointer.stable, pointer.canary), ours, strict=True)
        )

    def choose(self, on_canary: bool) -> Pinned:
        """Raises Trouble where there is nothing to choose from."""
        if self.off:
            raise Trouble(Reason.OFF)
        if on_canary and self.canary is not None:
            return self.canary
        if self.stable is None:
            raise Trouble(self.trouble)
        return self.stable

    def role(self, pinned: Pinned) -> str:
        """What a version is by now: a request that began before it changed works with the one before."""
        if pinned is self.stable:
            return "stable"
        return "canary" if pinned is self.canary else "before"


class Pinner:
    """Builds `Pinned`s: parameters from the store (checked against their name), signature from the model server.

    Asks for nothing twice: snapshots are kept by hash, permanent refusals and checked versions by version.
    """

    def __init__(self, config: FeatureConfig, store: KeyValueStore, server: MetadataSource, timeout_s: float) -> None:
        self._config = config
        self._config_sha = config_sha(config)
        self._inputs = served_inputs(config)
        self._store = store
        self._server = server
        self._timeout_s = timeout_s
        self._snapshots: dict[str, Snapshot] = {}
        self._checked: dict[tuple[str, Served], Trouble | None] = {}

    def pin(self, policy: str, served: Served) -> Pinned:
        """Raises Trouble: for good where the version does not fit the config, else worth another try."""
        checked = self._checked.get((policy, served))
        if checked is not None:
            raise checked
        try:
            return self._build(policy, served)
        except Trouble as trouble:
            if trouble.reason in _PERMANENT:
                self._checked[policy, served] = trouble
                _LOG.error("%s version %d cannot be served: %s", policy, served.version, trouble)
            raise

    def keep_only(self, in_use: set[tuple[str, Served]]) -> None:
        """Forget what no pointer names any more."""
        hashes = {served.parameters for _, served in in_use}
        self._snapshots = {sha: snapshot for sha, snapshot in self._snapshots.items() if sha in hashes}
        self._checked = {key: trouble for key, trouble in self._checked.items() if key in in_use}

    def _build(self, policy: str, served: Served) -> Pinned:
        snapshot = self._snapshots.get(served.parameters)
        if snapshot is None:
            snapshot = self._snapshots[served.parameters] = self._fetch(served.parameters)
        model_name = self._config.model_name(policy)
        if (policy, served) not in self._checked:
            self._check_signature(policy, model_name, served.version)
            self._checked[policy, served] = None
        return Pinned(policy, model_name, served, snapshot)

    def _fetch(self, parameters: str) -> Snapshot:
        try:
            payload = self._store.get(parameters_key(self._config.kv_prefix, parameters))
        except StoreError as error:
            raise Trouble(Reason.STORE, str(error)) from error
        if payload is None:
            raise Trouble(Reason.STORE, f"it has no parameters {parameters}")
        found = hashlib.sha256(payload).hexdigest()
        if found != parameters:
            raise Trouble(Reason.STORE, f"expected parameters with sha256 {parameters}, found {found}")
        return self._decode(payload)

    def _decode(self, payload: bytes) -> Snapshot:
        try:
            snapshot = Snapshot.from_bytes(payload, self._config)
        except SnapshotError as error:
            raise Trouble(Reason.VERSION_MISMATCH, str(error)) from error
        return snapshot

    def _check_signature(self, policy: str, model_name: str, version: int) -> None:
        try:
            signature = self._server.metadata(model_name, version, self._timeout_s)
        except ServingError as error:
            # UNIMPLEMENTED is said by what is no model server, a proxy, say: not of this version, and not for good.
            permanent = isinstance(error, BadRequest) and error.code != "UNIMPLEMENTED"
            raise Trouble(Reason.BAD_SIGNATURE if permanent else Reason.UNAVAILABLE, str(error)) from error
        problem = signature_problem(signature, self._inputs, served_outputs(self._config, policy))
        if problem:
            raise Trouble(Reason.BAD_SIGNATURE, f"{model_name} version {version}: {problem}")


def served_outputs(config: FeatureConfig, policy: str) -> dict[str, TensorSpec]:
    """Of a policy's model: an action; or Q of every candidate, by the served weights and by each explorer."""
    if config.ranking is None:
        return {OUTPUT: TensorSpec("float32", (None, len(config.action)))}
    outputs = {Q: TensorSpec("float32", (None, None))}
    explorers = config.ranking.explorers(policy)
    return {**outputs, Q_EXPLORERS: TensorSpec("float32", (None, explorers, None))} if explorers else outputs


def signature_problem(signature: Signature, inputs: tuple[Input, ...], outputs: Mapping[str, TensorSpec]) -> str | None:
    """What is wrong with a model's signature; None if it is what the config says. Pure."""
    expected = {each.name: TensorSpec(each.dtype, (None, *each.shape)) for each in inputs}
    if signature.inputs.keys() != expected.keys():
        return f"expected inputs {sorted(expected)}, found {sorted(signature.inputs)}"
    found = dict(signature.inputs)
    for output, spec in outputs.items():
        if output not in signature.outputs:
            return f"expected an output {output!r}, found {sorted(signature.outputs)}"
        expected[f"output {output}"], found[f"output {output}"] = spec, signature.outputs[output]
    wrong = [
        f"{name}: expected {expected[name]}, found {found[name]}"
        for name in expected
        if not _fits(found[name], expected[name])
    ]
    return "; ".join(wrong) or None


def _fits(found: TensorSpec, expected: TensorSpec) -> bool:
    """Sizes that the model leaves open fit anything; the batch axis must be left open."""
    if found.dtype != expected.dtype or found.shape is None or expected.shape is None:
        return found.dtype == expected.dtype and found.shape is None
    if len(found.shape) != len(expected.shape):
        return False
    return found.shape[:1] == (None,) and all(
        size in (None, wanted) for size, wanted in zip(found.shape[1:], expected.shape[1:], strict=True)
    )


def next_route(
    policy: str, old: Route, pointer: Pointer, pin: Callable[[str, Served], Pinned], failed: Callable[[Trouble], None]
) -> Route:
    """The route that follows a pointer. Versions are built fully before the route with them exists.

    Where the stable version cannot be built for now, the one before stays; where it never can be, there is none. Where
    a canary cannot be built there is none: its share gets the stable version, and not what was tried before. A pointer
    that names nothing any more was lost with its store: nobody takes a version away like that, so the route stays, but
    for the kill switch, until somebody has filled the store again.
    """
    if pointer.stable is None and old.stable is not None:
        failed(Trouble(Reason.NO_MODEL, "the store has lost what was published"))
        return old._replace(off=old.off or pointer.off)

    def follow(served: Served | None, current: Pinned | None, meanwhile: Pinned | None) -> tuple[Pinned | None, Reason]:
        if served is None or (current is not None and current.served == served):
            return (current if served is not None else None), Reason.NO_MODEL
        try:
            return pin(policy, served), Reason.NO_MODEL
        except Trouble as trouble:
            failed(trouble)
            return (None if trouble.reason in _PERMANENT else meanwhile), trouble.reason

    stable, reason = follow(pointer.stable, old.stable, old.stable)
    canary, _ = follow(pointer.canary, old.canary, None)
    return Route(stable, canary, pointer.share, pointer.off, reason)
