#!/usr/bin/env python
"""Serves exported models on this machine, as TensorFlow Serving would.

Example:
    tools/serve.py --model exported/scenes32-robust \
        --model exported/scenes32-standard
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading

from kinv import cli, errors, files

LOOPBACK = "127.0.0.1"
# What only this machine can reach.
OWN_HOSTS = (LOOPBACK, "::1", "localhost")
# Connections that may wait to be accepted.
BACKLOG = 2048
# Of calls that are under way when the server is told to stop; KServe and
# Kubernetes wait for 30 seconds.
GRACE_SECONDS = 20


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Serve exported models with the REST and gRPC protocols of "
        "TensorFlow Serving, and an explorer page for the browser. For one "
        "machine; for more, run TensorFlow Serving (docs/serving.md). New "
        "versions are picked up while calls go on.",
        formatter_class=cli.HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="exported/NAME, whose highest version is served under NAME; may "
        "be repeated",
    )
    add(
        "--host",
        type=lambda text: text.strip("[]"),
        default=LOOPBACK,
        help="address to listen on; 0.0.0.0 for every machine that can reach "
        "this one",
    )
    add(
        "--rest-port", type=errors.port, default=8501, help="0 for any free one"
    )
    add(
        "--grpc-port", type=errors.port, default=8500, help="0 for any free one"
    )
    add(
        "--allow-origin",
        type=errors.origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web origin whose pages may call the server, such as "
        "https://example.org, or *; may be repeated",
    )
    add_limits(parser)
    add(
        "--tensor-content",
        action="store_true",
        help="answer gRPC calls in the field tensor_content instead of "
        "float_val, which TensorFlow Serving fills",
    )
    add(
        "--page",
        metavar="FILE",
        help="instead of serving, write the explorer page to a file, for use "
        "with a TensorFlow Serving: open it with ?server=http://HOST:8501",
    )
    return parser.parse_args(argv)


def add_limits(parser):
    """Adds the flags of what one request may ask for."""
    from kinv.serving.limits import Limits

    add = parser.add_argument
    add(
        "--max-body",
        type=errors.mebibytes,
        default=Limits.body_bytes // 2**20,
        metavar="MIB",
        help="size of a request at most",
    )
    add(
        "--max-pixels",
        type=errors.positive_int,
        default=Limits.image_pixels,
        metavar="PIXELS",
        help="pixels of an image at most, and of all images of a request, as "
        "large as the classifier takes them",
    )
    add(
        "--max-samples",
        type=errors.positive_int,
        default=Limits.samples,
        metavar="NUMBER",
        help="reconstructions of a request at most, of 32 x 32 pixels; fewer "
        "of larger ones. kinv's own clients ask for up to 256",
    )


def main(argv=None):
    """Serves until it is told to stop."""
    options = parse_arguments(argv)
    cli.announce_tensorflow()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kinv").setLevel(logging.INFO)
    cli.check_output(options.page)
    directories = directories_of(options.model)
    if options.page:
        write_page(options.page, directories)
    else:
        serve(options, directories)


def write_page(path, directories):
    """Writes the explorer page of models to a file."""
    from kinv.serving import explorer, pipeline

    models = {
        name: pipeline.Pipeline.load(directory)
        for name, directory in directories.items()
    }
    for name, model in models.items():
        # What a server does not hand out.
        if "classifier_size" not in model.metadata:
            raise errors.InputError(
                "Expected the directory of an export for --page, which takes "
                f"the names of classes from it. Received: {directories[name]}."
            )
    with files.atomic_path(path) as temporary:
        temporary.write_text(explorer.page(models), encoding="utf-8")
    print(f"written: {path}")


def serve(options, directories):
    """Answers calls of models until a signal comes."""
    from kinv.serving import grpc_service, limits, web
    from kinv.serving import server as server_lib

    server = server_lib.Server(
        directories,
        limits=limits.Limits(
            options.max_body * 2**20, options.max_pixels, options.max_samples
        ),
    )
    page = make_page(server)
    opened = bind(options.host, options.rest_port)
    # In an address, the colons of IPv6 stand in brackets.
    host = f"[{options.host}]" if ":" in options.host else options.host
    grpc_server, grpc_port = grpc_service.start(
        server, f"{host}:{options.grpc_port}", options.tensor_content
    )
    if not grpc_port:
        opened.close()
        raise errors.InputError(
            "Expected an address of this machine and a free port. Received: "
            f"--host {options.host} --grpc-port {options.grpc_port}, which "
            "cannot be opened. Choose another port, or 0."
        )
    stop_rest = web.start(server, page, opened, options.allow_origin)
    asked_to_stop = stop_on_signals()
    rest_address = f"http://{host}:{opened.getsockname()[1]}"
    for name in server.names:
        print(f"{name}: version {server.version(name).number}")
        print(f"  {rest_address}/v1/models/{name}")
        print(f"  grpc://{host}:{grpc_port}/{name}")
    print(f"explorer: {rest_address}/", flush=True)
    if options.host not in OWN_HOSTS:
        print("other machines can call: there is no password", flush=True)

    # In steps of a second: a signal that the system delivers to another thread
    # does not wake this one, and Python handles signals in this one alone.
    while not asked_to_stop.wait(timeout=1):
        pass
    stopped = grpc_server.stop(GRACE_SECONDS)
    stop_rest(GRACE_SECONDS)
    stopped.wait(GRACE_SECONDS)
    # Whoever has asked for what still runs has been sent away.
    server.close(timeout=1)
    print("stopped", flush=True)
    # At once: to free the models one by one takes another ten seconds, and
    # what still runs would not end before its last batch.
    os._exit(0)


def make_page(server):
    """A function to the explorer page of the versions that serve just then."""
    from kinv.serving import explorer, limits

    def page():
        models = {}
        for name in server.names:
            # Whose versions are all deleted.
            with contextlib.suppress(limits.ServingError):
                models[name] = server.version(name).model
        return explorer.page(models)

    return page


def stop_on_signals():
    """Gives an event that SIGTERM or SIGINT sets; a second signal kills."""
    asked_to_stop = threading.Event()

    def stop(number, frame):
        signal.signal(number, signal.SIG_DFL)
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return asked_to_stop


def directories_of(arguments):
    """Directories by the names under which they are served."""
    directories = cli.named_models(arguments)
    for name, directory in directories.items():
        if set(name) & set("/:?#%"):
            raise errors.InputError(
                "Expected a name that an address can hold, without any of "
                f"/:?#%. Received: --model {name}={directory}."
            )
    return directories


def bind(host, port):
    """Opens the REST port; uvicorn alone would exit with its own message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that says TCP does asyncio turn off Nagle's algorithm,
    # which would hold back the second part of an answer for 40 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # At once after a previous server, whose connections linger.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        # So that whoever reads the address can connect at once.
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise errors.InputError(
            "Expected an address of this machine and a free port. Received: "
            f"--host {host} --rest-port {port}: {error.strerror}. Choose "
            "another port, or 0."
        ) from None
    return opened


if __name__ == "__main__":
    errors.run(main)
