import json
import os
import pathlib
import subprocess

import pytest

import kinv
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
    [(None, "does not exist"), (b"{", "Received: Expecting"), (b"\xff", "utf")],
)
def test_unreadable_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.InputError, match=message) as error:
        files.read_json(path)
    assert str(path) in str(error.value)


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
    with pytest.raises(errors.InputError, match="Not a directory"):
        files.new_directory(tmp_path / "file" / "below")


def test_new_directory_refuses_what_is_read_only(tmp_path, monkeypatch):
    # Asked of `os.access`, since root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.InputError, match="read-only"):
        files.new_directory(tmp_path / "runs")


def test_versions_name_kinv_and_what_it_computes_with():
    versions = files.versions()
    assert versions["kinv"] == kinv.__version__
    assert versions["tensorflow"].startswith("2.")
    assert versions["keras"].startswith("3.")


def test_git_commit_is_none_outside_of_a_checkout(monkeypatch):
    def no_checkout(*args, **kwargs):
        raise subprocess.CalledProcessError(128, "git")

    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    for run in (no_checkout, no_git):
        monkeypatch.setattr(subprocess, "run", run)
        assert files.git_commit() is None


def test_git_commit_is_the_checkouts(tmp_path, monkeypatch):
    package = tmp_path / "kinv"
    package.mkdir()
    for command in (
        ["init", "--quiet"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        + ["commit", "--quiet", "--allow-empty", "--message=a"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    log = (tmp_path / ".git" / "logs" / "HEAD").read_text()
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert files.git_commit() == log.split()[1]
    assert pathlib.Path(files.__file__).parent == package
