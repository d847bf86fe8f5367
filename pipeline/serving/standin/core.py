"""The server's inside: polls folders, performs the manager's actions, hands out loaded versions.

Threads: one that polls the folders, one that asks the manager for the next action ten times a second, a pool that
loads and one that unloads. All state is one immutable fleet, replaced under one lock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc

from pipeline.serving.standin import desired, manager
from pipeline.serving.standin.manager import Action, Do, Failure, Fleet, Report, State
from pipeline.serving.standin.status import StatusError, invalid

logger = logging.getLogger(__name__)
_TICK_S = 0.1


class Bundle(Protocol):
    """A loaded model; see `loader.py`."""

    def close(self) -> None: ...


class Servable:
    """A loaded version and how many requests are using it."""

    def __init__(self, version: int, bundle: Any) -> None:
        self.version = version
        self.bundle = bundle
        self.users = 0


@dataclass(frozen=True)
class Options:
    poll_wait_s: float = 1.0  # 0: once; negative: never
    load_threads: int = 0  # 0: in the manager's thread, which then does nothing else
    unload_threads: int = 0
    retries: int = 5
    retry_interval_s: float = 60.0
    labels_for_unavailable: bool = False


class Core:
    """Owns the loaded models and the threads. `load` opens a version folder or raises StatusError."""

    def __init__(self, load: Callable[[str], Bundle], options: Options) -> None:
        self._load, self._options = load, options
        self._fleet = Fleet()
        self._serving: dict[str, dict[int, Servable]] = {}
        self._models: Sequence[Any] = ()
        self._labels: dict[str, dict[str, int]] = {}
        self._changed = threading.Condition()  # guards fleet, serving, labels
        self._source = threading.Lock()  # guards the list of models while folders are read
        self._config = threading.Lock()  # one reload at a time
        self._stop = threading.Event()
        self._pools: dict[Do, ThreadPoolExecutor | None] = {}
        self._initial = ThreadPoolExecutor(4 * (os.cpu_count() or 1), "initial")
        self._threads: list[threading.Thread] = []

    def start(self, models: Sequence[Any]) -> None:
        """Load the first config; returns when each model has a version, raises StatusError when one cannot."""
        self._pools = dict.fromkeys(Do, self._initial)
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True) for run in (self._poll, self._manage)
        ]
        self._adopt(models)
        for thread in self._threads:
            thread.start()
        self._await_models([model.name for model in models], 0, None, "servable")
        self._pools = {
            Do.LOAD: _pool(self._options.load_threads, "load"),
            Do.UNLOAD: _pool(self._options.unload_threads, "unload"),
        }

    def reload(self, models: Sequence[Any], timeout_s: float | None) -> None:
        """Replace the config; returns when models with new names have a version."""
        if not self._config.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "An earlier reload is still waiting for its models")
        try:
            before, new = self._adopt(models)
            self._await_models(new, before, timeout_s, "model")
        finally:
            self._config.release()

    @contextmanager
    def use(self, spec: Any) -> Iterator[Servable]:
        """The version a ModelSpec asks for, kept loaded while it is in use."""
        with self._changed:
            servable = self._find(spec)
            servable.users += 1
        try:
            yield servable
        finally:
            with self._changed:
                servable.users -= 1
                self._changed.notify_all()

    def reports(self, model: str) -> Mapping[int, Report]:
        with self._changed:
            return self._fleet.reports.get(model, {})

    def interrupt(self) -> None:
        """End all waits; `close` comes next."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self.interrupt()
        for thread in self._threads:
            thread.join()
        for pool in (self._initial, *self._pools.values()):
            if pool is not None:
                pool.shutdown()

    def _find(self, spec: Any) -> Servable:
        if not spec.name:
            text = "ModelSpec has no name specified."
            raise invalid(text)
        version = self._version_asked(spec)
        available = self._serving.get(spec.name, {})
        if version is None and available:
            version = max(available)
        if version not in available:
            asked = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return available[version]

    def _version_asked(self, spec: Any) -> int | None:
        if not spec.version_label:
            return spec.version.value if spec.HasField("version") else None
        label = self._labels.get(spec.name, {}).get(spec.version_label)
        if label is None:
            text = f"Unrecognized servable version label: {spec.version_label}"
            raise invalid(text)
        return label

    def _adopt(self, models: Sequence[Any]) -> tuple[int, list[str]]:
        """Check and take over a config. Number of the last report before it, and the names it brings."""
        with self._source:
            desired.validate(models, self._models)
            old = {model.name for model in self._models}
            with self._changed:
                reports, allow = self._fleet.reports, self._options.labels_for_unavailable
                self._labels = desired.check_labels(models, self._labels, reports, allow)
                before = self._fleet.sequence
            for name in old - {model.name for model in models}:
                self._update(partial(manager.aspire, model=name, wanted={}))
            self._models = models
        return before, [model.name for model in models if model.name not in old]

    def _await_models(self, names: Sequence[str], since: int, timeout_s: float | None, noun: str) -> None:
        def reached() -> list[tuple[int, Report] | None]:
            return [manager.first_reached(self._fleet, name, since) for name in names]

        with self._changed:
            done = self._changed.wait_for(lambda: self._stop.is_set() or None not in reached(), timeout_s)
            outcomes = dict(zip(names, reached(), strict=True))
        if not done or None in outcomes.values():
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, f"No version yet of a new {noun}: {', '.join(names)}")
        failed = {name: outcome for name, outcome in outcomes.items() if outcome and outcome[1].state is State.END}
        if failed:
            raise StatusError(grpc.StatusCode.UNKNOWN, _not_available(failed, noun))

    def _update(self, change: Callable[[Fleet], Fleet]) -> None:
        with self._changed:
            self._fleet = change(self._fleet)
            self._changed.notify_all()

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                with self._source:
                    for name, wanted in desired.scan(self._models).items():
                        self._update(partial(manager.aspire, model=name, wanted=wanted))
            except StatusError as error:
                logger.error("FileSystemStoragePathSource encountered a filesystem access error: %s", error.text)
            if self._options.poll_wait_s <= 0:
                return
            self._stop.wait(self._options.poll_wait_s)

    def _manage(self) -> None:
        while not self._stop.wait(_TICK_S):
            with self._changed:
                self._update(manager.forget)
                action = manager.next_action(self._fleet)
                work = None if action is None else self._begin(action)
            if action is not None and work is not None:
                pool = self._pools[action.do]
                work() if pool is None else pool.submit(work)

    def _begin(self, action: Action) -> Callable[[], None]:
        """Report the action; what is left to do without the lock."""
        if action.do is Do.LOAD:
            self._move(action, State.LOADING)
            return partial(self._do_load, action)
        self._move(action, State.UNLOADING)
        return partial(self._do_unload, action, self._serving[action.model].pop(action.version))

    def _move(self, action: Action, state: State, failure: Failure | None = None) -> None:
        logger.info("%s version %s: %s%s", action.model, action.version, state.name, f" ({failure})" if failure else "")
        self._update(lambda fleet: manager.moved(fleet, action.model, action.version, state, failure))

    def _do_load(self, action: Action) -> None:
        outcome = self._tried(action)
        if isinstance(outcome, Failure):
            self._move(action, State.END, outcome)
            return
        with self._changed:
            self._serving.setdefault(action.model, {})[action.version] = Servable(action.version, outcome)
            self._move(action, State.AVAILABLE)

    def _tried(self, action: Action) -> Bundle | Failure:
        """Load, and again after a failure as often as allowed and while the version is wanted."""
        attempts_left = self._options.retries
        while True:
            try:
                return self._load(action.path)
            except StatusError as error:
                logger.error("Servable %s version %s cannot be loaded: %s", action.model, action.version, error.text)
                if attempts_left <= 0 or not self._still_wanted_after_pause(action):
                    return error.failure()
                attempts_left -= 1

    def _still_wanted_after_pause(self, action: Action) -> bool:
        def dropped() -> bool:
            return self._stop.is_set() or not manager.wanted(self._fleet, action.model, action.version)

        with self._changed:
            return not self._changed.wait_for(dropped, max(self._options.retry_interval_s, 0))

    def _do_unload(self, action: Action, servable: Servable) -> None:
        with self._changed:
            self._changed.wait_for(lambda: servable.users == 0 or self._stop.is_set())
        servable.bundle.close()
        self._move(action, State.END)


def _pool(threads: int, name: str) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(threads, name) if threads > 0 else None


def _not_available(failed: Mapping[str, tuple[int, Report]], noun: str) -> str:
    entries = []
    for name, (version, report) in sorted(failed.items()):
        reason = f" due to error: {report.failure.name}: {report.failure.text}" if report.failure else ""
        entries.append(f"{{{{name: {name} version: {version}}}{reason}}}, ")
    return f"{len(failed)} {noun}(s) did not become available: {{{''.join(entries)}}}"
