import errno
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from kinv import errors, files


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_atomic_file_appears_at_the_end(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_text("old")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".weights.h5")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.weights.h5"]


def test_atomic_directory(tmp_path):
    with files.atomic_path(tmp_path / "new") as temporary:
        temporary.mkdir()
        (temporary / "inside").write_text("x")
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["inside"]


@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_a_failure_leaves_what_there_was(tmp_path, kind):
    path = tmp_path / "figure.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        with files.atomic_path(path) as temporary:
            if kind == "directory":
                temporary.mkdir()
                (temporary / "inside").write_text("half")
            elif kind == "file":
                temporary.write_text("half")
            raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["figure.json"]
    assert path.read_text() == "old"


def test_json_round_trip(tmp_path):
    value = {"options": {"out": "runs/ä"}, "steps": [1, 2.5, None, True]}
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert files.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        (b"{", "Received: Expecting"),
        (b"\xff", "utf"),
        (b"[1]", "Received: a list"),
        (b"[" * 10**5, "recursion"),
    ],
)
def test_unreadable_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.InputError, match=message) as error:
        files.read_json(path)
    assert str(path) in str(error.value)


def flip(path, position=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_digest_is_kept_of_what_is_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    assert not files.verify(path)
    for value in (1, 2):
        files.write_json(path, {"a": value}, digest=True)
        assert files.verify(path) and files.verify(tmp_path)
        recorded = json.loads((tmp_path / "digests.json").read_text())
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert recorded == {"a.json": [expected]}
    (tmp_path / "b.json").write_text("{}")
    assert not files.verify(tmp_path / "b.json")
    flip(path, 3)
    for read in (files.verify, files.read_json):
        with pytest.raises(errors.InputError, match="a.json as kinv wrote it"):
            read(path)
    path.unlink()
    with pytest.raises(errors.InputError, match="Received: none"):
        files.verify(tmp_path)


# Before a file is written: its digest; then it; then the digest alone.
@pytest.mark.parametrize("killed_at, value", [(1, 1), (2, 1), (3, 2)])
def test_a_kill_between_file_and_digest_loses_nothing(
    tmp_path, monkeypatch, killed_at, value
):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1}, digest=True)
    replace = os.replace
    # The same twice, as of a run that is killed again.
    for _ in range(2):
        calls = []

        def killed(*arguments, calls=calls):
            calls.append(arguments)
            if len(calls) == killed_at:
                raise KeyboardInterrupt
            replace(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                files.write_json(path, {"a": 2}, digest=True)
        assert files.read_json(path) == {"a": value}
    files.write_json(path, {"a": 3}, digest=True)
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 1
    assert files.read_json(path) == {"a": 3}


def test_a_renamed_file_takes_its_digest_along(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    files.write_json(one, {"a": 1}, digest=True)
    files.write_json(two, {"a": 2}, digest=True)
    files.rename(one, two)
    assert files.read_json(two) == {"a": 1}
    # What was there before is forgotten.
    digests = files.read_json(tmp_path / "digests.json")
    assert digests["two.json"] == [files.sha256(two)]
    flip(two, 3)
    with pytest.raises(errors.InputError, match="two.json"):
        files.verify(two)
    # Nor has it one of the file before it, if it has none itself.
    files.write_json(one, {"a": 1})
    files.rename(one, two)
    assert not files.verify(two)


def test_a_manifest_covers_every_file_below(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.bin", "inner/b.bin"):
        (tmp_path / name).write_bytes(b"content of " + name.encode())
    assert not files.verify(tmp_path)
    files.write_manifest(tmp_path)
    assert files.verify(tmp_path)
    for name in ("a.bin", "inner/b.bin"):
        flip(tmp_path / name)
        with pytest.raises(errors.InputError, match=name):
            files.verify(tmp_path)
        flip(tmp_path / name)
    files.verify(tmp_path)
    flip(tmp_path / "digests.json", 20)
    with pytest.raises(errors.InputError):
        files.verify(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": "b"}'])
def test_digests_of_something_else_are_one_line(tmp_path, text):
    (tmp_path / "a").write_text("")
    (tmp_path / "digests.json").write_text(text)
    with pytest.raises(errors.InputError, match="digests.json") as raised:
        files.verify(tmp_path / "a")
    assert "\n" not in str(raised.value)


HOLD = """
import sys, time
from kinv import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_directory_has_one_owner_until_it_is_killed(tmp_path, holder):
    run = tmp_path / "run"
    with pytest.raises(errors.InputError) as raised:
        with files.lock(run):
            pass
    message = str(raised.value)
    assert f"process {holder.pid} on {socket.gethostname()} since" in message
    assert "\n" not in message
    (run / ".writing-00-x.json").write_text("half")
    (run / ".writing-01-x").mkdir()
    (run / "kept.json").write_text("{}")
    holder.kill()
    holder.wait()
    assert (run / ".lock").exists()
    with files.lock(run) as path:
        assert path == run
        # What the other process had begun to write is gone.
        assert names(run) == [".lock", "kept.json"]
        (run / "kept.json").unlink()
        # The lock does not count.
        files.new_directory(run)
    assert names(run) == []


def test_who_waits_gets_the_directory_in_the_end(tmp_path, holder):
    run = tmp_path / "run"
    threading.Timer(0.5, holder.kill).start()
    with files.lock(run, wait=True):
        assert holder.wait() == -9


def test_a_lock_makes_a_directory_that_was_removed_meanwhile(tmp_path):
    with files._lock_file(tmp_path / "run" / files.LOCK, wait=True):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("missing", ["module", "file system"])
def test_without_locks_a_line_says_so(tmp_path, monkeypatch, caplog, missing):
    def flock(file, mode):
        raise OSError(errno.ENOLCK, "No locks available")

    if missing == "module":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", flock)
    (tmp_path / ".writing-00-of-another").write_text("")
    with files.lock(tmp_path):
        assert names(tmp_path) == [".writing-00-of-another"]
    (message,) = caplog.messages
    assert "has no locks" in message


def test_a_lock_needs_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.InputError, match="a file"):
        with files.lock(tmp_path / "file"):
            pass


def test_new_directory_is_made_with_its_parents(tmp_path):
    path = files.new_directory(tmp_path / "runs" / "a")
    assert path == tmp_path / "runs" / "a"
    assert path.is_dir()
    # An empty one is as good as a new one.
    assert files.new_directory(path) == path


def test_new_directory_refuses_what_is_there(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.InputError, match="a file"):
        files.new_directory(tmp_path / "file")
    with pytest.raises(errors.InputError, match="holds files"):
        files.new_directory(tmp_path)
    with pytest.raises(errors.InputError, match="an empty name"):
        files.new_directory("")
    with pytest.raises(errors.InputError, match="Not a directory"):
        files.new_directory(tmp_path / "file" / "below")


def test_new_directory_refuses_what_is_read_only(tmp_path, monkeypatch):
    # Asked of `os.access`, since root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.InputError, match="read-only"):
        files.new_directory(tmp_path / "runs")
