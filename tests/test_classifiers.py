import json
import urllib.error

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from keras import layers
from keras.src.utils import file_utils

from kinv import errors, pixels
from kinv.classifiers import applications, loading, small
from kinv.classifiers import features as features_lib
from kinv.inversion import export, networks


@pytest.fixture
def precision():
    before = keras.mixed_precision.dtype_policy()
    yield keras.mixed_precision.set_dtype_policy
    keras.mixed_precision.set_dtype_policy(before)


def save(tmp_path, *stack, shape=(8, 8, 3)):
    path = tmp_path / "classifier.keras"
    keras.Sequential([keras.Input(shape), *stack]).save(path)
    return path


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_logits_are_float32(precision, policy):
    precision(policy)
    classifier = small.build_classifier(8, 5, width=2)
    logits = classifier(np.zeros((3, 8, 8, 3), "float32"))
    assert logits.shape == (3, 5)
    assert logits.dtype == "float32"


@pytest.mark.parametrize(
    "image_size, side", [(8, 4), (28, 4), (32, 4), (64, 4), (100, 4)]
)
def test_blocks_halve_the_image_to_four_pixels(image_size, side):
    classifier = small.build_classifier(image_size, 2, width=1)
    pooling = next(
        layer
        for layer in classifier.layers
        if isinstance(layer, layers.GlobalAveragePooling2D)
    )
    assert pooling.input.shape[1:3] == (side, side)


def test_layers_to_invert_have_the_same_names_in_every_classifier():
    for _ in range(2):
        classifier = small.build_classifier(32, 2, width=1)
        names = {layer.name for layer in classifier.layers}
        assert {"block1", "block2", "block3", "pooled", "logits"} <= names


def test_stock_layers_only():
    classifier = small.build_classifier(8, 2, width=1)
    modules = {type(layer).__module__ for layer in classifier.layers}
    assert all(module.startswith("keras.") for module in modules)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((7, 2, 1), "Received: image_size=7"),
        ((8, 1, 1), "Received: num_classes=1"),
    ],
)
def test_build_rejects(arguments, message):
    with pytest.raises(errors.InputError, match=message):
        small.build_classifier(*arguments)


def test_load_returns_the_same_frozen_network(tmp_path):
    classifier = small.build_classifier(8, 3, width=2)
    classifier.save(tmp_path / "classifier.keras")
    loaded = loading.load_classifier(tmp_path / "classifier.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)
    assert loaded.trainable_variables == []
    assert loaded.input_shape[1] == 8


def test_load_casts_half_precision_logits(precision, tmp_path):
    precision("mixed_bfloat16")
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    loaded = loading.load_classifier(path)
    assert loaded(np.zeros((1, 8, 8, 3), "float32")).dtype == "float32"


def test_load_accepts_a_nested_network(tmp_path):
    inner = small.build_classifier(8, 3, width=1)
    loaded = loading.load_classifier(save(tmp_path, inner))
    assert loaded.output_shape == (None, 3)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(errors.InputError, match="absent.keras, which does not"):
        loading.load_classifier(tmp_path / "absent.keras")


def test_load_names_a_directory(tmp_path):
    with pytest.raises(errors.InputError, match="a directory"):
        loading.load_classifier(tmp_path)


@pytest.mark.parametrize("name", ["broken.keras", "broken.h5", "image.png"])
def test_load_names_an_unreadable_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(errors.InputError, match=name):
        loading.load_classifier(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.keras", b"", "which is empty. Copy it again."),
        (
            "a.keras",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n",
            "only points to it. Run git lfs pull.",
        ),
        ("a.pth", b"PK", "another library's.*docs/classifiers.md"),
        ("saved_model.pb", b"PK", "Name its directory."),
        ("a.keras", b"\x89HDF\r\n\x1a\n", "damaged, or .* call it .h5"),
        ("a.h5", b"PK", "says: .*If the file is whole"),
    ],
)
def test_load_says_what_a_file_is_instead(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.InputError, match=message):
        loading.load_classifier(tmp_path / name)


def test_load_names_the_cause_and_the_way_out(tmp_path):
    @keras.saving.register_keras_serializable("test_classifiers")
    class Gate(layers.Layer):
        def call(self, inputs):
            return inputs / 2

    path = save(tmp_path, layers.Flatten(), layers.Dense(3), Gate())
    model = keras.models.load_model(path)
    model.export(tmp_path / "exported", verbose=False)
    del keras.saving.get_custom_objects()["test_classifiers>Gate"]
    with pytest.raises(
        errors.InputError, match="Could not locate class 'Gate'.*model.export"
    ) as raised:
        loading.load_classifier(path)
    assert "config" not in str(raised.value)
    # The way out.
    loaded = loading.load_classifier(tmp_path / "exported")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4)


def test_load_names_a_truncated_file(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(errors.InputError, match="which is damaged"):
        loading.load_classifier(path)


def test_load_takes_a_subclassed_network_inside_a_model(tmp_path):
    class Network(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

        def call(self, inputs):
            return self.dense(self.flatten(inputs))

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, Network()(inputs))
    loaded = loading.load_classifier(model)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4)
    with pytest.raises(errors.InputError, match="Expected a layer"):
        features_lib.add_features(loaded, "nothing", "pool")


def test_load_rejects_a_softmax_that_cannot_be_taken_off(tmp_path):
    def normalized(inputs):
        powers = keras.ops.exp(inputs)
        return powers / keras.ops.sum(powers, axis=-1, keepdims=True)

    inputs = keras.Input((8, 8, 3))
    outputs = normalized(layers.Dense(3)(layers.Flatten()(inputs)) * 1e-3)
    keras.Model(inputs, outputs).save(tmp_path / "classifier.keras")
    with pytest.raises(errors.InputError, match="are probabilities"):
        loading.load_classifier(tmp_path / "classifier.keras")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize(
    "end, activation",
    [
        ([layers.Dense(3, activation="softmax")], softmax),
        ([layers.Dense(3), layers.Softmax()], softmax),
        ([layers.Dense(3), layers.Activation("sigmoid")], sigmoid),
        (
            [
                layers.Dense(3, activation="sigmoid"),
                layers.Activation("linear", dtype="float32"),
            ],
            sigmoid,
        ),
        ([keras.Sequential([layers.Dense(3), layers.Softmax()])], softmax),
        (
            [
                layers.Reshape((1, 1, 192)),
                layers.Conv2D(3, 1, activation="sigmoid"),
                layers.Flatten(),
            ],
            sigmoid,
        ),
    ],
)
def test_load_takes_the_final_activation_off(tmp_path, end, activation):
    keras.utils.set_random_seed(0)
    path = save(tmp_path, layers.Rescaling(1 / 255), layers.Flatten(), *end)
    logits_of = loading.load_classifier(path)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    expected = np.asarray(keras.models.load_model(path)(images))
    logits = np.asarray(logits_of(images), "float64")
    np.testing.assert_allclose(activation(logits), expected, atol=1e-6)
    # It can be saved and loaded like any other.
    logits_of.save(tmp_path / "again.keras")
    again = loading.load_classifier(tmp_path / "again.keras")
    np.testing.assert_allclose(again(images), logits, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ResNet50", "MobileNetV3Small", "EfficientNetB0"]
)
def test_exported_applications_keep_their_preprocessing(tmp_path, name):
    keras.utils.set_random_seed(0)
    loaded = loading.load_classifier(
        f"keras.applications:{name}", "none", size=32
    )
    generator = networks.Generator(
        32, 1000, 4, noise_dim=4, embedding_dim=2, gain_offset=1
    )
    inputs = {"condition": np.zeros((2, 1000)), "noise": np.zeros((2, 4))}
    generator.fold_spectral_norms(iterations=1)
    generator.fill_standing_statistics([inputs])
    export.save(tmp_path / "exported", loaded, generator, {})
    exported = tf.saved_model.load(tmp_path / "exported")
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    logits = exported.signatures["serving_default"](
        images=tf.constant(images),
        noise=tf.zeros((2, 0, 4)),
        logit_scale=tf.ones((1, 1)),
        logit_shift=tf.zeros((1, 1, 1)),
    )["logits"]
    # The same weights in the application as Keras makes it without softmax.
    original = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classifier_activation=None
    )
    original.set_weights(loaded.get_weights())
    inputs = images
    if name == "ResNet50":
        # Blue, green, red, less ImageNet's means (its "caffe" mode).
        inputs = images[..., ::-1] - [103.939, 116.779, 123.68]
    expected = np.asarray(original(inputs, training=False))
    # Random weights may make logits of any size.
    atol = 1e-4 * min(1, np.std(expected))
    assert atol > 0
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


def test_applications_are_checked(tmp_path):
    with pytest.raises(errors.InputError, match="Closest: ResNet50"):
        loading.load_classifier("keras.applications:Resnet50")
    with pytest.raises(errors.InputError, match="absent.h5, which does not"):
        loading.load_classifier(
            "keras.applications:MobileNetV2", str(tmp_path / "absent.h5")
        )
    with pytest.raises(errors.InputError, match="at least 32x32"):
        loading.load_classifier(
            "keras.applications:MobileNetV2", "none", size=8
        )
    with pytest.raises(errors.InputError, match="which gets its own"):
        loading.load_classifier(
            "keras.applications:MobileNetV2",
            "none",
            input_mean=[0.5],
        )
    (tmp_path / "no.weights.h5").write_bytes(b"no")
    with pytest.raises(errors.InputError, match="--classifier-weights none"):
        loading.load_classifier(
            "keras.applications:MobileNetV2", str(tmp_path / "no.weights.h5")
        )


def test_published_weights_at_another_size(monkeypatch, tmp_path):
    keras.utils.set_random_seed(0)
    plain = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classifier_activation=None
    )
    plain.save_weights(tmp_path / "published.weights.h5")
    monkeypatch.setattr(
        file_utils,
        "get_file",
        lambda *arguments, **options: str(tmp_path / "published.weights.h5"),
    )
    loaded = loading.load_classifier(
        "keras.applications:EfficientNetB0", size=32
    )
    # Keras divides the input of these by the roots of ImageNet's deviations;
    # the mean and variance before that are still 0 and 1.
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    expected = plain(images / np.sqrt(STD))
    # Random weights may make logits of any size.
    deviation = np.std(expected)
    np.testing.assert_allclose(
        loaded(images), expected, rtol=0, atol=1e-2 * deviation
    )
    assert np.abs(plain(images) - expected).max() > 0.5 * deviation


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def fail(*arguments):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(
        errors.InputError,
        match=r"mobilenet_v2_weights\S+h5: .*\. Put the file .*/models, name a",
    ) as raised:
        loading.load_classifier("keras.applications:MobileNetV2")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((8, 8, 2), "takes images.*with inputs"),
        ((None, None, 3), "--classifier-size for.*with inputs"),
        ((192,), "takes images.*with inputs"),
        ((10, 16), "takes images.*with inputs"),
    ],
)
def test_load_rejects_other_inputs(tmp_path, shape, message):
    stack = [layers.Dense(3)]
    if len(shape) == 3:
        stack.insert(0, layers.GlobalAveragePooling2D())
    path = save(tmp_path, *stack, shape=shape)
    with pytest.raises(errors.InputError, match=message):
        loading.load_classifier(path)


def test_images_of_any_size_and_of_another_range(tmp_path):
    stack = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    path = save(tmp_path, *stack, shape=(None, None, 3))
    loaded = loading.load_classifier(path, size=10, input_range=(-1, 1))
    assert loaded.input_shape == (None, 10, 10, 3)
    images = np.random.default_rng(0).uniform(0, 255, (2, 10, 10, 3))
    expected = keras.models.load_model(path)(images / 127.5 - 1)
    np.testing.assert_allclose(loaded(images), expected, atol=1e-5)
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    with pytest.raises(errors.InputError, match="--classifier-size 8, or none"):
        loading.load_classifier(path, size=9)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "scaling, expected",
    [
        # As torchvision's ToTensor and Normalize.
        (
            {"input_mean": MEAN, "input_std": STD},
            lambda images: (images / 255 - MEAN) / STD,
        ),
        (
            {
                "input_range": (0, 255),
                "input_mean": (123.68, 116.779, 103.939),
            },
            lambda images: images - (123.68, 116.779, 103.939),
        ),
        ({"input_std": [0.5]}, lambda images: images / 255 / 0.5),
    ],
)
def test_means_and_standard_deviations(tmp_path, scaling, expected):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]
    )
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "model", verbose=False)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    for name in ("model.keras", "model"):
        loaded = loading.load_classifier(tmp_path / name, **scaling)
        np.testing.assert_allclose(
            loaded(images), model(expected(images)), rtol=1e-4, atol=1e-4
        )


def test_means_of_other_channels_are_named(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    for scaling, message in (
        ({"input_mean": (1, 2)}, "input mean of one number, or one"),
        ({"input_std": (1, 1, 0)}, ", above 0. Received: 1 1 0"),
        # Of pixels in [0, 255].
        ({"input_mean": (125, 123, 114)}, "from 0 to 1.*range 0 255"),
        ({"input_range": (0, 255), "input_mean": (-1,)}, "from 0 to 255"),
    ):
        with pytest.raises(errors.InputError, match=message):
            loading.load_classifier(path, **scaling)


def test_a_model_of_a_notebook_stays_as_it_is():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    loaded = loading.load_classifier(model, input_range=(0, 1))
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(
        softmax(np.asarray(loaded(images), "float64")),
        model(images / 255),
        atol=1e-6,
    )
    assert model.trainable and len(model.trainable_variables) == 2
    assert not loaded.trainable_variables

    class Subclassed(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = layers.Dense(units)

    with pytest.raises(errors.InputError, match="functional or sequential"):
        loading.load_classifier(Subclassed(3))


class Labelled:
    """Held-out images whose reddest third is told by a number."""

    def __init__(self, numbers):
        self.class_names = ["a", "b", "c"]
        self.numbers = np.array(numbers)

    def evaluation_batches(self, size, batch_size, limit):
        images = np.zeros((len(self.numbers), size, size, 3), "float32")
        images[..., 0] = 100 * np.arange(len(self.numbers))[:, None, None] % 300
        for start in range(0, min(limit, len(images)), batch_size):
            part = slice(start, start + batch_size)
            yield images[part], self.numbers[part]


@pytest.mark.parametrize(
    "numbers, line",
    [
        ([0, 1, 2] * 40, "100.0% of 120 held-out images\n"),
        ([0, 1, 0] * 30, "66.7% of 90 held-out images\n"),
        ([1, 2, 0] * 40, "0.0% of 120 held-out images, no better than chance:"),
        ([2, 1, 0] * 100, "33.5% of 200 held-out images, no better than"),
        # Too few to tell.
        ([2, 1, 0] * 2, "33.3% of 6 held-out images\n"),
        ([1] * 29, "of 29 held-out images\n"),
        ([1] * 30, "of 30 held-out images, no better than chance:"),
        ([-1] * 10, "not measured, for lack of labels"),
    ],
)
def test_accuracy_tells_whether_the_classifier_is_used_rightly(
    monkeypatch, numbers, line
):
    source = Labelled(numbers)
    monkeypatch.setattr(loading.labels, "match", lambda *_: (source, ""))
    inputs = keras.Input((8, 8, 3))
    red = layers.GlobalAveragePooling2D()(inputs)[:, :1]
    # Nearest of 0, 100 and 200; the two largest are 100 apart.
    logits = keras.ops.concatenate(
        [-keras.ops.square(red / 10 - level) for level in (0, 10, 20)], axis=-1
    )
    classifier = keras.Model(inputs, logits)
    found = loading.describe_accuracy(classifier, source, ["a", "b", "c"])
    assert line in f"{found}\n"
    classifier = keras.Model(inputs, 2 * logits)
    found = loading.describe_accuracy(classifier, source, ["a", "b", "c"])
    assert line.strip() in found and "are 200 apart" in found


def test_channels_first_of_any_size(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, None, None))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(inputs)
    model = keras.Model(inputs, layers.Dense(4)(x))
    model.save(tmp_path / "model.keras")
    loaded = loading.load_classifier(tmp_path / "model.keras", size=8)
    assert loaded.input_shape == (None, 8, 8, 3)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    expected = images.mean(axis=(1, 2)) @ model.layers[-1].kernel.numpy()
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-4)


def is_grey(classifier):
    """Whether the generator is told to make grey images."""
    layers = classifier._flatten_layers(include_self=False)
    return pixels.LUMINANCE_LAYER in [layer.name for layer in layers]


@pytest.mark.parametrize("format", ["model.keras", "model"])
@pytest.mark.parametrize(
    "shape, taken",
    [
        # Pillow's convert("L") but for its rounding.
        ((8, 8, 1), lambda x: x @ [[0.299], [0.587], [0.114]]),
        ((8, 8), lambda x: x @ [0.299, 0.587, 0.114]),
        ((3, 8, 8), lambda x: x.transpose(0, 3, 1, 2)),
        ((1, 8, 8), lambda x: (x @ [0.299, 0.587, 0.114])[:, None]),
        # Two pixels become one.
        ((8, 4, 3), lambda x: None),
    ],
)
def test_what_a_classifier_takes_is_made_of_the_image(
    tmp_path, format, shape, taken
):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(3)]
    )
    path = tmp_path / format
    model.save(path) if path.suffix else model.export(path, verbose=False)
    loaded = loading.load_classifier(path)
    assert loaded.input_shape == (None, 8, 8, 3)
    assert is_grey(loaded) == (3 not in shape)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    expected = taken(images)
    if expected is None:
        # A triangle of two pixels on both sides: Pillow's antialiasing.
        rows = [
            np.asarray(
                PIL.Image.fromarray(
                    image[..., channel].astype("float32")
                ).resize((4, 8), PIL.Image.Resampling.BILINEAR)
            )
            for image in images
            for channel in range(3)
        ]
        expected = np.moveaxis(np.reshape(rows, (2, 3, 8, 4)), 1, -1)
    np.testing.assert_allclose(
        loaded(images), model(expected), rtol=1e-4, atol=1e-3
    )
    loading.check_gradient(loaded, "it")
    # As a run keeps it.
    loaded.save(tmp_path / "again.keras")
    again = loading.load_classifier(tmp_path / "again.keras")
    np.testing.assert_array_equal(again(images), loaded(images))
    assert is_grey(again) == is_grey(loaded)


def test_a_fixed_batch_becomes_any(tmp_path):
    images = keras.Input(batch_shape=(8, 8, 8, 3))
    model = keras.Model(images, layers.Dense(3)(layers.Flatten()(images)))
    model.save(tmp_path / "classifier.keras")
    loaded = loading.load_classifier(tmp_path / "classifier.keras")
    images = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3))
    np.testing.assert_allclose(loaded(images[:5]), model(images)[:5], rtol=1e-4)


def test_logarithms_of_probabilities(tmp_path):
    def normalized(inputs):
        powers = keras.ops.exp(inputs)
        return powers / keras.ops.sum(powers, axis=-1, keepdims=True)

    inputs = keras.Input((8, 8, 3))
    dense = layers.Dense(3)
    outputs = normalized(dense(layers.Flatten()(inputs)))
    model = keras.Model(inputs, outputs)
    path = tmp_path / "classifier.keras"
    kernel = np.zeros((192, 3))
    kernel[0] = (-0.2, 0.3, 0.0)
    dense.set_weights([kernel, np.zeros(3)])
    model.save(path)
    with pytest.raises(errors.InputError, match="by --log-probabilities"):
        loading.load_classifier(path)
    loaded = loading.load_classifier(path, log_probabilities=True)
    loaded.save(tmp_path / "again.keras")
    again = loading.load_classifier(tmp_path / "again.keras")
    images = np.zeros((2, 8, 8, 3), "float32")
    images[:, 0, 0, 0] = (10, 250)
    logits = np.array([[-2.0, 3, 0], [-50, 75, 0]])
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # The first of the last is no normal float32: 2^-126 stands for it.
    assert expected[1, 0] < -126 * np.log(2)
    expected[1, 0] = -126 * np.log(2)
    for classifier in (loaded, again):
        np.testing.assert_allclose(classifier(images), expected, atol=1e-4)
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    with pytest.raises(errors.InputError, match="Leave the option out"):
        loading.load_classifier(path, log_probabilities=True)


@pytest.mark.parametrize("end", [None, "sigmoid"])
def test_a_single_output_is_two_logits(tmp_path, end):
    dense = layers.Dense(1, activation=end)
    path = save(tmp_path, layers.Rescaling(1 / 255), layers.Flatten(), dense)
    loaded = loading.load_classifier(path)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    logit = images.reshape(4, -1) / 255 @ dense.kernel.numpy()
    expected = np.concatenate([-logit / 2, logit / 2], axis=1)
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-3, atol=1e-4)
    # The probability of the second class is the sigmoid's.
    np.testing.assert_allclose(
        softmax(expected)[:, 1:], sigmoid(logit), rtol=1e-6
    )


def test_sigmoids_of_a_saved_model_are_no_logits(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    logits = layers.Dense(4)(layers.Flatten()(inputs / 2550))
    outputs = layers.Activation("sigmoid")(logits)
    keras.Model(inputs, outputs).export(tmp_path / "model", verbose=False)
    with pytest.raises(errors.InputError, match="each of a sigmoid"):
        loading.load_classifier(tmp_path / "model")
    loaded = loading.load_classifier(tmp_path / "model", log_probabilities=True)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    np.testing.assert_allclose(
        loaded(images), keras.Model(inputs, logits)(images), atol=1e-4
    )
    # What a run keeps is loaded without the option.
    loaded.save(tmp_path / "again.keras")
    loading.load_classifier(tmp_path / "again.keras")
    # Outputs between 0 and 1 without a sigmoid are logits like any other.
    squashed = keras.Model(inputs, outputs * 1.0)
    squashed.export(tmp_path / "product", verbose=False)
    loading.load_classifier(tmp_path / "product")


@pytest.mark.parametrize(
    "last, message",
    [
        (lambda x: keras.ops.log(x - x - 1.0), "gives NaN or infinity"),
        (lambda x: x - x, "the same outputs"),
    ],
)
def test_outputs_that_say_nothing(tmp_path, last, message):
    inputs = keras.Input((8, 8, 3))
    outputs = last(layers.Dense(3)(layers.Flatten()(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "classifier.keras")
    with pytest.raises(errors.InputError, match=message):
        loading.load_classifier(tmp_path / "classifier.keras")


def test_a_gradient_that_does_not_reach_the_images(tmp_path):
    class Comparison(layers.Layer):
        def call(self, images):
            return keras.ops.cast(images > 99, "float32")

    model = keras.Sequential(
        [keras.Input((8, 8, 3)), Comparison(), layers.Flatten()]
    )
    with pytest.raises(errors.InputError, match="Received: the-name, which"):
        loading.check_gradient(model, "the-name")
    loading.check_gradient(small.build_classifier(8, 2, 1), "own")


def test_class_names(tmp_path):
    lines = tmp_path / "names.txt"
    lines.write_text("tench\n great white shark\n\n")
    names = ["tench", "great white shark"]
    assert loading.read_class_names(lines, 2) == names
    index = tmp_path / "imagenet_class_index.json"
    index.write_text(
        json.dumps({"1": ["n01484850", names[1]], "0": ["n01440764", "tench"]})
    )
    assert loading.read_class_names(index, 2) == names
    # As Windows writes them.
    for path in (lines, index):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert loading.read_class_names(path, 2) == names
    with pytest.raises(
        errors.InputError, match=r"Expected 3 class names.*names.txt with 2\."
    ):
        loading.read_class_names(lines, 3)
    index.write_text(json.dumps({"0": "tench"}))
    with pytest.raises(errors.InputError, match="of another form"):
        loading.read_class_names(index, 1)
    with pytest.raises(errors.InputError, match="No such file"):
        loading.read_class_names(tmp_path / "absent.txt", 1)
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.InputError, match="not UTF-8 text"):
        loading.read_class_names(lines, 1)


@pytest.mark.parametrize(
    "stack",
    [
        [layers.Conv2D(3, 1)],
        [layers.Conv2D(1, 8)],
    ],
)
def test_load_rejects_other_outputs(tmp_path, stack):
    path = save(tmp_path, *stack)
    with pytest.raises(errors.InputError, match="with outputs"):
        loading.load_classifier(path)


@pytest.mark.parametrize("structure", [list, dict])
def test_a_list_or_dict_of_one_output(tmp_path, structure):
    inputs = keras.Input((8, 8, 3), name="images")
    logits = layers.Dense(3)(layers.Flatten()(inputs))
    outputs = [logits] if structure is list else {"logits": logits}
    keras.Model({"images": inputs}, outputs).save(tmp_path / "one.keras")
    loaded = loading.load_classifier(tmp_path / "one.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(
        loaded(images), keras.Model(inputs, logits)(images), rtol=1e-4
    )


def two_outputs(as_dict):
    inputs = keras.Input((8, 8, 3), name="images")
    features = layers.Flatten()(inputs)
    outputs = {
        name: layers.Dense(units, name=name)(features)
        for name, units in (("kinds", 3), ("hues", 4))
    }
    outputs = outputs if as_dict else list(outputs.values())
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("as_dict", [False, True])
def test_output_names_one_of_several(tmp_path, as_dict):
    model = two_outputs(as_dict)
    path = tmp_path / "classifier.keras"
    model.save(path)
    loaded = loading.load_classifier(path, output="hues")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    expected = model(images)["hues" if as_dict else 1]
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-5)
    for output, received in ((None, "no --output"), ("size", "--output size")):
        with pytest.raises(
            errors.InputError,
            match=f"classifier.keras: .*(kinds|hues).*Received: {received}",
        ):
            loading.load_classifier(path, output=output)
    with pytest.raises(errors.InputError, match="--output to name"):
        loading.load_classifier(
            save(tmp_path, layers.Flatten(), layers.Dense(3)), output="size"
        )


def test_output_names_one_of_a_network_in_the_network(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((192,))
    heads = [
        layers.Dense(units, "softmax", name=name)(inputs)
        for name, units in (("kinds", 3), ("hues", 4))
    ]
    inner = keras.Model(inputs, heads)
    images = keras.Input((8, 8, 3))
    scaled = layers.Rescaling(1 / 255)(layers.Flatten()(images))
    model = keras.Model(images, inner(scaled))
    path = tmp_path / "classifier.keras"
    model.save(path)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    for index, expected in enumerate(model(images)):
        loaded = loading.load_classifier(path, output=f"output_{index}")
        logits = np.asarray(loaded(images), "float64")
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-6)
        assert np.abs(np.sum(np.exp(logits), -1) - 1).min() > 1e-3


def test_a_kept_classifier_is_not_stripped_again(tmp_path):
    path = save(
        tmp_path,
        layers.Rescaling(1 / 255),
        layers.Flatten(),
        layers.Dense(3, "sigmoid"),
        layers.Softmax(),
    )
    loaded = loading.load_classifier(path)
    loaded.save(tmp_path / "kept.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    kept = loading.load_kept(tmp_path / "kept.keras")
    np.testing.assert_allclose(kept(images), loaded(images), rtol=1e-6)
    assert not kept.trainable


def test_features_are_the_input_of_the_last_layer(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    features_of = features_lib.load_features(path)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(
        features_of(images.astype("float32")), images.reshape(2, -1), rtol=1e-5
    )
    # Of any size.
    assert features_of(np.zeros((1, 20, 20, 3), "float32")).shape == (1, 192)
    path = save(tmp_path, layers.Dense(3), layers.GlobalAveragePooling2D())
    with pytest.raises(errors.InputError, match="takes vectors"):
        features_lib.load_features(path)


def test_a_classifier_that_is_not_square_does_not_train():
    """The resize before it would have its dropout drop (Keras 3)."""
    network = keras.Sequential(
        [
            keras.Input((8, 12, 3)),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    classifier = loading.load_classifier(network)
    images = np.random.default_rng(0).uniform(0, 255, (4, 12, 12, 3))
    logits = np.array(classifier(images))
    np.testing.assert_array_equal(logits, classifier(images, training=False))
    assert np.ptp(logits) > 1


@pytest.mark.parametrize(
    "load", [features_lib.load_features, features_lib.load_perceptual]
)
@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 1), (8, 6, 3)])
def test_features_are_of_square_images_of_one_size(tmp_path, load, shape):
    inputs = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    path = tmp_path / "network.keras"
    keras.Model(inputs, layers.Dense(3)(x)).save(path)
    with pytest.raises(errors.InputError, match="network.keras, of inputs"):
        load(path)


def test_features_of_an_application(monkeypatch):
    load = applications.load
    monkeypatch.setattr(
        applications,
        "load",
        lambda name, weights, **options: load(name, "none", **options),
    )
    resize = features_lib.pixels.resize
    sizes = []

    def observe(images, size):
        sizes.append(size)
        return resize(images, size)

    monkeypatch.setattr(features_lib.pixels, "resize", observe)
    features_of = features_lib.load_features("keras.applications:MobileNetV2")
    assert features_of(np.zeros((2, 32, 32, 3), "float32")).shape == (2, 1280)
    features_of = features_lib.load_features("keras.applications:InceptionV3")
    assert features_of(np.zeros((2, 32, 32, 3), "float32")).shape == (2, 2048)
    # What their weights were trained at.
    assert sizes == [224, 299]


@pytest.mark.parametrize("maps", ["pool", "flatten"])
@pytest.mark.parametrize("nested", [False, True])
def test_features_are_those_of_the_layer(tmp_path, maps, nested):
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, name="maps"),
            layers.Flatten(),
            layers.Dense(4, name="logits"),
        ]
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    kernel, bias = inner.get_layer("maps").get_weights()
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
    expected = np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias
    expected = (
        expected.mean(axis=(1, 2))
        if maps == "pool"
        else expected.reshape(2, -1)
    )
    stack = [inner, layers.Softmax()] if nested else inner.layers
    loaded = loading.load_classifier(save(tmp_path, *stack))
    model = features_lib.add_features(loaded, "maps", maps)
    logits, features = model(images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(logits, inner(images), rtol=1e-4, atol=1e-3)
    assert model.trainable_variables == []
    # One network with one set of weights, not two.
    assert len(model.weights) == len(inner.weights)


@pytest.mark.parametrize("maps", ["pool", "flatten"])
def test_features_are_as_precise_in_a_mixed_precision_run(maps):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, name="maps")(inputs)
    classifier = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    expected = features_lib.add_features(classifier, "maps", maps)(images)[1]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = features_lib.add_features(classifier, "maps", maps)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(model(images)[1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name, maps, message",
    [
        (
            "conv",
            "pool",
            "flatten, dense. Received: conv. Closest: convolution.",
        ),
        (
            "tokens",
            "pool",
            r"Received: tokens, whose output is \(None, 36, 1\)",
        ),
        ("convolution", "flatten", "at most 30 features. Received: 36 of conv"),
    ],
)
def test_layers_that_cannot_be_inverted(monkeypatch, name, maps, message):
    monkeypatch.setattr(features_lib, "MOST_FEATURES", 30)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(1, 3, name="convolution"),
            layers.Reshape((36, 1), name="tokens"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, name="dense"),
        ]
    )
    with pytest.raises(errors.InputError, match=message) as raised:
        features_lib.add_features(model, name, maps)
    assert "\n" not in str(raised.value)


def test_perceptual_distance_against_numpy(tmp_path):
    keras.utils.set_random_seed(0)
    """Two convolutions, of which the last at each resolution counts."""
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(8, 1, activation="relu"),
            layers.Conv2D(8, 1, activation="relu", name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 1, name="second"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    path = save(tmp_path, inner, shape=(4, 4, 3))
    distance = features_lib.load_perceptual(path)
    one, other = np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 4, 3))

    def maps(images):
        zero, first, second = (
            layer.get_weights()
            for layer in inner.layers
            if isinstance(layer, layers.Conv2D)
        )
        x = np.maximum(images @ zero[0][0, 0] + zero[1], 0)
        x = np.maximum(x @ first[0][0, 0] + first[1], 0)
        pooled = x.reshape(5, 2, 2, 2, 2, 8).max(axis=(2, 4))
        y = pooled @ second[0][0, 0] + second[1]
        return [
            features
            / np.maximum(np.linalg.norm(features, axis=-1), 1e-10)[..., None]
            for features in (x, y)
        ]

    expected = np.mean(
        [
            np.sum((a - b) ** 2, axis=-1).mean(axis=(1, 2))
            for a, b in zip(maps(one), maps(other), strict=True)
        ],
        axis=0,
    )
    assert expected.max() > 1e-3
    np.testing.assert_allclose(
        distance(one, other), expected, rtol=1e-3, atol=1e-9
    )
    np.testing.assert_array_equal(distance(one, one), np.zeros(5))
    # Of another size, they are brought to the network's.
    assert distance(np.zeros((1, 9, 9, 3)), np.zeros((1, 9, 9, 3))) == 0


def test_perceptual_distance_of_a_network_inside_another(tmp_path):
    keras.utils.set_random_seed(0)
    # One of images of any size does not know what its maps measure.
    network = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(8, 1, name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 1, name="second"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    inputs = keras.Input((4, 4, 3))
    flat = inputs
    for layer in network.layers:
        flat = layer(flat)
    images = np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 4, 3))
    distances = []
    for name, outputs in (("flat", flat), ("nested", network(inputs))):
        keras.Model(inputs, outputs).save(tmp_path / f"{name}.keras")
        distance = features_lib.load_perceptual(tmp_path / f"{name}.keras")
        distances.append(distance(*images))
    assert distances[0].min() > 0
    np.testing.assert_allclose(*distances, rtol=1e-4)


def test_perceptual_distance_needs_maps(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    with pytest.raises(errors.InputError, match="which has none"):
        features_lib.load_perceptual(path)


def test_an_application_of_another_size_keeps_its_weights(tmp_path):
    keras.utils.set_random_seed(1)
    full = keras.applications.MobileNet(weights=None)
    full.save_weights(tmp_path / "full.weights.h5")
    loaded = loading.load_classifier(
        "keras.applications:MobileNet",
        tmp_path / "full.weights.h5",
        size=64,
    )
    assert loaded.input_shape == (None, 64, 64, 3)
    for one, other in zip(full.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_size_that_an_application_cannot_have():
    with pytest.raises(
        errors.InputError, match="--classifier-size 8: Input size"
    ):
        loading.load_classifier("keras.applications:MobileNet", "none", size=8)


def images_of_noise():
    return np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3))


def small_stack(end):
    """Layers with the names that Keras gives by default in a new process."""
    keras.utils.clear_session()
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, name="maps")(x)
    x = layers.Activation("relu")(x)
    x = layers.Concatenate()([x, -x])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, end(x))


def as_in_a_new_process(model, path):
    model.save(path)
    keras.utils.clear_session()
    return keras.models.load_model(path)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("units", [1, 3])
def test_layers_may_be_called_as_what_is_put_beside_them(
    precision, tmp_path, policy, units
):
    precision(policy)
    end = "sigmoid" if units == 1 else None
    model = small_stack(layers.Dense(units, activation=end))
    precision("float32")
    saved = as_in_a_new_process(model, tmp_path / "classifier.keras")
    classifier = loading.load_classifier(tmp_path / "classifier.keras")
    expected, found = (
        saved(images_of_noise()),
        np.array(classifier(images_of_noise())),
    )
    if units == 1:
        found = sigmoid(found[:, 1:] - found[:, :1])
    np.testing.assert_allclose(found, np.float32(expected), atol=1e-2)
    for layer, width in (("maps", 4), ("global_average_pooling2d", 8)):
        both = features_lib.add_features(classifier, layer, "pool")
        assert both.outputs[1].shape == (None, width)
    flat = features_lib.add_features(classifier, "maps", "flatten")
    assert flat.outputs[1].shape == (None, 144)


def test_operations_may_be_called_as_those_of_logarithms(tmp_path):
    ops = keras.ops
    model = small_stack(
        lambda x: ops.exp(ops.log(ops.softmax(ops.cast(x, "float32"))))
    )
    saved = as_in_a_new_process(model, tmp_path / "classifier.keras")
    classifier = loading.load_classifier(
        tmp_path / "classifier.keras", log_probabilities=True
    )
    np.testing.assert_allclose(
        np.exp(classifier(images_of_noise())),
        saved(images_of_noise()),
        atol=1e-6,
    )


def test_an_encoder_and_a_head_without_names(tmp_path):
    keras.utils.clear_session()
    parts = []
    for shape, layer in (
        ((8, 8, 3), layers.GlobalAveragePooling2D()),
        ((3,), layers.Dense(4, activation="softmax")),
    ):
        inputs = keras.Input(shape)
        parts.append(keras.Model(inputs, layer(inputs)))
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, parts[1](parts[0](inputs)))
    saved = as_in_a_new_process(model, tmp_path / "classifier.keras")
    classifier = loading.load_classifier(tmp_path / "classifier.keras")
    images = images_of_noise() / 255
    np.testing.assert_allclose(
        softmax(np.array(classifier(images))), saved(images), atol=1e-5
    )


def test_scalings_from_python(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    one = loading.load_classifier(path, input_mean=0.5, input_std=np.array(2.0))
    other = loading.load_classifier(path, input_mean=(0.5,), input_std=[2.0])
    np.testing.assert_array_equal(
        one(images_of_noise()), other(images_of_noise())
    )
    for wrong in (1, (0, 1, 2)):
        with pytest.raises(errors.InputError, match="two numbers"):
            loading.load_classifier(path, input_range=wrong)


@pytest.mark.parametrize("name", ["images", "rescaling", "concatenate"])
def test_a_classifier_may_be_called_as_what_is_put_beside_it(tmp_path, name):
    keras.utils.clear_session()
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(1, activation="sigmoid")(layers.Flatten()(inputs))
    keras.Model(inputs, x, name=name).save(tmp_path / "classifier.keras")
    path = tmp_path / "classifier.keras"
    for input_range in (None, (0, 1)):
        keras.utils.clear_session()
        classifier = loading.load_classifier(path, input_range=input_range)
        assert classifier.output_shape == (None, 2)


def test_a_head_may_be_used_twice():
    keras.utils.set_random_seed(0)
    shared = keras.Input((4,))
    head = keras.Model(
        shared, layers.Dense(4, activation="softmax")(shared), name="head"
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, head(head(layers.Dense(4)(x))))
    classifier = loading.load_classifier(model)
    images = images_of_noise()
    np.testing.assert_allclose(
        softmax(np.array(classifier(images))), model(images), atol=1e-5
    )
