"""What all of Kafka's clients have in common: their settings, bounded waits, and errors that say what to do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pipeline.logs.kafka.settings import Settings
from pipeline.logs.log import LogError

T = TypeVar("T")
_PAUSE_S = 0.1
_ATTEMPT_S = 10.0  # a question may get lost with its broker, and is asked again


class _Seldom(logging.Filter):
    """A client that cannot connect says so ten times a second; of each kind of line one in ten seconds is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now_s = record.getMessage().partition(" ")[0], time.monotonic()
        if now_s - self._last_s.get(kind, -math.inf) < _QUIET_S:
            return False
        self._last_s[kind] = now_s
        return True


_QUIET_S = 10.0
_LOG = logging.getLogger(__name__)
_LOG.addFilter(_Seldom())

_PASSING = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
}

# The client asks the leader it remembers, by the number that this one had before it was elected again. It does not
# look again for a partition that it is not fetching from (a leader that came back was refused for a minute): a new
# client is needed.
_STALE = {
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError._NOENT,  # no leader known
    KafkaError._UNKNOWN_PARTITION,  # the same; topics were looked at before they are used
}


class Connection:
    """Makes clients, and remembers what their background threads last complained of."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._trouble = ""

    def client(self, make: Callable[[dict[str, Any]], T], extra: dict[str, Any]) -> T:
        """LogError where librdkafka does not like a setting."""
        defaults = {"client.id": "pageturn", "reconnect.backoff.max.ms": 1_000}
        forced = {"bootstrap.servers": self.settings.brokers, "error_cb": self._complain, "logger": _LOG}
        try:
            return make(defaults | dict(self.settings.client) | extra | forced)
        except KafkaException as error:
            message = f"{self.settings.where}: settings that the Kafka client refuses: {_said(error)}"
            raise LogError(message) from error

    def persist(self, what: str, call: Callable[[float], T], heed: Callable[[KafkaError], None]) -> T:
        """Call, with the seconds that it may take, until it answers; a broker may be starting again.

        `heed` hears of every failure.
        """
        deadline_s = time.monotonic() + self.settings.timeout_s
        while True:
            try:
                return call(min(max(deadline_s - time.monotonic(), 0.01), _ATTEMPT_S))
            except KafkaException as error:
                heed(error.args[0])
                if not is_passing(error.args[0]) or time.monotonic() + _PAUSE_S >= deadline_s:
                    raise self.explained(what, error.args[0]) from error
            time.sleep(_PAUSE_S)

    def explained(self, what: str, error: KafkaError) -> LogError:
        if is_passing(error):
            found = f"no answer within {self.settings.timeout_s:g} s ({error.str()})"
            remedy = f"is the cluster up, and are security.protocol and the credentials right? {self._trouble}"
        elif error.code() in _FORBIDDEN:
            found, remedy = error.str(), "this user needs the rights that docs/operations.md lists"
        else:
            found, remedy = error.str(), ""
        return LogError(f"{self.settings.where}: cannot {what}: {found}" + (f"; {remedy.strip()}" if remedy else ""))

    def _complain(self, error: KafkaError) -> None:
        if self._trouble and error.code() == KafkaError._ALL_BROKERS_DOWN:
            return  # what was said before tells why
        self._trouble = f"Last from the client: {error.str()}"


def is_passing(error: KafkaError) -> bool:
    """Whether it may be over in a while."""
    return error.code() in _PASSING or is_stale(error) or error.retriable()


def is_stale(error: KafkaError) -> bool:
    """Whether it will not be over for this client."""
    return error.code() in _STALE


def _said(error: KafkaException) -> str:
    first = error.args[0]
    return first.str() if isinstance(first, KafkaError) else str(first)
