"""An agent that may come back under another address: a loop on one machine that goes down and up gets other ports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import grpc

from pipeline.agent import agent_pb2 as pb
from pipeline.agent.client import AgentClient
from pipeline.agent.requests import PageRequest
from pipeline.errors import PageturnError
from pipeline.records import Feedback

_AWAY_S = 5.0  # without an answer, until it is looked for; and between two looks
_PATIENCE_S = 60.0
_LOG = logging.getLogger(__name__)


class FoundAgent:
    """`find` returns where the agent is, or raises PageturnError: there is none.

    It is asked again while no page is answered. Once there has been neither an answer nor an agent for a minute, its
    error comes out of `decide`.
    """

    def __init__(
        self,
        find: Callable[[], str],
        *,
        connect: Callable[[str], AgentClient] = AgentClient,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._connect, self._now_s = find, connect, now_s
        self.target = find()
        self._clients = [connect(self.target)]  # calls of other threads may be under way on the earlier ones
        self._answered_s = self._looked_s = now_s()
        self._turn = threading.Lock()

    def decide(self, request: PageRequest, timeout_s: float) -> pb.DecideResponse:
        """Raises as `AgentClient.decide` does, and what `find` raises."""
        try:
            answer = self._clients[-1].decide(request, timeout_s)
        except grpc.RpcError:
            self._look()
            raise
        self._answered_s = self._now_s()
        return answer

    def report(self, feedback: Sequence[Feedback], timeout_s: float) -> None:
        self._clients[-1].report(feedback, timeout_s)

    def wait_ready(self, timeout_s: float) -> bool:
        return self._clients[-1].wait_ready(timeout_s)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def __enter__(self) -> FoundAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self) -> None:
        with self._turn:
            now_s = self._now_s()
            if now_s - max(self._answered_s, self._looked_s) < _AWAY_S:
                return
            self._looked_s = now_s
            try:
                target = self._find()
            except PageturnError as error:
                if now_s - self._answered_s > _PATIENCE_S:
                    raise
                _LOG.warning("no page was answered for %.0f s: %s", now_s - self._answered_s, error)
                return
            if target == self.target:
                _LOG.warning("no page was answered by %s for %.0f s", target, now_s - self._answered_s)
            else:
                _LOG.warning("the agent is at %s now", target)
                self._clients.append(self._connect(target))
                self.target = target
