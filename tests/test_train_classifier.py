import csv
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import errors
from kinv.classifiers import loading
from kinv.data import datasets
from kinv.inversion import callbacks, checkpoints
from tools import train_classifier

pytestmark = pytest.mark.usefixtures("eager")


class FakeSource:
    """Two classes, red and green; the same order from any start."""

    class_names = ["red", "green"]
    factor_names = []
    num_examples = 32
    num_skipped = 2
    left_out = unlabelled = ""
    grey, place = False, None

    def _examples(self):
        random = np.random.default_rng(0)
        labels = np.arange(32) % 2
        images = random.uniform(80, 120, (32, 8, 8, 3)).astype("float32")
        images[np.arange(32), :, :, labels] += 80
        return tf.data.Dataset.from_tensor_slices((images, labels))

    def training_batches(self, image_size, batch_size, seed, start=0, crop=""):
        examples = self._examples().repeat().skip(start)
        return examples.batch(batch_size, drop_remainder=True)

    def evaluation_batches(self, image_size, batch_size, limit=None):
        return self._examples().take(limit or 32).batch(batch_size)

    def describe(self):
        return {"class_names": self.class_names, "num_examples": 32}


@pytest.fixture(autouse=True)
def fake_dataset(monkeypatch):
    monkeypatch.setattr(datasets, "open_dataset", lambda *args: FakeSource())
    policy = keras.mixed_precision.dtype_policy()
    yield
    keras.mixed_precision.set_dtype_policy(policy)


def command(run, *more):
    return [
        "--dataset=fake",
        f"--out={run}",
        "--image-size=8",
        "--width=4",
        "--batch-size=8",
        "--epochs=3",
        "--learning-rate=0.02",
        "--precision=float32",
        *more,
    ]


@pytest.mark.parametrize(
    "more",
    [
        ["--adversarial=none", "--strategy=mirrored"],
        ["--adversarial=linf", "--radius=4", "--attack-steps=1"],
        pytest.param(
            [
                "--adversarial=l2",
                "--radius=20",
                "--attack-steps=1",
                "--precision=mixed_bfloat16",
                "--strategy=mirrored",
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_writes_the_whole_run_directory(tmp_path, capsys, more):
    run = tmp_path / "run"
    train_classifier.main(command(run, "--evaluation-examples=16", *more))
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json",
        "classifier.keras",
        "metrics.json",
        "metrics.csv",
        "checkpoint.weights.h5",
        "checkpoint-before.weights.h5",
        "digests.json",
        "tensorboard",
    }
    config = json.loads((run / "config.json").read_text())
    assert config["class_names"] == ["red", "green"]
    assert config["options"]["epochs"] == 3
    assert config["versions"]["keras"] == keras.__version__
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["attack"]["steps"] == 20
    assert metrics["clean_examples"] == 32
    assert metrics["pgd20_examples"] == 16
    assert metrics["clean_accuracy"] >= metrics["pgd20_accuracy"]
    low, high = metrics["clean_interval"]
    assert low <= metrics["clean_accuracy"] <= high + 1e-9
    output = capsys.readouterr().out
    assert str(run / "classifier.keras") in output
    assert "left out 4 unreadable images" in output
    # Saved in float32 whatever it was trained in, loads as any other.
    classifier = loading.load_classifier(run / "classifier.keras")
    assert {layer.compute_dtype for layer in classifier.layers} == {"float32"}
    [(images, labels)] = FakeSource().evaluation_batches(8, 32)
    hits = np.argmax(classifier(images), axis=1) == labels.numpy()
    assert hits.mean() == metrics["clean_accuracy"]


@pytest.mark.parametrize("adversarial", ["none", "linf"])
def test_grey_images_make_a_grey_classifier(tmp_path, monkeypatch, adversarial):
    class Grey(FakeSource):
        """Two classes, dark and bright, three equal channels."""

        grey = True

        def _examples(self):
            return (
                super()
                ._examples()
                .map(lambda x, y: (tf.repeat(x[..., :1], 3, axis=-1), y))
            )

    monkeypatch.setattr(datasets, "open_dataset", lambda *_: Grey())
    run = tmp_path / "run"
    train_classifier.main(command(run, f"--adversarial={adversarial}"))
    saved = keras.models.load_model(run / "classifier.keras")
    assert saved.input_shape == (None, 8, 8, 1)
    metrics = json.loads((run / "metrics.json").read_text())
    [(images, labels)] = Grey().evaluation_batches(8, 32)
    hits = np.argmax(saved(images[..., :1]), axis=1) == labels.numpy()
    assert hits.mean() == metrics["clean_accuracy"] > 0.9
    # As kinv takes it: of three channels, and the generator is told.
    loaded = loading.load_classifier(run / "classifier.keras")
    np.testing.assert_allclose(
        loaded(images), saved(images[..., :1]), atol=1e-4
    )


@pytest.mark.parametrize("adversarial", ["none", "linf"])
def test_resumed_run_equals_the_uninterrupted_one(
    tmp_path, capsys, monkeypatch, adversarial
):
    more = [f"--adversarial={adversarial}", "--attack-steps=1"]
    more += ["--evaluation-examples=8"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_classifier.main(command(whole, *more))

    steps = []

    def stop_in_the_second_epoch(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            callbacks.TerminateOnNonFinite,
            "on_train_batch_end",
            stop_in_the_second_epoch,
        )
        with pytest.raises(KeyboardInterrupt):
            train_classifier.main(command(stopped, *more))
    train_classifier.main(command(stopped, *more, "--resume"))
    assert "resumed after epoch 1" in capsys.readouterr().out
    first = keras.models.load_model(whole / "classifier.keras")
    second = keras.models.load_model(stopped / "classifier.keras")
    for old, new in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)
    with open(stopped / "metrics.csv", newline="") as table:
        assert [row["epoch"] for row in csv.DictReader(table)] == list("123")


def test_resume_names_the_option_that_differs(tmp_path):
    run = tmp_path / "run"
    train_classifier.main(command(run, "--evaluation-examples=8"))
    with pytest.raises(errors.InputError, match="width = 4. Received: 5"):
        train_classifier.main(
            command(run, "--evaluation-examples=8", "--width=5", "--resume")
        )


def test_resume_works_before_the_first_checkpoint(tmp_path):
    run = tmp_path / "run"
    more = ["--evaluation-examples=8"]
    train_classifier.main(command(run, *more))
    for name in (
        *checkpoints.CHECKPOINTS,
        *("classifier.keras", "metrics.csv"),
    ):
        (run / name).unlink()
    train_classifier.main(command(run, *more, "--resume"))
    assert (run / "classifier.keras").exists()


def test_keeps_an_existing_run(tmp_path):
    (tmp_path / "classifier.keras").write_text("precious")
    with pytest.raises(errors.InputError, match="new or empty directory"):
        train_classifier.main(command(tmp_path))
    assert (tmp_path / "classifier.keras").read_text() == "precious"


def test_rejects_batches_that_do_not_fit(tmp_path):
    with pytest.raises(errors.InputError, match="--batch-size 33"):
        train_classifier.main(command(tmp_path / "a", "--batch-size=33"))
    with pytest.raises(errors.InputError, match="2 replicas can share"):
        train_classifier.main(
            command(tmp_path / "b", "--batch-size=7", "--strategy=mirrored")
        )


def test_rejects_splits_with_other_classes(tmp_path, monkeypatch):
    sources = iter([FakeSource(), FakeSource()])

    def open_dataset(name, split, skip_unreadable):
        source = next(sources)
        if split == "validation":
            source.class_names = ["red", "green", "blue"]
        return source

    monkeypatch.setattr(datasets, "open_dataset", open_dataset)
    with pytest.raises(errors.InputError, match="2 in train, 3 in validation"):
        train_classifier.main(command(tmp_path / "run"))


@pytest.mark.parametrize(
    "argument",
    [
        "--epochs=0",
        "--batch-size=-1",
        "--radius=0",
        "--attack-steps=two",
        "--learning-rate=nan",
        "--adversarial=l1",
    ],
)
def test_rejects_arguments(tmp_path, capsys, argument):
    with pytest.raises(SystemExit) as caught:
        train_classifier.main(command(tmp_path / "run", argument))
    assert caught.value.code == 2
    # Its usage names every flag.
    flag, _ = argument.split("=")
    assert f"argument {flag}: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_non_finite_loss_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    more = ["--evaluation-examples=8"]
    train_classifier.main(command(run, *more))
    shutil.copy(run / "checkpoint.weights.h5", tmp_path / "good.weights.h5")
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"epochs": 3', '"epochs": 4')
    )
    (run / "digests.json").unlink()
    examples = FakeSource()._examples()
    monkeypatch.setattr(
        FakeSource,
        "_examples",
        lambda self: examples.map(lambda image, label: (image * np.nan, label)),
    )
    with pytest.raises(errors.NonFiniteError, match="epoch 4, step 1"):
        train_classifier.main(command(run, *more, "--epochs=4", "--resume"))
    good = (tmp_path / "good.weights.h5").read_bytes()
    assert (run / "checkpoint.weights.h5").read_bytes() == good
