"""A caller of the agent's gRPC service, in Python: the page path asks, the event path reports in the background.

with AgentClient("127.0.0.1:8600") as client:
    reporter = Reporter(client)
    order = client.decide(request, timeout_s=0.1).order
    reporter(feedback)
    reporter.close(timeout_s=10.0)
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Protocol

import grpc

from pipeline.agent import agent_pb2 as pb
from pipeline.agent import agent_pb2_grpc
from pipeline.agent.requests import PageRequest, admit, admit_feedback
from pipeline.agent.translate import from_feedback, from_page
from pipeline.records import Feedback

_LOG = logging.getLogger(__name__)
_BATCH = 500
_GATHER_S = 0.05  # between the first event and its call
_CALL_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A host that vanished, or a process that stands still, says nothing: its share of the pages would be lost until the
    # kernel gives up, minutes later, or for good.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),  # also the TCP user timeout
    ("grpc.http2.ping_timeout_ms", 5_000),  # of a ping that was under way, which is waited for first: a minute else
    # over all addresses of a headless service; pick_first would send all pages to one agent
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
)


class AgentClient:
    """One channel, `credentials` for one with TLS; dns:///NAME:PORT spreads calls over all agents of the name.

    An agent that was away is found again about half a second after its return.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._channel = (
            grpc.insecure_channel(target, options=_OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=_OPTIONS)
        )
        self._stub = agent_pb2_grpc.AgentStub(self._channel)

    def decide(self, request: PageRequest, timeout_s: float) -> pb.DecideResponse:
        """Raises AgentRequestError where the request is wrong, grpc.RpcError where no agent answered.

        Then the feed shows its own order, and reports nothing of the page.
        """
        return self._stub.Decide(from_page(admit(request)), timeout=timeout_s)

    def report(self, feedback: Sequence[Feedback], timeout_s: float) -> None:
        """Returns once all of it is in the event log.

        Raises AgentRequestError where an event is wrong, else grpc.RpcError: send it again, with the same event ids.
        """
        messages = [from_feedback(admit_feedback(each)) for each in feedback]
        self._stub.Report(pb.ReportRequest(feedback=messages), timeout=timeout_s)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until there is a connection."""
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout_s)
        except grpc.FutureTimeoutError:
            ready.cancel()
            return False
        return True

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reports(Protocol):
    """What a Reporter needs of an AgentClient."""

    def report(self, feedback: Sequence[Feedback], timeout_s: float) -> None: ...


class Reporter:
    """Events to the agent, in order, from one thread: gathered, and sent again until they are acknowledged.

    `acknowledged` hears, in that thread, of each batch that is in the log. Nobody waits for the agent: while `capacity`
    events are unacknowledged, and once the reporter is closed, further ones are dropped. So is one that the agent
    refuses as wrong, which it would do for ever. `dropped` counts them. Close it before its client.
    """

    def __init__(
        self,
        client: Reports,
        acknowledged: Callable[[Sequence[Feedback]], None] = lambda feedback: None,
        *,
        capacity: int = 100_000,
    ) -> None:
        self._client, self._acknowledged, self._capacity = client, acknowledged, capacity
        self._queue: deque[Feedback] = deque()  # the oldest stay here until they are done with
        self._dropped = 0
        self._in_vain = 0  # calls since the last acknowledgement
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def __call__(self, feedback: Feedback) -> None:
        """Take an event in, without waiting. Raises AgentRequestError where it is wrong."""
        admitted = admit_feedback(feedback)
        with self._changed:
            if self._closing.is_set() or len(self._queue) >= self._capacity:
                self._drop(admitted, f"the reporter is closed, or {self._capacity} events wait for the agent")
            else:
                self._queue.append(admitted)
                self._changed.notify_all()

    @property
    def pending(self) -> int:
        return len(self._queue)

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def unacknowledged(self) -> list[Feedback]:
        """Taken in, and not yet in the log as far as we know; one that is under way may be."""
        with self._changed:
            return list(self._queue)

    def close(self, timeout_s: float) -> int:
        """Send what is left for as long as the time allows, and until a call under way has ended (2 s at most).

        Returns how many of all events were not acknowledged: those of `unacknowledged`, and those dropped.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._closing.is_set(), timeout_s)
        self._close()
        self._thread.join()
        return len(self._queue) + self._dropped

    def _close(self) -> None:
        with self._changed:
            self._closing.set()
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._report_all()
        except Exception:  # of the client: its channel was closed, say
            _LOG.exception("the reporter died; events are dropped from now on")
        finally:
            self._close()

    def _report_all(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while batch := self._batch():
            if done := self._sent(batch):
                self._forget(done)
                pause_s = _FIRST_PAUSE_S
            else:
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _batch(self) -> list[Feedback]:
        """The oldest events; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
        self._closing.wait(_GATHER_S)
        with self._changed:
            return [] if self._closing.is_set() else list(islice(self._queue, _BATCH))

    def _sent(self, batch: Sequence[Feedback]) -> int:
        """How many, from the first, are done with. Of a refused batch the first half is tried, down to the culprit,
        unless we are closing: a call may take its 2 s."""
        try:
            self._client.report(batch, _CALL_S)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                self._in_vain += 1
                if _telling(self._in_vain):
                    _LOG.warning("%d events are not acknowledged, and sent again: %s", len(batch), error.details())
                return 0
            if len(batch) > 1:
                return 0 if self._closing.is_set() else self._sent(batch[: len(batch) // 2])
            with self._changed:
                self._drop(batch[0], f"the agent refused it: {error.details()}")
            return 1
        self._in_vain = 0
        self._hear(batch)
        return len(batch)

    def _hear(self, batch: Sequence[Feedback]) -> None:
        try:
            self._acknowledged(batch)
        except Exception:  # it is in the log all the same
            _LOG.exception("%d events were acknowledged, but who listens failed", len(batch))

    def _forget(self, done: int) -> None:
        with self._changed:
            for _ in range(done):
                self._queue.popleft()
            self._changed.notify_all()

    def _drop(self, feedback: Feedback, why: str) -> None:
        self._dropped += 1
        if _telling(self._dropped):
            _LOG.error("event %s was dropped, %d so far: %s", feedback.event_id, self._dropped, why)


def _telling(count: int) -> bool:
    """1, 2, 4, 8 ...: enough to be seen, not a line for each."""
    return count.bit_count() == 1
