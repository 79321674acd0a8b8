"""Kills and flipped bits: what kinv leaves on disk, and reads back."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from kinv import errors, files
from kinv.classifiers import loading
from kinv.inversion import callbacks, checkpoints
from kinv.inversion import export as export_lib
from kinv.serving import pipeline
from tools import analyze, demo, export, train, train_classifier

ROOT = pathlib.Path(__file__).parent.parent
EXPORTED = ROOT / "exported/scenes32-standard/1"
FLIPS = 10


def training(folder, classifier, run):
    """Arguments of two short epochs."""
    return [
        *(f"--dataset={folder}", f"--classifier={classifier}", f"--out={run}"),
        *("--preset=paper-small", "--image-size=8", "--batch-size=8"),
        *("--steps=2", "--steps-per-epoch=1", "--precision=float32"),
        *("--set", "base_channels=4", "attention=False"),
        *("discriminator_steps=0", "pixel_weight=1", "validation_images=10"),
    ]


@pytest.mark.slow
def test_killed_tools_end_as_undisturbed_ones():
    """A short version of `tests/kills.py`."""
    script = pathlib.Path(__file__).with_name("kills.py")
    result = subprocess.run(
        [sys.executable, script, "--kills", "6"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_sigterm_keeps_the_last_epoch(image_folder, classifier_file, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "tools/train.py"]
    command += training(image_folder, classifier_file, run)
    process = subprocess.Popen(
        [*command, "--steps=1000000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    for _ in range(3000):
        checkpoint = run / checkpoints.CHECKPOINTS[0]
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.terminate()
    printed = process.communicate()[1]
    assert process.returncode == 143
    assert "stopped by SIGTERM; finished epochs are kept" in printed
    assert printed.rstrip().endswith("--resume")
    left = {path.name for path in run.iterdir()}
    assert checkpoints.CHECKPOINTS[0] in left
    assert not [name for name in left if name.startswith(".")]


@pytest.mark.parametrize(
    "tool, words",
    [
        (train, ["--dataset=d", "--classifier=c.keras"]),
        (train, ["--dataset=d", "--classifier=c.keras", "--resume"]),
        (train_classifier, ["--dataset=d"]),
        (export, ["--run=r"]),
        (analyze, ["--model=m"]),
        (demo, []),
    ],
)
def test_a_directory_that_another_process_holds_is_refused(
    tmp_path, tool, words
):
    with files.lock(tmp_path):
        with pytest.raises(errors.InputError) as raised:
            tool.main([*words, f"--out={tmp_path}"])
    message = str(raised.value)
    assert f"which process {os.getpid()} on " in message
    assert "\n" not in message


def check_flips(path, read):
    """Flips single bits of a file, each of which reading must find."""
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(content), FLIPS):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(errors.InputError) as raised:
            read()
        assert "\n" not in str(raised.value)
    path.write_bytes(content)


def test_flipped_bits_of_an_export_are_found(tmp_path):
    version = tmp_path / "1"
    shutil.copytree(EXPORTED, version)
    assert (version / files.DIGESTS).exists()
    found = [path for path in version.rglob("*") if path.is_file()]
    assert len(found) == 8
    for path in found:
        if path.name != files.DIGESTS:
            check_flips(path, lambda: pipeline.Pipeline.load(version))
    # A digest that is damaged itself is not passed over.
    path = version / files.DIGESTS
    text = path.read_text()
    for digit in ("0", "9", "a"):
        path.write_text(text.replace(digit, "f", 1))
        with pytest.raises(errors.InputError, match="digests.json"):
            pipeline.Pipeline.load(version)


@pytest.mark.usefixtures("eager")
def test_flipped_bits_of_a_run_are_found(
    image_folder, classifier_file, tmp_path
):
    run = tmp_path / "run"
    train.main(training(image_folder, classifier_file, run))
    readers = {
        "config.json": lambda: export.read_config(run),
        "metrics.csv": lambda: callbacks.describe_best(run),
        "classifier.keras": lambda: loading.load_classifier(
            run / "classifier.keras"
        ),
        **{
            name: lambda name=name: export_lib.load_generator(run / name)
            for name in ("generator.keras", "generator-last.keras")
        },
        **{
            name: lambda name=name: files.verify(run / name)
            for name in checkpoints.CHECKPOINTS
        },
    }
    listed = files.read_json(run / files.DIGESTS)
    assert set(readers) == set(listed)
    for name, read in readers.items():
        read()
        check_flips(run / name, read)
