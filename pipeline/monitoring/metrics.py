"""The metrics of one process, over the stock Prometheus client, and the port on which Prometheus reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from pipeline.errors import PageturnError
from pipeline.monitoring.catalogue import Family, Kind, Process

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):([0-9]{1,5})")
_ALL = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge}


class MetricsError(PageturnError):
    """The port for metrics cannot be opened."""


class Metrics:
    """Safe for threads. A name or label that the catalogue does not have for this process is an error."""

    def __init__(self, process: Process) -> None:
        self.registry = CollectorRegistry()
        self._instruments = {family.name: self._make(process, family) for family in process.families}
        self._children: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}  # by name and labels
        self._counted_to: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def _make(self, process: Process, family: Family) -> Counter | Gauge | Histogram:
        name = f"pageturn_{process.name}_{family.name}"
        if family.kind is Kind.HISTOGRAM:
            return Histogram(name, family.help, family.labels, buckets=family.bounds, registry=self.registry)
        return _ALL[family.kind](name, family.help, family.labels, registry=self.registry)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self._child(name, labels).inc(amount)

    def count_to(self, name: str, total: float, **labels: str) -> None:
        """For a count that is kept elsewhere, by one thread: what it has come to by now."""
        key = name, frozenset(labels.items())
        self._child(name, labels).inc(max(total - self._counted_to.get(key, 0), 0))
        self._counted_to[key] = total

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._child(name, labels).set(value)

    def add(self, name: str, amount: float, **labels: str) -> None:
        """To a gauge: a sum whose terms may be negative."""
        self._child(name, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._child(name, labels).observe(value)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a counter, or of a gauge, over all labels that are not given."""
        instrument, wanted = self._instruments[name], labels.items()
        samples = [sample for metric in instrument.collect() for sample in metric.samples]
        return sum(s.value for s in samples if not s.name.endswith("_created") and wanted <= s.labels.items())

    def _child(self, name: str, labels: dict[str, str]):
        """The client makes sure of the labels each time; once is enough."""
        key = (name, *labels, *labels.values())
        child = self._children.get(key)
        if child is None:
            instrument = self._instruments[name]
            child = self._children[key] = instrument.labels(**labels) if labels else instrument
        return child


@contextmanager
def exposed(metrics: Metrics, address: str | None) -> Iterator[int | None]:
    """Serve `/metrics` on HOST:PORT (0: a free port) while the context lasts; yields the port. Not at all for None.

    Adds what the client knows of any process: memory, processor time, open files, garbage collection.
    Raises: MetricsError.
    """
    if address is None:
        yield None
        return
    host, port = _parse(address)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=metrics.registry)
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        message = f"metrics address {address}: cannot listen: {error.strerror or error}"
        raise MetricsError(message) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        message = f"metrics address: expected HOST:PORT, found {address!r}"
        raise MetricsError(message)
    return match[1].strip("[]"), int(match[2])
