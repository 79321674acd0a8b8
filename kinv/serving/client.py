"""Models that run elsewhere, behind TensorFlow Serving's protocols."""

import ipaddress
import json
import re
import time
import urllib.parse
import urllib.request

import grpc
import numpy as np
import orjson
import requests
import tensorflow as tf
import urllib3
from google.protobuf import json_format, wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kinv import errors
from kinv.serving.signature import FEATURES, SIGNATURE

TIMEOUT_SECONDS = 60
ATTEMPTS = 4
# Before an attempt, doubled each time; of REST, the second follows at once.
WAIT_SECONDS = 0.25
MESSAGE_BYTES = 2**28
# What a server says that may be able to answer in a moment.
PASSING_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
PASSING_STATUS = (429, 503)


def connect(target):
    """Connects to a served model.

    Args:
        target: `grpc://HOST:PORT/NAME` or `http(s)://HOST:PORT/v1/models/NAME`,
            with `/versions/NUMBER` behind NAME for one version.

    Returns:
        `(predict, metadata)` as `pipeline.Pipeline` takes them. TensorFlow
        Serving knows the sizes of a model but not its `kinv.json`; classes are
        numbered then, and there is a `served_version` but no
        `classifier_size`. kinv's own server hands `kinv.json` out.

    Raises:
        errors.InputError: if there is no such server, model or signature.
    """
    expected = errors.InputError(
        "Expected grpc://HOST:PORT/NAME or http://HOST:PORT/v1/models/NAME, "
        f"an IPv6 HOST in brackets, PORT from 1 to 65535. Received: {target}."
    )
    try:
        address = urllib.parse.urlsplit(target)
        port = address.port
    # A port that is none, or half a pair of brackets.
    except ValueError:
        raise expected from None
    host = address.hostname or ""
    path = [part for part in address.path.split("/") if part]
    number = None
    # 64 bits, as of TensorFlow Serving.
    if path[-2:-1] == ["versions"] and re.fullmatch("[0-9]{1,18}", path[-1]):
        number = int(path[-1])
        path = path[:-2]
    # Without brackets, IPv6 ends at its first colon.
    whole = address.netloc.rpartition("@")[2].count(":") <= 1 or ":" in host
    if not host or not whole or port == 0:
        raise expected
    if address.scheme == "grpc" and port and len(path) == 1:
        return _connect_grpc(target, address.netloc, path[0], number)
    is_model = path[-3:-1] == ["v1", "models"]
    if address.scheme in ("http", "https") and is_model:
        return _connect_rest(target)
    raise expected


def _is_loopback(target):
    """Whether an address is this machine's own, which no proxy can reach."""
    host = urllib.parse.urlsplit(target).hostname
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connect_grpc(target, address, name, number):
    channel = grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.enable_http_proxy", int(not _is_loopback(target))),
        ],
    )
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def call(method, request):
        request.model_spec.name = name
        if number is not None:
            request.model_spec.version.value = number
        for attempt in range(ATTEMPTS):
            try:
                return method(request, timeout=TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                last = attempt == ATTEMPTS - 1
                if error.code() not in PASSING_CODES or last:
                    raise _failed(
                        target, f"{error.code().name}: {error.details()}"
                    ) from None
            time.sleep(WAIT_SECONDS * 2**attempt)

    def ask(field):
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.metadata_field.append(field)
        return call(stub.GetModelMetadata, request)

    answer = ask("signature_def")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    try:
        text = wrappers_pb2.StringValue()
        ask("kinv").metadata["kinv"].Unpack(text)
        metadata = json.loads(text.value)
    except errors.InputError:
        version = answer.model_spec.version.value
        metadata = _metadata(target, signatures, version)

    def predict(inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = SIGNATURE
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        outputs = call(stub.Predict, request).outputs
        return {key: tf.make_ndarray(value) for key, value in outputs.items()}

    return predict, metadata


def _session(target):
    """Connections to a server, on which what passes is tried again."""
    session = requests.Session()
    if _is_loopback(target):
        # Proxies of the environment are for other machines; compression costs
        # more than it saves.
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"
    retries = _Retry(
        ATTEMPTS - 1,
        read=1,
        backoff_factor=WAIT_SECONDS,
        status_forcelist=PASSING_STATUS,
        allowed_methods=None,
        raise_on_status=False,
    )
    adapter = requests.adapters.HTTPAdapter(max_retries=retries)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class _Retry(urllib3.Retry):
    """Tries again once where a kept connection was closed as a call went out.

    Not where an answer takes too long: it would again.
    """

    def increment(self, *call, error=None, **options):
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(*call, error=error, **options)


def _connect_rest(target):
    target = target.rstrip("/")
    session = _session(target)

    def call(method, url, body=None):
        try:
            response = session.request(
                method, url, data=body, timeout=TIMEOUT_SECONDS
            )
            answer = orjson.loads(response.content)
        # The latter of a host that cannot be one, such as a..b.
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:
            raise _failed(target, errors.reason(error)) from None
        except orjson.JSONDecodeError:
            raise _failed(
                target, f"status {response.status_code} without JSON"
            ) from None
        if response.status_code != 200:
            message = answer.get("error") if isinstance(answer, dict) else None
            raise _failed(
                target, f"status {response.status_code}: {message or answer}"
            )
        return answer

    answer = call("GET", f"{target}/metadata")
    try:
        version = int(answer["model_spec"]["version"])
        signatures = json_format.ParseDict(
            answer["metadata"]["signature_def"],
            get_model_metadata_pb2.SignatureDefMap(),
            ignore_unknown_fields=True,
        )
    except (LookupError, TypeError, ValueError, json_format.ParseError):
        raise _failed(target, "metadata of something else") from None
    try:
        metadata = call("GET", f"{target}/kinv.json")
    except errors.InputError:
        metadata = _metadata(target, signatures, version)

    expected = list(signatures.signature_def[SIGNATURE].outputs)

    def predict(inputs):
        samples = inputs["noise"].shape[1]
        if not samples:
            # JSON has no empty axis followed by another: one sample, left out.
            shape = (len(inputs["images"]), 1, metadata["noise_dim"])
            inputs = {**inputs, "noise": np.zeros(shape, "float32")}
        answer = call("POST", f"{target}:predict", _body(inputs))
        try:
            outputs = {
                key: np.array(answer["outputs"][key], "float32")
                for key in expected
            }
        except (LookupError, TypeError, ValueError):
            raise _failed(target, "other outputs than its own") from None
        outputs["reconstructions"] = outputs["reconstructions"][:, :samples]
        return outputs

    return predict, metadata


def _body(inputs):
    """A call's JSON, of arrays by name."""
    inputs = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
    return orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _failed(target, reason):
    proxies = urllib.request.getproxies()
    way_out = "Start one with tools/serve.py, or look at the server's log."
    if not _is_loopback(target) and {"http", "https", "grpc"} & set(proxies):
        host = urllib.parse.urlsplit(target).hostname
        way_out = (
            "Look at the server's log, and at the proxy that the environment "
            f"names: NO_PROXY={host} goes around it."
        )
    return errors.InputError(
        f"Expected a model at {target}. Received: {reason}. {way_out}"
    )


def _metadata(target, signatures, version):
    """What can be known of a model from its signature, and its version.

    Not the size of the images that its classifier takes: the signature takes
    images of any size, and resizes them.
    """
    signature = signatures.signature_def[SIGNATURE]
    shapes = {
        key: [axis.size for axis in info.tensor_shape.dim]
        for tensors in (signature.inputs, signature.outputs)
        for key, info in tensors.items()
    }
    try:
        (num_classes,) = shapes["logits"][1:]
        image_size = shapes["reconstructions"][2]
        noise_dim = shapes["noise"][2]
    except (KeyError, IndexError, ValueError):
        raise errors.InputError(
            f"Expected a signature {SIGNATURE} from images and noise "
            f"to logits and reconstructions. Received: {target} with "
            f"{', '.join(sorted(shapes)) or 'nothing'}."
        ) from None
    metadata = {
        "class_names": [f"class {index}" for index in range(num_classes)],
        "num_classes": num_classes,
        "noise_dim": noise_dim,
        "image_size": image_size,
        "served_version": version,
    }
    if FEATURES in shapes:
        metadata["layer"] = "a layer of unknown name"
        metadata["condition_dim"] = shapes[FEATURES][1]
    return metadata
