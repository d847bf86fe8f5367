"""Query a served policy with TensorFlow's own packages only: python stock_client.py HOST:PORT MODEL VERSION."""

import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

target, model, pinned = sys.argv[1:]
stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(target))

question = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
question.model_spec.name = model
signatures = get_model_metadata_pb2.SignatureDefMap()
stub.GetModelMetadata(question, timeout=60).metadata["signature_def"].Unpack(signatures)

request = predict_pb2.PredictRequest()
request.model_spec.name = model
for name, spec in signatures.signature_def["serving_default"].inputs.items():
    shape = [1 if dim.size < 0 else dim.size for dim in spec.tensor_shape.dim]
    request.inputs[name].CopyFrom(tf.make_tensor_proto(tf.zeros(shape, spec.dtype)))
for version in (None, int(pinned)):  # without a version the highest that is loaded answers
    if version is not None:
        request.model_spec.version.value = version
    response = stub.Predict(request, timeout=60)
    action = tf.make_ndarray(response.outputs["action"])
    print(f"asked for {version}: version {response.model_spec.version.value} answered {action.tolist()}")
