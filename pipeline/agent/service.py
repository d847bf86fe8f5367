"""The agent as a gRPC service, `pageturn.v1.Agent` (agent.proto), with health and reflection.

Health: "" and "pageturn.v1.Agent" say whether to send pages here; "pageturn.v1.Agent.background" whether the threads
behind the answers live (pages are answered without them, but a restart is due).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from msgspec import Struct

from pipeline.agent import agent_pb2 as pb
from pipeline.agent import agent_pb2_grpc, translate
from pipeline.agent.agent import Agent, AgentRequestError, PageDecision, PageRequest
from pipeline.agent.examples import Examples
from pipeline.agent.reasons import Reason
from pipeline.errors import PageturnError

SERVICE = "pageturn.v1.Agent"
BACKGROUND = f"{SERVICE}.background"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_NO_DEADLINE_S = 1e6
_WAY_BACK, _LONGEST_WAY_BACK_S = 0.1, 0.25  # share of the caller's time that is kept for the reply, and its limit
_LONGEST_CALL_MS, _LEAST_PING_MS = 60_000, 5_000
_SHEDDERS = 4  # threads beyond those that may wait, for the policy or the log: they answer the baseline, or refuse
_LOOKERS = 2  # streams of reflection at once: each holds a thread for as long as its caller likes
_SEND_AGAIN = "the events are not known to be in the event log; send them again, with the same event ids"


class ServiceError(PageturnError):
    """The service cannot start; says why."""


class ServiceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    default_timeout_s: float = 0.1  # for pages without a deadline
    report_timeout_s: float = 2.0  # for reports without a deadline
    batch_pages: int = 256  # in one call: each takes about a millisecond, in which nobody else's page is decided
    concurrency: int = 32  # calls that may wait for the policy at once; further ones get the baseline
    reports: int = 32  # calls that may wait for the event log at once; further ones are to be sent again
    queued: int = 1_000  # calls taken in at once; further ones are refused with RESOURCE_EXHAUSTED
    least_timeout_s: float = 0.003  # with less left there is no point in asking the policy
    ready_within_s: float = 10.0  # pages are taken after the first look at the pointers, or after this long
    watch_every_s: float = 1.0
    connection_s: float = 300.0  # then callers connect anew, and find agents that were added meanwhile


class AgentService(agent_pb2_grpc.AgentServicer):
    def __init__(self, agent: Agent, settings: ServiceSettings) -> None:
        self._agent = agent
        self._settings = settings
        self._free = threading.BoundedSemaphore(settings.concurrency)
        self._reports_free = threading.BoundedSemaphore(settings.reports)
        self._examples = Examples(time.monotonic)

    def Decide(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideResponse:  # noqa: N802
        try:
            [answer] = self._answer([translate.to_page(request)], self._page_timeout_s(context))
        except AgentRequestError as error:
            answer = error
        if isinstance(answer, AgentRequestError):
            self._note("page", answer)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(answer))
        return translate.from_decision(answer)

    def DecideBatch(  # noqa: N802
        self, request: pb.DecideBatchRequest, context: grpc.ServicerContext
    ) -> pb.DecideBatchResponse:
        if len(request.pages) > self._settings.batch_pages:
            found = f"pages: expected at most {self._settings.batch_pages} in a batch, found {len(request.pages)}"
            self._note("batch", AgentRequestError(found))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, found)
        pages = [_translated(message) for message in request.pages]
        answers = iter(self._answer([p for p in pages if isinstance(p, PageRequest)], self._page_timeout_s(context)))
        return pb.DecideBatchResponse(
            answers=[self._message(next(answers) if isinstance(page, PageRequest) else page) for page in pages]
        )

    def Report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportResponse:  # noqa: N802
        if not self._agent.logs:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this agent has no event log")
        try:
            logged = self._logged(request, _timeout_s(context, self._settings.report_timeout_s))
        except AgentRequestError as error:
            self._note("report", error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not logged:
            context.abort(grpc.StatusCode.UNAVAILABLE, _SEND_AGAIN)
        return pb.ReportResponse()

    def _logged(self, request: pb.ReportRequest, timeout_s: float) -> bool:
        """A thread each wait for the log: beyond those that are there for it, nobody waits."""
        now_ms = self._agent.now_ms()
        feedback = [translate.to_feedback(each, now_ms) for each in request.feedback]
        if not self._reports_free.acquire(blocking=False):
            self._agent.metrics.count("feedback_not_logged", len(feedback))
            return False
        try:
            return self._agent.report_and_wait(feedback, timeout_s)
        finally:
            self._reports_free.release()

    def _answer(self, pages: list[PageRequest], timeout_s: float) -> list[PageDecision | AgentRequestError]:
        if timeout_s < self._settings.least_timeout_s:
            return [_shed(self._agent, page, Reason.TIMEOUT) for page in pages]
        if not self._free.acquire(blocking=False):
            return [_shed(self._agent, page, Reason.OVERLOADED) for page in pages]
        try:
            return self._agent.decide_many(pages, timeout_s)
        finally:
            self._free.release()

    def _message(self, answer: PageDecision | AgentRequestError) -> pb.PageAnswer:
        if isinstance(answer, AgentRequestError):
            self._note("page", answer)
            return pb.PageAnswer(error=str(answer))
        return pb.PageAnswer(decision=translate.from_decision(answer))

    def _note(self, kind: str, error: AgentRequestError) -> None:
        """Their caller is told, too; but who looks after the agents is often somebody else."""
        self._agent.metrics.count("requests_refused", kind=kind)
        self._examples.show(kind, "%s refused, for example: %s", kind, error)

    def _page_timeout_s(self, context: grpc.ServicerContext) -> float:
        return _timeout_s(context, self._settings.default_timeout_s)


class _Reflection(reflection.ReflectionServicer):
    """Tools that are left open, and those that leak, must not take the threads of pages."""

    def __init__(self) -> None:
        super().__init__((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._free = threading.BoundedSemaphore(_LOOKERS)

    def ServerReflectionInfo(  # noqa: N802
        self,
        request_iterator: Iterator[reflection_pb2.ServerReflectionRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        if not self._free.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"expected {_LOOKERS} streams of reflection at most")
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._free.release()


class RunningService:
    """A started server. The agent behind it stays its owner's to close."""

    def __init__(self, server: grpc.Server, agent: Agent, status: health.HealthServicer, port: int) -> None:
        self.port = port
        self._server = server
        self._agent = agent
        self._status = status
        self._stopping = threading.Event()

    def watch(self, settings: ServiceSettings) -> None:
        """Keep the health answers true until stopped."""
        self._agent.wait_ready(settings.ready_within_s)
        while not self._stopping.is_set():
            self._status.set("", _SERVING)
            self._status.set(SERVICE, _SERVING)
            self._status.set(BACKGROUND, _NOT_SERVING if self._agent.problems() else _SERVING)
            self._stopping.wait(settings.watch_every_s)

    def stop(self, *, drain_s: float = 0.0, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, go on answering for `drain_s` while callers turn away, then finish what was begun."""
        first = not self._stopping.is_set()
        self._stopping.set()
        self._status.enter_graceful_shutdown()
        if first and drain_s > 0:
            time.sleep(drain_s)
        self._server.stop(grace_s).wait()


def serve(
    agent: Agent,
    port: int,
    *,
    host: str = "127.0.0.1",
    credentials: grpc.ServerCredentials | None = None,
    gates: Sequence[grpc.ServerInterceptor] = (),
    settings: ServiceSettings | None = None,
) -> RunningService:
    """Start serving; port 0 takes a free one. `gates` may turn calls away. ServiceError: the port cannot be had."""
    settings = settings or ServiceSettings()
    server = _server(settings, gates)
    status = health.HealthServicer()
    for name in ("", SERVICE, BACKGROUND):
        status.set(name, _NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    agent_pb2_grpc.add_AgentServicer_to_server(AgentService(agent, settings), server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(), server)
    running = RunningService(server, agent, status, _bind(server, f"{host}:{port}", credentials))
    server.start()
    threading.Thread(target=running.watch, args=(settings,), name="health", daemon=True).start()
    return running


def serve_until(
    stop: threading.Event,
    agent: Agent,
    port: int,
    *,
    host: str = "127.0.0.1",
    drain_s: float = 5.0,
    credentials: grpc.ServerCredentials | None = None,
    gates: Sequence[grpc.ServerInterceptor] = (),
    started: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until the event is set (by SIGTERM, say), then drain and close the agent."""
    running = serve(agent, port, host=host, credentials=credentials, gates=gates)
    started(running.port)
    stop.wait()
    running.stop(drain_s=drain_s)
    agent.close()


def _server(settings: ServiceSettings, gates: Sequence[grpc.ServerInterceptor]) -> grpc.Server:
    options = [
        ("grpc.so_reuseport", 0),  # otherwise two agents would share a port, each with half of the calls
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_connection_age_ms", round(settings.connection_s * 1000)),
        ("grpc.max_connection_age_grace_ms", _LONGEST_CALL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),  # or callers' keepalive would be an offence
    ]
    # So that no kind of wait can take all threads.
    size = settings.concurrency + settings.reports + _LOOKERS + _SHEDDERS
    threads = ThreadPoolExecutor(size, thread_name_prefix="grpc")
    return grpc.server(threads, interceptors=gates, options=options, maximum_concurrent_rpcs=settings.queued)


def _bind(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        msg = f"expected to listen on {address}, which is taken or cannot be bound: {error}"
        raise ServiceError(msg) from error


def _timeout_s(context: grpc.ServicerContext, default_s: float) -> float:
    """What the answer may take: one on its way when the caller's deadline passes is a failed call."""
    left_s = context.time_remaining()
    if left_s is None or left_s > _NO_DEADLINE_S:
        return default_s
    return left_s - min(_WAY_BACK * left_s, _LONGEST_WAY_BACK_S)


def _translated(message: pb.DecideRequest) -> PageRequest | AgentRequestError:
    try:
        return translate.to_page(message)
    except AgentRequestError as error:
        return error


def _shed(agent: Agent, page: PageRequest, reason: Reason) -> PageDecision | AgentRequestError:
    try:
        return agent.shed(page, reason)
    except AgentRequestError as error:
        return error
