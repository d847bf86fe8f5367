"""Starts Beam's Python worker beside a task manager, which calls this with the arguments of Beam's container contract.

It is what the boot program of Beam's container images is, less the installing: this package is installed here already,
in the version that the job was submitted with.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc as provision_grpc
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.worker import bundle_processor, sdk_worker_main, statecache
from google.protobuf import json_format, text_format

_WAIT_S = 60
_ANSWER_S = 600.0


def main(arguments: Sequence[str] | None = None) -> None:
    prepare(arguments)
    statecache.get_deep_size = weight
    bundle_processor.FnApiUserStateContext.commit = commit  # type: ignore[method-assign]
    sdk_worker_main.main([])


def prepare(arguments: Sequence[str] | None = None) -> None:
    """Put what Beam's main program reads where it reads it."""
    parser = argparse.ArgumentParser(prog="pageturn-flink-worker", description=__doc__)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    given, _ = parser.parse_known_args(arguments)  # other endpoints are in the provision, too
    os.environ.update(environment(given.id, provision_of(given.provision_endpoint, given.id)))


def weight(*_: object) -> int:
    """Bytes that the cache of state is to count for a value: so few that it lets go of none.

    The values are the pieces of groups of sessions (`pipeline.streaming.groups`). What is open is in memory in any
    case, and the rest is a multiple of that. Beam's own measure walks all that a value refers to, and all loaded
    modules: milliseconds, for each group in each bundle.
    """
    return 100


def commit(context: Any) -> None:
    """Write what a bundle has changed: everything is sent, then everything is waited for.

    Beam's own waits for the answer to each write before it sends the next, which wakes four threads for each group in
    each bundle; and it does not look at the answers.
    """
    sent = [request for state in context._all_states.values() for request in _writes(state)]
    errors = sorted({answer.error for answer in map(_answer, sent) if answer.error})
    if errors:
        message = f"Flink did not take the state of sessions: {'; '.join(errors)}"
        raise RuntimeError(message)


def _answer(request: Any) -> Any:
    """Raises where the stream of state has ended alone: Beam's futures do not hear of it."""
    try:
        return request.get(_ANSWER_S)
    except LookupError as error:
        message = f"Flink has not answered to state of sessions within {_ANSWER_S:.0f} s"
        raise RuntimeError(message) from error


def _writes(bag: Any) -> Iterator[Any]:
    if bag._cleared:
        yield bag._state_handler.clear(bag._state_key)
    if bag._added_elements:
        yield bag._state_handler.extend(bag._state_key, bag._value_coder.get_impl(), bag._added_elements)


def provision_of(endpoint: str, worker_id: str) -> provision.ProvisionInfo:
    with grpc.insecure_channel(endpoint) as channel:
        stub = provision_grpc.ProvisionServiceStub(channel)
        request = provision.GetProvisionInfoRequest()
        reply = stub.GetProvisionInfo(
            request, metadata=[("worker_id", worker_id)], timeout=_WAIT_S, wait_for_ready=True
        )
    return reply.info


def environment(worker_id: str, info: provision.ProvisionInfo) -> dict[str, str]:
    """What the worker's main program reads."""
    variables = {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "LOGGING_API_SERVICE_DESCRIPTOR": _text(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": _text(info.control_endpoint),
    }
    if info.HasField("status_endpoint"):
        variables["STATUS_API_SERVICE_DESCRIPTOR"] = _text(info.status_endpoint)
    return variables


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    return text_format.MessageToString(endpoint)


if __name__ == "__main__":
    main(sys.argv[1:])
