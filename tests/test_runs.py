"""The directory of a run, and flags that tools share."""

import os
import pathlib
import subprocess

import pytest

import kinv
from kinv import errors, files, runs


def test_a_run_is_resumed_with_its_own_options(tmp_path):
    run = tmp_path / "run"
    recorded = {"resume": False, "batch_size": 64, "steps": 100}
    assert not runs.open_run(run, recorded, {"resume"})
    # Killed before its options were written: begun again.
    assert not runs.open_run(run, {**recorded, "resume": True}, {"resume"})
    files.write_json(run / "config.json", {"options": recorded})

    more = {"resume": True, "batch_size": 64, "steps": 200}
    found = runs.open_run(run, more, {"resume", "steps"})
    assert found == {"options": recorded}
    with pytest.raises(errors.InputError) as error:
        runs.open_run(run, {**more, "batch_size": 32}, {"resume", "steps"})
    assert "batch_size = 64" in str(error.value)
    assert "Received: 32" in str(error.value)
    with pytest.raises(
        errors.InputError, match="a run. Go on with it by --resume"
    ):
        runs.open_run(run, recorded, {"resume"})


@pytest.mark.parametrize("config", [{}, {"options": [1]}, {"options": None}])
def test_a_foreign_config_is_refused(tmp_path, config):
    files.write_json(tmp_path / "config.json", config)
    with pytest.raises(errors.InputError, match="config.json"):
        runs.open_run(tmp_path, {"resume": True, "steps": 100})


def test_killed_before_the_options_were_written(tmp_path):
    (tmp_path / ".writing-00-config.json").write_text("{")
    with files.lock(tmp_path):
        assert not runs.open_run(tmp_path, {"resume": True})


def test_killed_as_the_options_got_their_name(tmp_path, monkeypatch):
    def kill(source, path):
        if path.name == "config.json":
            raise KeyboardInterrupt
        rename(source, path)

    rename = os.replace
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        runs.record(tmp_path, {"resume": True})
    assert (tmp_path / files.DIGESTS).exists()
    assert not runs.open_run(tmp_path, {"resume": True})


def test_names_that_are_no_text(tmp_path):
    # As `sys.argv` has the bytes of a name that is not UTF-8.
    name = os.fsdecode(b"im\xffg")
    options = {"resume": False, "dataset": name}
    runs.record(tmp_path, options, class_names=[name])
    recorded = files.read_json(tmp_path / "config.json")
    assert recorded["options"] == options
    with pytest.raises(errors.InputError, match="UTF-8.*Received: .*im\ufffdg"):
        runs.open_run(tmp_path / name, options)


def split(class_names=("cat", "dog"), num_examples=10, digest="a"):
    return {
        "class_names": list(class_names),
        "num_examples": num_examples,
        "digest": digest,
    }


@pytest.mark.parametrize(
    "changed, message",
    [
        (split(("cat", "eel")), "class 'dog' is gone; class 'eel' is new."),
        (split(("dog", "cat")), "in another order"),
        (split(num_examples=2000), "2,000 images instead of 10."),
        (split(digest="b"), "other names or sizes"),
        (split(map(str, range(9))), "class '2' is new; 6 more changes"),
    ],
)
def test_what_changed_of_the_data_is_said(changed, message):
    recorded = {"data": {"train": split(), "validation": split()}}
    runs.check_data(recorded, recorded["data"], "pets")
    found = {"train": split(), "validation": changed}
    with pytest.raises(errors.InputError, match="validation images") as raised:
        runs.check_data(recorded, found, "pets")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    # Nothing is known of an older run.
    runs.check_data({}, found, "pets")


def test_versions_name_kinv_and_what_it_computes_with():
    versions = runs.versions()
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
        assert runs.git_commit() is None


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
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    assert runs.git_commit() == log.split()[1]
    assert pathlib.Path(runs.__file__).parent == package
