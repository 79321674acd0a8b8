#!/usr/bin/env python
"""Measures a server under load: one client, then many at once.

Rounds of one and of many clients alternate within one run, so that whatever
else the machine does meets them alike: read the ratios.

Example:
    tools/benchmark_serving.py --model exported/scenes32-robust
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

from kinv import cli, errors, runs

# At once, of the server.
CLIENTS = 32
# Of calls of all clients, per protocol; of one client as long before and
# after, together.
SECONDS = 30.0
# After which a call has failed.
CALL_SECONDS = 60


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Measure calls per second of tools/serve.py, one after the "
        "other and by many clients at once. A call is one image and one "
        "reconstruction.",
        formatter_class=cli.HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="DIR",
        help="exported/NAME, which a server of its own is started for",
    )
    add("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def main(argv=None):
    """Measures, prints a table, writes the figures."""
    options = parse_arguments(argv)
    cli.check_output(options.json)
    cli.announce_tensorflow()
    rows = measure(options)
    if options.json:
        runs.write_figures(options.json, rows, vars(options))
        print(f"written: {options.json}")


def measure(options):
    """Measures a server under load; prints and returns the figures."""
    import grpc
    import numpy as np
    import psutil
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from kinv.serving import pipeline

    model = pipeline.Pipeline.load(options.model)
    size = model.metadata["classifier_size"]
    random = np.random.default_rng(0)
    inputs = {
        "images": random.uniform(0, 255, (1, size, size, 3)),
        "noise": random.standard_normal((1, 1, model.noise_dim)),
        "logit_scale": np.ones((1, 1)),
        "logit_shift": np.zeros((1, 1, 1)),
    }
    inputs = {key: value.astype("float32") for key, value in inputs.items()}
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "model"
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    body = json.dumps({"inputs": {k: v.tolist() for k, v in inputs.items()}})

    server, addresses = start_server("--model", f"model={options.model}")
    makers = {
        "gRPC": lambda: grpc_caller(addresses["grpc"], request),
        "REST": lambda: rest_caller(addresses["http"], body),
    }
    try:
        memory = psutil.Process(server.pid).memory_info
        rows = [
            row
            for protocol, make_caller in makers.items()
            for row in measure_protocol(protocol, make_caller, memory)
        ]
        resident = memory().rss / 1e6
    except (
        grpc.RpcError,
        http.client.HTTPException,
        psutil.Error,
        OSError,
        RuntimeError,
    ) as error:
        raise errors.InputError(
            "Expected a server that answers every call. Received: "
            f"{type(error).__name__}: {errors.reason(error)}."
        ) from error
    finally:
        # Otherwise it would go on, and whoever waits for it, too.
        server.kill()
        server.communicate()
    print_table(rows)
    print(f"memory of the server: {resident:.0f} MB; no call failed")
    return rows


def measure_protocol(protocol, make_caller, memory):
    """One client and many in turn.

    Args:
        protocol: its name.
        make_caller: as of `call_for`.
        memory: function that gives the memory of the server.

    Returns:
        list of dicts, one of one client, one of many.
    """
    import numpy as np

    # Not counted: what is only done once.
    call_for(2.0, make_caller, CLIENTS)
    before = memory().rss
    times = {1: [], CLIENTS: []}
    elapsed = dict.fromkeys(times, 0.0)
    for clients, share in ((1, 0.5), (CLIENTS, 1), (1, 0.5)):
        took, seconds = call_for(share * SECONDS, make_caller, clients)
        times[clients] += took
        elapsed[clients] += seconds
    rates = {
        clients: len(took) / elapsed[clients] for clients, took in times.items()
    }
    return [
        {
            "protocol": protocol,
            "clients": clients,
            "calls": len(seconds),
            "calls_per_second": rates[clients],
            "median_ms": 1e3 * statistics.median(seconds),
            "percentile_99_ms": 1e3 * float(np.percentile(seconds, 99)),
            "ratio": rates[clients] / rates[1],
            "memory_growth_mb": (memory().rss - before) / 1e6,
        }
        for clients, seconds in times.items()
    ]


def print_table(rows):
    """Prints the figures, a line each."""
    print("protocol  clients  calls/s  median ms  99 % ms  ratio  growth MB")
    for row in rows:
        print(
            f"{row['protocol']:<8}  {row['clients']:>7}  "
            f"{row['calls_per_second']:>7.0f}  {row['median_ms']:>9.1f}  "
            f"{row['percentile_99_ms']:>7.1f}  {row['ratio']:>5.2f}  "
            f"{row['memory_growth_mb']:>9.1f}"
        )


def start_server(*arguments, **options):
    """Starts `tools/serve.py` on free ports, and waits until it answers.

    Args:
        *arguments: its command line.
        **options: of `subprocess.Popen`.

    Returns:
        `subprocess.Popen`, and a dict of `HOST:PORT` by `http` and `grpc`.

    Raises:
        errors.InputError: if it does not start; it has then said why.
    """
    script = pathlib.Path(__file__).with_name("serve.py")
    command = [sys.executable, str(script), *arguments]
    server = subprocess.Popen(
        [*command, "--rest-port", "0", "--grpc-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    addresses = {}
    for line in server.stdout:
        if found := re.search(r"(http|grpc)://([\w.:]+)", line):
            addresses[found[1]] = found[2]
        if line.startswith("explorer"):
            return server, addresses
    server.communicate()
    raise errors.InputError(
        f"Expected a server. Received: {' '.join(command[1:])}, which ended "
        f"with status {server.returncode}."
    )


@contextlib.contextmanager
def grpc_caller(address, request):
    """Function that calls once; another connection than of other callers."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield lambda: stub.Predict(request, timeout=CALL_SECONDS)


@contextlib.contextmanager
def rest_caller(address, body):
    """The same by REST."""
    connection = http.client.HTTPConnection(address, timeout=CALL_SECONDS)

    def call():
        connection.request("POST", "/v1/models/model:predict", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer.decode())

    with contextlib.closing(connection):
        yield call


def call_for(seconds, make_caller, clients):
    """Calls as often as clients can; a call that fails ends it all.

    Returns:
        List of the seconds that each call took, and the seconds until the last
        of them ended, which is after the time is over.
    """
    begin = time.perf_counter()
    end = begin + seconds
    failed = threading.Event()

    def calls():
        times = []
        try:
            with make_caller() as call:
                while (start := time.perf_counter()) < end:
                    if failed.is_set():
                        break
                    call()
                    times.append(time.perf_counter() - start)
        except BaseException:
            failed.set()
            raise
        return times

    with concurrent.futures.ThreadPoolExecutor(clients) as executor:
        tasks = [executor.submit(calls) for _ in range(clients)]
        times = [time_ for task in tasks for time_ in task.result()]
    return times, time.perf_counter() - begin


if __name__ == "__main__":
    errors.run(main)
