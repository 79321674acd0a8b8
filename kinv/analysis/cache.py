"""Arrays that a report may take from one before it, in the user's cache.

In `kinv` below `XDG_CACHE_HOME` or `~/.cache`, which may be removed at any
time. The key of what is kept tells all that it depends on, kinv's code
included.
"""

import functools
import hashlib
import json
import os
import pathlib

import numpy as np

import kinv
from kinv import files

# Of one entry, and of all: beyond, the oldest go.
MOST_BYTES_OF_ONE = 2**28
MOST_BYTES = 2**30
# Array of the others' names.
NAMES = "_names"


@functools.cache
def _code():
    """Digest of the code that computes what is kept."""
    paths = sorted(pathlib.Path(kinv.__file__).parent.rglob("*.py"))
    code = b"".join(path.read_bytes() for path in paths)
    return hashlib.sha256(code).hexdigest()


def _path(key):
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    text = json.dumps([kinv.__version__, _code(), key], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return pathlib.Path(home, "kinv", f"{name}.npz")


def kept(key, compute, suffice=lambda arrays: True):
    """The arrays kept under a key, or else computed, and then kept.

    Args:
        key: what they depend on, of values that JSON can express; None for
            what cannot be told from others, which is computed every time.
        compute: function without arguments to a dict of arrays.
        suffice: function of kept arrays to whether they are enough.
    """
    arrays = load(key) if key else None
    if arrays is None or not suffice(arrays):
        arrays = compute()
        if key:
            store(key, arrays)
    return arrays


def load(key):
    """The arrays kept under a key; None where there are none, or damaged."""
    try:
        with open(_path(key), "rb") as file, np.load(file) as arrays:
            arrays = dict(arrays)
        # A damaged list of what the file holds may lack some.
        complete = arrays.pop(NAMES).tolist() == list(arrays)
        return arrays if complete else None
    except (*files.DAMAGED, KeyError):
        return None


def store(key, arrays):
    """Keeps a dict of arrays under a key, if there is room."""
    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES_OF_ONE:
        return
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(path) as temporary:
            np.savez(temporary, **arrays, **{NAMES: list(arrays)})
        entries = sorted(
            path.parent.glob("*.npz"), key=lambda entry: entry.stat().st_mtime
        )
        while sum(entry.stat().st_size for entry in entries) > MOST_BYTES:
            entries.pop(0).unlink()
    except (OSError, RuntimeError):
        # Full, read-only, or nobody's home: computed again the next time.
        return
