"""The HTTP server: REST calls, monitoring, health, the explorer page."""

import asyncio
import contextlib
import gzip
import io
import re
import threading
import urllib.parse
import zlib

import grpc
import orjson
import prometheus_client
import uvicorn
from starlette import applications, exceptions, requests, responses, routing
from starlette.middleware import cors
from uvicorn.protocols.http import h11_impl

from kinv.serving import limits, monitoring, rest

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
    # kinv's own: a body that is too large.
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    # Of a client that has gone: nobody reads the answer.
    grpc.StatusCode.CANCELLED: 400,
}
# All but those of proxies.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# For load balancers, which ask nothing but whether to send calls.
HEALTH_PATH = "/healthz"
# In which a client has to send a request, from the first byte of a connection
# or the end of the last answer; and, from then on, its body.
READ_SECONDS = 60
# Larger bodies are parsed one at a time: parsing takes about a second, in which
# no other call gets in, and twenty times their size in memory.
LARGE_BYTES = 2**20
# Answers below fit into one packet.
COMPRESSED_BYTES = 1400
# As fast as it gets: digits compress by half at any level.
COMPRESSION_LEVEL = 1
# The page loads nothing, and calls nobody but its own server.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)


def start(server, page, opened, allow_origins=()):
    """Starts to answer, in a thread.

    Args:
        server: `server_lib.Server`.
        page: function without arguments to the HTML to answer at `/`.
        opened: socket that listens.
        allow_origins: origins whose pages may call, such as `*`.

    Returns:
        Function of a grace period in seconds, which takes no further calls,
        waits for those that are under way, and drops those that take longer.
    """
    config = uvicorn.Config(
        make_app(server, page, allow_origins),
        log_level="warning",
        http=_Protocol,
        timeout_keep_alive=READ_SECONDS,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(
        target=running.run, kwargs={"sockets": [opened]}, daemon=True
    )
    thread.start()

    def stop(grace):
        config.timeout_graceful_shutdown = grace
        running.should_exit = True
        thread.join()

    return stop


class _Protocol(h11_impl.H11Protocol):
    """HTTP on one connection, closed when no request comes in time.

    uvicorn alone waits for ever for the first one, for one that has begun, and
    for a client to read an answer.
    """

    _reader = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self):
        super().on_response_complete()
        self._timer.cancel()
        self._await_request()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self._timer.cancel()
        if self._reader:
            self._reader.cancel()

    def pause_writing(self):
        super().pause_writing()
        self._await_reader()

    def resume_writing(self):
        super().resume_writing()
        self._reader.cancel()

    def _await_reader(self, left_before=None):
        """Drops a client that for so long reads nothing of its answer."""
        left = self.transport.get_write_buffer_size()
        if left == left_before:
            self.transport.abort()
            return
        self._reader = self.loop.call_later(
            READ_SECONDS, self._await_reader, left
        )

    def _await_request(self):
        self._timer = self.loop.call_later(READ_SECONDS, self._close_if_idle)

    def _close_if_idle(self):
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()


def make_app(server, page, allow_origins=()):
    """Builds the application.

    Returns:
        ASGI application.

    Reference:
        The RESTful API of TensorFlow Serving,
        https://www.tensorflow.org/tfx/serving/api_rest
    """
    reading = asyncio.Semaphore(1)

    # In a thread: to write the page takes a while.
    def explorer(request):
        return responses.HTMLResponse(
            page(),
            headers={
                "Content-Security-Policy": PAGE_POLICY,
                "X-Content-Type-Options": "nosniff",
            },
        )

    async def health(request):
        return responses.JSONResponse({"status": "SERVING"})

    async def metrics(request):
        text = prometheus_client.generate_latest(monitoring.REGISTRY)
        return responses.PlainTextResponse(text)

    async def call(request):
        return await _answer(server, request, reading)

    app = applications.Starlette(
        routes=[
            routing.Route("/", explorer),
            routing.Route(HEALTH_PATH, health),
            routing.Route(monitoring.PATH, metrics),
            # One for all calls: paths are TensorFlow Serving's, with colons and
            # in any case.
            routing.Route("/{path:path}", call, methods=METHODS),
        ]
    )
    if allow_origins:
        app.add_middleware(
            cors.CORSMiddleware,
            allow_origins=list(allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
        )
    return app


async def _answer(server, request, reading):
    path = request.scope["raw_path"].decode("latin-1")
    headers = {}
    try:
        if not path.lower().startswith("/v1/"):
            raise exceptions.HTTPException(404, f"Not found: {path}")
        if request.method == "POST":
            content, headers = await _post(server, path, request, reading)
        elif request.method == "GET":
            content = _get(server, path)
        else:
            raise limits.invalid(f"Malformed request: {request.method} {path}")
        status = 200
    except limits.ServingError as error:
        content = orjson.dumps({"error": error.message})
        status = HTTP_STATUS[error.code]
    # Refused before it is read as TensorFlow Serving would.
    except exceptions.HTTPException as error:
        content = orjson.dumps({"error": error.detail})
        status, headers = error.status_code, error.headers
    # By uvicorn, which no longer waits.
    except asyncio.CancelledError:
        content, status = orjson.dumps({"error": "The server stops"}), 503
    return responses.Response(
        content, status, headers, media_type="application/json"
    )


def _get(server, path):
    name, number, subresource = _parse(STATUS_PATH, "GET", path)
    if subresource == "kinv.json":
        return orjson.dumps(server.version(name, number).model.metadata)
    if subresource:
        return rest.metadata_json(server.version(name, number), name)
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


async def _post(server, path, request, reading):
    """The answer to a call, and its headers."""
    name, number, method = _parse(PREDICT_PATH, "POST", path)
    body, compressed = await _read(request, server.limits.body_bytes)
    with monitoring.request(server, name, "REST"):
        version = server.version(name, number)
        if method.lower() != "predict":
            raise limits.wrong_method(method.lower())
        large = compressed or len(body) > LARGE_BYTES
        async with reading if large else contextlib.nullcontext():
            if compressed:
                body = await asyncio.to_thread(
                    _decompress, body, server.limits.body_bytes
                )
            inputs, by_row = await asyncio.to_thread(
                rest.parse_request, body, version
            )
        del body
        outputs = await _unless_gone(
            request, server.submit(name, version, inputs)
        )
        answer = await asyncio.to_thread(rest.write_response, outputs, by_row)
    headers = {"Vary": "Accept-Encoding"}
    if len(answer) > COMPRESSED_BYTES and _takes_gzip(request):
        headers["Content-Encoding"] = "gzip"
        answer = await asyncio.to_thread(
            gzip.compress, answer, COMPRESSION_LEVEL
        )
    return answer, headers


async def _unless_gone(request, future):
    """The result of a call, which is left out if the client goes away."""
    call = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            raise limits.ServingError(
                grpc.StatusCode.CANCELLED, "The client went away"
            )
        return call.result()
    finally:
        # Of what is done, nothing is cancelled.
        gone.cancel()
        call.cancel()


def _parse(pattern, method, path):
    match = pattern.fullmatch(path)
    if not match:
        raise limits.invalid(f"Malformed request: {method} {path}")
    name, number, label, rest_of_path = match.groups()
    if label is not None:
        raise limits.invalid(f"Unrecognized servable version label: {label}")
    if number is not None and len(number) > 18:
        raise limits.invalid(f"Failed to convert version: {number} to numeric.")
    name = urllib.parse.unquote(name)
    return name, None if number is None else int(number), rest_of_path


def _takes_gzip(request):
    """Whether the client asks for it, `gzip;q=0` being a no."""
    for offer in request.headers.get("accept-encoding", "").split(","):
        coding, _, weight = offer.replace(" ", "").lower().partition(";q=")
        if coding == "gzip":
            return not weight or weight.strip("0.") != ""
    return False


async def _read(request, limit):
    """The body, and whether it is compressed."""
    try:
        body = await asyncio.wait_for(_receive(request, limit), READ_SECONDS)
    except asyncio.TimeoutError:
        raise exceptions.HTTPException(
            408,
            f"Expected the whole request within {READ_SECONDS} s",
            {"Connection": "close"},
        ) from None
    except requests.ClientDisconnect:
        raise exceptions.HTTPException(400, "The client went away") from None
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise exceptions.HTTPException(
            415, "Expected a request without Content-Encoding, or with gzip"
        )
    return body, encoding == "gzip"


async def _receive(request, limit):
    """The body, refused as soon as it is known to be too large."""
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", 0)) > limit:
            raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _decompress(body, limit):
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            # No more than shows that it is too large.
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise limits.invalid(f"Content-Encoding: gzip: {error}") from None
    if len(content) > limit:
        raise _too_large(limit)
    return content


def _too_large(limit):
    return limits.ServingError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"Expected a request of at most {limit / 2**20:g} MiB",
    )
