"""The directory of a training run, and what a result was made with."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess  # noqa: S404 (only ever runs git)

import kinv
from kinv import errors, files

# Options that may differ between any run and its resumption.
MAY_CHANGE = {"resume", "out", "strategy"}
# How many changes of a data set a message names.
MOST_CHANGES = 5


def open_run(path, options, may_change=(), chief=True):
    """Opens a run directory: that of a run to be resumed, or a new one.

    Args:
        path: the directory. Its `config.json` records the run's options.
        options: dict of the options given now. `resume` asks to continue the
            run, if it had begun.
        may_change: names of options that are free to differ then, besides
            `MAY_CHANGE`.
        chief: whether this process is the one worker that writes there. Others
            make no directory.

    Returns:
        dict of its `config.json` if the run had begun; otherwise {}, and the
        directory is new or empty.

    Raises:
        errors.InputError: naming the first option that differs, or because a
            new directory cannot be had there (`files.new_directory`).
    """
    if files.printable(path) != str(path):
        raise errors.InputError(
            "Expected a directory whose name is UTF-8, without control "
            f"characters. Received: {files.printable(path)}. Choose another."
        )
    config = pathlib.Path(path) / "config.json"
    if not chief and not (options["resume"] and config.exists()):
        return {}
    if config.exists() and not options["resume"]:
        raise errors.InputError(
            f"Expected a new or empty directory. Received: {path}, which holds "
            "a run. Go on with it by --resume, or choose another directory."
        )
    if not config.exists():
        files.new_directory(path)
        return {}
    found = files.read_json(config)
    recorded = found.get("options")
    if not isinstance(recorded, dict):
        raise errors.InputError(
            f"Expected the options of a run in {config}. Received: none. Start "
            "a new run in another directory."
        )
    free = MAY_CHANGE.union(may_change)
    for name, value in options.items():
        if name not in free and recorded.get(name) != value:
            raise errors.InputError(
                f"Expected the options that {config} records, to resume the "
                f"run: {name} = {recorded.get(name)}. Received: {value}. "
                "Repeat the option, or start a new run in another directory."
            )
    return found


def record(path, options, **facts):
    """Writes `config.json`, the first file of a run, and tells TensorBoard.

    Args:
        path: directory of the run.
        options: dict of its options.
        **facts: what else describes it, as JSON can express it.
    """
    files.write_json(
        pathlib.Path(path) / "config.json",
        {
            "options": options,
            **facts,
            "versions": versions(),
            "git_commit": git_commit(),
        },
        digest=True,
    )
    _summarize(pathlib.Path(path) / "tensorboard", options, facts)


def check_data(recorded, found, name):
    """Raises `InputError` that says what changed, unless data are as recorded.

    Args:
        recorded: dict of a `config.json` or `kinv.json`, with what
            `source.Source.describe` gave of each split as `data`. Of older ones
            nothing is known.
        found: what it gives now of `train`, `validation` or both.
        name: of the data set, for the message.
    """
    for kind, now in found.items():
        before = (recorded.get("data") or {}).get(kind)
        if before in (None, now):
            continue
        old, new = before["class_names"], now["class_names"]
        changes = [f"class {x!r} is gone" for x in old if x not in set(new)]
        changes += [f"class {x!r} is new" for x in new if x not in set(old)]
        if not changes and old != new:
            changes.append("the classes are in another order")
        if before["num_examples"] != now["num_examples"]:
            changes.append(
                f"{now['num_examples']:,} images instead of "
                f"{before['num_examples']:,}"
            )
        rest = len(changes) - MOST_CHANGES
        if rest > 0:
            changes[MOST_CHANGES:] = [f"{rest:,} more changes"]
        raise errors.InputError(
            f"Expected the {kind} images of {name} as they were in training. "
            "Received others: "
            + ("; ".join(changes) or "other names or sizes of files")
            + ". Put them back as they were, or train a new run on them."
        )


def _summarize(directory, options, facts):
    """Writes a run's hyperparameters and what it is, as text."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    hyperparameters = {
        name: value
        if isinstance(value, bool | int | float)
        else files.printable(str(value))
        for name, value in options.items()
        if name not in MAY_CHANGE
    }
    rows = "\n".join(
        f"| {name} | {files.printable(str(value))} |"
        for name, value in {**facts, **hyperparameters}.items()
    )
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default(step=0):
        api.hparams(hyperparameters)
        tf.summary.text("run", f"| what | value |\n|---|---|\n{rows}")
    writer.close()


def write_figures(path, rows, options):
    """Writes what a benchmark measured, and how it came about, as JSON.

    Args:
        path: of the file.
        rows: list of dicts.
        options: dict of the tool's options.
    """
    figures = {
        "options": options,
        "figures": rows,
        "machine": machine(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    files.write_json(path, figures)


def machine():
    """Name of the processor, number of cores and system of this machine."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        if found := re.search(r"model name\s*: (.*)", text):
            processor = found[1]
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def versions():
    """Versions of the packages that decide a result, by package name."""
    found = {"kinv": kinv.__version__}
    for name in ("tensorflow", "keras", "tensorflow-datasets", "numpy", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit():
    """Commit of the checkout that kinv runs from, or None outside of one."""
    command = ["git", "rev-parse", "HEAD"]
    directory = pathlib.Path(__file__).parent
    # Installed below somebody's repository it would be another's commit.
    if not (directory.parent / ".git").exists():
        return None
    try:
        result = subprocess.run(  # noqa: S603 (a fixed command)
            command, cwd=directory, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
