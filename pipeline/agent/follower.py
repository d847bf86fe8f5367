"""One thread that follows the pointers and says which versions are in use; requests only read what it found."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping

from pipeline.agent.examples import Examples
from pipeline.agent.policies import Pinned, Pinner, Route, next_route
from pipeline.agent.reasons import Reason, Trouble
from pipeline.monitoring.metrics import Metrics
from pipeline.stores.published import (
    Heartbeat,
    Pointer,
    Served,
    Usage,
    forget_agents,
    readable_pointers,
    write_heartbeat,
)
from pipeline.stores.store import KeyValueStore, StoreError

_LOG = logging.getLogger(__name__)
_SPACING_S = 0.05  # between two refreshes, however many requests ask for one


class Follower:
    def __init__(
        self,
        store: KeyValueStore,
        pinner: Pinner,
        metrics: Metrics,
        *,
        prefix: str,
        policies: tuple[str, ...],
        agent_id: str,
        every_s: float,
        heartbeat_s: float,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float],
        usage: Callable[[Collection[tuple[str, int]]], dict[tuple[str, int], Usage]] = lambda in_use: {},
    ) -> None:
        """`usage`: what was seen of versions of policies."""
        self._store = store
        self._pinner = pinner
        self._metrics = metrics
        self._prefix, self._policies, self._agent_id = prefix, policies, agent_id
        self._every_s, self._heartbeat_s = every_s, heartbeat_s
        self._clock_ms, self._monotonic, self._usage = clock_ms, monotonic, usage
        self._routes: Mapping[str, Route] = {policy: Route() for policy in policies}  # replaced as a whole
        self._examples = Examples(monotonic)
        self._fresh_at_s: float | None = None
        self._said_at_s = -heartbeat_s
        self._turn = threading.Condition()
        self._begun = self._ended = 0  # refreshes
        self._wanted = self._closing = False
        self._thread = threading.Thread(target=self._run, name="pointers", daemon=True)
        self._thread.start()

    def route(self, policy: str) -> Route:
        return self._routes[policy]

    def age_s(self) -> float:
        """How long ago the pointers were read; infinite if they never were."""
        fresh_at_s = self._fresh_at_s
        return float("inf") if fresh_at_s is None else self._monotonic() - fresh_at_s

    @property
    def alive(self) -> bool:
        return self._closing or self._thread.is_alive()

    def refresh(self, timeout_s: float) -> bool:
        """Wait for a look at the pointers that begins after this call; False if there was none in time."""
        with self._turn:
            wanted = self._begun + 1
            self._wanted = True
            self._turn.notify_all()
            return self._turn.wait_for(lambda: self._ended >= wanted or self._closing, max(timeout_s, 0.0))

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait for the first look at the pointers that succeeded."""
        with self._turn:
            return self._turn.wait_for(lambda: self._fresh_at_s is not None, timeout_s)

    def close(self, timeout_s: float) -> None:
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing:
            with self._turn:
                self._begun += 1
                self._wanted = False
            self._look()
            self._say()
            with self._turn:
                self._ended = self._begun
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._closing, min(_SPACING_S, self._every_s))
                self._turn.wait_for(lambda: self._closing or self._wanted, self._every_s)
        self._leave()

    def _look(self) -> None:
        try:
            pointers = readable_pointers(self._store, self._prefix, self._policies, self._unreadable)
        except StoreError as error:
            if self._fresh_at_s is None:
                self._routes = {policy: Route(trouble=Reason.STORE) for policy in self._policies}
            self._unreadable(error)
            return
        except Exception:  # this thread must outlive any fault: without it no switch would work
            self._metrics.count("pointer_errors")
            _LOG.exception("pointers: unexpected fault")
            return
        self._follow(pointers)

    def _unreadable(self, error: StoreError) -> None:
        self._metrics.count("pointer_errors")
        _LOG.warning("pointers: %s", error)

    def _follow(self, pointers: dict[str, Pointer]) -> None:
        """A policy whose pointer cannot be read stays as it is, and holds up no other."""
        self._switch_off(pointers)
        built = self._built(pointers)
        routes = {
            policy: built.get(policy) or (route if route.stable else route._replace(trouble=Reason.STORE))
            for policy, route in self._routes.items()
        }
        self._routes = routes
        for policy, route in routes.items():
            self._metrics.gauge("served_version", route.stable.served.version if route.stable else 0, policy=policy)
        self._pinner.keep_only(_in_use(routes, pointers))
        with self._turn:
            self._fresh_at_s = self._monotonic()
            self._turn.notify_all()

    def _built(self, pointers: dict[str, Pointer]) -> dict[str, Route]:
        """The routes that follow. Building a version may take seconds: meanwhile switches are looked for as ever."""
        built: dict[str, Route] = {}
        off: set[str] = set()

        def build() -> None:
            for policy, pointer in pointers.items():
                built[policy] = self._next(policy, pointer)

        if all(self._routes[policy].has(pointer) for policy, pointer in pointers.items()):
            build()
            return built
        builder = threading.Thread(target=build, name="versions", daemon=True)
        builder.start()
        builder.join(self._every_s)
        while builder.is_alive() and not self._closing:
            off |= self._switched_off_meanwhile()
            builder.join(self._every_s)
        return {policy: route._replace(off=route.off or policy in off) for policy, route in list(built.items())}

    def _next(self, policy: str, pointer: Pointer) -> Route:
        before = self._routes[policy]
        try:
            return next_route(policy, before, pointer, self._pinner.pin, self._failed)
        except Exception:  # of one policy: the others' versions and switches do not wait for it
            self._metrics.count("pointer_errors")
            _LOG.exception("pointers: unexpected fault with %s", policy)
            return before._replace(off=pointer.off)

    def _switched_off_meanwhile(self) -> set[str]:
        try:
            pointers = readable_pointers(self._store, self._prefix, self._policies, lambda error: None)
        except Exception as error:  # the next look says it louder
            _LOG.warning("pointers: %s", error)
            return set()
        self._switch_off(pointers)
        return {policy for policy, pointer in pointers.items() if pointer.off}

    def _switch_off(self, pointers: dict[str, Pointer]) -> None:
        """At once: building a version may take seconds, and the kill switch is not to wait for it."""
        off = {policy for policy, pointer in pointers.items() if pointer.off and not self._routes[policy].off}
        if off:
            self._routes = {
                policy: route._replace(off=route.off or policy in off) for policy, route in self._routes.items()
            }

    def _failed(self, trouble: Trouble) -> None:
        self._metrics.count("pin_failures", reason=trouble.reason.value)
        self._examples.show(trouble.reason.value, "a version that was published cannot be used: %s", trouble)

    def _say(self) -> None:
        now_s = self._monotonic()
        if now_s - self._said_at_s < self._heartbeat_s:
            return
        try:
            write_heartbeat(self._store, self._prefix, self._heartbeat())
        except Exception as error:
            self._metrics.count("heartbeat_errors")
            _LOG.warning("heartbeat: %s", error)
            return
        self._said_at_s = now_s

    def _heartbeat(self) -> Heartbeat:
        stable = {name: route.stable for name, route in self._routes.items()}
        canary = {name: route.canary for name, route in self._routes.items()}
        versions, canaries = _versions(stable), _versions(canary)
        usage = self._usage({*versions.items(), *canaries.items()})
        return Heartbeat(
            self._agent_id,
            self._clock_ms(),
            versions,
            {name: usage[name, version] for name, version in versions.items() if (name, version) in usage},
            canaries,
            {name: usage[name, version] for name, version in canaries.items() if (name, version) in usage},
        )

    def _leave(self) -> None:
        try:
            forget_agents(self._store, self._prefix, [self._agent_id])
        except Exception as error:
            _LOG.warning("heartbeat: %s", error)


def _versions(pinned: Mapping[str, Pinned | None]) -> dict[str, int]:
    return {name: each.served.version for name, each in pinned.items() if each is not None}


def _in_use(routes: Mapping[str, Route], pointers: Mapping[str, Pointer]) -> set[tuple[str, Served]]:
    pinned = {(p.policy, p.served) for route in routes.values() for p in (route.stable, route.canary) if p}
    named = {(name, s) for name, pointer in pointers.items() for s in (pointer.stable, pointer.canary) if s}
    return pinned | named
