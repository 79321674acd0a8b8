"""Files and directories that are either complete or absent."""

import contextlib
import errno
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess  # noqa: S404 (only ever runs git)

import kinv
from kinv import errors


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path that becomes `path` when the block succeeds.

    The temporary name keeps the suffixes of `path`, since writers choose
    their format by them. The block may write a file or a directory; when it
    fails, what it wrote is removed and `path` is untouched.

    Args:
        path: path of the file or directory to write. Its parent exists. An
            existing file is replaced, an existing directory is not.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def require_space(directory, num_bytes):
    """Checks that a disk has room.

    Args:
        directory: where something is about to be written.
        num_bytes: how much, at most.

    Raises:
        OSError: `ENOSPC`, with what is there and what is needed.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"No space left on device: {num_bytes / 1e6:.1f} MB needed, "
            f"{free / 1e6:.1f} MB free",
            str(directory),
        )


def write_json(path, value):
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
    """Reads a JSON file.

    Raises:
        errors.InputError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise errors.InputError(
            f"Expected a file {path}, which does not exist. Check the path."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise errors.InputError(
            f"Expected JSON in {path}. Received: {error}."
        ) from None


def new_directory(path):
    """Creates a directory for results, or accepts an empty one.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        errors.InputError: if it holds files already, is a file, or cannot be
            written to.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise errors.InputError(
            f"Expected a directory to write to. Received: {path}, a file."
        )
    if path.is_dir() and any(path.iterdir()):
        raise errors.InputError(
            f"Expected a new or empty directory. Received: {path}, which holds "
            "files. Choose another one or remove it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.InputError(
            f"Expected a directory that can be written. Received: {path}: "
            f"{error.strerror}."
        ) from None
    if not os.access(path, os.W_OK):
        raise errors.InputError(
            f"Expected a directory that can be written. Received: {path}, "
            "which is read-only."
        )
    return path


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
    write_json(path, figures)


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
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy")
    return {
        "kinv": kinv.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def git_commit():
    """Commit of the checkout that kinv runs from, or None outside of one."""
    command = ["git", "rev-parse", "HEAD"]
    directory = pathlib.Path(__file__).parent
    try:
        result = subprocess.run(  # noqa: S603 (a fixed command)
            command, cwd=directory, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
