"""TensorFlow Serving's gRPC services."""

import json
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import wrappers_pb2
from grpc_health.v1 import health, health_pb2_grpc
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kinv.serving import limits, monitoring
from kinv.serving.signature import SIGNATURE

# Besides TensorFlow Serving's one field of metadata: the export's kinv.json.
KINV_FIELD = "kinv"
# Calls that may wait for an answer at once; further ones wait to be read.
ANSWERING_THREADS = 32
# Field 5 of a TensorProto, of a length that follows.
FLOAT_VAL_TAG = bytes([5 << 3 | 2])


def start(server, address, tensor_content=False):
    """Starts to answer.

    Args:
        server: `server_lib.Server`.
        address: `HOST:PORT`; port 0 is any free one.
        tensor_content: whether answers hold their numbers as bytes in
            `tensor_content`. TensorFlow Serving fills `float_val`, which is
            all that some clients read.

    Returns:
        the running `grpc.Server`, and its port, 0 if it cannot be opened.
    """
    grpc_server = grpc.server(
        futures.ThreadPoolExecutor(ANSWERING_THREADS),
        options=[
            ("grpc.max_receive_message_length", server.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            # A client that has vanished would hold its place for good.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Otherwise two servers share a port, unnoticed.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(server, tensor_content), grpc_server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        _ModelService(server), grpc_server
    )
    # Of the whole server, which is healthy as long as it runs.
    health_pb2_grpc.add_HealthServicer_to_server(_Health(), grpc_server)
    try:
        port = grpc_server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port:
        grpc_server.start()
    return grpc_server, port


class _Health(health.HealthServicer):
    def Check(self, request, context):  # noqa: N802
        return super().Check(request, context)

    # A probe does not wait for the calls that occupy the other threads.
    Check.experimental_thread_pool = futures.ThreadPoolExecutor(1)


def _answering(method):
    """A method that ends a refused call with its status code."""

    def answer(self, request, context):
        try:
            return method(self, request, context)
        except limits.ServingError as error:
            context.abort(error.code, error.message)
        # The client has gone: nobody reads the answer.
        except futures.CancelledError:
            return None

    return answer


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server, tensor_content):
        self._server = server
        self._tensor_content = tensor_content

    @_answering
    def Predict(self, request, context):  # noqa: N802 (the protocol's names)
        with monitoring.request(self._server, request.model_spec.name, "GRPC"):
            return self._predict(request, context)

    def _predict(self, request, context):
        spec = request.model_spec
        number = _number(spec)
        version = self._server.version(spec.name, number)
        signature_name = spec.signature_name or SIGNATURE
        signature = version.signatures.get(signature_name)
        if signature is None:
            raise limits.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature_name}" not found.',
            )
        wanted = _output_filter(request.output_filter, signature.outputs)
        # Before they are read: a few bytes may stand for a large array.
        limits.check_names(request.inputs, signature.inputs)
        inputs = {
            name: _to_array(proto, name, self._server.limits.body_bytes)
            for name, proto in request.inputs.items()
        }
        future = self._server.submit(spec.name, version, inputs)
        context.add_callback(future.cancel)
        outputs = future.result()
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.signature_name = signature_name
        response.model_spec.version.value = version.number
        for name in wanted:
            _fill(response.outputs[name], outputs[name], self._tensor_content)
        return response

    @_answering
    def Classify(self, request, context):  # noqa: N802
        self._refuse(request.model_spec, "classify")

    @_answering
    def Regress(self, request, context):  # noqa: N802
        self._refuse(request.model_spec, "regress")

    @_answering
    def MultiInference(self, request, context):  # noqa: N802
        for task in request.tasks:
            method = task.method_name.removeprefix("tensorflow/serving/")
            if method not in limits.OTHER_METHODS:
                break
            self._refuse(task.model_spec, method)
        names = [task.method_name for task in request.tasks]
        raise limits.invalid(f"Unsupported signature method_name: {names}")

    def _refuse(self, spec, method):
        self._server.version(spec.name, _number(spec))
        raise limits.wrong_method(method)

    @_answering
    def GetModelMetadata(self, request, context):  # noqa: N802
        if not request.metadata_field:
            raise limits.invalid(
                "GetModelMetadataRequest must specify at least one "
                "metadata_field"
            )
        for field in request.metadata_field:
            if field not in ("signature_def", KINV_FIELD):
                raise limits.invalid(f"Metadata field {field} is not supported")
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
        if not spec.name:
            raise limits.invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in self._server.states(spec.name, _number(spec)):
            response.model_version_status.add(
                version=number,
                state=get_model_status_pb2.ModelVersionStatus.State.Value(
                    state
                ),
            )
        return response

    @_answering
    def HandleReloadConfigRequest(self, request, context):  # noqa: N802
        raise limits.ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            "The models are those that the server was started with, --model "
            "of tools/serve.py: start it again for others. New versions of "
            "them are picked up without being asked",
        )


def _fill(proto, array, tensor_content):
    """Puts an array into an empty `TensorProto`."""
    if tensor_content:
        proto.CopyFrom(tf.make_tensor_proto(array))
        return
    proto.dtype = tf.as_dtype(array.dtype).as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    # float_val takes a number at a time; the bytes of a message hold all of
    # them as those of tensor_content do, under another tag.
    content = tensor_pb2.TensorProto(tensor_content=array.tobytes())
    message = content.SerializeToString()
    if message:
        proto.MergeFromString(FLOAT_VAL_TAG + message[1:])


def _number(spec):
    if not spec.name:
        raise limits.invalid("ModelSpec has no name specified.")
    if spec.version_label:
        raise limits.invalid(
            f"Unrecognized servable version label: {spec.version_label}"
        )
    return spec.version.value if spec.HasField("version") else None


def _output_filter(names, outputs):
    for name in names:
        if name not in outputs:
            raise limits.invalid(
                f"output tensor alias not found in signature: {name} Outputs "
                f"expected to be in the set {{{','.join(sorted(outputs))}}}."
            )
    if len(set(names)) < len(names):
        raise limits.invalid("duplicate output tensor alias")
    return names or outputs


def _to_array(proto, name, limit):
    """A `TensorProto` as an array.

    One value may stand for many, so that a message of bytes could ask for
    gigabytes: the size is checked first.
    """
    sizes = [dimension.size for dimension in proto.tensor_shape.dim]
    elements = np.prod([float(size) for size in sizes])
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise limits.invalid(f"{name}: expected a shape that is known")
    if elements * 4 > limit:
        raise limits.invalid(f"{name}: expected at most {limit} bytes")
    if proto.dtype != tf.float32.as_datatype_enum:
        raise limits.invalid(f"{name}: expected float")
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise limits.invalid(
            f"{name}: TensorProto is not valid: {error}"
        ) from None
