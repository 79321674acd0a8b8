"""The training tool, from flags to run directory, and its interruption."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from kinv import errors, files
from kinv.classifiers import loading
from kinv.data import source as data_source
from kinv.inversion import checkpoints
from kinv.serving import pipeline
from tools import analyze, export, train

pytestmark = pytest.mark.usefixtures("eager")


def arguments(folder, classifier, out, *more):
    return [
        f"--dataset={folder}",
        f"--classifier={classifier}",
        f"--out={out}",
        "--preset=paper-small",
        "--image-size=8",
        "--set=base_channels=4",
        "--set=attention=False",
        "--batch-size=8",
        "--set=discriminator_steps=1",
        "--steps=3",
        "--steps-per-epoch=1",
        "--set=validation_images=10",
        "--precision=float32",
        *more,
    ]


def checkpoint_values(run):
    values = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            values[name] = item[()]

    with h5py.File(run / "checkpoint.weights.h5") as file:
        file.visititems(keep)
        values["epoch"] = file.attrs["epoch"]
    return values


def test_the_classifier_computes_as_it_does_elsewhere(
    image_folder, classifier_file, tmp_path, monkeypatch
):
    policies = []
    load = loading.load_classifier

    def observe(*options):
        policies.append(keras.config.dtype_policy().name)
        return load(*options)

    monkeypatch.setattr(loading, "load_classifier", observe)
    out = tmp_path / "run"
    # The last one of several counts.
    options = ("--precision=mixed_bfloat16", "--steps=1")
    train.main(arguments(image_folder, classifier_file, out, *options))
    assert policies == ["float32"]
    generator = json.loads((out / "config.json").read_text())["generator"]
    assert generator["dtype"]["config"]["name"] == "mixed_bfloat16"


def test_run_directory_and_resumption(
    image_folder, classifier_file, tmp_path, capsys
):
    out = tmp_path / "run"
    command = arguments(image_folder, classifier_file, out, "--steps=1")
    train.main(command)
    # Nothing has been learned yet; that is said, and what to try.
    assert "The pictures show" in (printed := capsys.readouterr().out)
    assert "--preset small" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["discriminator_learning_rate"] == 4e-4
    assert config["class_names"] == ["green", "red"]
    assert {"kinv", "tensorflow", "keras"} <= set(config["versions"])
    image = np.full((1, 32, 32, 3), 99.0)
    one, two = (
        keras.models.load_model(path)(image)
        for path in (classifier_file, out / "classifier.keras")
    )
    np.testing.assert_array_equal(one, two)
    generator = keras.models.load_model(out / "generator.keras")
    assert generator.get_config() == config["generator"]

    train.main([*command, "--resume", "--steps=2"])
    with open(out / "metrics.csv") as table:
        rows = list(csv.DictReader(table))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"val_within_class_r2", "minutes_left", "generator_loss"} <= set(
        rows[0]
    )
    tags = [
        value.tag
        for path in (out / "tensorboard").rglob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert {
        *("reconstructions", "epoch_agreement", "run"),
        *("epoch_generator_learning_rate", "_hparams_/session_start_info"),
    } <= set(tags)
    # That of an optimizer of Keras's, which none of the networks has.
    assert "epoch_learning_rate" not in tags
    # No measure has two names.
    assert not any("vs_iterations" in tag for tag in tags)

    with pytest.raises(errors.InputError, match="seed = 8. Received: 9"):
        train.main([*command, "--resume", "--seed=9"])
    with pytest.raises(errors.InputError, match="holds a run"):
        train.main(command)
    # Another class, in the same folder.
    changed = tmp_path / "changed"
    shutil.copytree(image_folder, changed)
    data = f"--dataset={changed}"
    config = out / "config.json"
    text = config.read_text().replace(str(image_folder), str(changed))
    config.write_text(text)
    (out / "digests.json").unlink()
    (changed / "green").rename(changed / "zgreen")
    for run in (
        lambda: train.main([*command, data, "--resume", "--steps=2"]),
        lambda: export.main([f"--run={out}", f"--out={tmp_path / 'exported'}"]),
    ):
        with pytest.raises(errors.InputError) as raised:
            run()
        message = str(raised.value)
        assert "class 'green' is gone; class 'zgreen' is new" in message
    # A finished run without its table and checkpoints.
    (changed / "zgreen").rename(changed / "green")
    (out / "metrics.csv").unlink()
    train.main([*command, data, "--resume", "--steps=2"])
    assert "not known without" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rate_that_decays_and_a_stop(
    image_folder, classifier_file, tmp_path, monkeypatch, capsys
):
    def command(out, *more):
        return arguments(
            image_folder,
            classifier_file,
            tmp_path / out,
            *(
                "--set=learning_rate_decay=cosine",
                "--set=score_weight=1",
                *more,
            ),
        )

    save = checkpoints.Checkpoint.on_epoch_end
    rates = []

    def keep_rate(self, epoch, logs=None):
        save(self, epoch, logs)
        rates.append(float(self.model.generator_optimizer.learning_rate))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "on_epoch_end", keep_rate)
        train.main(command("run"))
    # Half a cosine from 4e-4 to 8e-6, at a third, two thirds and the end.
    assert rates == pytest.approx([3.02e-4, 1.06e-4, 8e-6])
    assert "generator.keras is of" in capsys.readouterr().out

    def stop(self, epoch, logs=None):
        save(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(command("stopped"))
    with pytest.raises(errors.InputError, match="steps = 3. Received"):
        train.main(command("stopped", "--resume", "--steps=4"))
    train.main(command("stopped", "--resume"))
    expected, found = (
        checkpoint_values(tmp_path / out) for out in ("run", "stopped")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for name in ("generator.keras", "generator-last.keras"):
        one, two = (
            keras.models.load_model(tmp_path / out / name).get_weights()
            for out in ("run", "stopped")
        )
        for first, second in zip(one, two, strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_run_starts_from_the_generator_of_a_decoder(
    image_folder, classifier_file, tmp_path
):
    def command(out, *more):
        out = tmp_path / out
        return arguments(image_folder, classifier_file, out, *more)

    decoder = ["--set=discriminator_steps=0", "--set=pixel_weight=1"]
    one_epoch = ["--steps=1", "--set=ema_decay=0"]
    train.main(command("decoder", *decoder, *one_epoch))
    saved = tmp_path / "decoder" / "generator.keras"
    # So small a rate that the weights stay what they were.
    slow = ["--set=generator_learning_rate=1e-12", f"--generator={saved}"]
    others = "--train-split=train[50%:]"
    train.main(command("run", *slow, *one_epoch, "--seed=9", others))
    before, after = (
        keras.models.load_model(path)
        for path in (saved, tmp_path / "run" / "generator.keras")
    )
    for one, two in zip(
        before.trainable_variables, after.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-9)
    # And the map of the logits that they were trained with.
    np.testing.assert_array_equal(
        *(each.normalize_condition.transform for each in (before, after))
    )
    with pytest.raises(errors.InputError, match="base_channels is 8"):
        train.main(command("other", *slow, "--set=base_channels=8"))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    image_folder, classifier_file, tmp_path
):
    def process(out, *more):
        words = arguments(image_folder, classifier_file, out, *more)
        return subprocess.Popen([sys.executable, "tools/train.py", *words])

    # Side by side: one run to its end, one killed after its first epoch.
    whole = process(tmp_path / "whole")
    killed = process(tmp_path / "killed", "--steps=1000000")
    checkpoint = tmp_path / "killed" / "checkpoint.weights.h5"
    for _ in range(3000):
        if checkpoint.exists() or killed.poll() is not None:
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = checkpoint_values(tmp_path / "killed")["epoch"]
    last = max(done + 1, 3)
    assert (
        process(tmp_path / "killed", f"--steps={last}", "--resume").wait() == 0
    )
    assert whole.wait() == 0
    if last != 3:
        # The kill came late: let the other run catch up with it.
        more = (f"--steps={last}", "--resume")
        assert process(tmp_path / "whole", *more).wait() == 0
    one = checkpoint_values(tmp_path / "whole")
    two = checkpoint_values(tmp_path / "killed")
    assert one.keys() == two.keys() and len(one) > 100
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.slow
def test_paper_preset_takes_a_step_on_mocked_imagenet(tmp_path):
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1000),
        ]
    )
    classifier.save(tmp_path / "classifier.keras")
    with tfds.testing.mock_data(num_examples=12):
        train.main(
            [
                "--preset=paper",
                "--dataset=imagenet_resized/64x64",
                f"--classifier={tmp_path / 'classifier.keras'}",
                f"--out={tmp_path / 'run'}",
                "--set=base_channels=4",
                "--batch-size=4",
                "--steps=1",
                "--steps-per-epoch=1",
                "--set=validation_images=4",
            ]
        )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["generator"]["gain_offset"] == 0
    assert config["generator"]["logit_normalization"] == "none"
    assert config["generator"]["noise_dim"] == 120


def test_paper_preset_is_section_7_2():
    options = train.parse_arguments(
        ["--preset=paper", "--dataset=d", "--classifier=c", "--out=o"]
    )
    # Keys and values as printed in the supplementary, section 7.2, and the
    # defaults of compare_gan that it does not print.
    assert options.generator_learning_rate == 0.0001
    assert options.discriminator_learning_rate == 0.0005
    assert options.discriminator_steps == 2
    assert options.batch_size == 2048
    assert options.steps == 250000
    assert options.steps_per_epoch == 2500
    assert options.noise_dim == 120
    assert options.seed == 8
    assert (options.image_size, options.base_channels) == (64, 96)
    assert (options.ema_decay, options.ema_start_step) == (0.9999, 40000)
    assert (options.embedding_dim, options.gain_offset) == (128, 0)
    assert options.norms_per_block == 2 and options.attention
    assert (options.adversary, options.adversary_weight) == ("hinge", 1)
    assert options.score_weight == options.readback_weight == 0
    assert options.pixel_weight == 0
    assert options.upsampling == options.padding == "zeros"
    assert options.patch_scores is options.sees_detail is False
    assert options.learning_rate_decay == "none"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset=no_such_data"], "Received: no_such_data"),
        (["--classifier=missing.keras"], "missing.keras"),
        (["--batch-size=4000"], "Lower --batch-size"),
        (["--set=micro_batches=3"], "a multiple of 3 for 3 micro-batches"),
        (
            "--strategy=mirrored --batch-size=7".split(),
            "a multiple of 2 for 1 micro-batches on each of 2 devices",
        ),
        (["--train-split=dev"], "sub-folder dev"),
    ],
)
def test_wrong_input_is_one_helpful_line(
    image_folder, classifier_file, tmp_path, more, message
):
    with pytest.raises(errors.InputError, match=message) as raised:
        train.main(
            arguments(image_folder, classifier_file, tmp_path / "run", *more)
        )
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "more",
    [
        ["--steps=0"],
        ["--set=ema_decay=1"],
        ["--seed=-1"],
        ["--set=score_weight=-1"],
        ["--cache-logits=cache", "--crop=random"],
        ["--set=micro_batches=0"],
        ["--image-size=48"],
    ],
)
def test_wrong_numbers_end_with_status_two(more, capsys):
    with pytest.raises(SystemExit) as raised:
        train.main(["--dataset=d", "--classifier=c", "--out=o", *more])
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert "expected" in message or "(choose from 8, 32, 64, 128)" in message


def test_a_setting_with_a_flag_of_its_own_names_it(capsys):
    with pytest.raises(SystemExit) as raised:
        train.main(
            "--dataset=d --classifier=c --out=o --set steps_per_epoch=5".split()
        )
    assert raised.value.code == 2
    message = "expected --steps-per-epoch for steps_per_epoch; received"
    assert message in capsys.readouterr().err


def test_classifier_of_other_classes(image_folder, tmp_path, capsys):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(7),
        ]
    )
    model.save(tmp_path / "seven.keras")
    # Any images do: labels are not needed to invert it.
    out = tmp_path / "run"
    train.main(
        arguments(image_folder, tmp_path / "seven.keras", out, "--steps=1")
    )
    assert "labels: not used" in capsys.readouterr().out
    config = files.read_json(out / "config.json")
    assert config["class_names"] == [f"class {index}" for index in range(7)]


def test_classes_are_named_by_the_data_set_or_as_imagenets(capsys):
    def names(classifier, given, weights="imagenet", path=None):
        source = data_source.Source(
            tf.data.Dataset.from_tensor_slices({"label": [0]}),
            None,
            given,
            1,
        )
        found, line = loading.name_classes(
            source, classifier, weights, path, len(given)
        )
        print(line)
        return found

    numbers = [str(index) for index in range(1000)]
    imagenet = names("keras.applications:ResNet50", numbers)
    # Tench and toilet tissue, the first and the last in Keras's index.
    assert (imagenet[0], imagenet[999]) == ("n01440764", "n15075141")
    assert imagenet == sorted(imagenet)
    assert names("R152.npz", numbers) == imagenet
    assert names("R152.npz", imagenet) == imagenet
    # As imagenet_resized has them.
    capsys.readouterr()
    assert names("R152.npz", imagenet[::-1]) == imagenet
    assert "found by name" in capsys.readouterr().out
    animals = [f"animal {index}" for index in range(1000)]
    assert names("R152.npz", animals) == imagenet
    assert "labels: not used" in capsys.readouterr().out
    resnet = "keras.applications:ResNet50"
    assert names(resnet, animals, "none") == animals
    assert names("classifier.keras", numbers) == numbers
    assert names("keras.applications:ResNet50", ["0", "1"]) == ["0", "1"]


def test_non_finite_loss_stops_and_keeps_the_checkpoint(
    image_folder, classifier_file, tmp_path
):
    out = tmp_path / "run"
    command = arguments(image_folder, classifier_file, out)
    with pytest.raises(errors.NonFiniteError, match="epoch"):
        train.main([*command, "--set=generator_learning_rate=1e38"])


def test_a_layer_is_inverted_from_flags_to_experiments(
    image_folder, classifier_file, tmp_path, capsys
):
    model = keras.models.load_model(classifier_file)
    added = next(x for x in model.layers if isinstance(x, keras.layers.Add))
    out = tmp_path / "run"
    train.main(
        arguments(
            image_folder,
            classifier_file,
            out,
            f"--layer={added.name}",
            "--layer-maps=flatten",
            "--set=logit_normalization=standardize",
            "--steps=1",
        )
    )
    config = json.loads((out / "config.json").read_text())
    assert config["generator"]["condition_dim"] == 16 * 16 * 4
    exported = tmp_path / "maps"
    export.main(
        [
            f"--run={out}",
            f"--out={exported}",
            "--statistics-examples=20",
            "--validation-examples=10",
        ]
    )
    card = exported / "1" / "assets.extra" / "README.md"
    assert f"features of the layer {added.name}" in card.read_text("utf-8")
    loaded = pipeline.Pipeline.load(exported)
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3))
    images = images.astype("float32")
    expected = keras.Model(model.inputs[0], added.output)(images)
    logits, features = loaded.classify(images)
    np.testing.assert_allclose(
        features, np.reshape(expected, (3, -1)), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(logits, model(images), rtol=1e-3, atol=1e-3)
    capsys.readouterr()
    analyze.main(
        [
            f"--model={exported}",
            f"--dataset={image_folder}",
            f"--out={tmp_path / 'results'}",
            f"--perceptual={classifier_file}",
            "--quick",
            "--experiments",
            *("reconstructions", "manipulation"),
        ]
    )
    assert f"maps inverts the features of {added.name}" in (
        capsys.readouterr().out
    )
    found = json.loads((tmp_path / "results" / "metrics.json").read_text())
    measured = found["experiments"]["reconstructions"]["maps"]
    assert measured["perceptual_distance"]["value"] > 0
    assert measured["psnr"]["value"] > 0


def test_normalisations_of_a_layer(capsys):
    command = ["--dataset=d", "--classifier=c", "--out=o", "--layer=add"]
    options = train.parse_arguments(command)
    assert options.logit_normalization == "whiten"
    options = train.parse_arguments([*command, "--preset=paper"])
    assert options.logit_normalization == "none"
    with pytest.raises(SystemExit):
        train.parse_arguments([*command, "--set=logit_normalization=one-hot"])
    assert "features do not tell the class" in capsys.readouterr().err


def test_a_run_with_a_logit_cache(image_folder, classifier_file, tmp_path):
    for out, more in {
        "run": [],
        "cached": [f"--cache-logits={tmp_path / 'cache'}"],
    }.items():
        train.main(
            arguments(image_folder, classifier_file, tmp_path / out, *more)
        )
    losses = []
    for out in ("run", "cached"):
        with open(tmp_path / out / "metrics.csv") as table:
            rows = list(csv.DictReader(table))
        losses.append([float(row["discriminator_loss"]) for row in rows])
    # The same images in the same order; logits rounded to float16.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert len(list((tmp_path / "cache").glob("*/*.tfrecord"))) == 1


@pytest.mark.slow
def test_a_lost_worker_and_a_new_start(image_folder, classifier_file, tmp_path):
    def start_workers(out, *more):
        with socket.socket() as one, socket.socket() as two:
            for listener in (one, two):
                listener.bind(("127.0.0.1", 0))
            ports = [listener.getsockname()[1] for listener in (one, two)]
        workers = [f"127.0.0.1:{port}" for port in ports]
        words = arguments(
            image_folder,
            classifier_file,
            tmp_path / out,
            "--strategy=multiworker",
            "--set=score_weight=1",
            # Fitted by each worker, and the first one's taken.
            "--set=embedding_layers=1",
            *more,
        )
        return [
            subprocess.Popen(
                [sys.executable, "tools/train.py", *words],
                env={
                    **os.environ,
                    "TF_CONFIG": json.dumps(
                        {
                            "cluster": {"worker": workers},
                            "task": {"type": "worker", "index": index},
                        }
                    ),
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]

    chief, lost = start_workers("lost", "--steps=1000000")
    checkpoint = tmp_path / "lost" / "checkpoint.weights.h5"
    for _ in range(3000):
        if checkpoint.exists() or chief.poll() is not None:
            break
        time.sleep(0.1)
    lost.kill()
    lost.communicate()
    message = chief.communicate(timeout=60)[1].splitlines()[-1]
    assert chief.returncode == 2
    assert "error: lost another worker" in message and "--resume" in message

    last = checkpoint_values(tmp_path / "lost")["epoch"] + 1
    # One epoch more than are done.
    pairs = (
        start_workers("lost", f"--steps={last}", "--resume"),
        start_workers("whole", f"--steps={last}"),
    )
    for worker in (worker for pair in pairs for worker in pair):
        printed = worker.communicate()[1]
        assert worker.returncode == 0, printed
    one, two = (checkpoint_values(tmp_path / x) for x in ("lost", "whole"))
    assert one.keys() == two.keys() and len(one) > 100
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
