"""TensorFlow Serving's REST protocol, and the explorer page beside it."""

import asyncio
import contextlib
import itertools
import re
import urllib.parse

import fastapi
import grpc
import numpy as np
import orjson
import starlette.requests
from fastapi.middleware import cors
from google.protobuf import json_format

from kinv.serving import server as server_lib
from kinv.serving.signature import SIGNATURE

# What TensorFlow Serving accepts after the host, in its order of groups.
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
PREDICT_PATH = re.compile(rf"(?i){_MODEL}:(classify|regress|predict)")
# and, besides, the export's kinv.json.
STATUS_PATH = re.compile(rf"(?i){_MODEL}(?:/(metadata|kinv\.json))?")
# As TensorFlow Serving maps them.
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
}
# Depth of nested lists, as NumPy's arrays have it; the deepest input has 4.
MOST_AXES = 64
# The page loads nothing, and sends nothing, but pictures and calls.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; connect-src *; base-uri 'none'; form-action 'none'"
)


def make_app(server, page, allow_origins=()):
    """Builds the application.

    Args:
        server: `server_lib.Server`.
        page: HTML to answer at `/`.
        allow_origins: origins whose pages may call, such as `*`.

    Returns:
        ASGI application.

    Reference:
        The RESTful API of TensorFlow Serving,
        https://www.tensorflow.org/tfx/serving/api_rest
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if allow_origins:
        app.add_middleware(
            cors.CORSMiddleware,
            allow_origins=list(allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
        )

    @app.get("/")
    async def explorer():
        return fastapi.Response(
            page,
            media_type="text/html",
            headers={
                "Content-Security-Policy": PAGE_POLICY,
                "X-Content-Type-Options": "nosniff",
            },
        )

    # One route: paths are TensorFlow Serving's, with colons and in any case.
    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(request: fastapi.Request):
        path = request.scope["raw_path"].decode("latin-1")
        try:
            if request.method == "POST":
                content = await _post(server, path, request)
            else:
                content = _get(server, path)
            status = 200
        except server_lib.ServingError as error:
            content = orjson.dumps({"error": error.message})
            status = HTTP_STATUS[error.code]
        except _Refused as error:
            content, status = orjson.dumps({"error": str(error)}), error.status
        return fastapi.Response(content, status, media_type="application/json")

    return app


class _Refused(Exception):
    """A request refused before it is read as TensorFlow Serving would."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def _get(server, path):
    name, number, subresource = _parse(server, STATUS_PATH, "GET", path)
    if subresource == "kinv.json":
        return orjson.dumps(server.version(name, number).model.metadata)
    if subresource:
        return metadata_json(server.version(name, number), name)
    return orjson.dumps(
        {
            "model_version_status": [
                {
                    "version": str(version),
                    "state": state,
                    "status": {"error_code": "OK", "error_message": ""},
                }
                for version, state in server.states(name, number)
            ]
        },
        option=orjson.OPT_INDENT_2,
    )


async def _post(server, path, request):
    name, number, method = _parse(server, PREDICT_PATH, "POST", path)
    body = await _read(request, server.limits.body_bytes)
    version = server.version(name, number)
    if method.lower() != "predict":
        raise server_lib.invalid(
            f"Expected {method.lower()} signature method_name to be "
            f"tensorflow/serving/{method.lower()}. Was: "
            "tensorflow/serving/predict"
        )
    # Beside the event loop: a large body takes a second.
    inputs, by_row = await asyncio.to_thread(parse_request, body, version)
    future = server.submit(name, inputs, number)
    outputs = await asyncio.wrap_future(future)
    return await asyncio.to_thread(write_response, outputs, by_row)


def _parse(server, pattern, method, path):
    match = pattern.fullmatch(path)
    if not match:
        raise server_lib.invalid(f"Malformed request: {method} {path}")
    name, number, label, rest = match.groups()
    if label is not None:
        raise server_lib.invalid(
            f"Unrecognized servable version label: {label}"
        )
    if number is not None and len(number) > 18:
        raise server_lib.invalid(
            f"Failed to convert version: {number} to numeric."
        )
    name = urllib.parse.unquote(name)
    return name, None if number is None else int(number), rest


async def _read(request, limit):
    """The body, refused as soon as it is known to be too large."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _Refused(415, "Compressed requests are not accepted")
    too_large = _Refused(
        413, f"Expected a request of at most {limit / 2**20:g} MiB"
    )
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except starlette.requests.ClientDisconnect:
        raise _Refused(400, "The client went away") from None
    return b"".join(parts)


def metadata_json(version, name):
    """Answer to `GET /v1/models/NAME/metadata`, with TensorFlow's names."""
    return orjson.dumps(
        {
            "model_spec": {
                "name": name,
                "signature_name": "",
                "version": str(version.number),
            },
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        key: json_format.MessageToDict(
                            signature,
                            preserving_proto_field_name=True,
                            always_print_fields_with_no_presence=True,
                        )
                        for key, signature in version.signatures.items()
                    }
                }
            },
        },
        option=orjson.OPT_INDENT_2,
    )


def parse_request(body, version):
    """Reads a predict request in row or in column format.

    Args:
        body: bytes.
        version: `server_lib.Version`, whose signatures and inputs must be met.

    Returns:
        dict of float32 arrays, and whether they came in row format.

    Raises:
        server_lib.ServingError: INVALID_ARGUMENT, with the wording of
            TensorFlow Serving.
    """
    if not body:
        raise server_lib.invalid("JSON Parse error: The document is empty")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise server_lib.invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise server_lib.invalid(f"JSON Value: {_short(request)} Is not object")
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise server_lib.invalid(
            f"JSON Value: {_short(request)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    if signature not in ("", *version.signatures):
        raise server_lib.invalid(
            f'Serving signature name: "{signature}" not found in signature def'
        )
    names = version.signatures[signature or SIGNATURE].inputs
    if not names:
        raise server_lib.invalid(
            f"Failed to get input map for signature: {signature}"
        )
    if "instances" in request and "inputs" in request:
        raise server_lib.invalid(
            f"JSON Value: {_short(request)} Not formatted correctly expecting "
            "only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in request:
        return _from_rows(request["instances"], sorted(names)), True
    if "inputs" in request:
        return _from_columns(request["inputs"], sorted(names)), False
    raise server_lib.invalid("Missing 'inputs' or 'instances' key")


def _from_rows(instances, names):
    if not isinstance(instances, list):
        raise server_lib.invalid("Expecting 'instances' to be an list/array")
    if not instances:
        raise server_lib.invalid("No values in 'instances' array")
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise server_lib.invalid(
                f"Expecting object but got {_type(instance)} at item {index} "
                "of input list"
            )
        if sorted(instance) != names:
            raise server_lib.invalid(
                f"Failed to process element: {index} of 'instances' list. JSON "
                f"object: {_short(instance)} keys must be equal to: "
                f"{','.join(names)}"
            )
    return {
        name: to_array([instance[name] for instance in instances], name)
        for name in names
    }


def _from_columns(inputs, names):
    if not isinstance(inputs, dict):
        raise server_lib.invalid(
            "inputs is a plain value/list, but expecting an object as multiple "
            "input tensors required as per tensorinfo_map"
        )
    for name in names:
        if name not in inputs:
            raise server_lib.invalid(
                f"Missing named input: {name} in 'inputs' object."
            )
    return {name: to_array(inputs[name], name) for name in names}


def to_array(value, name):
    """Nested lists of numbers as a float32 array.

    NumPy would also take numbers written as strings, and booleans; TensorFlow
    Serving takes neither.

    Raises:
        server_lib.ServingError: INVALID_ARGUMENT if lists differ in length or
            depth, or hold anything but numbers.
    """
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MOST_AXES:
        raise server_lib.invalid(
            f"{name}: expected lists at most {MOST_AXES} deep, received "
            f"{len(shape)}"
        )
    values = [value]
    for level, size in enumerate(shape):
        for item in values:
            if not isinstance(item, list):
                raise server_lib.invalid(
                    f"{name}: JSON Value: {_short(item)} found at incorrect "
                    f"level: {level} in the JSON DOM. Expected at level: "
                    f"{len(shape)}"
                )
            if len(item) != size:
                raise server_lib.invalid(
                    f"{name}: Encountered list at unexpected size: {len(item)} "
                    f"at level: {level} expected size: {size}"
                )
        values = list(itertools.chain.from_iterable(values))
    if not set(map(type, values)) <= {int, float}:
        wrong = next(v for v in values if type(v) not in (int, float))
        raise server_lib.invalid(
            f"{name}: JSON Value: {_short(wrong)} Type: {_type(wrong)} is not "
            "of expected type: float"
        )
    with np.errstate(over="ignore"):
        return np.array(values, "float32").reshape(shape)


def _type(value):
    names = {dict: "Object", list: "Array", str: "String", bool: "Boolean"}
    return names.get(type(value), "Null" if value is None else "Number")


def _short(value):
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than what it writes.
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_response(outputs, by_row):
    """A dict of arrays as the answer's body."""
    if by_row:
        names = list(outputs)
        answer = {
            "predictions": [
                dict(zip(names, row, strict=True))
                for row in zip(*outputs.values(), strict=True)
            ]
        }
    else:
        answer = {"outputs": outputs}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
