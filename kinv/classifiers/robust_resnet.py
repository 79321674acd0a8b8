"""The published adversarially trained ResNet-152s, from their `.npz` files."""

import pathlib

import keras
import numpy as np
from keras import layers

from kinv import errors
from kinv.data import labels

# The published names of what Keras calls a layer's variables.
ARRAYS = {
    "kernel": "W",
    "bias": "b",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "mean/EMA",
    "moving_variance": "variance/EMA",
}


def build(
    image_size,
    denoise,
    num_blocks=(3, 8, 36, 3),
    width=64,
    num_classes=1000,
):
    """Builds the network from stock Keras layers, its weights random.

    A ResNet of bottleneck blocks, stride 2 on their 3x3 convolutions, ReLU
    after the sum. Layers are named as the published arrays, with dots for
    slashes.

    Args:
        image_size: side of the images in pixels. Trained at 224.
        denoise: whether a denoising block follows each of the four groups of
            residual blocks: every position gets the mean over all positions,
            weighted by a softmax of embedded products (the Gaussian form),
            through a 1x1 convolution, added.
        num_blocks: residual blocks per group. The published: ResNet-152.
        width: channels of the first convolution. The published: 64.
        num_classes: number of logits. The published: ImageNet's 1000.

    Returns:
        A functional `keras.Model`: images `(batch, image_size, image_size, 3)`
        in [0, 255] to logits `(batch, num_classes)`, float32.

    Reference:
        Xie et al., "Feature Denoising for Improving Adversarial Robustness"
        (2019), sections 4 and 6, figure 4; Goyal et al., "Accurate, Large
        Minibatch SGD" (2017), section 5.1, for the place of the strides.
    """
    inputs = keras.Input((image_size, image_size, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(inputs)
    x = _convolution(x, width, 7, "conv0", strides=2, relu=True)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool0")(x)
    for group, count in enumerate(num_blocks):
        for block in range(count):
            strides = 2 if group and not block else 1
            name = f"group{group}.block{block}"
            x = _bottleneck(x, width * 2**group, strides, name)
        if denoise:
            x = _denoise(x, f"group{group}_denoise")
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="linear")(x)
    return keras.Model(inputs, logits, name="robust_resnet")


def _convolution(x, channels, kernel_size, name, strides=1, relu=False):
    x = layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        name=name,
    )(x)
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}.bn")(x)
    return layers.ReLU()(x) if relu else x


def _bottleneck(x, channels, strides, name):
    shortcut = x
    if x.shape[-1] != 4 * channels:
        shortcut = _convolution(
            x, 4 * channels, 1, f"{name}.convshortcut", strides
        )
    x = _convolution(x, channels, 1, f"{name}.conv1", relu=True)
    x = _convolution(x, channels, 3, f"{name}.conv2", strides, relu=True)
    x = _convolution(x, 4 * channels, 1, f"{name}.conv3")
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _denoise(x, name):
    _, height, width, channels = x.shape
    embedded = channels // 2
    query, key = (
        layers.Conv2D(embedded, 1, use_bias=False, name=f"{name}.{part}")(x)
        for part in ("embedding_theta", "embedding_phi")
    )
    query = layers.Rescaling(embedded**-0.5)(query)
    query, key, value = (
        layers.Reshape((height * width, tensor.shape[-1]))(tensor)
        for tensor in (query, key, x)
    )
    # In float32: a sum over thousands of weights.
    means = layers.Attention(dtype="float32")([query, value, key])
    means = layers.Reshape((height, width, channels))(means)
    return layers.Add()([x, _convolution(means, channels, 1, f"{name}.conv")])


def load(path, image_size, **configuration):
    """Builds the network whose weights a published file holds.

    The names of its arrays tell whether it has denoising blocks.

    Args:
        path: `R152.npz` or `R152-Denoise.npz` of
            facebookresearch/ImageNet-Adversarial-Training, which the user
            downloads. Their licence is CC-BY-NC 4.0.
        image_size: side of the images in pixels.
        **configuration: of `build`, for other networks of that code.

    Returns:
        See `build`.

    Raises:
        errors.InputError: if the file cannot be read, or if arrays are
            missing, too many or of another shape.
    """
    found = _read(pathlib.Path(path))
    denoise = any(name.startswith("group0_denoise/") for name in found)
    model = build(image_size, denoise, **configuration)
    variables = _variables(model)
    problems = {
        "missing": [name for name in variables if name not in found],
        "unknown": [name for name in found if name not in variables],
        "of another shape": [
            f"{name} {found[name].shape} instead of {tuple(variable.shape)}"
            for name, variable in variables.items()
            if name in found and found[name].shape != tuple(variable.shape)
        ],
    }
    if any(problems.values()):
        kind = "R152-Denoise.npz" if denoise else "R152.npz"
        reason = "; ".join(
            f"{len(names)} {problem} ({labels.some(names)})"
            for problem, names in problems.items()
            if names
        )
        raise errors.InputError(
            f"Expected the {len(variables)} arrays of {kind} as published by "
            f"facebookresearch/ImageNet-Adversarial-Training. Received: {path} "
            f"with arrays {reason}. Download one of the two files again."
        )
    # That code gives its network blue, green, red.
    found["conv0/W"] = found["conv0/W"][:, :, ::-1]
    for name, variable in variables.items():
        variable.assign(found[name])
    return model


def _read(path):
    """The arrays of an `.npz` file by name, TensorFlow's `:0` taken off."""
    if not path.is_file():
        raise errors.InputError(
            f"Expected a file of weights. Received: {path}, which does not "
            "exist. Download R152.npz or R152-Denoise.npz of "
            "facebookresearch/ImageNet-Adversarial-Training."
        )
    try:
        with np.load(path) as arrays:
            return {name.removesuffix(":0"): arrays[name] for name in arrays}
    # NumPy lets through whatever a damaged file makes zipfile, zlib or pickle
    # raise.
    except Exception as error:
        raise errors.InputError(
            f"Expected {path} to be an .npz file of arrays. Received: "
            f"{errors.reason(error)}. Download it again."
        ) from error


def _variables(model):
    """A model's variables by their published names."""
    return {
        f"{layer.name.replace('.', '/')}/{ARRAYS[variable.name]}": variable
        for layer in model.layers
        for variable in layer.weights
    }
