"""Against the published layout, written out here with TensorFlow alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import errors
from kinv.classifiers import loading, robust_resnet

SMALL = {"num_blocks": (2, 1, 2, 1), "width": 4, "num_classes": 5}


def published_shapes(num_blocks, width, num_classes, denoise):
    """Names and shapes of the arrays, from that code's variable scopes."""
    shapes = {}

    def convolution(name, size, channels_in, channels_out, norm=True):
        shapes[f"{name}/W"] = (size, size, channels_in, channels_out)
        for part in ("gamma", "beta", "mean/EMA", "variance/EMA"):
            if norm:
                shapes[f"{name}/bn/{part}"] = (channels_out,)

    convolution("conv0", 7, 3, width)
    channels = width
    for group, count in enumerate(num_blocks):
        inner, outer = width * 2**group, 4 * width * 2**group
        for block in range(count):
            scope = f"group{group}/block{block}"
            convolution(f"{scope}/conv1", 1, channels, inner)
            convolution(f"{scope}/conv2", 3, inner, inner)
            convolution(f"{scope}/conv3", 1, inner, outer)
            if channels != outer:
                convolution(f"{scope}/convshortcut", 1, channels, outer)
            channels = outer
        if denoise:
            scope = f"group{group}_denoise"
            half = outer // 2
            convolution(f"{scope}/embedding_theta", 1, outer, half, False)
            convolution(f"{scope}/embedding_phi", 1, outer, half, False)
            convolution(f"{scope}/conv", 1, outer, outer)
    shapes["linear/W"] = (channels, num_classes)
    shapes["linear/b"] = (num_classes,)
    return shapes


def random_arrays(denoise, **configuration):
    random = np.random.default_rng(0)
    arrays = {}
    shapes = published_shapes(**configuration, denoise=denoise)
    for name, shape in shapes.items():
        if name.endswith(("gamma", "variance/EMA")):
            value = random.uniform(0.5, 1.5, shape)
        elif name.endswith("/W"):
            value = random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = random.normal(size=shape) * 0.3
        arrays[f"{name}:0"] = value.astype("float32")
    return arrays


def published_forward(arrays, images, num_blocks):
    """That code's function, in float64 and its own layout of channels."""
    arrays = {
        name.removesuffix(":0"): value.astype("float64")
        for name, value in arrays.items()
    }

    def convolution(x, name, strides=1, norm=True):
        x = tf.nn.conv2d(x, arrays[f"{name}/W"], strides, "SAME")
        if norm:
            gamma, beta, mean, variance = (
                arrays[f"{name}/bn/{part}"]
                for part in ("gamma", "beta", "mean/EMA", "variance/EMA")
            )
            x = gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta
        return x

    def denoise(x, name):
        theta = convolution(x, f"{name}/embedding_theta", norm=False)
        phi = convolution(x, f"{name}/embedding_phi", norm=False)
        scores = tf.einsum("nabi,ncdi->nabcd", theta, phi)
        scores /= np.sqrt(theta.shape[-1])
        weights = tf.exp(scores)
        weights /= tf.reduce_sum(weights, axis=(3, 4), keepdims=True)
        means = tf.einsum("nabcd,ncdi->nabi", weights, x)
        return x + convolution(means, f"{name}/conv")

    blue_green_red = images[..., ::-1].astype("float64")
    x = tf.constant(blue_green_red * (2.0 / 255) - 1.0)
    x = tf.nn.relu(convolution(x, "conv0", 2))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for group, count in enumerate(num_blocks):
        for block in range(count):
            scope = f"group{group}/block{block}"
            strides = 2 if group > 0 and block == 0 else 1
            y = tf.nn.relu(convolution(x, f"{scope}/conv1"))
            y = tf.nn.relu(convolution(y, f"{scope}/conv2", strides))
            y = convolution(y, f"{scope}/conv3")
            if f"{scope}/convshortcut/W" in arrays:
                x = convolution(x, f"{scope}/convshortcut", strides)
            x = tf.nn.relu(x + y)
        if f"group{group}_denoise/conv/W" in arrays:
            x = denoise(x, f"group{group}_denoise")
    x = tf.reduce_mean(x, axis=(1, 2))
    return x @ arrays["linear/W"] + arrays["linear/b"]


# 33: where the padding of strided convolutions is even, at 48 it is not.
@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("image_size", [48, 33])
def test_logits_are_those_of_the_published_code(tmp_path, denoise, image_size):
    arrays = random_arrays(denoise, **SMALL)
    np.savez(tmp_path / "small.npz", **arrays)
    model = robust_resnet.load(tmp_path / "small.npz", image_size, **SMALL)
    random = np.random.default_rng(1)
    images = random.uniform(0, 255, (3, image_size, image_size, 3))
    images = images.astype("float32")
    expected = published_forward(arrays, images, SMALL["num_blocks"])
    logits = model(images, training=False)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # Stock layers: the file loads without this module.
    modules = {type(layer).__module__ for layer in model.layers}
    assert all(module.startswith("keras.") for module in modules)
    model.save(tmp_path / "classifier.keras")
    again = keras.models.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(again(images), logits)


@pytest.mark.parametrize("denoise", [False, True])
def test_the_default_is_resnet_152(denoise):
    model = robust_resnet.build(64, denoise)
    shapes = published_shapes((3, 8, 36, 3), 64, 1000, denoise)
    found = {
        name: tuple(variable.shape)
        for name, variable in robust_resnet._variables(model).items()
    }
    assert found == shapes
    # As torchvision's resnet152 has, which counts the same parameters.
    trainable = 60_192_808
    if denoise:
        # Per group, of C channels: two embeddings to C / 2, a convolution, a
        # norm.
        trainable += sum(2 * c * c + 2 * c for c in (256, 512, 1024, 2048))
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == trainable


def wrong_arrays(change):
    arrays = random_arrays(False, **SMALL)
    if change == "missing":
        return {
            name: value
            for name, value in arrays.items()
            if not name.startswith("group2")
        }
    if change == "unknown":
        return {**arrays, "group0/block0/non_local/W:0": np.zeros(3)}
    return {**arrays, "linear/W:0": np.zeros((128, 7))}


@pytest.mark.parametrize(
    "change, message",
    [
        # Two blocks of three convolutions and a shortcut, of five arrays each.
        (
            "missing",
            r"35 missing \(group2/block0/conv1/W, group2/block0/conv1/bn/gamm"
            r"a, group2/block0/conv1/bn/beta, \.\.\.\)\. Download",
        ),
        (
            "unknown",
            r"arrays 1 unknown \(group0/block0/non_local/W\)\. Download",
        ),
        (
            "shape",
            r"arrays 1 of another shape \(linear/W \(128, 7\) instead of "
            r"\(128, 5\)\)\. Download",
        ),
    ],
)
def test_wrong_arrays_are_listed(tmp_path, change, message):
    np.savez(tmp_path / "wrong.npz", **wrong_arrays(change))
    with pytest.raises(errors.InputError, match=message) as raised:
        robust_resnet.load(tmp_path / "wrong.npz", 32, **SMALL)
    assert "\n" not in str(raised.value)


def test_files_that_are_none_of_the_two(tmp_path):
    with pytest.raises(errors.InputError, match="absent.npz, which does not"):
        loading.load_classifier(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes(b"not arrays")
    with pytest.raises(errors.InputError, match="Download it again"):
        loading.load_classifier(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(errors.InputError, match=r"1 unknown \(weights"):
        robust_resnet.load(tmp_path / "other.npz", 32, **SMALL)
