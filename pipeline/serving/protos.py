"""Message classes of the TensorFlow Serving protocol, without TensorFlow.

Origin: the descriptors in `tf_serving.desc` are those of TensorFlow Serving and TensorFlow, (c) The TensorFlow
Authors, Apache License 2.0, as shipped in the PyPI packages tensorflow-serving-api and tensorflow; they are collected
by `build_descriptors.py`. The stock modules import all of TensorFlow (seconds, hundreds of MB); these take
milliseconds. They live in a pool of their own, so a process that imports TensorFlow too sees no clash; messages of
the two worlds are exchanged as bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    files = FileDescriptorSet.FromString(Path(__file__).with_name("tf_serving.desc").read_bytes())
    for file in files.file:
        pool.Add(file)
    return pool


_POOL = _load()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


TensorProto = _message("tensorflow.TensorProto")
TensorShapeProto = _message("tensorflow.TensorShapeProto")
SavedModel = _message("tensorflow.SavedModel")

ModelSpec = _message("tensorflow.serving.ModelSpec")
PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
PredictionLog = _message("tensorflow.serving.PredictionLog")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
ModelVersionStatus = _message("tensorflow.serving.ModelVersionStatus")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
ReloadConfigRequest = _message("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = _message("tensorflow.serving.ReloadConfigResponse")
ModelServerConfig = _message("tensorflow.serving.ModelServerConfig")

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
STATE_NAMES: dict[int, str] = {
    value.number: value.name for value in _POOL.FindEnumTypeByName("tensorflow.serving.ModelVersionStatus.State").values
}
