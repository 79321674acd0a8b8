"""Files that are complete or absent, with digests; directories of one owner."""

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import struct
import zipfile
import zlib

from kinv import errors

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

LOGGER = logging.getLogger("kinv")
DIGESTS = "digests.json"
LOCK = ".lock"
# What the names of temporary files and directories begin with.
WRITING = ".writing-"
# What reading an archive of arrays raises where it is damaged: encryption and
# compressions that nobody asked for are RuntimeErrors, and a header may ask for
# more memory than there is.
DAMAGED = (
    *(OSError, ValueError, EOFError, RuntimeError, MemoryError),
    *(zlib.error, zipfile.BadZipFile, struct.error),
)


@contextlib.contextmanager
def atomic_path(path, digest=False):
    """Yields a temporary path that becomes `path` when the block succeeds.

    The temporary name keeps the suffixes of `path`, since writers choose
    their format by them. The block may write a file or a directory; when it
    fails, what it wrote is removed and `path` is untouched.

    Args:
        path: path of the file or directory to write. Its parent exists. An
            existing file is replaced, an existing directory is not.
        digest: whether the digest of the file, which `verify` compares, is
            kept in `digests.json` beside it.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{WRITING}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _replace(temporary, path, [sha256(temporary)] if digest else None)
    finally:
        remove(temporary)


def remove(path):
    """Removes a file, or a directory with what it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename(path, new_path):
    """Renames a file, and its digest if it has one, in its directory."""
    _replace(path, new_path, _read_digests(path.parent).get(path.name, []))


def _replace(source, path, digests):
    """Gives a file its name; `digests` are kept of it unless they are None."""
    if digests is not None:
        # Until the file is there, those of the old one hold as well.
        old = _read_digests(path.parent).get(path.name, [])
        _write_digests(path.parent, {path.name: digests + old})
    os.replace(source, path)
    if digests is not None:
        _write_digests(path.parent, {source.name: [], path.name: digests})


def versions(directory):
    """What a directory holds under a number, by number, ascending.

    As for TensorFlow Serving, 0007 is number 7.
    """
    paths = pathlib.Path(directory).iterdir()
    found = {int(path.name): path for path in paths if path.name.isdecimal()}
    return dict(sorted(found.items()))


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory):
    """Keeps the digests of all files below a directory in `digests.json`."""
    directory = pathlib.Path(directory)
    write_json(
        directory / DIGESTS,
        {
            path.relative_to(directory).as_posix(): [sha256(path)]
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path != directory / DIGESTS
        },
    )


def verify(path):
    """Compares a file, or those of a directory, with the digests kept of them.

    Args:
        path: of a file with `digests.json` beside it, or of a directory with
            `digests.json` in it.

    Returns:
        Whether there are digests; of what has none nothing is known.

    Raises:
        errors.InputError: if a file is missing or other than it was written.
    """
    path = pathlib.Path(path)
    directory = path if path.is_dir() else path.parent
    digests = _read_digests(directory)
    names = digests if path.is_dir() else {path.name} & set(digests)
    for name in names:
        file = directory / name
        if not file.is_file():
            raise errors.InputError(
                f"Expected a file {file}, which {directory / DIGESTS} lists. "
                "Received: none. Put it back from a copy."
            )
        found = sha256(file)
        if found in digests[name]:
            continue
        # Unless it was written anew meanwhile.
        if found not in _read_digests(directory).get(name, []):
            raise errors.InputError(
                f"Expected {file} as kinv wrote it, with the digest of "
                f"{directory / DIGESTS}. Received: another, so one of the two "
                "is damaged, or was edited. Put it back from a copy; to trust "
                "it as it is, remove its line there."
            )
    return bool(names)


def _read_digests(directory):
    path = directory / DIGESTS
    if not path.exists():
        return {}
    digests = _parse_json(path)
    if not all(isinstance(value, list) for value in digests.values()):
        raise errors.InputError(
            f"Expected lists of digests in {path}. Received: something else. "
            "Put it back from a copy, or remove it."
        )
    return digests


def _write_digests(directory, new):
    """Changes some files' digests; those without any are not listed."""
    digests = {**_read_digests(directory), **new}
    kept = {name: of_file for name, of_file in digests.items() if of_file}
    write_json(directory / DIGESTS, kept)


@contextlib.contextmanager
def lock(directory, wait=False):
    """Keeps other processes out of a directory, which is made if need be.

    The system itself ends the lock with the process. What killed processes
    left half-written is removed first.

    Args:
        directory: path of the directory.
        wait: whether to wait for another process that has it.

    Yields:
        The path, a `pathlib.Path`.

    Raises:
        errors.InputError: if another process has it, naming it, or if the
            directory cannot be had or written to.
    """
    is_new = not os.path.exists(directory)
    directory = make_directory(directory)
    file = _lock_file(directory / LOCK, wait)
    if file is None:
        LOGGER.warning(
            "%s: this file system has no locks; see that no other process "
            "writes there",
            directory,
        )
        yield directory
        return
    with file:
        try:
            for path in directory.glob(f"{WRITING}*"):
                remove(path)
            yield directory
        finally:
            (directory / LOCK).unlink(missing_ok=True)
            if is_new:
                # Unless something was written to it.
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _lock_file(path, wait):
    """Opens and locks a file that tells who holds it; None without locks."""
    if fcntl is None:
        return None
    mode = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    while True:
        # Whoever had it may have removed what it had made.
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
        try:
            fcntl.flock(file, mode)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise errors.InputError(
                f"Expected a directory that no other process writes to. "
                f"Received: {path.parent}, which {holder} holds. Wait for its "
                "end, or choose another directory."
            ) from None
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            return None
        # Whoever held it before may have removed it meanwhile.
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
        )
        file.flush()
    except OSError:
        path.unlink(missing_ok=True)
        file.close()
        raise
    return file


def printable(path):
    """A path as text; control characters and stray bytes become U+FFFD."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return re.sub(r"[\x00-\x1f\x7f]", "\ufffd", text)


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


def write_json(path, value, digest=False):
    """Writes `value` as indented JSON; `atomic_path`, with its digest."""
    with atomic_path(path, digest) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
    """Reads a JSON file that holds one object, and verifies it.

    Raises:
        errors.InputError: if the file is missing, damaged or holds something
            else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.InputError(
            f"Expected a file {path}, which does not exist. Check the path."
        )
    verify(path)
    return _parse_json(path)


def _parse_json(path):
    try:
        # Windows puts a byte-order mark first.
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise errors.InputError(
            f"Expected JSON in {path}. Received: {error}. Put it back from a "
            "copy, or remove it."
        ) from None
    if not isinstance(value, dict):
        raise errors.InputError(
            f"Expected a JSON object in {path}. Received: a "
            f"{type(value).__name__}."
        )
    return value


def named(path, expected):
    """A path as a `pathlib.Path`.

    Args:
        path: str or path.
        expected: what it should name, for the message.

    Raises:
        errors.InputError: if it is empty: it would be the working directory.
    """
    if not str(path):
        raise errors.InputError(
            f"Expected {expected}. Received: an empty name. Give . for this "
            "folder."
        )
    return pathlib.Path(path)


def make_directory(path):
    """Makes a directory to write to, if it is not there yet.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        errors.InputError: if it is a file, or cannot be written to.
    """
    path = named(path, "a directory to write to")
    if path.exists() and not path.is_dir():
        raise errors.InputError(
            f"Expected a directory to write to. Received: {path}, a file."
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


def new_directory(path):
    """Makes a directory for results, or accepts an empty one.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        errors.InputError: if it holds files already, or `make_directory`
            refuses it.
    """
    path = make_directory(path)
    # Killed before its first file had its name, a run leaves that one's digest.
    if any(entry.name not in (LOCK, DIGESTS) for entry in path.iterdir()):
        raise errors.InputError(
            f"Expected a new or empty directory. Received: {path}, which holds "
            "files. Choose another one or remove it."
        )
    (path / DIGESTS).unlink(missing_ok=True)
    return path
