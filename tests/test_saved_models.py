"""Classifiers that come as SavedModels, and runs that outlive them."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kinv import errors
from kinv.classifiers import loading
from kinv.serving import pipeline
from tools import export as export_tool
from tools import train


def make_model(size=8, activation=None):
    """Images in [0, 1], of any size where `size` is None, to 3 outputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation=activation)(x))


def random_images(size=8):
    random = np.random.default_rng(0)
    return random.uniform(0, 255, (4, size, size, 3)).astype("float32")


class WithoutTraining(tf.Module):
    def __init__(self, model):
        self.model = model

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    def __call__(self, images):
        return self.model(images, training=False)


class ForTraining(tf.Module):
    def __init__(self, model):
        self.model = model

    @tf.function
    def __call__(self, images, training=False):
        scale = -1.0 if training else 1.0
        return scale * self.model(images, training=False)


def write_keras_export(model, path):
    model.export(path, verbose=False)


def write_saved_keras_model(model, path):
    tf.saved_model.save(model, path)


def write_call(model, path):
    tf.saved_model.save(WithoutTraining(model), path)


def write_call_with_training(model, path):
    module = ForTraining(model)
    for training in (True, False):
        module(tf.zeros((2, 8, 8, 3)), training=training)
        module.__call__.get_concrete_function(
            tf.TensorSpec((None, 8, 8, 3), tf.float32), training=training
        )
    tf.saved_model.save(module, path)


def write_first_version(model, path):
    """A SavedModel of TensorFlow 1, whose variables are the model's values."""
    kernel, bias, gamma, beta, mean, variance, dense, dense_bias = (
        model.get_weights()
    )
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder("float32", (None, 8, 8, 3))
        variable = tf.compat.v1.get_variable("dense", initializer=dense)
        x = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "VALID") + bias)
        x = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
        logits = tf.reduce_mean(x, (1, 2)) @ variable + dense_bias
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(
            session, path, {"pictures": images}, {"logits": logits}
        )


@pytest.mark.parametrize(
    "write",
    [
        write_keras_export,
        write_saved_keras_model,
        write_call,
        write_call_with_training,
        write_first_version,
    ],
)
def test_logits_and_gradients_are_the_models(tmp_path, write):
    model = make_model()
    write(model, str(tmp_path / "model"))
    loaded = loading.load_classifier(tmp_path / "model", input_range=(0.0, 1.0))
    # The directory is not needed any more, nor is the first copy.
    shutil.rmtree(tmp_path / "model")
    loaded.save(tmp_path / "first.keras")
    again = loading.load_classifier(tmp_path / "first.keras")
    (tmp_path / "first.keras").unlink()
    again.save(tmp_path / "second.keras")
    again = loading.load_classifier(tmp_path / "second.keras")

    images = random_images()
    expected = model(images / 255)
    loading.check_gradient(again, "again")
    for classifier in (loaded, again):
        assert classifier.input_shape == (None, 8, 8, 3)
        assert classifier.output_shape == (None, 3)
        assert classifier.trainable_variables == []
        logits = classifier(images, training=False)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    gradients = []
    for function, scale in ((again, 1), (model, 255)):
        pixels = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            loss = tf.reduce_sum(function(pixels / scale)[:, 0])
        gradients.append(tape.gradient(loss, pixels))
    assert np.abs(gradients[1]).max() > 0
    np.testing.assert_allclose(*gradients, atol=1e-7)


def test_a_loaded_one_is_taken_as_a_keras_model(tmp_path):
    write_keras_export(make_model(), tmp_path / "model")
    loaded = loading.load_classifier(tmp_path / "model")
    images = random_images()
    # Inside of the second one is a model that has the layer.
    for expected in (loaded(images / 255), loaded(images / 255**2)):
        again = loading.load_classifier(loaded, input_range=(0, 1))
        np.testing.assert_allclose(again(images), expected, rtol=1e-5)
        loaded = again


def test_two_replicas(tmp_path):
    model = make_model()
    write_keras_export(model, str(tmp_path / "model"))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        loaded = loading.load_classifier(tmp_path / "model")
    images = tf.constant(random_images())
    replies = tf.function(lambda: strategy.run(loaded, args=(images,)))()
    for logits in strategy.experimental_local_results(replies):
        np.testing.assert_allclose(logits, model(images), rtol=1e-4)
    # The chief writes it to the run directory.
    loaded.save(tmp_path / "classifier.keras")
    again = loading.load_classifier(tmp_path / "classifier.keras")
    np.testing.assert_allclose(again(images), model(images), rtol=1e-4)


def test_images_of_any_size(tmp_path):
    model = make_model(None)
    write_keras_export(model, str(tmp_path / "any"))
    with pytest.raises(errors.InputError, match="--classifier-size for"):
        loading.load_classifier(tmp_path / "any")
    loaded = loading.load_classifier(tmp_path / "any", size=12)
    images = random_images(12)
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4)


def test_output_names_one_of_several(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = layers.Flatten()(inputs)
    model = keras.Model(
        inputs,
        {"kinds": layers.Dense(3)(features), "hues": layers.Dense(4)(features)},
    )
    write_keras_export(model, str(tmp_path / "two"))
    loaded = loading.load_classifier(tmp_path / "two", output="hues")
    images = random_images()
    np.testing.assert_allclose(loaded(images), model(images)["hues"], rtol=1e-5)
    with pytest.raises(errors.InputError, match=r"hues, kinds\. Received: no"):
        loading.load_classifier(tmp_path / "two")


def test_whole_numbers_have_no_gradient(tmp_path):
    model = make_model()

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.uint8)])
    def classify(images):
        return {"logits": model(tf.cast(images, tf.float32))}

    module = tf.Module()
    module.model = model
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=classify)
    loaded = loading.load_classifier(tmp_path / "model")
    images = random_images()
    expected = model(np.round(images))
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-4)
    with pytest.raises(errors.InputError, match="Give readback_weight=0"):
        loading.check_gradient(loaded, "model")


def save_function(path, function, *specs):
    function = tf.function(function, input_signature=specs)
    tf.saved_model.save(tf.Module(), str(path), signatures=function)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(None, 192)], r"images.*takes float32 \(None, 192\)"),
        (
            [(None, 8, 8, 2)],
            r"height, width, channels.*takes float32 \(None, 8, 8, 2",
        ),
        ([(2, 8, 8, 3)], r"a batch of any size.*takes float32 \(2, 8, 8, 3\)"),
        ([(None, 8, 8, 3)] * 2, r"one input.*8, 3\), float32 \(None"),
    ],
)
def test_other_inputs_are_named(tmp_path, shapes, message):
    save_function(
        tmp_path / "model",
        lambda *inputs: {
            "x": sum(map(tf.reduce_sum, inputs)) * tf.ones((2, 3))
        },
        *(tf.TensorSpec(shape, name=f"i{i}") for i, shape in enumerate(shapes)),
    )
    with pytest.raises(errors.InputError, match=message) as raised:
        loading.load_classifier(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_one_image_at_a_time(tmp_path):
    """As PyTorch's exporters write it if they are not told otherwise."""
    save_function(
        tmp_path / "model",
        lambda images: {"logits": tf.reduce_mean(images, (1, 2)) ** 2},
        tf.TensorSpec((1, 8, 8, 3), name="images"),
    )
    loaded = loading.load_classifier(tmp_path / "model")
    images = random_images()
    expected = images.mean(axis=(1, 2)) ** 2
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-4)
    pixels = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        loss = tf.reduce_sum(loaded(pixels))
    gradient = 2 * images.mean(axis=(1, 2), keepdims=True) / 64
    np.testing.assert_allclose(
        tape.gradient(loss, pixels),
        np.broadcast_to(gradient, images.shape),
        rtol=1e-4,
    )


def test_files_of_pictures_are_not_images(tmp_path):
    save_function(
        tmp_path / "model",
        lambda files: {"logits": tf.zeros((tf.size(files), 3))},
        tf.TensorSpec((None,), tf.string, name="files"),
    )
    with pytest.raises(errors.InputError, match=r"takes string \(None,\)"):
        loading.load_classifier(tmp_path / "model")


def test_directories_that_are_none(tmp_path):
    with pytest.raises(errors.InputError, match="without a saved_model.pb"):
        loading.load_classifier(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"no")
    with pytest.raises(errors.InputError, match="TensorFlow can load"):
        loading.load_classifier(tmp_path)
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(errors.InputError, match="has no signature"):
        loading.load_classifier(tmp_path / "empty")
    module = tf.Module()
    function = tf.function(
        lambda x: x[:, 0, 0], [tf.TensorSpec((None, 8, 8, 3), tf.float32)]
    )
    tf.saved_model.save(
        module,
        str(tmp_path / "two"),
        {name: function.get_concrete_function() for name in ("one", "other")},
    )
    with pytest.raises(errors.InputError, match="two with one, other. Export"):
        loading.load_classifier(tmp_path / "two")
    write_keras_export(make_model(), str(tmp_path / "model"))
    with pytest.raises(errors.InputError, match="--classifier-size 8, or none"):
        loading.load_classifier(tmp_path / "model", size=9)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_run_outlives_its_saved_model(image_folder, tmp_path):
    model = make_model(None, "softmax")
    # Two classes of the three, as there are in the folder.
    both = keras.Model(
        model.inputs[0], layers.Softmax()(model.outputs[0][:, :2])
    )
    write_keras_export(both, str(tmp_path / "model"))
    (tmp_path / "names.txt").write_text("lime\ncherry\n")
    run = tmp_path / "run"
    command = [
        f"--dataset={image_folder}",
        f"--classifier={tmp_path / 'model'}",
        f"--out={run}",
        "--set=base_channels=4",
        "--set=attention=False",
        "--batch-size=8",
        "--set=discriminator_steps=1",
        "--steps-per-epoch=1",
        "--set=validation_images=10",
        "--precision=float32",
        "--classifier-size=16",
        f"--class-names={tmp_path / 'names.txt'}",
        # A rate that decays would bind the number of steps.
        "--set=learning_rate_decay=none",
        "--image-size=8",
    ]
    with pytest.raises(errors.InputError, match="by --log-probabilities"):
        train.main([*command, "--steps=1"])
    command += ["--log-probabilities", "--input-range", "0", "1"]
    train.main([*command, "--steps=1"])
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "names.txt").unlink()
    train.main([*command, "--steps=2", "--resume"])
    out = tmp_path / "exported"
    export_tool.main(
        [
            f"--run={run}",
            f"--out={out}",
            "--statistics-examples=16",
            "--validation-examples=12",
        ]
    )
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["input_range"] == [0, 1]
    shutil.rmtree(run)
    exported = pipeline.Pipeline.load(out)
    assert exported.class_names == ["lime", "cherry"]
    assert exported.metadata["training"]["log_probabilities"] is True
    images = random_images(16)
    # log_softmax of what the softmax is applied to.
    expected = np.log(both(images / 255))
    np.testing.assert_allclose(exported.logits(images), expected, atol=1e-4)
