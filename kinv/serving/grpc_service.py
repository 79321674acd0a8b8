"""TensorFlow Serving's gRPC services."""

import json
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kinv.serving import server as server_lib
from kinv.serving.signature import SIGNATURE

# Besides TensorFlow Serving's one field of metadata: the export's kinv.json.
KINV_FIELD = "kinv"


def start(server, address, max_workers=32):
    """Starts to answer.

    Args:
        server: `server_lib.Server`.
        address: `HOST:PORT`; port 0 is any free one.
        max_workers: calls that may wait for an answer at once.

    Returns:
        the running `grpc.Server`, and its port, 0 if it cannot be opened.
    """
    grpc_server = grpc.server(
        futures.ThreadPoolExecutor(max_workers),
        options=[
            ("grpc.max_receive_message_length", server.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            # Otherwise two servers share a port, unnoticed.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(server), grpc_server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        _ModelService(server), grpc_server
    )
    try:
        port = grpc_server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port:
        grpc_server.start()
    return grpc_server, port


def _answering(method):
    """A method that ends a refused call with its status code."""

    def answer(self, request, context):
        try:
            return method(self, request, context)
        except server_lib.ServingError as error:
            context.abort(error.code, error.message)

    return answer


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self._server = server

    @_answering
    def Predict(self, request, context):  # noqa: N802 (the protocol's names)
        spec = request.model_spec
        number = _number(spec)
        version = self._server.version(spec.name, number)
        signature_name = spec.signature_name or SIGNATURE
        signature = version.signatures.get(signature_name)
        if signature is None:
            raise server_lib.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature_name}" not found.',
            )
        wanted = _output_filter(request.output_filter, signature.outputs)
        inputs = {
            name: _to_array(proto, name, self._server.limits.body_bytes)
            for name, proto in request.inputs.items()
        }
        outputs = self._server.submit(spec.name, inputs, number).result()
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.signature_name = signature_name
        response.model_spec.version.value = version.number
        for name in wanted:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    @_answering
    def GetModelMetadata(self, request, context):  # noqa: N802
        if not request.metadata_field:
            raise server_lib.invalid(
                "GetModelMetadataRequest must specify at least one "
                "metadata_field"
            )
        for field in request.metadata_field:
            if field not in ("signature_def", KINV_FIELD):
                raise server_lib.invalid(
                    f"Metadata field {field} is not supported"
                )
        spec = request.model_spec
        version = self._server.version(spec.name, _number(spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version.number
        if "signature_def" in request.metadata_field:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in version.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata["signature_def"].Pack(signatures)
        if KINV_FIELD in request.metadata_field:
            text = json.dumps(version.model.metadata)
            response.metadata[KINV_FIELD].Pack(
                wrappers_pb2.StringValue(value=text)
            )
        return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self._server = server

    @_answering
    def GetModelStatus(self, request, context):  # noqa: N802
        spec = request.model_spec
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in self._server.states(spec.name, _number(spec)):
            response.model_version_status.add(
                version=number,
                state=get_model_status_pb2.ModelVersionStatus.State.Value(
                    state
                ),
            )
        return response


def _number(spec):
    if spec.version_label:
        raise server_lib.invalid(
            f"Unrecognized servable version label: {spec.version_label}"
        )
    return spec.version.value if spec.HasField("version") else None


def _output_filter(names, outputs):
    for name in names:
        if name not in outputs:
            raise server_lib.invalid(
                f"output tensor alias not found in signature: {name} Outputs "
                f"expected to be in the set {{{','.join(sorted(outputs))}}}."
            )
    if len(set(names)) < len(names):
        raise server_lib.invalid("duplicate output tensor alias")
    return names or outputs


def _to_array(proto, name, limit):
    """A `TensorProto` as an array.

    One value may stand for many, so that a message of bytes could ask for
    gigabytes: the size is checked first.
    """
    sizes = [dimension.size for dimension in proto.tensor_shape.dim]
    elements = np.prod([float(size) for size in sizes])
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise server_lib.invalid(f"{name}: expected a shape that is known")
    if elements * 4 > limit:
        raise server_lib.invalid(f"{name}: expected at most {limit} bytes")
    if proto.dtype != tf.float32.as_datatype_enum:
        raise server_lib.invalid(f"{name}: expected float")
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise server_lib.invalid(
            f"{name}: TensorProto is not valid: {error}"
        ) from None
