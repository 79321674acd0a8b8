import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

from kinv import errors


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "--out", "a b"])


class DataLossError(Exception):
    """Called as TensorFlow's."""


class ResourceExhaustedError(Exception):
    """Called as TensorFlow's."""


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, message",
    [
        (errors.InputError("Expected 1. Received: 2."), "Expected 1."),
        (errors.NonFiniteError("Step 7 of epoch 2."), "Step 7 of epoch 2."),
        (FileNotFoundError(2, "No such file", "x.png"), "'x.png'"),
        (PermissionError(13, "Permission denied", "/x"), "'/x'"),
        (OSError(28, "No space left on device"), "Free some, then repeat"),
        # As HDF5 and TensorFlow tell of it.
        (
            OSError("Unable to flush (errno = 28, 'No space left on device')"),
            "error: No space left on device. Free some",
        ),
        (RuntimeError("x; No space left on device"), "Free some, then repeat"),
        (DataLossError("corrupted record at 7"), "corrupted record at 7"),
        (ResourceExhaustedError("OOM"), "OOM. A training takes less"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_line(error, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        errors.run(raises(error))
    output, error_output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output == ""
    assert error_output.startswith("train.py: error: ")
    assert message in error_output
    assert error_output.count("\n") == 1


def test_a_message_of_several_lines_becomes_one(capsys):
    with pytest.raises(SystemExit):
        errors.run(raises(OSError("first\n  second\n")))
    assert capsys.readouterr().err == "train.py: error: first second\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError):
        errors.run(raises(KeyError("defect")))


def test_success_prints_nothing(capsys):
    errors.run(lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "more, resumable, expected",
    [
        ([], True, "tools/train.py --out 'a b' --resume"),
        (["--resume"], True, "tools/train.py --out 'a b' --resume"),
        ([], False, "stopped by the user"),
    ],
)
def test_after_ctrl_c(monkeypatch, capsys, more, resumable, expected):
    monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
    with pytest.raises(SystemExit) as exit_info:
        errors.run(raises(KeyboardInterrupt), resumable)
    assert exit_info.value.code == 130
    assert capsys.readouterr().err.rstrip().endswith(expected)


def test_sigterm_is_as_ctrl_c(capsys):
    def main():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exit_info:
            errors.run(main, resumable=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_info.value.code == 143
    printed = capsys.readouterr().err
    assert "stopped by SIGTERM; finished epochs are kept" in printed
    assert printed.rstrip().endswith("tools/train.py --out 'a b' --resume")


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (errors.positive_int, "1", 1),
        (errors.non_negative_int, "0", 0),
        (errors.seed, "2147483647", 2**31 - 1),
        (errors.mebibytes, "2047", 2047),
        (errors.positive_float, "2.5e-4", 0.00025),
        (errors.non_negative_float, "0", 0.0),
        (errors.origin, "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (errors.origin, "*", "*"),
        (errors.origin, "null", "null"),
    ],
)
def test_arguments_become_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    "kind, text",
    [
        (errors.positive_int, "0"),
        (errors.positive_int, "-3"),
        (errors.positive_int, "1.5"),
        (errors.positive_int, "many"),
        (errors.non_negative_int, "-1"),
        (errors.seed, "-1"),
        (errors.seed, "2147483648"),
        (errors.mebibytes, "2048"),
        (errors.positive_float, "0"),
        (errors.positive_float, "nan"),
        (errors.positive_float, "inf"),
        (errors.non_negative_float, "-0.1"),
        (errors.non_negative_float, "nan"),
        (errors.non_negative_float, ""),
        (errors.origin, "example.org"),
        (errors.origin, "https://example.org/page"),
        (errors.origin, "https://"),
    ],
)
def test_what_an_argument_cannot_be_is_quoted(kind, text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert f"received {text!r}" in str(error.value)


@pytest.mark.slow
def test_settings_of_keras_that_are_not_kinvs(tmp_path):
    """A keras.json and a back end of another project."""
    (tmp_path / "keras.json").write_text(
        json.dumps(
            {
                "backend": "torch",
                "floatx": "float16",
                "image_data_format": "channels_first",
            }
        )
    )
    code = """
from kinv import errors
def main():
    from kinv import devices
    devices.make_strategy("single")
    import numpy as np
    from kinv.classifiers import small
    from kinv.inversion import networks
    logits = small.build_classifier(8, 2, 1)(np.zeros((1, 8, 8, 3)))
    noise = np.zeros((1, 4), "float32")
    generator = networks.Generator(8, 2, 4, noise_dim=4, embedding_dim=2)
    images = generator({"condition": logits, "noise": noise})
    print(logits.dtype.name, images.dtype.name, images.shape)
errors.run(main)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "KERAS_HOME": str(tmp_path),
            "KERAS_BACKEND": "jax",
        },
        capture_output=True,
        text=True,
    )
    assert result.stdout == "float32 float32 (1, 8, 8, 3)\n", result.stderr


@pytest.mark.parametrize(
    "message, cause",
    [
        # As Keras 3.15 words them.
        (
            "<class 'Functional'> could not be deserialized properly.\n\n"
            "config={'name': 'a'}.\n\n"
            "Exception encountered: Could not locate class 'Gate'. Make sure "
            "it is imported. Full object config: {'module': 'mypkg'}",
            "Could not locate class 'Gate'. Make sure it is imported",
        ),
        (
            "Exception encountered when calling Dense.call().\n\n"
            "\x1b[1mMatrix size-incompatible.\x1b[0m\n\nArguments received",
            "Matrix size-incompatible",
        ),
        ("one\ntwo", "one"),
        ("", "ValueError"),
    ],
)
def test_the_cause_is_where_keras_puts_it(message, cause):
    assert errors.reason(ValueError(message)) == cause
