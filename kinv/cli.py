"""Flags that several tools have."""

import argparse
import contextlib
import os
import pathlib
import shlex
import sys

from kinv import errors, files


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every flag that has one."""

    def _get_help_string(self, action):
        default = action.default
        # A zero is one.
        if default is None or default is False or default == []:
            return action.help
        return super()._get_help_string(action)


def add_data_flags(group):
    """Where images come from, and which of them are trained and measured on."""
    add = group.add_argument
    add(
        "--dataset",
        required=True,
        help="TFDS name; a folder of images, of which sub-folders are classes; "
        "or a .npz or IDX file of images",
    )
    add(
        "--train-split",
        default="train",
        metavar="SPLIT",
        help="split to train on (default: %(default)s)",
    )
    add(
        "--validation-split",
        default="validation",
        metavar="SPLIT",
        help="held-out split to measure on (default: %(default)s)",
    )
    add(
        "--crop",
        choices=("center", "random"),
        default="center",
        help="of training images; random: a square of 50 to 100 %% of the area "
        "(default: %(default)s)",
    )
    add_skip_unreadable(add)


def add_skip_unreadable(add):
    """Whether a damaged image of a folder stops the tool."""
    add(
        "--skip-unreadable",
        action="store_true",
        help="leave out unreadable images of a folder, and count them, instead "
        "of stopping",
    )


def named_models(arguments):
    """Paths and addresses by name, of arguments `[NAME=]MODEL`.

    Args:
        arguments: list of str. A name defaults to the last part of the path or
            address that is no version.

    Raises:
        errors.InputError: if two models have one name, or one has none.
    """
    paths = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        # A "=" behind a "/" is a part of the path.
        if not separator or "/" in name:
            path = argument
            # NAME, NAME/VERSION or, of a server, NAME/versions/VERSION.
            parts = pathlib.PurePath(path)
            if parts.name.isdecimal() and len(parts.parts) > 1:
                parts = parts.parent
            if parts.name == "versions" and "://" in path:
                parts = parts.parent
            name = parts.name
        path = path.rstrip("/")
        if not name or not path:
            raise errors.InputError(
                f"Expected --model NAME=MODEL. Received: --model {argument}, "
                f"without a {'model' if name else 'name'}."
            )
        if name in paths:
            raise errors.InputError(
                "Expected models of different names. Received: --model "
                f"{argument}, of the name {name!r} again. Name it: --model "
                f"OTHER={path}."
            )
        paths[name] = path
    return paths


def check_output(path):
    """Raises `InputError` unless a file can be written to a path.

    Args:
        path: of the file, or None for none.
    """
    if path and pathlib.Path(path).is_dir():
        raise errors.InputError(
            f"Expected the name of a file to write. Received: {path}, a "
            "folder. Name a file in it."
        )
    check_parent(path)


def check_parent(path):
    """Raises `InputError` unless the folder of an output can be written.

    Args:
        path: of the output, a file or a folder, or None for none.
    """
    parent = pathlib.Path(path or ".").absolute().parent
    if not parent.is_dir():
        raise errors.InputError(
            f"Expected an existing folder to write {path} to. Received: "
            f"{parent}, which does not exist. Create it first."
        )
    if path:
        files.make_directory(path if os.path.isdir(path) else parent)


def print_left_out(*sources):
    """Prints what is left out of the splits of a data set, once each."""
    for line in dict.fromkeys(source.left_out for source in sources):
        if line:
            print(line)
    if skipped := sum(source.num_skipped for source in sources):
        print(f"left out {skipped:,} unreadable images")


def add_run_flags(group):
    """Where a training is written, how it goes on, and what computes it."""
    add = group.add_argument
    add("--out", required=True, metavar="DIR", help="run directory to write")
    add(
        "--resume",
        action="store_true",
        help="continue the run in --out from its last checkpoint",
    )
    add(
        "--strategy",
        default="auto",
        choices=("auto", "single", "mirrored", "multiworker", "tpu"),
        help="devices to train on (default: %(default)s, all GPUs of this "
        "host)",
    )
    add(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
        help="of convolutions (default: %(default)s, mixed_bfloat16 where the "
        "device computes in it); what is saved is float32",
    )


def announce_tensorflow():
    """Says that TensorFlow is being loaded, which takes some seconds."""
    # It logs errors where there is merely no GPU; real ones are raised anyway.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        print("loading TensorFlow ...", file=sys.stderr)


@contextlib.contextmanager
def training(options):
    """A training's run directory, held, and the devices that compute it.

    Args:
        options: of `add_run_flags`.

    Yields:
        The `tf.distribute` strategy, and whether this process writes files.
    """
    announce_tensorflow()
    from kinv import devices

    # First of all: several workers cannot be set up once TensorFlow has run.
    strategy = devices.make_strategy(options.strategy)
    chief = devices.is_chief(strategy)
    # Other workers than the first write nothing there.
    lock = files.lock(options.out) if chief else contextlib.nullcontext()
    with lock, devices.explain_lost_workers(strategy):
        yield strategy, chief


def command(tool, *words):
    """The command of another tool, called as this one was, for a terminal.

    Args:
        tool: name of its script, without the ending.
        *words: its arguments, str or paths.
    """
    this = sys.argv[0]
    if this.startswith("kinv "):
        start = f"kinv {tool.replace('_', '-')}"
    else:
        # Of an interactive session there is none.
        script = pathlib.Path(this or tool).with_name(f"{tool}.py")
        start = shlex.quote(str(script))
    return f"{start} {shlex.join(map(str, words))}"


def verbosity():
    """Keras's `verbose`: a progress bar on a terminal, else a line an epoch."""
    return 1 if sys.stdout.isatty() else 2
