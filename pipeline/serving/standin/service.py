"""The gRPC face: PredictionService, ModelService, health. Methods left out answer UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pipeline.serving import protos
from pipeline.serving.standin.core import Core
from pipeline.serving.standin.manager import Report
from pipeline.serving.standin.predict import Encode, predict
from pipeline.serving.standin.status import StatusError, invalid, truncated

_SIGNATURE_DEF = "signature_def"
Answer = Callable[[Any, grpc.ServicerContext], Any]


def add_services(server: grpc.Server, core: Core, encode: Encode) -> None:
    def answer_predict(request: Any, _: grpc.ServicerContext) -> Any:
        with core.use(_spec(request)) as servable:
            return predict(servable.bundle, request, servable.version, encode)

    def answer_metadata(request: Any, _: grpc.ServicerContext) -> Any:
        return _metadata(core, request)

    def answer_status(request: Any, _: grpc.ServicerContext) -> Any:
        return _status(core, request)

    def answer_reload(request: Any, context: grpc.ServicerContext) -> Any:
        return _reload(core, request, context.time_remaining())

    prediction = {
        "Predict": _handler(answer_predict, protos.PredictRequest),
        "GetModelMetadata": _handler(answer_metadata, protos.GetModelMetadataRequest),
    }
    model = {
        "GetModelStatus": _handler(answer_status, protos.GetModelStatusRequest),
        "HandleReloadConfigRequest": _handler(answer_reload, protos.ReloadConfigRequest),
    }
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(protos.PREDICTION_SERVICE, prediction),
            grpc.method_handlers_generic_handler(protos.MODEL_SERVICE, model),
        )
    )


def add_health(server: grpc.Server) -> None:
    """The names that TF-Serving gives; SERVING from the start, as its port opens only then."""
    servicer = health.HealthServicer()
    for name in ("", "ModelService", "PredictionService"):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _handler(answer: Answer, request: Any) -> grpc.RpcMethodHandler:
    def guarded(message: Any, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(message, context).SerializeToString()  # type: ignore[no-any-return]
        except StatusError as error:
            context.set_code(error.code)
            context.set_details(truncated(error.text))
            return b""

    return grpc.unary_unary_rpc_method_handler(guarded, request_deserializer=request.FromString)


def _spec(request: Any) -> Any:
    if not request.HasField("model_spec"):
        text = "Missing ModelSpec"
        raise invalid(text)
    return request.model_spec


def _metadata(core: Core, request: Any) -> Any:
    spec = _spec(request)
    if not request.metadata_field:
        text = "GetModelMetadataRequest must specify at least one metadata_field"
        raise invalid(text)
    for name in request.metadata_field:
        if name != _SIGNATURE_DEF:
            text = f"Metadata field {name} is not supported"
            raise invalid(text)
    response = protos.GetModelMetadataResponse()
    with core.use(spec) as servable:
        signatures = protos.SignatureDefMap(signature_def=servable.bundle.signatures)
        response.model_spec.name = spec.name
        response.model_spec.version.value = servable.version
    response.metadata[_SIGNATURE_DEF].Pack(signatures)
    return response


def _status(core: Core, request: Any) -> Any:
    spec = _spec(request)
    reports = core.reports(spec.name)
    if not reports:
        text = f"Could not find any versions of model {spec.name}"
        raise StatusError(grpc.StatusCode.NOT_FOUND, text)
    if not spec.HasField("version"):
        wanted = sorted(reports, reverse=True)
    elif spec.version.value in reports:
        wanted = [spec.version.value]
    else:
        text = f"Could not find version {spec.version.value} of model {spec.name}"
        raise StatusError(grpc.StatusCode.NOT_FOUND, text)
    response = protos.GetModelStatusResponse()
    for version in wanted:
        _fill(response.model_version_status.add(), version, reports[version])
    return response


def _fill(entry: Any, version: int, report: Report) -> None:
    entry.version, entry.state = version, int(report.state)
    entry.status.SetInParent()
    if report.failure is not None:
        entry.status.error_code, entry.status.error_message = report.failure.code, report.failure.text


def _reload(core: Core, request: Any, timeout_s: float | None) -> Any:
    if request.config.WhichOneof("config") != "model_config_list":
        text = (
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
        raise invalid(text)
    core.reload(request.config.model_config_list.config, timeout_s)
    response = protos.ReloadConfigResponse()
    response.status.SetInParent()
    return response
