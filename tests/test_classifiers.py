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


def test_load_rejects_a_softmax_that_cannot_be_taken_off(tmp_path):
    def normalized(inputs):
        powers = keras.ops.exp(inputs)
        return powers / keras.ops.sum(powers, axis=-1, keepdims=True)

    inputs = keras.Input((8, 8, 3))
    outputs = normalized(layers.Dense(3)(layers.Flatten()(inputs)) * 1e-3)
    keras.Model(inputs, outputs).save(tmp_path / "classifier.keras")
    with pytest.raises(errors.InputError, match="are probabilities"):
        classifiers.load_classifier(tmp_path / "classifier.keras")


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
    ],
)
def test_load_takes_the_final_activation_off(tmp_path, end, activation):
    path = save(tmp_path, layers.Rescaling(1 / 255), layers.Flatten(), *end)
    logits_of = classifiers.load_classifier(path)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    expected = np.asarray(keras.models.load_model(path)(images))
    logits = np.asarray(logits_of(images), "float64")
    assert logits.min() < 0
    np.testing.assert_allclose(activation(logits), expected, atol=1e-6)
    # It can be saved and loaded like any other.
    logits_of.save(tmp_path / "again.keras")
    again = classifiers.load_classifier(tmp_path / "again.keras")
    np.testing.assert_allclose(again(images), logits, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ResNet50", "MobileNetV3Small", "EfficientNetB0"]
)
def test_applications_keep_their_preprocessing(tmp_path, name):
    keras.utils.set_random_seed(0)
    loaded = classifiers.load_classifier(f"keras.applications:{name}", "none")
    size = loaded.input_shape[1]
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2, size, size, 3)).astype("float32")
    logits = np.asarray(loaded(images), "float64")
    # The same weights in the application as Keras makes it.
    original = getattr(keras.applications, name)(weights=None)
    original.set_weights(loaded.get_weights())
    inputs = images
    if name == "ResNet50":
        # Blue, green, red, less ImageNet's means (its "caffe" mode).
        inputs = images[..., ::-1] - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(
        softmax(logits), np.asarray(original(inputs)), rtol=1e-4
    )


def test_applications_are_checked(tmp_path):
    with pytest.raises(errors.InputError, match="Near: ResNet50"):
        classifiers.load_classifier("keras.applications:Resnet50")
    with pytest.raises(errors.InputError, match="absent.h5, which does not"):
        classifiers.load_classifier(
            "keras.applications:MobileNetV2", str(tmp_path / "absent.h5")
        )
    (tmp_path / "no.weights.h5").write_bytes(b"no")
    with pytest.raises(errors.InputError, match="--classifier-weights none"):
        classifiers.load_classifier(
            "keras.applications:MobileNetV2", str(tmp_path / "no.weights.h5")
        )


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
    loaded = classifiers.load_classifier(path, output="hues")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    expected = model(images)["hues" if as_dict else 1]
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-5)
    for output, received in ((None, "no --output"), ("size", "--output size")):
        with pytest.raises(
            errors.InputError,
            match=f"classifier.keras: .*(kinds|hues).*Received: {received}",
        ):
            classifiers.load_classifier(path, output=output)
    with pytest.raises(errors.InputError, match="--output to name"):
        classifiers.load_classifier(
            save(tmp_path, layers.Flatten(), layers.Dense(3)), output="size"
        )


def test_features_are_the_input_of_the_last_layer(tmp_path):
    path = save(tmp_path, layers.Flatten(), layers.Dense(3))
    features_of = classifiers.load_features(path)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(
        features_of(images.astype("float32")), images.reshape(2, -1), rtol=1e-5
    )
    # Of any size.
    assert features_of(np.zeros((1, 20, 20, 3), "float32")).shape == (1, 192)
    path = save(tmp_path, layers.Dense(3), layers.GlobalAveragePooling2D())
    with pytest.raises(errors.InputError, match="takes vectors"):
        classifiers.load_features(path)


def test_features_of_an_application(monkeypatch):
    application = classifiers._application
    monkeypatch.setattr(
        classifiers,
        "_application",
        lambda name, weights, **options: application(name, "none", **options),
    )
    features_of = classifiers.load_features("keras.applications:MobileNetV2")
    assert features_of(np.zeros((2, 32, 32, 3), "float32")).shape == (2, 1280)
