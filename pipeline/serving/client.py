"""Client of a TensorFlow model server: predict, status, signature, reload. Safe to share between threads.

server = ModelServer("localhost:8500")
server.predict("guess_you_like_rl", {"dense": rows}, version=7, timeout_s=0.05).outputs["action"]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import grpc
import numpy as np

from pipeline.serving import models_config, protos, tensors
from pipeline.serving.errors import BadRequest, NotServed, ServingError, TooLate, Unavailable

__all__ = [
    "BadRequest",
    "ModelServer",
    "NotServed",
    "Prediction",
    "ServingError",
    "Signature",
    "TensorSpec",
    "TooLate",
    "Unavailable",
    "VersionStatus",
]

DEFAULT_SIGNATURE = "serving_default"
_SIGNATURE_DEF = "signature_def"
_OPTIONS = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 5_000,  # also the TCP user timeout: a vanished host is noticed this soon
    "grpc.http2.ping_timeout_ms": 5_000,  # and a process that stands still: a ping under way has a minute else
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2_000,  # the default of 2 minutes would outlast a restarted server by far
    "grpc.use_local_subchannel_pool": 1,
    # one channel over all addresses of a headless service; pick_first would send everything to one replica
    "grpc.service_config": json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}),
}
_CLASSES = {
    grpc.StatusCode.NOT_FOUND: NotServed,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: BadRequest,
    grpc.StatusCode.OUT_OF_RANGE: BadRequest,
    grpc.StatusCode.UNIMPLEMENTED: BadRequest,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TooLate,
}


class Prediction(NamedTuple):
    version: int  # the one that answered
    outputs: dict[str, np.ndarray]  # may be read-only


class VersionStatus(NamedTuple):
    version: int
    state: str  # START, LOADING, AVAILABLE, UNLOADING or END
    error_code: int  # 0 is OK; an END with another code is a load that failed
    error_message: str


class TensorSpec(NamedTuple):
    dtype: str  # numpy's name
    shape: tuple[int | None, ...] | None  # None: unknown size, or unknown rank


class Signature(NamedTuple):
    version: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class ModelServer:
    """Owns a channel to `host:port`, or to any target gRPC can resolve (`dns:///service:8500` for all replicas)."""

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        self.target = target
        arguments = list({**_OPTIONS, **(options or {})}.items())
        if credentials is None:
            self._channel = grpc.insecure_channel(target, arguments)
        else:
            self._channel = grpc.secure_channel(target, credentials, arguments)
        prediction, model = protos.PREDICTION_SERVICE, protos.MODEL_SERVICE
        self._predict = self._method(f"/{prediction}/Predict", protos.PredictResponse)
        self._metadata = self._method(f"/{prediction}/GetModelMetadata", protos.GetModelMetadataResponse)
        self._status = self._method(f"/{model}/GetModelStatus", protos.GetModelStatusResponse)
        self._reload = self._method(f"/{model}/HandleReloadConfigRequest", protos.ReloadConfigResponse)

    def predict(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float,
        signature: str = DEFAULT_SIGNATURE,
    ) -> Prediction:
        """Run a model; without a version the highest one that is available."""
        request = protos.PredictRequest()
        request.model_spec.MergeFrom(_spec(model, version, signature))
        for name, array in inputs.items():
            tensors.encode_into(request.inputs[name], array)
        response = self._call(self._predict, request, timeout_s, "Predict", model, version)
        outputs = {name: tensors.decode(tensor) for name, tensor in response.outputs.items()}
        return Prediction(response.model_spec.version.value, outputs)

    def status(self, model: str, timeout_s: float) -> tuple[VersionStatus, ...]:
        """All versions the server ever had, highest first; NotServed when it never had one."""
        request = protos.GetModelStatusRequest(model_spec=_spec(model))
        response = self._call(self._status, request, timeout_s, "GetModelStatus", model)
        return tuple(_version_status(entry) for entry in response.model_version_status)

    def metadata(
        self, model: str, version: int | None, timeout_s: float, signature: str = DEFAULT_SIGNATURE
    ) -> Signature:
        """Names, types and shapes of a signature; BadRequest when the model has no such signature."""
        request = protos.GetModelMetadataRequest(model_spec=_spec(model, version), metadata_field=[_SIGNATURE_DEF])
        response = self._call(self._metadata, request, timeout_s, "GetModelMetadata", model, version)
        signatures = protos.SignatureDefMap.FromString(response.metadata[_SIGNATURE_DEF].value).signature_def
        if signature not in signatures:
            text = f'expected signature "{signature}", found {", ".join(sorted(signatures))}'
            message = f"{self._where('GetModelMetadata', model, version)}: {text}"
            raise BadRequest(message, code="FAILED_PRECONDITION", text=text)
        found = signatures[signature]
        return Signature(response.model_spec.version.value, _specs(found.inputs), _specs(found.outputs))

    def reload(self, models_config_text: str, timeout_s: float) -> None:
        """Replace the server's whole config. It returns when models with new names are served, so set a deadline."""
        request = protos.ReloadConfigRequest(config=models_config.parse_message(models_config_text))
        self._call(self._reload, request, timeout_s, "HandleReloadConfigRequest")

    def wait_until_ready(self, timeout_s: float) -> None:
        """Until the server answers at all (TF-Serving opens its port after the first load); TooLate otherwise."""
        nothing = protos.GetModelStatusRequest()  # of no model: a refusal is an answer
        try:
            self._status(nothing, timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"model server at {self.target}: expected an answer within {timeout_s:g} s, found none"
                raise TooLate(message, code="DEADLINE_EXCEEDED") from error
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise _mapped(error, self._where("GetModelStatus", "", None)) from error

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _method(self, path: str, response: Any) -> Callable[..., Any]:
        return self._channel.unary_unary(path, _serialize, response.FromString)

    def _call(
        self,
        method: Callable[..., Any],
        request: Any,
        timeout_s: float,
        name: str,
        model: str = "",
        version: int | None = None,
    ) -> Any:
        if timeout_s <= 0:  # gRPC would still send it, and may even answer
            message = f"{self._where(name, model, version)}: expected time to call, found {timeout_s:g} s left"
            raise TooLate(message, code="DEADLINE_EXCEEDED")
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _mapped(error, self._where(name, model, version)) from error
        except ValueError as error:  # gRPC's way to say that the channel was closed
            message = f"{self._where(name, model, version)}: {error}"
            raise Unavailable(message, code="CANCELLED", text=str(error)) from error

    def _where(self, name: str, model: str, version: int | None) -> str:
        asked = f" of {model!r}" if model else ""
        return f"{name}{asked}{'' if version is None else f' version {version}'} at {self.target}"


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()


def _mapped(error: Any, where: str) -> ServingError:
    """The one place where gRPC codes become our classes."""
    code, text = error.code(), error.details() or ""
    return _CLASSES.get(code, ServingError)(f"{where}: {code.name}: {text}", code=code.name, text=text)


@lru_cache(maxsize=256)
def _spec(model: str, version: int | None = None, signature: str = "") -> Any:
    spec = protos.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        spec.version.value = version
    return spec


def _version_status(entry: Any) -> VersionStatus:
    return VersionStatus(
        entry.version, protos.STATE_NAMES[entry.state], entry.status.error_code, entry.status.error_message
    )


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensors.dtype_name(info.dtype), _shape(info.tensor_shape)) for name, info in infos.items()}


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
