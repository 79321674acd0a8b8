import keras
import numpy as np
import pytest
from keras import layers

from kinv import classifiers, errors


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
    classifier = classifiers.build_classifier(8, 5, width=2)
    logits = classifier(np.zeros((3, 8, 8, 3), "float32"))
    assert logits.shape == (3, 5)
    assert logits.dtype == "float32"


@pytest.mark.parametrize(
    "image_size, side", [(8, 4), (28, 4), (32, 4), (64, 4), (100, 4)]
)
def test_blocks_halve_the_image_to_four_pixels(image_size, side):
    classifier = classifiers.build_classifier(image_size, 2, width=1)
    pooling = next(
        layer
        for layer in classifier.layers
        if isinstance(layer, layers.GlobalAveragePooling2D)
    )
    assert pooling.input.shape[1:3] == (side, side)


def test_stock_layers_only():
    classifier = classifiers.build_classifier(8, 2, width=1)
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
        classifiers.build_classifier(*arguments)


def test_load_returns_the_same_frozen_network(tmp_path):
    classifier = classifiers.build_classifier(8, 3, width=2)
    classifier.save(tmp_path / "classifier.keras")
    loaded = classifiers.load_classifier(tmp_path / "classifier.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)
    assert loaded.trainable_variables == []
    assert loaded.input_shape[1] == 8


def test_load_casts_half_precision_logits(precision, tmp_path):
    precision("mixed_bfloat16")
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    loaded = classifiers.load_classifier(path)
    assert loaded(np.zeros((1, 8, 8, 3), "float32")).dtype == "float32"


def test_load_accepts_a_nested_network(tmp_path):
    inner = classifiers.build_classifier(8, 3, width=1)
    loaded = classifiers.load_classifier(save(tmp_path, inner))
    assert loaded.output_shape == (None, 3)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(errors.InputError, match="absent.keras, which does not"):
        classifiers.load_classifier(tmp_path / "absent.keras")


def test_load_names_a_directory(tmp_path):
    with pytest.raises(errors.InputError, match="a directory"):
        classifiers.load_classifier(tmp_path)


@pytest.mark.parametrize("name", ["broken.keras", "broken.h5", "image.png"])
def test_load_names_an_unreadable_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(errors.InputError, match=name):
        classifiers.load_classifier(tmp_path / name)


def test_load_names_a_truncated_file(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(errors.InputError, match="Save the classifier again"):
        classifiers.load_classifier(path)


def test_load_rejects_hidden_softmax(tmp_path):
    def normalized(inputs):
        powers = keras.ops.exp(inputs)
        return powers / keras.ops.sum(powers, axis=-1, keepdims=True)

    inputs = keras.Input((8, 8, 3))
    outputs = normalized(layers.Dense(3)(layers.Flatten()(inputs)) * 1e-3)
    keras.Model(inputs, outputs).save(tmp_path / "classifier.keras")
    with pytest.raises(errors.InputError, match="ends in a softmax"):
        classifiers.load_classifier(tmp_path / "classifier.keras")


@pytest.mark.parametrize(
    "end, activation",
    [
        ([layers.Dense(3, activation="softmax")], "softmax"),
        ([layers.Dense(3), layers.Softmax()], "softmax"),
        ([layers.Dense(3), layers.Activation("sigmoid")], "sigmoid"),
        (
            [
                layers.Dense(3, activation="sigmoid"),
                layers.Activation("linear"),
            ],
            "sigmoid",
        ),
    ],
)
def test_load_rejects_squashed_outputs(tmp_path, end, activation):
    path = save(tmp_path, layers.Flatten(), *end)
    with pytest.raises(errors.InputError, match="without the final") as caught:
        classifiers.load_classifier(path)
    assert f"ends in a {activation}" in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (8, 6, 3), (None, None, 3), (192,)]
)
def test_load_rejects_other_inputs(tmp_path, shape):
    if len(shape) == 3:
        stack = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    else:
        stack = [layers.Dense(3)]
    path = save(tmp_path, *stack, shape=shape)
    with pytest.raises(errors.InputError, match="with inputs"):
        classifiers.load_classifier(path)


@pytest.mark.parametrize(
    "stack",
    [
        [layers.Conv2D(3, 1)],
        [layers.Flatten(), layers.Dense(1)],
    ],
)
def test_load_rejects_other_outputs(tmp_path, stack):
    path = save(tmp_path, *stack)
    with pytest.raises(errors.InputError, match="with outputs"):
        classifiers.load_classifier(path)


def test_load_rejects_two_outputs(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = layers.Flatten()(inputs)
    outputs = [layers.Dense(3)(features), layers.Dense(4)(features)]
    keras.Model(inputs, outputs).save(tmp_path / "classifier.keras")
    with pytest.raises(errors.InputError, match="one output"):
        classifiers.load_classifier(tmp_path / "classifier.keras")
