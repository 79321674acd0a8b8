"""Served models: the same answers, TensorFlow Serving's rules, and limits."""

import concurrent.futures
import copy
import dataclasses
import functools
import gc
import gzip
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import weakref

import grpc
import hypothesis
import numpy as np
import orjson
import psutil
import pytest
import requests
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import strategies
from prometheus_client import parser as prometheus_parser
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from kinv import errors, images
from kinv.data import rendering, scenes
from kinv.serving import (
    client,
    explorer,
    grpc_service,
    limits,
    monitoring,
    pipeline,
    web,
)
from kinv.serving import rest as rest_lib
from kinv.serving import server as server_lib
from kinv.serving.signature import INPUTS
from tools import analyze, serve

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("scenes32-robust", "scenes32-standard")
NAME = NAMES[0]


@pytest.fixture(scope="module")
def load():
    """Function that loads a shipped pipeline, each once for all tests."""

    @functools.cache
    def load_version(name):
        return server_lib.Version.load(ROOT / "exported" / name / "1")

    return load_version


@pytest.fixture(scope="module")
def version(load):
    return load(NAME)


@pytest.fixture(scope="module")
def local(version):
    return version.model


@pytest.fixture
def server(version, monkeypatch):
    """A server in this process, of a model whose signature may be replaced."""
    own = dataclasses.replace(version, model=copy.copy(version.model))
    with monkeypatch.context() as patch:
        patch.setattr(server_lib.Version, "load", lambda path: own)
        server = server_lib.Server({NAME: ROOT / "exported" / NAME})
    yield server
    server.close()


def make_inputs(batch=1, samples=1, size=32, seed=0):
    random = np.random.default_rng(seed)
    shapes = (batch, samples, 120)
    return {
        "images": random.uniform(0, 255, (batch, size, size, 3)).astype("f4"),
        "noise": random.standard_normal(shapes).astype("f4"),
        "logit_scale": np.ones((batch, 1), "f4"),
        "logit_shift": np.zeros((batch, 1, 1), "f4"),
    }


def columns(**changes):
    inputs = {key: value.tolist() for key, value in make_inputs().items()}
    inputs.update(changes)
    return {"inputs": inputs}


def post(served, body, path=f"/v1/models/{NAME}:predict", **options):
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    return requests.post(served.rest + path, body, timeout=60, **options)


# The same answers.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_answers_are_those_of_a_local_load(served, load, name, protocol):
    here = load(name).model
    there = pipeline.Pipeline.load(
        f"grpc://{served.grpc}/{name}"
        if protocol == "grpc"
        else f"{served.rest}/v1/models/{name}"
    )
    assert there.metadata == here.metadata
    random = np.random.default_rng(1)
    images = random.uniform(0, 255, (3, 40, 40, 3))
    noise = random.standard_normal((3, 2, here.noise_dim))
    shift = random.standard_normal((3, 1, here.num_classes))
    for method, arguments in (
        ("logits", (images,)),
        ("reconstruct", (images, noise)),
        ("reconstruct", (images, noise, 0.5, shift)),
        ("generate", (shift[:, 0], noise[:, 0])),
    ):
        expected = getattr(here, method)(*arguments)
        found = getattr(there, method)(*arguments)
        assert found.dtype == expected.dtype
        # Of values up to 255; batches are merged, so rounding differs.
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-4)


def test_a_large_batch_is_split(served, local, monkeypatch):
    monkeypatch.setattr(pipeline, "REMOTE_IMAGE_PIXELS", 2 * 32 * 32)
    there = pipeline.Pipeline.load(f"{served.rest}/v1/models/{NAME}")
    images = make_inputs(batch=5)["images"]
    np.testing.assert_allclose(
        there.logits(images), local.logits(images), atol=1e-4, rtol=1e-4
    )


def test_a_server_that_does_not_know_kinv_numbers_the_classes(
    server, local, monkeypatch
):
    monkeypatch.setattr(grpc_service, "KINV_FIELD", "something else")
    running, port = grpc_service.start(server, "127.0.0.1:0")
    there = pipeline.Pipeline.load(f"grpc://127.0.0.1:{port}/{NAME}/versions/1")
    assert there.class_names[79] == "class 79"
    assert there.num_classes == local.num_classes
    assert (there.noise_dim, there.image_size) == (120, 32)
    assert there.metadata["served_version"] == 1
    # Of its images any size is resized to the classifier's, which is not told.
    assert "classifier_size" not in there.metadata
    running.stop(None).wait()


class MetadataOnly(http.server.BaseHTTPRequestHandler):
    """A server that has no `kinv.json` unless told, as TensorFlow Serving."""

    def do_GET(self):  # noqa: N802 (the base class's name)
        known = self.path.endswith("/metadata")
        body = self.server.metadata if known else b'{"error": "Malformed"}'
        if self.path.endswith("/kinv.json") and self.server.kinv:
            known, body = True, self.server.kinv
        self.answer(200 if known else 400, body)

    def do_POST(self):  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b'{"predictions": []}')

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def other_server():
    """A server of `MetadataOnly`, and the address of a model there."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MetadataOnly)
    server.kinv = None
    # Otherwise it looks every half second whether it is to end.
    serving = threading.Thread(
        target=server.serve_forever, args=[0.01], daemon=True
    )
    serving.start()
    yield server, f"http://127.0.0.1:{server.server_port}/v1/models/{NAME}"
    server.shutdown()
    server.server_close()


def test_what_such_a_server_tells_changes_with_the_version(
    version, other_server
):
    server, target = other_server
    found = []
    for number in (3, 4):
        server.metadata = rest_lib.metadata_json(
            dataclasses.replace(version, number=number), NAME
        )
        found.append(pipeline.Pipeline.load(target).metadata)
    assert [metadata["served_version"] for metadata in found] == [3, 4]
    assert "classifier_size" not in found[0]
    assert analyze.digest(found[0]) != analyze.digest(found[1])


@pytest.mark.parametrize("answer", [{}, [], {"model_spec": {"version": "1"}}])
def test_a_server_of_something_else_is_one_line(answer, other_server):
    server, target = other_server
    server.metadata = json.dumps(answer).encode()
    with pytest.raises(errors.InputError, match="metadata of something else"):
        pipeline.Pipeline.load(target)


def test_other_answers_than_a_model_s_are_one_line(version, other_server):
    server, target = other_server
    server.metadata = rest_lib.metadata_json(version, NAME)
    model = pipeline.Pipeline.load(target)
    with pytest.raises(errors.InputError, match="other outputs than its own"):
        model.logits(np.zeros((1, 8, 8, 3)))
    for server.kinv in (b"{}", b"[]"):
        with pytest.raises(errors.InputError, match=f"kinv.json of {target}"):
            pipeline.Pipeline.load(target)


@pytest.mark.parametrize("late", [False, True])
def test_a_call_is_made_again_where_the_connection_was_closed(
    monkeypatch, late
):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.5)
    calls = []

    def serve(listening):
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                calls.append(connection.recv(10_000))
                if late:
                    time.sleep(1)
                elif len(calls) > 1:
                    connection.sendall(
                        b"HTTP/1.1 400 x\r\nContent-Length: 2\r\n\r\n{}"
                    )

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=[listening], daemon=True).start()
        target = "http://127.0.0.1:%d/v1/models/x" % listening.getsockname()[1]
        reason = "timed out" if late else "status 400"
        with pytest.raises(errors.InputError, match=reason):
            pipeline.Pipeline.load(target)
    assert len(calls) == (1 if late else 2)


@pytest.mark.parametrize(
    "target, reason",
    [
        ("grpc://{grpc}/nothing", "NOT_FOUND"),
        ("grpc://{grpc}/" + NAME + "/versions/7", "NOT_FOUND"),
        ("{rest}/v1/models/nothing", "status 404: Servable not found"),
        ("{rest}/v1/models/" + NAME + "/versions/7", "status 404"),
        ("{rest}/elsewhere", "Expected grpc://HOST:PORT/NAME or"),
        ("grpc://{grpc}", "Expected grpc://HOST:PORT/NAME or"),
        ("ftp://host:1/name", "Expected grpc://HOST:PORT/NAME or"),
        ("grpc://127.0.0.1:70000/name", "PORT from 1 to 65535"),
        ("grpc://127.0.0.1:0/name", "PORT from 1 to 65535"),
        ("http://127.0.0.1:x/v1/models/name", "PORT from 1 to 65535"),
        ("grpc://::1:8500/name", "IPv6 HOST in brackets"),
        ("http://::1:8501/v1/models/name", "IPv6 HOST in brackets"),
        ("grpc://[::1:8500/name", "IPv6 HOST in brackets"),
        ("grpc://127.0.0.1:1/name/versions/" + "9" * 20, "Expected grpc://"),
        ("http://a..b:80/v1/models/name", "Expected a model at"),
        ("grpc://127.0.0.1:1/name", "UNAVAILABLE"),
        ("http://127.0.0.1:1/v1/models/name", "refused"),
    ],
)
def test_what_is_not_there_is_one_clear_line(
    served, target, reason, monkeypatch
):
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.01)
    target = target.format(grpc=served.grpc, rest=served.rest)
    with pytest.raises(errors.InputError, match=reason):
        pipeline.Pipeline.load(target)


@pytest.fixture
def proxy(monkeypatch):
    """The environment names a proxy, which is not there."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "target", ["{rest}/v1/models/" + NAME, "grpc://{grpc}/" + NAME]
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_the_way_to_this_machine(
    served, proxy, target, host
):
    target = target.format(grpc=served.grpc, rest=served.rest)
    model = pipeline.Pipeline.load(target.replace("127.0.0.1", host))
    assert model.logits(make_inputs()["images"]).shape == (1, 80)


@pytest.mark.parametrize(
    "target",
    ["http://192.0.2.1:8501/v1/models/name", "grpc://192.0.2.1:8500/name"],
)
def test_a_proxy_that_fails_is_named(proxy, target, monkeypatch):
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.01)
    # An address for documentation, RFC 5737: nothing is there.
    with pytest.raises(errors.InputError, match="NO_PROXY=192.0.2.1") as caught:
        pipeline.Pipeline.load(target)
    assert "Start one" not in str(caught.value)


# TensorFlow Serving's REST protocol, by its documentation.


def test_rest_status(served):
    for path in ("", "/versions/1"):
        answer = requests.get(served.rest + f"/v1/models/{NAME}{path}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "model_version_status": [
                {
                    "version": "1",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        }


def test_rest_metadata(served):
    answer = requests.get(served.rest + f"/v1/models/{NAME}/metadata").json()
    assert answer["model_spec"] == {
        "name": NAME,
        "signature_name": "",
        "version": "1",
    }
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    signature = signatures["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    noise = signature["inputs"]["noise"]
    assert noise["dtype"] == "DT_FLOAT"
    sizes = [axis["size"] for axis in noise["tensor_shape"]["dim"]]
    assert sizes == ["-1", "-1", "120"]


def test_rest_row_and_column_format(served, local):
    inputs = make_inputs(batch=2, samples=3)
    expected = local.logits(inputs["images"])
    by_column = post(
        served, {"inputs": {key: x.tolist() for key, x in inputs.items()}}
    ).json()["outputs"]
    rows = [
        {key: x[index].tolist() for key, x in inputs.items()}
        for index in range(2)
    ]
    body = {"signature_name": "serving_default", "instances": rows}
    by_row = post(served, body, f"/v1/models/{NAME}/versions/1:predict").json()[
        "predictions"
    ]
    assert sorted(by_row[0]) == ["logits", "reconstructions"]
    np.testing.assert_allclose(by_column["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(
        [row["logits"] for row in by_row], expected, atol=1e-4
    )
    assert np.shape(by_column["reconstructions"]) == (2, 3, 32, 32, 3)
    np.testing.assert_allclose(
        [row["reconstructions"] for row in by_row],
        by_column["reconstructions"],
        atol=1e-2,
    )


def nested(depth):
    """A number within as many lists."""
    value = 0
    for _ in range(depth):
        value = [value]
    return value


ROW = {key: value[0].tolist() for key, value in make_inputs().items()}


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "The document is empty"),
        (b"{", "JSON Parse error"),
        (b"[1]", "Is not object"),
        (b"[" * 300 + b"]" * 300, "nested too deeply Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": {}, "instances": []}, "expecting only one of"),
        ({"instances": 3}, "to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1, 2]}, "Expecting object but got Number"),
        ({"instances": [{**ROW, "more": 1}]}, "keys must be equal to"),
        ({"instances": [ROW, {}]}, "element: 1 of 'instances'"),
        ({"inputs": [1]}, "expecting an object as multiple"),
        ({"inputs": {"images": []}}, "Missing named input: logit_scale"),
        (columns(images=[]), "images: expected shape"),
        (columns(images=[[1, 2], [3]]), "unexpected size: 1"),
        (columns(images=[[1, 2], 3]), "incorrect level: 1"),
        (columns(images=nested(64)), "images: expected shape"),
        (columns(images=nested(65)), "at most 64 deep, received 65"),
        (columns(images=[1, nested(300)]), "Array is not of expected type"),
        (columns(images=[1, [2]]), "is not of expected type"),
        (columns(logit_scale=[["1"]]), "Type: String is not of expected"),
        (columns(logit_scale=[[True]]), "Type: Boolean"),
        (columns(logit_scale=[[None]]), "Type: Null"),
        (columns(logit_scale=[[{"b64": "AA=="}]]), "Type: Object"),
        (columns(logit_scale=[1]), "logit_scale: expected shape"),
        (columns(logit_scale=[[1], [1]]), "logit_scale: expected shape"),
        (columns(noise=[[[0.0] * 119]]), "noise: expected shape"),
        (columns(images=[[[[0, 0, 256]]]]), r"values in \[0, 255\]"),
        (columns(logit_scale=[[1e39]]), "expected finite values"),
        (columns(logit_shift=[[[3e38]]]), "Outputs are not finite"),
        ({"signature_name": 3, **columns()}, "must be a string value"),
        ({"signature_name": "x", **columns()}, 'name: "x" not found'),
        ({"signature_name": "__saved_model_init_op", **columns()}, "input map"),
    ],
)
def test_rest_rejects(served, body, message):
    answer = post(served, body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert re.search(message, answer.json()["error"])


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("POST", "/v1/models/nothing:predict", 404),
        ("POST", f"/v1/models/{NAME}/versions/9:predict", 404),
        ("GET", f"/v1/models/{NAME}/versions/9", 404),
        ("GET", "/v1/models/nothing/metadata", 404),
        ("GET", "/v1/models", 400),
        ("GET", "/anything", 404),
        ("POST", f"/v1/models/{NAME}", 400),
        ("POST", f"/v1/models/{NAME}:classify", 400),
        ("POST", f"/v1/models/{NAME}:nothing", 400),
        ("POST", f"/v1/models/{NAME}/labels/stable:predict", 400),
        ("POST", f"/v1/models/{NAME}/versions/{'9' * 40}:predict", 400),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/../../../etc/passwd", 400),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("DELETE", f"/v1/models/{NAME}", 400),
    ],
)
def test_rest_paths(served, method, path, status):
    # As it is: a client that tidies up paths would hide the traversal.
    request = requests.Request(method, served.rest, data=b"{}").prepare()
    request.url = served.rest + path
    answer = requests.Session().send(request, timeout=60)
    assert answer.status_code == status, answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "header, parts",
    [
        (f"Content-Length: {2**30}", []),
        # In chunks, whose sum is not announced.
        (
            "Transfer-Encoding: chunked",
            [b"100000\r\n" + b" " * 2**20 + b"\r\n"] * 65,
        ),
    ],
    ids=["announced", "in chunks"],
)
def test_a_body_that_is_too_large_is_refused(served, header, parts):
    host, port = served.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: x\r\n"
            f"{header}\r\n\r\n".encode()
        )
        for part in parts:
            connection.sendall(part)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_decompression_bomb_is_refused(served):
    bomb = gzip.compress(b" " * (2**26 + 1))
    answer = post(served, bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    # It is no fault of the server's.
    page = requests.get(f"{served.rest}/monitoring/prometheus/metrics").text
    assert f'model_name="{NAME}",status="RESOURCE_EXHAUSTED"' in page


@pytest.mark.parametrize(
    "size, samples, message",
    [(2049, 1, "at most 4194304 pixels"), (1, 1025, "at most 1024 samples")],
)
def test_pixels_and_samples_are_limited(version, size, samples, message):
    inputs = make_inputs(samples=samples, size=size)
    with pytest.raises(limits.ServingError, match=message) as caught:
        limits.check_inputs(inputs, version.model, limits.Limits())
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size, samples", [(2048, 1), (1, 1024)])
def test_what_is_just_within_the_limits_is_not_refused(version, size, samples):
    inputs = make_inputs(samples=samples, size=size)
    limits.check_inputs(inputs, version.model, limits.Limits())


def test_many_images_without_noise_are_limited(version):
    # They are resized to what the generator makes, all the same.
    inputs = make_inputs(batch=1025, samples=0, size=1)
    with pytest.raises(limits.ServingError, match="at most 1024"):
        limits.check_inputs(inputs, version.model, limits.Limits())
    # They are merged with others' as if they had one.
    inputs = make_inputs(batch=64, samples=0, size=1)
    assert server_lib._cost((version, inputs, None)) == 1 / 4


def test_small_images_for_a_large_classifier_are_limited(version, monkeypatch):
    # They are resized to what it takes: 83 x 224 x 224 pixels, 4 million.
    monkeypatch.setitem(version.model.metadata, "classifier_size", 224)
    for batch, refused in ((83, False), (84, True)):
        inputs = make_inputs(batch=batch, size=1)
        assert server_lib._cost((version, inputs, None)) > batch / 2**24
        arguments = inputs, version.model, limits.Limits()
        if not refused:
            limits.check_inputs(*arguments)
            continue
        message = "at most 83 of the classifier's size, received 84"
        with pytest.raises(limits.ServingError, match=message):
            limits.check_inputs(*arguments)


# gRPC, with the official stubs.


def predict_request(inputs, **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.pop("name", NAME)
    request.model_spec.signature_name = spec.pop("signature", "")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


@pytest.fixture
def stub(served):
    with grpc.insecure_channel(served.grpc) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def test_grpc_predict(stub, local):
    inputs = make_inputs(samples=0)
    request = predict_request(inputs)
    request.output_filter.append("logits")
    response = stub.Predict(request)
    assert list(response.outputs) == ["logits"]
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    np.testing.assert_allclose(
        tf.make_ndarray(response.outputs["logits"]),
        local.logits(inputs["images"]),
        atol=1e-4,
    )


def bomb(request):
    """One value that stands for 10^12."""
    tensor = request.inputs["noise"]
    tensor.ClearField("tensor_content")
    tensor.float_val[:] = [1.0]
    for axis in tensor.tensor_shape.dim:
        axis.size = 10**4
    return request


def without(name):
    inputs = make_inputs()
    del inputs[name]
    return inputs


@pytest.mark.parametrize(
    "request_, code",
    [
        (predict_request(make_inputs(), name="nothing"), "NOT_FOUND"),
        (predict_request(make_inputs(), version=9), "NOT_FOUND"),
        (predict_request(make_inputs(), signature="x"), "FAILED_PRECONDITION"),
        (predict_request(without("noise")), "INVALID_ARGUMENT"),
        (
            predict_request({**make_inputs(), "more": np.zeros(1, "f4")}),
            "INVALID_ARGUMENT",
        ),
        (
            predict_request(
                {**make_inputs(), "images": np.zeros((1, 2), "f4")}
            ),
            "INVALID_ARGUMENT",
        ),
        (
            predict_request(
                {**make_inputs(), "images": np.zeros((1, 32, 32, 3), "i4")}
            ),
            "INVALID_ARGUMENT",
        ),
        (predict_request(make_inputs(batch=0)), "INVALID_ARGUMENT"),
        (bomb(predict_request(make_inputs())), "INVALID_ARGUMENT"),
        (
            predict_request(make_inputs(), signature="__saved_model_init_op"),
            "INVALID_ARGUMENT",
        ),
        # All that this one takes.
        (
            predict_request({}, signature="__saved_model_init_op"),
            "INVALID_ARGUMENT",
        ),
    ],
)
def test_grpc_rejects(stub, request_, code):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_)
    assert caught.value.code().name == code, caught.value


def test_grpc_refuses_other_inputs_before_it_reads_them(stub):
    # One value that stands for 64 MiB, of which there could be thousands.
    request = predict_request({**make_inputs(), "more": np.zeros(1, "f4")})
    request.inputs["more"].tensor_shape.dim[0].size = 10**12
    with pytest.raises(grpc.RpcError, match=r"input size does not .* 5!=4"):
        stub.Predict(request)


def test_grpc_rejects_unknown_outputs_and_methods(stub):
    request = predict_request(make_inputs())
    request.output_filter.append("nothing")
    with pytest.raises(grpc.RpcError, match="alias not found"):
        stub.Predict(request)


def inference_request(*methods):
    request = inference_pb2.MultiInferenceRequest()
    for method in methods:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = NAME
    return request


@pytest.mark.parametrize(
    "method, request_, reason",
    [
        (
            "Classify",
            classification_pb2.ClassificationRequest(
                model_spec=model_pb2.ModelSpec(name=NAME)
            ),
            "Expected classification signature",
        ),
        (
            "Regress",
            regression_pb2.RegressionRequest(
                model_spec=model_pb2.ModelSpec(name=NAME)
            ),
            "Expected regression signature",
        ),
        (
            "MultiInference",
            inference_request("tensorflow/serving/regress"),
            "Expected regression signature",
        ),
        (
            "MultiInference",
            inference_request("tensorflow/serving/predict"),
            "Unsupported signature method_name",
        ),
        ("MultiInference", inference_request(), "Unsupported signature"),
    ],
)
def test_grpc_methods_that_the_signature_does_not_have(
    stub, method, request_, reason
):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason in caught.value.details()


def test_grpc_reload_says_what_is_so(served):
    with grpc.insecure_channel(served.grpc) as channel:
        service = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="started with") as caught:
            service.HandleReloadConfigRequest(
                model_management_pb2.ReloadConfigRequest()
            )
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("tensor_content", [False, True])
def test_grpc_answers_fill_the_field_that_is_asked_for(
    server, local, tensor_content
):
    running, port = grpc_service.start(server, "127.0.0.1:0", tensor_content)
    inputs = make_inputs(batch=2, samples=3)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        outputs = (
            prediction_service_pb2_grpc.PredictionServiceStub(channel)
            .Predict(predict_request(inputs))
            .outputs
        )
    running.stop(None).wait()
    found = outputs["reconstructions"]
    assert found.dtype == types_pb2.DT_FLOAT
    shape = [dimension.size for dimension in found.tensor_shape.dim]
    assert shape == [2, 3, 32, 32, 3]
    # As clients that know no TensorFlow read it.
    if tensor_content:
        assert not found.float_val
        values = np.frombuffer(found.tensor_content, "<f4")
    else:
        assert not found.tensor_content
        values = np.array(found.float_val, "f4")
    np.testing.assert_allclose(
        values.reshape(shape),
        local.reconstruct(inputs["images"], inputs["noise"]),
        atol=2e-3,
    )


def test_health(served):
    with grpc.insecure_channel(served.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest()
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert requests.get(f"{served.rest}/healthz").json() == {
        "status": "SERVING"
    }
    assert requests.head(f"{served.rest}/healthz").status_code == 200


def test_metrics_have_the_names_of_tensorflow_serving(served):
    def count(status, name=NAME):
        page = requests.get(f"{served.rest}/monitoring/prometheus/metrics").text
        values = {}
        for family in prometheus_parser.text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == ":tensorflow:serving:request_count":
                    assert set(sample.labels) == {"model_name", "status"}
                    key = sample.labels["model_name"], sample.labels["status"]
                    values[key] = sample.value
        latencies = re.findall(
            ":tensorflow:serving:request_latency_count{(.+)} ", page
        )
        return values.get((name, status), 0), latencies

    before = {status: count(status)[0] for status in ("OK", "INVALID_ARGUMENT")}
    nameless = count("NOT_FOUND", "")[0]
    assert post(served, columns()).status_code == 200
    assert post(served, columns(noise=[])).status_code == 400
    assert post(served, {}, "/v1/models/nothing:predict").status_code == 404
    for status, value in before.items():
        assert count(status)[0] == value + 1
    # Names that clients invent take no memory.
    assert count("NOT_FOUND", "nothing")[0] == 0
    assert count("NOT_FOUND", "")[0] == nameless + 1
    labels = f'API="Predict",entrypoint="REST",model_name="{NAME}"'
    assert labels in count("OK")[1]


@pytest.mark.parametrize(
    "encoding, accepted",
    [("gzip", "gzip"), ("identity", "identity"), ("identity", "gzip;q=0")],
)
def test_bodies_may_be_compressed(served, encoding, accepted):
    inputs = {key: x.tolist() for key, x in make_inputs().items()}
    body = json.dumps({"inputs": inputs}).encode()
    if encoding == "gzip":
        body = gzip.compress(body)
    answer = post(
        served,
        body,
        headers={"Content-Encoding": encoding, "Accept-Encoding": accepted},
        stream=True,
    )
    assert answer.status_code == 200
    assert answer.headers.get("content-encoding", "identity") == encoding
    content = answer.raw.read(decode_content=False)
    if encoding == "gzip":
        content = gzip.decompress(content)
    assert np.shape(orjson.loads(content)["outputs"]["logits"]) == (1, 80)


@pytest.mark.parametrize(
    "body, encoding, status",
    [(b"no", "gzip", 400), (gzip.compress(b"{}", mtime=0)[:-9], "gzip", 400)]
    + [(b"{}", "br", 415)],
)
def test_what_cannot_be_decompressed_is_refused(served, body, encoding, status):
    answer = post(served, body, headers={"Content-Encoding": encoding})
    assert answer.status_code == status
    assert "Content-Encoding" in answer.json()["error"]


def test_grpc_metadata_and_status(served, stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = NAME
    with pytest.raises(grpc.RpcError, match="at least one metadata_field"):
        stub.GetModelMetadata(request)
    request.metadata_field.append("signature_def")
    response = stub.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["serving_default"].outputs) == {
        "logits",
        "reconstructions",
    }
    request.metadata_field.append("other")
    with pytest.raises(grpc.RpcError, match="other is not supported"):
        stub.GetModelMetadata(request)

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = NAME
    with grpc.insecure_channel(served.grpc) as channel:
        status = model_service_pb2_grpc.ModelServiceStub(
            channel
        ).GetModelStatus(request)
    [only] = status.model_version_status
    assert (only.version, only.State.Name(only.state)) == (1, "AVAILABLE")


def test_a_compressed_grpc_bomb_is_refused(served):
    # 128 MiB of zeros, 130 kB on the wire.
    request = predict_request(
        {**make_inputs(), "images": np.zeros((1, 3400, 3300, 3), "f4")}
    )
    with grpc.insecure_channel(
        served.grpc,
        options=[("grpc.max_send_message_length", -1)],
        compression=grpc.Compression.Gzip,
    ) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            stub.Predict(request)


# Merged calls and versions.


def test_calls_that_wait_are_merged_and_get_their_own_answers(server, local):
    model = server.version(NAME).model
    batches = []
    signature = model.signature

    def counting(**tensors):
        batches.append(len(tensors["images"]))
        # Long enough for the others to arrive.
        time.sleep(0.2)
        return signature(**tensors)

    model.signature = counting
    requests_ = [make_inputs(batch=1 + i % 2, seed=i) for i in range(12)]
    requests_.append(make_inputs(samples=2, seed=12))
    futures = [
        server.submit(NAME, server.version(NAME), inputs)
        for inputs in requests_
    ]
    for inputs, future in zip(requests_, futures, strict=True):
        np.testing.assert_allclose(
            future.result()["reconstructions"],
            local.reconstruct(inputs["images"], inputs["noise"]),
            atol=2e-3,
            rtol=1e-4,
        )
    assert sum(batches) == 19
    assert len(batches) <= 4


def test_what_was_answered_is_not_kept(server):
    inputs = make_inputs()
    kept = weakref.ref(inputs["noise"])
    server.submit(NAME, server.version(NAME), inputs).result()
    del inputs
    for _ in range(100):
        gc.collect()
        if kept() is None:
            break
        time.sleep(0.05)
    assert kept() is None


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_calls_of_clients_that_left_are_not_computed(server, protocol):
    def ended(status):
        name = ":tensorflow:serving:request_count"
        labels = {"model_name": NAME, "status": status}
        return monitoring.REGISTRY.get_sample_value(name, labels) or 0

    cancelled, failed = ended("CANCELLED"), ended("INTERNAL")
    model = server.version(NAME).model
    signature, begun, go_on = model.signature, threading.Event(), []
    computed = []

    def waiting(**tensors):
        computed.append(len(tensors["images"]))
        begun.set()
        while not go_on:
            time.sleep(0.02)
        return signature(**tensors)

    model.signature = waiting
    first = server.submit(NAME, server.version(NAME), make_inputs())
    assert begun.wait(30)
    inputs = make_inputs(batch=2)
    if protocol == "grpc":
        running, port = grpc_service.start(server, "127.0.0.1:0")
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        calls = [
            stub.Predict.future(predict_request(inputs))
            for _ in range(grpc_service.ANSWERING_THREADS + 2)
        ]
        time.sleep(0.5)
        # Whatever waits, a probe is answered.
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for call in calls:
            call.cancel()
    else:
        opened = socket.create_server(("127.0.0.1", 0))
        stop = web.start(server, lambda: "page", opened)
        address = "http://%s:%s" % opened.getsockname()
        body = {key: value.tolist() for key, value in inputs.items()}
        with pytest.raises(requests.Timeout):
            requests.post(
                f"{address}/v1/models/{NAME}:predict",
                json.dumps({"inputs": body}),
                timeout=1,
            )
    time.sleep(0.5)
    go_on.append(True)
    first.result(timeout=60)
    server.submit(NAME, server.version(NAME), make_inputs()).result(timeout=60)
    assert computed == [1, 1]
    # No error of the server's.
    assert ended("CANCELLED") > cancelled and ended("INTERNAL") == failed
    if protocol == "grpc":
        running.stop(0)
    else:
        stop(1)


def test_one_call_that_overflows_does_not_fail_its_neighbours(server):
    bad = {**make_inputs(), "logit_shift": np.full((1, 1, 1), 3e38, "f4")}
    futures = [
        server.submit(NAME, server.version(NAME), x)
        for x in (make_inputs(), bad)
    ]
    assert futures[0].result()["logits"].shape == (1, 80)
    with pytest.raises(limits.ServingError, match="not finite"):
        futures[1].result()


def test_calls_that_wait_are_answered_before_the_end(server):
    requests_ = [make_inputs(samples=1 + i % 3, seed=i) for i in range(30)]
    futures = [
        server.submit(NAME, server.version(NAME), inputs)
        for inputs in requests_
    ]
    server.close()
    for inputs, future in zip(requests_, futures, strict=True):
        shape = future.result(timeout=0)["reconstructions"].shape
        assert shape[:2] == inputs["noise"].shape[:2]


@pytest.mark.slow
def test_a_new_version_is_picked_up_with_no_failed_call(tmp_path):
    source = ROOT / "exported" / NAME / "1"
    shutil.copytree(source, tmp_path / "model" / "1")
    server = server_lib.Server({"model": tmp_path / "model"}, poll_seconds=0.1)
    stop = threading.Event()
    answered = []

    def ask(seed):
        while not stop.is_set():
            inputs = make_inputs(seed=seed)
            outputs = server.submit(
                "model", server.version("model"), inputs
            ).result(timeout=60)
            answered.append(outputs["logits"].shape)

    with concurrent.futures.ThreadPoolExecutor() as executor:
        tasks = [executor.submit(ask, seed) for seed in range(4)]
        # One that is broken is passed over.
        (tmp_path / "model" / "2").mkdir()
        (tmp_path / "model" / "2" / "saved_model.pb").write_bytes(b"no")
        time.sleep(0.5)
        assert server.version("model").number == 1
        shutil.copytree(source, tmp_path / "model" / ".writing")
        (tmp_path / "model" / ".writing").rename(tmp_path / "model" / "3")
        deadline = time.monotonic() + 60
        while server.version("model").number != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)
        stop.set()
        for task in tasks:
            task.result()
    assert answered and set(answered) == {(1, 80)}
    assert server.states("model") == [(3, "AVAILABLE"), (1, "END")]
    with pytest.raises(limits.ServingError, match="Servable not found"):
        server.version("model", 1)
    server.close()


def make_version(directory, name, intact=True):
    """What `fake_load` takes for a version."""
    (directory / name).mkdir(parents=True)
    (directory / name / "saved_model.pb").touch()
    if not intact:
        (directory / name / "damaged").touch()


@pytest.fixture
def fake_load(monkeypatch):
    """Loads versions without TensorFlow; a damaged one fails."""

    def load(path):
        if (path / "damaged").exists():
            raise ValueError("damaged\nin detail")
        return server_lib.Version(int(path.name), None, {})

    monkeypatch.setattr(server_lib.Version, "load", load)


def wait_for_version(server, number):
    """Waits until it is the one that serves; None is none."""
    deadline = time.monotonic() + 30
    while True:
        try:
            found = server.version("model").number
        except limits.ServingError as error:
            assert error.code == grpc.StatusCode.NOT_FOUND
            assert error.message == (
                "Servable not found for request: Latest(model)"
            )
            found = None
        if found == number:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_damaged_version_is_skipped_until_it_is_mended(
    tmp_path, fake_load, caplog
):
    make_version(tmp_path, "1")
    make_version(tmp_path, "0007")
    make_version(tmp_path, "8", intact=False)
    server = server_lib.Server({"model": tmp_path}, poll_seconds=0.02)
    assert server.version("model").number == 7
    time.sleep(0.2)
    # Once, not at every look.
    assert caplog.text.count("skipped") == 1
    assert f"complete SavedModel in {tmp_path}/8. Received: damaged." in (
        caplog.text
    )
    (tmp_path / "8" / "damaged").unlink()
    wait_for_version(server, 8)
    assert server.states("model") == [(8, "AVAILABLE"), (7, "END")]
    server.close()


def test_a_version_that_cannot_be_looked_at_is_skipped(
    tmp_path, fake_load, caplog
):
    make_version(tmp_path, "1")
    make_version(tmp_path, "2")
    (tmp_path / "2" / "variables").symlink_to("missing")
    server = server_lib.Server({"model": tmp_path}, poll_seconds=0.02)
    assert server.version("model").number == 1
    time.sleep(0.2)
    assert caplog.text.count("skipped") == 1
    (tmp_path / "2" / "variables").unlink()
    wait_for_version(server, 2)
    server.close()


def test_without_an_intact_version_there_is_no_server(tmp_path, fake_load):
    make_version(tmp_path, "1", intact=False)
    make_version(tmp_path, "2", intact=False)
    with pytest.raises(errors.InputError, match="2. Received: damaged. Export"):
        server_lib.Server({"model": tmp_path})


def test_versions_that_are_deleted_end(tmp_path, fake_load):
    directory = tmp_path / "model"
    for name in ("1", "2"):
        make_version(directory, name)
    server = server_lib.Server({"model": directory}, poll_seconds=0.02)
    shutil.rmtree(directory / "2")
    wait_for_version(server, 1)
    shutil.rmtree(directory / "1")
    wait_for_version(server, None)
    with pytest.raises(limits.ServingError, match="not found"):
        server.version("model")
    assert server.states("model") == [(2, "END"), (1, "END")]
    make_version(directory, "3")
    wait_for_version(server, 3)
    # A directory that cannot be reached for a while ends nothing.
    directory.rename(tmp_path / "elsewhere")
    time.sleep(0.2)
    assert server.version("model").number == 3
    server.close()


# Clients that send nothing, or half of it.


@pytest.fixture
def start_web():
    """Starts the HTTP server alone, in this process."""
    stops = []

    def start(page="page"):
        nothing = types.SimpleNamespace(
            names=[], limits=limits.Limits(), version=lambda *args: None
        )
        opened = serve.bind("127.0.0.1", 0)
        stop = web.start(nothing, lambda: page, opened)
        stops.append(stop)
        return opened.getsockname(), stop

    yield start
    for stop in stops:
        stop(0)


HALF_A_BODY = (
    f"POST /v1/models/{NAME}:predict HTTP/1.1\r\n"
    "Host: x\r\nContent-Length: 100\r\n\r\n{"
).encode()


def received(connection):
    """All that comes until the server closes."""
    parts = []
    while part := connection.recv(4096):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "sent, answer",
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET", b"HTTP/1.1 200"),
        (HALF_A_BODY, b"HTTP/1.1 408"),
    ],
    ids=["nothing", "half a header", "one and a half", "half a body"],
)
def test_a_client_that_sends_no_more_is_sent_away(
    start_web, monkeypatch, sent, answer
):
    monkeypatch.setattr(web, "READ_SECONDS", 0.3)
    address, _ = start_web()
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(sent)
        assert received(connection)[:12] == answer


@pytest.mark.slow
def test_a_connection_is_kept_between_calls(start_web):
    address, _ = start_web()
    connection = http.client.HTTPConnection(*address, timeout=30)
    for _ in range(2):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"SERVING"}'
        # Longer than uvicorn waits unless told otherwise.
        time.sleep(6)
    connection.close()


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_a_client_that_reads_no_more_is_sent_away(
    start_web, monkeypatch, seconds
):
    monkeypatch.setattr(web, "READ_SECONDS", 0.5)
    # More than the sockets of both sides hold.
    address, _ = start_web("x" * 2**25)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(seconds)
        try:
            whole = len(received(connection)) > 2**25
        except ConnectionResetError:
            whole = False
    assert whole == (seconds == 0)


def test_large_bodies_are_read_one_at_a_time(start_web, monkeypatch):
    """They hold what every other call waits for."""
    reading, most = [], []

    def parse_request(body, version):
        reading.append(body)
        most.append(len(reading))
        time.sleep(0.2)
        reading.remove(body)
        raise limits.invalid("read")

    monkeypatch.setattr(web.rest, "parse_request", parse_request)
    (host, port), _ = start_web()
    address = f"http://{host}:{port}/v1/models/x:predict"
    large = b" " * (web.LARGE_BYTES + 1)
    packed = {"Content-Encoding": "gzip"}
    calls = [(large, {})] * 2 + [(gzip.compress(b" "), packed)] * 2
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        answers = pool.map(
            lambda call: requests.post(
                address, data=call[0], headers=call[1], timeout=60
            ),
            calls,
        )
    assert [answer.json() for answer in answers] == [{"error": "read"}] * 4
    assert most == [1] * 4


def test_a_client_that_sends_no_more_does_not_outlive_the_grace(start_web):
    address, stop = start_web()
    with (
        socket.create_connection(address, timeout=30) as idle,
        socket.create_connection(address, timeout=30) as half,
    ):
        half.sendall(HALF_A_BODY)
        time.sleep(0.3)
        start = time.monotonic()
        stop(1)
        assert time.monotonic() - start < 10
        assert received(idle) == b""
        assert received(half).startswith(b"HTTP/1.1 503")


# Whatever is sent.

JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(max_size=5)
    | strategies.sampled_from([0, 1, 255, 1e39, -1, 10**30]),
    lambda children: (
        strategies.lists(children, max_size=4)
        | strategies.dictionaries(
            strategies.sampled_from([*sorted(INPUTS), "b64", ""]),
            children,
        )
    ),
    max_leaves=30,
)
REQUESTS = strategies.fixed_dictionaries(
    {},
    optional={
        "signature_name": strategies.sampled_from(
            ["serving_default", "__saved_model_init_op", 3, None]
        ),
        "instances": JSON,
        "inputs": JSON
        | strategies.fixed_dictionaries(
            {
                name: JSON | strategies.just(value)
                for name, value in columns()["inputs"].items()
            }
        ),
    },
)


@pytest.mark.slow
@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(REQUESTS | JSON)
def test_whatever_json_says_is_read_or_refused(version, value):
    try:
        inputs, _ = rest_lib.parse_request(json.dumps(value).encode(), version)
        limits.check_inputs(inputs, version.model, limits.Limits())
    except limits.ServingError as error:
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
@hypothesis.settings(
    max_examples=int(os.environ.get("KINV_FUZZ_REQUESTS", 200)),
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    method=strategies.sampled_from(["GET", "POST", "PUT", "OPTIONS"]),
    path=strategies.sampled_from(
        [
            f"/v1/models/{NAME}:predict",
            f"/v1/models/{NAME}/versions/1:predict",
            f"/v1/models/{NAME}/metadata",
            "/",
        ]
    )
    | strategies.text(
        strategies.characters(codec="ascii", categories=["L", "N", "P"]),
        max_size=40,
    ).map(lambda text: "/" + text),
    body=strategies.binary(max_size=200)
    | REQUESTS.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode()),
    headers=strategies.dictionaries(
        strategies.sampled_from(
            ["Content-Type", "Accept", "Content-Encoding", "Origin", "X-A"]
        ),
        strategies.text(
            strategies.characters(codec="ascii", categories=["L", "N"]),
            max_size=10,
        ),
        max_size=3,
    ),
)
def test_whatever_http_says_gets_an_answer(served, method, path, body, headers):
    answer = served.session.request(
        method, served.rest + path, data=body, headers=headers, timeout=60
    )
    assert answer.status_code < 500, (method, path, body, answer.text)


@pytest.mark.slow
def test_the_server_lives_after_all_that_and_does_not_grow(served):
    memory = psutil.Process(served.process.pid).memory_info
    bodies = [b"", b"{", json.dumps(columns(noise=[])), json.dumps(columns())]
    bodies.append(b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}")
    sizes = []
    for _ in range(2):
        for index in range(500):
            body = bodies[index % len(bodies)]
            path = f"{served.rest}/v1/models/{NAME}:predict"
            answer = served.session.post(path, body, timeout=60)
            assert answer.status_code == (200 if index % 5 == 3 else 400)
        sizes.append(memory().rss)
    assert sizes[1] - sizes[0] < 20e6
    assert served.process.poll() is None


# The tool.


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "exported"], "Received: exported, which holds none"),
        (["--model", "no/where"], "Received: no/where, which holds none"),
        (["--model", "a:b=exported/scenes32-robust"], "an address can hold"),
        (
            ["--model", "exported/scenes32-robust", "--rest-port", "{rest}"],
            "Expected an address of this machine and a free port",
        ),
        (
            [
                "--model",
                "exported/scenes32-robust",
                *("--rest-port", "0", "--grpc-port", "{grpc}"),
            ],
            "Expected an address of this machine and a free port",
        ),
    ],
)
def test_bad_input_is_one_line(
    served, version, arguments, message, monkeypatch
):
    monkeypatch.setattr(server_lib.Version, "load", lambda path: version)
    ports = {
        "rest": served.rest.rpartition(":")[2],
        "grpc": served.grpc.rpartition(":")[2],
    }
    with pytest.raises(errors.InputError) as caught:
        serve.main([word.format(**ports) for word in arguments])
    assert message in str(caught.value)


def test_bad_input_ends_with_status_2():
    result = subprocess.run(
        [sys.executable, "tools/serve.py", "--model=x", "--rest-port=70000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "a port from 0 to 65535" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(
    not pathlib.Path("/proc/net/if_inet6").exists(),
    reason="needs a system with IPv6",
)
def test_an_ipv6_host_stands_in_brackets():
    server = subprocess.Popen(
        [sys.executable, "tools/serve.py", "--host", "[::1]"]
        + ["--model", f"exported/{NAME}"]
        + ["--rest-port", "0", "--grpc-port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        lines = [server.stdout.readline().strip() for _ in range(4)]
        # Of RFC 3986: a literal address of IPv6 in square brackets.
        rest, calls = lines[1:3]
        assert re.fullmatch(rf"http://\[::1\]:\d+/v1/models/{NAME}", rest)
        assert re.fullmatch(rf"grpc://\[::1\]:\d+/{NAME}", calls)
        for address in (rest, calls):
            assert pipeline.Pipeline.load(address).num_classes == 80
        server.terminate()
        # No warning: no other machine can call.
        assert server.communicate()[0] == "stopped\n"


@pytest.mark.slow
def test_a_signal_ends_it_cleanly(start_server):
    # At once: both wait out the grace period for half a body.
    servers = start_server(), start_server()
    signals = signal.SIGTERM, signal.SIGINT
    with concurrent.futures.ThreadPoolExecutor() as executor:
        list(executor.map(end_by_signal, servers, signals))


def end_by_signal(server, number):
    host, port = server.rest.removeprefix("http://").split(":")
    many = make_inputs(64, samples=8)
    body = {"inputs": {k: v.tolist() for k, v in make_inputs(64).items()}}
    channel = grpc.insecure_channel(
        server.grpc, options=[("grpc.max_receive_message_length", -1)]
    )
    with (
        # They do not hold it up, beyond the grace period.
        socket.create_connection((host, int(port))) as idle,
        socket.create_connection((host, int(port))) as half,
        channel,
        concurrent.futures.ThreadPoolExecutor() as executor,
    ):
        half.sendall(HALF_A_BODY)
        # Calls that are under way are answered.
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        rest_call = executor.submit(post, server, orjson.dumps(body))
        grpc_call = executor.submit(stub.Predict, predict_request(many))
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(number)
        assert rest_call.result().status_code == 200
        assert "logits" in grpc_call.result().outputs
        out, _ = server.process.communicate(timeout=60)
        assert time.monotonic() - start < serve.GRACE_SECONDS + 10
        assert idle.recv(1) == b""
    assert server.process.returncode == 0
    assert out.endswith("stopped\n")


def test_names():
    # The first "=" ends the name, unless it is a part of the path.
    arguments = ["exported/a", "x=runs/lr=3/e", "runs/lr=4/f/"]
    assert serve.directories_of(arguments) == {
        "a": "exported/a",
        "x": "runs/lr=3/e",
        "f": "runs/lr=4/f",
    }
    with pytest.raises(errors.InputError, match="different names"):
        serve.directories_of(["a", "x/a"])


@pytest.mark.parametrize("model", ["a:b=exported/a", "exported/a:b"])
def test_a_name_that_no_address_can_hold_is_refused(model):
    with pytest.raises(errors.InputError, match="an address can hold"):
        serve.main(["--model", model])


def test_page_is_written_to_a_file(tmp_path):
    path = tmp_path / "explorer.html"
    serve.main(["--model", f"{ROOT}/exported/{NAME}", "--page", str(path)])
    text = path.read_text()
    assert "lime cylinder" in text and "/*CONFIG*/" not in text
    assert "http://" not in text.replace("http://localhost:8501", "")


def test_scenes_of_the_explorer_are_held_out_ones():
    places = (14, 28, 23, 34, 8, 36, 19, 37)
    factors = scenes.scene_factors("test", places)
    classes = factors["shape"] * len(rendering.OBJECT_HUES)
    names = [scenes.CLASS_NAMES[i] for i in classes + factors["object_hue"]]
    pictures = rendering.render(factors, 64)
    for i, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        file = f"kinv_scenes/{i}-{name.replace(' ', '_')}.png"
        image = images.read_image(explorer.EXAMPLES / file)
        np.testing.assert_allclose(image, picture, atol=1)


def test_a_model_is_shown_with_examples_of_its_own_data_set():
    def model_of(dataset):
        metadata = {
            "class_names": ["a"],
            "num_classes": 1,
            "noise_dim": 2,
            "image_size": 8,
            "classifier_size": 8,
        }
        if dataset:
            metadata["dataset"] = dataset
        return pipeline.Pipeline(None, metadata)

    datasets = {
        "scenes": "kinv_scenes/32-large",
        "clothes": "data/fashion_mnist",
        "version": "fashion_mnist:3.0.1",
        "photos": "../photos//",
        "unknown": None,
    }
    models = {name: model_of(dataset) for name, dataset in datasets.items()}
    text = explorer.page(models)
    config = json.loads(re.search(r"const CONFIG = (\{.*\});", text)[1])
    offered = [(x["name"], x["models"]) for x in config["examples"]]
    assert ("ankle boot", ["clothes", "version"]) in offered
    assert offered[0][1] == ["scenes", "photos", "unknown"]
    assert len([name for name, suited in offered if "clothes" in suited]) == 10
    # What nobody looks at does not travel along.
    text = explorer.page({"scenes": models["scenes"]})
    assert "ankle boot" not in text


def test_the_page_is_of_the_versions_that_serve():
    def version(number, name):
        metadata = {
            "class_names": [name],
            "num_classes": 1,
            "noise_dim": 2,
            "image_size": 8,
            "classifier_size": 8,
        }
        model = pipeline.Pipeline(None, metadata)
        return types.SimpleNamespace(number=number, model=model)

    def find(name):
        if name not in versions:
            raise limits.ServingError(grpc.StatusCode.NOT_FOUND, "none")
        return versions[name]

    versions = {"a": version(1, "cat"), "b": version(1, "dog")}
    server = types.SimpleNamespace(names=["a", "b"], version=find)
    page = serve.make_page(server)
    assert '"cat"' in page() and '"dog"' in page()
    versions["a"] = version(2, "horse")
    assert '"horse"' in page() and '"cat"' not in page()
    del versions["a"]
    assert '"horse"' not in page() and '"dog"' in page()
    del versions["b"]
    assert page().startswith("<!doctype html>") and '"dog"' not in page()


def test_page_of_a_model_whose_classes_nobody_tells(tmp_path, monkeypatch):
    model = pipeline.Pipeline.load(ROOT / "exported" / NAME)
    # As of TensorFlow Serving.
    del model.metadata["classifier_size"]
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda place: model)
    place, path = "x=grpc://127.0.0.1:1/x", tmp_path / "explorer.html"
    with pytest.raises(errors.InputError, match="Received: grpc://127.0.0.1:1"):
        serve.main(["--model", place, "--page", str(path)])
    assert not path.exists()


def test_deploy_serves_the_shipped_pipelines():
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((ROOT / "deploy/models.config").read_text(), config)
    entries = config.model_config_list.config
    assert [entry.name for entry in entries] == list(NAMES)
    for entry in entries:
        name = entry.base_path.removeprefix("/models/")
        assert pipeline.versions(ROOT / "exported" / name)
