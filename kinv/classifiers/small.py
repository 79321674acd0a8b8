"""kinv's own small classifier."""

import keras
import numpy as np
from keras import layers

from kinv import errors


def build_classifier(image_size, num_classes, width, channels=3):
    """Builds a pre-activation residual network from stock Keras layers.

    One residual block per halving of the resolution, down to about 4 pixels;
    the width doubles with each, at most to eight times. The file it is saved
    to loads without kinv.

    Args:
        image_size: side of the images in pixels, at least 8.
        num_classes: number of logits, at least 2.
        width: channels of the first block, at least 1.
        channels: of the images: 3, or 1 for grey ones.

    Returns:
        A functional `keras.Model`: images `(batch, image_size, image_size,
        channels)` in [0, 255] to logits `(batch, num_classes)`, float32 under
        every dtype policy. What may be inverted in their place has names that
        do not depend on other networks: the sums `block1`, `block2`, ... of the
        residual blocks, and `pooled`, their last means.

    Raises:
        errors.InputError: if `image_size` or `num_classes` is too small.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks" (2016),
        figure 1b.
    """
    if image_size < 8:
        raise errors.InputError(
            "Expected an image size of at least 8 pixels. "
            f"Received: image_size={image_size}."
        )
    if num_classes < 2:
        raise errors.InputError(
            "Expected at least 2 classes to tell apart. "
            f"Received: num_classes={num_classes}."
        )
    inputs = keras.Input((image_size, image_size, channels), name="images")
    # In float32: bfloat16 holds pixel values above 128 to whole numbers only,
    # coarser than the steps of an attack.
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(inputs)
    x = _convolution(x, width, 3)
    num_blocks = max(1, round(np.log2(image_size / 4)))
    for block in range(num_blocks):
        x = _downsampling_block(
            x, width * min(2**block, 8), f"block{block + 1}"
        )
    x = _normalize_and_activate(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="classifier")


def _downsampling_block(x, channels, name):
    x = _normalize_and_activate(x)
    shortcut = layers.AveragePooling2D(2, padding="same")(x)
    shortcut = _convolution(shortcut, channels, 1)
    x = _convolution(x, channels, 3, strides=2)
    x = _convolution(_normalize_and_activate(x), channels, 3)
    return layers.Add(name=name)([shortcut, x])


def _normalize_and_activate(x):
    # Synchronised, so that a step on several replicas equals the step on one.
    # Group normalisation has no state to synchronise but takes 1.6 times as
    # long on CPU. At momentum 0.99 the averages that the attack and the
    # evaluation see would lag by a large part of a short run.
    x = layers.BatchNormalization(momentum=0.9, synchronized=True)(x)
    return layers.ReLU()(x)


def _convolution(x, channels, kernel_size, strides=1):
    return layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
