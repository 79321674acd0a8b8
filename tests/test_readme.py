"""What README.md says of commands, modules and packages is true."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv.classifiers import loading

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
COMMANDS = [
    line
    for _, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "tools/" in line and not line.startswith("#")
]
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tools_take_the_commands(command):
    words = shlex.split(command)
    tool = next(word for word in words if word.startswith("tools/"))
    module = importlib.import_module(f"tools.{pathlib.Path(tool).stem}")
    module.parse_arguments(words[words.index(tool) + 1 :])


def test_there_are_commands_of_every_step():
    tools = {re.search(r"tools/(\w+)\.py", line)[1] for line in COMMANDS}
    assert {"train_classifier", "train", "export", "invert"} <= tools


def test_every_module_has_its_line():
    for path in (ROOT / "kinv").glob("[!_]*.py"):
        assert re.search(rf"^\| .*`{path.stem}`", README, re.M), path


def test_every_dependency_has_its_line():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    required = setup.split("install_requires")[1]
    for name in re.findall(r'"([\w-]+)[<>]=', required):
        assert re.search(rf"^\| [^|]*\b{name}\b", README, re.M), name


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_exported_model_answers_without_kinv():
    [code] = [block for block in PYTHON if "signatures[" in block]
    blocked = "import sys; sys.modules['kinv'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", blocked + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    name, shape = result.stdout.splitlines()
    assert name == "lime cylinder"
    assert shape == "(1, 8, 32, 32, 3)"


def test_a_saved_model_is_wrapped(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((224, 224, 3))
    pooled = keras.layers.AveragePooling2D(112)(inputs)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(pooled))
    model = keras.Model(inputs, outputs)

    @tf.function(
        input_signature=[tf.TensorSpec((None, 224, 224, 3), tf.float32)]
    )
    def call(images):
        return model(images)

    module = tf.Module()
    module.model, module.__call__ = model, call
    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(module, "mobilenet")
    [code] = [block for block in PYTHON if "mobilenet" in block]
    exec(code, {})  # noqa: S102 (what the README tells users to run)
    classifier = loading.load_classifier("classifier")
    images = np.random.default_rng(0).uniform(0, 255, (2, 224, 224, 3))
    expected = model(images / 255)[:, 1:]
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-3)


def test_the_digits_become_a_folder(tmp_path):
    [code] = [block for block in PYTHON if "load_digits" in block]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    folders = sorted(path.name for path in (tmp_path / "digits").iterdir())
    assert folders == list("0123456789")
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797
