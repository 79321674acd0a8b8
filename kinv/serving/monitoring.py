"""Counts and latencies of calls, under TensorFlow Serving's names."""

import asyncio
import contextlib
import time
from concurrent import futures

import prometheus_client

from kinv.serving.limits import ServingError

# Where TensorFlow Serving hands them out, unless told otherwise.
PATH = "/monitoring/prometheus/metrics"
REGISTRY = prometheus_client.CollectorRegistry()
# Microseconds, in TensorFlow Serving's buckets: up to 20 minutes.
_BUCKETS = [10 * 1.8**power for power in range(33)]
# A gauge that only grows: the name of a counter would end in "_total".
_requests = prometheus_client.Gauge(
    ":tensorflow:serving:request_count",
    "The total number of requests.",
    ["model_name", "status"],
    registry=REGISTRY,
)
_request_latency = prometheus_client.Histogram(
    ":tensorflow:serving:request_latency",
    "Distribution of wall time (in microseconds) for requests.",
    ["model_name", "API", "entrypoint"],
    buckets=_BUCKETS,
    registry=REGISTRY,
)
_runtime_latency = prometheus_client.Histogram(
    ":tensorflow:serving:runtime_latency",
    "Distribution of wall time (in microseconds) for TensorFlow, of a batch.",
    ["model_name", "API", "runtime"],
    buckets=_BUCKETS,
    registry=REGISTRY,
)
prometheus_client.disable_created_metrics()


@contextlib.contextmanager
def request(server, model, entrypoint):
    """Counts and times the call within.

    Args:
        server: `server_lib.Server`.
        model: name that the call has.
        entrypoint: `GRPC` or `REST`.
    """
    # Each name takes memory, and a client may think of many.
    model = model if model in server.names else ""
    start = time.perf_counter()
    status = "INTERNAL"
    try:
        yield
        status = "OK"
    except ServingError as error:
        status = error.code.name
        raise
    # The client has gone, or the server stops.
    except (futures.CancelledError, asyncio.CancelledError):
        status = "CANCELLED"
        raise
    finally:
        microseconds = 1e6 * (time.perf_counter() - start)
        _requests.labels(model, status).inc()
        _request_latency.labels(model, "Predict", entrypoint).observe(
            microseconds
        )


@contextlib.contextmanager
def runtime(model):
    """Times the batch within, of one call or of several."""
    start = time.perf_counter()
    yield
    _runtime_latency.labels(model, "Predict", "TF2").observe(
        1e6 * (time.perf_counter() - start)
    )
