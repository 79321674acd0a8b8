"""Serves exported models on this machine, as TensorFlow Serving would.

Example:
    tools/serve.py --model exported/scenes32-robust \
        --model exported/scenes32-standard
"""

import argparse
import logging
import os
import pathlib
import signal
import socket

from kinv import errors, files

LOOPBACK = "127.0.0.1"
# What only this machine can reach.
OWN_HOSTS = (LOOPBACK, "::1", "localhost")

# Held-out scenes that the explorer offers, by index, and their pixels.
EXAMPLES = (0, 1, 2, 3, 4, 5, 6, 8)
EXAMPLE_SIZE = 64


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Serve exported models with the REST and gRPC protocols of "
        "TensorFlow Serving, and an explorer page for the browser. For one "
        "machine; for more, run TensorFlow Serving (docs/serving.md). New "
        "versions are picked up while calls go on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
        default=LOOPBACK,
        help="address to listen on; 0.0.0.0 for every machine that can reach "
        "this one",
    )
    add("--rest-port", type=port, default=8501, help="0 for any free one")
    add("--grpc-port", type=port, default=8500, help="0 for any free one")
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web origin whose pages may call the server, such as "
        "https://example.org, or *; may be repeated",
    )
    add(
        "--max-body",
        type=errors.positive_int,
        default=64,
        metavar="MIB",
        help="size of a request at most",
    )
    add(
        "--max-pixels",
        type=errors.positive_int,
        default=2**22,
        metavar="PIXELS",
        help="pixels of an image at most",
    )
    add(
        "--max-samples",
        type=errors.positive_int,
        default=1024,
        metavar="NUMBER",
        help="reconstructions of a request at most, of 32 x 32 pixels; fewer "
        "of larger ones",
    )
    add(
        "--poll-seconds",
        type=errors.positive_float,
        default=1.0,
        metavar="SECONDS",
        help="between looks for new versions",
    )
    add(
        "--page",
        metavar="FILE",
        help="instead of serving, write the explorer page to a file, for use "
        "with a TensorFlow Serving: open it with ?server=http://HOST:8501",
    )
    return parser.parse_args(argv)


def port(text):
    """Argument type: a TCP port."""
    number = errors.non_negative_int(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(
            f"expected a port from 0 to 65535, received {text!r}"
        )
    return number


def example_images():
    """Held-out scenes for the explorer: `(class name, uint8 image)` each."""
    from kinv.data import rendering, scenes

    factors = scenes.scene_factors("test", EXAMPLES)
    classes = factors["shape"] * len(rendering.OBJECT_HUES)
    names = [scenes.CLASS_NAMES[i] for i in classes + factors["object_hue"]]
    pictures = rendering.render(factors, EXAMPLE_SIZE)
    return list(zip(names, pictures, strict=True))


def main(argv=None):
    """Serves until it is told to stop."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import uvicorn

    from kinv.serving import explorer, grpc_service, pipeline, rest
    from kinv.serving import server as server_lib

    logging.basicConfig(format="%(message)s")
    logging.getLogger("kinv").setLevel(logging.INFO)
    directories = named(options.model)
    if options.page:
        models = {
            name: pipeline.Pipeline.load(directory)
            for name, directory in directories.items()
        }
        for name, model in models.items():
            # What a server does not hand out.
            if "classifier_size" not in model.metadata:
                raise errors.InputError(
                    "Expected the directory of an export for --page, which "
                    "tells the page of its classes. Received: "
                    f"{directories[name]}."
                )
        with files.atomic_path(options.page) as temporary:
            page = explorer.page(models, example_images())
            temporary.write_text(page, encoding="utf-8")
        print(f"written: {options.page}")
        return

    limits = server_lib.Limits(
        options.max_body * 2**20, options.max_pixels, options.max_samples
    )
    server = server_lib.Server(directories, options.poll_seconds, limits)
    models = {name: server.version(name).model for name in server.names}
    page = explorer.page(models, example_images())
    app = rest.make_app(server, page, options.allow_origin)
    config = uvicorn.Config(
        app, options.host, options.rest_port, log_level="warning"
    )
    opened = bind(config)
    # In an address, the colons of IPv6 stand in brackets.
    host = f"[{options.host}]" if ":" in options.host else options.host
    grpc_server, grpc_port = grpc_service.start(
        server, f"{host}:{options.grpc_port}"
    )
    if not grpc_port:
        raise errors.InputError(
            f"Expected a free port. Received: --grpc-port {options.grpc_port}, "
            f"which cannot be opened on {options.host}. Choose another, or 0."
        )
    rest_port = opened.getsockname()[1]
    for name in server.names:
        print(f"{name}: version {server.version(name).number}")
        print(f"  http://{host}:{rest_port}/v1/models/{name}")
        print(f"  grpc://{host}:{grpc_port}/{name}")
    print(f"explorer: http://{host}:{rest_port}/", flush=True)
    if options.host not in OWN_HOSTS:
        print("other machines can call: there is no password", flush=True)
    # uvicorn answers open requests, then passes the signal on to this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[opened])
    except KeyboardInterrupt:
        pass
    finally:
        grpc_server.stop(grace=5).wait()
        server.close()
    print("stopped")


def named(arguments):
    """Directories by name, of arguments `[NAME=]DIR`."""
    directories = {}
    for argument in arguments:
        name, separator, directory = argument.partition("=")
        # A "=" behind a "/" is a part of the path.
        if not separator or "/" in name:
            name, directory = pathlib.PurePath(argument).name, argument
        if not name or set(name) & set("/:") or name in directories:
            raise errors.InputError(
                "Expected models of different names, without '/' or ':'. "
                f"Received: --model {argument}. Name it: --model "
                f"NAME={directory}."
            )
        directories[name] = directory
    return directories


def bind(config):
    """Opens the REST port; uvicorn alone would exit with its own message."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Only of a socket that says TCP does asyncio turn off Nagle's algorithm,
    # which would hold back the second part of an answer for 40 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # At once after a previous server, whose connections linger.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((config.host, config.port))
        # So that whoever reads the address can connect at once.
        opened.listen(config.backlog)
    except OSError as error:
        raise errors.InputError(
            f"Expected a free port. Received: --host {config.host} --rest-port "
            f"{config.port}: {error.strerror}. Choose another, or 0."
        ) from None
    return opened


if __name__ == "__main__":
    errors.run(main)
