"""The commands of docs/imagenet.md, end to end at toy size."""

import json
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

from kinv.serving import pipeline
from tools import analyze, export, train

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "imagenet.md"
TOOLS = {"train": train, "export": export, "analyze": analyze}
# What makes a command small; the last of two equal options counts. Of the
# network named there, one with a third of its layers.
TOY = {
    "train": [
        *("--classifier-weights=none", "--classifier-size=32"),
        "--classifier=keras.applications:ResNet50",
        *("--set=base_channels=4", "--batch-size=2", "--set=attention=False"),
        *("--steps=1", "--steps-per-epoch=1", "--set=validation_images=4"),
        *("--strategy=single", "--precision=float32"),
    ],
    "export": ["--statistics-examples=4", "--validation-examples=4"],
    "analyze": ["--quick", "--experiments", "reconstructions"],
}

pytestmark = pytest.mark.usefixtures("eager")


def commands():
    """Words of each command of the document, by tool."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            tool = re.match(r"tools/(\w+)\.py", line)
            yield tool[1], shlex.split(line)[1:]


@pytest.mark.parametrize("tool, words", list(commands()))
def test_the_tools_take_the_commands(tool, words):
    TOOLS[tool].parse_arguments(words)


@pytest.mark.slow
def test_from_data_to_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    chain = [
        (tool, words)
        for tool, words in commands()
        if not {"runs/robust", "runs/standard-faithful"} & set(words)
    ]
    assert [tool for tool, _ in chain] == ["train", "export", "analyze"]
    assert "keras.applications:ResNet152" in chain[0][1]
    assert callable(keras.applications.ResNet152)
    # The robust classifier and the feature networks are downloads.
    [(_, report)] = [x for x in chain if x[0] == "analyze"]
    for option in ("--features", "--perceptual", "--model"):
        place = report.index(option)
        del report[place : place + 2]
    with tfds.testing.mock_data(num_examples=8):
        for tool, words in chain:
            TOOLS[tool].main([*words, *TOY[tool]])

    model = pipeline.Pipeline.load("exported/imagenet64-standard")
    assert (model.num_classes, model.image_size) == (1000, 64)
    assert model.metadata["classifier_size"] == 32
    logits = model.logits(np.zeros((1, 50, 50, 3), "float32"))
    classifier = keras.models.load_model("runs/standard/classifier.keras")
    np.testing.assert_allclose(
        logits, classifier(np.zeros((1, 32, 32, 3))), rtol=1e-3, atol=1e-4
    )
    found = json.loads(pathlib.Path("results/metrics.json").read_text())
    assert set(found["experiments"]["reconstructions"]) == {"standard"}
