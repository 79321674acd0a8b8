"""What is done to images as arrays: range, 8 bits, size, brightness."""

import itertools
import math
import warnings

import numpy as np
import PIL.Image

from kinv import errors

# What pixels in [0, 255] may be: reconstructions of reconstructions overshoot
# by a rounding.
LOWEST, HIGHEST = -0.01, 255.01
# Of red, green and blue: Rec. 601, as of JPEG and Pillow.
LUMINANCE = (0.299, 0.587, 0.114)
# Name of the layer of a grey classifier that is given it.
LUMINANCE_LAYER = "kinv_luminance"


def check_range(low, high):
    """Refuses pixels outside [0, 255], and warns of those in [0, 1].

    Args:
        low: the least of them.
        high: the largest.

    Raises:
        errors.InputError: also of NaN.
    """
    if not (low >= LOWEST and high <= HIGHEST):
        raise errors.InputError(
            "Expected images with values in [0, 255]. "
            f"Received: values from {low} to {high}."
        )
    if 0 < high <= 1:
        warnings.warn(
            f"Expected images with values in [0, 255]. Received: values from "
            f"{low} to {high}, which are all but black. Multiply those in "
            "[0, 1] by 255.",
            # Of whoever calls a method that checks its arguments by a function.
            stacklevel=4,
        )


def to_uint8(images):
    """Rounds images in [0, 255] to 8 bits; what lies outside is clipped."""
    return np.clip(np.rint(images), 0, 255).astype("uint8")


def center_crop(images):
    """Largest centred square of images `(..., height, width, channels)`."""
    sides = images.shape[-3:-1]
    size = min(sides)
    top, left = ((side - size) // 2 for side in sides)
    return images[..., top : top + size, left : left + size, :]


def resize_square(image, size):
    """Resizes a square image for the eye.

    Args:
        image: square image `(size, size, 3)` in [0, 255].
        size: new height and width. Pixels stay sharp when they are enlarged
            and are averaged when there are too many.

    Returns:
        uint8 `(size, size, 3)`.
    """
    repeats = math.ceil(size / image.shape[0])
    image = to_uint8(image).repeat(repeats, axis=0).repeat(repeats, axis=1)
    if image.shape[:2] == (size, size):
        return image
    resampling = PIL.Image.Resampling.BOX
    return np.asarray(
        PIL.Image.fromarray(image).resize((size, size), resampling)
    )


def resize(images, size):
    """Antialiased resize of a batch of square images.

    Args:
        images: `(batch, height, width, 3)` in [0, 255].
        size: new height and width.

    Returns:
        float32 `(batch, size, size, 3)`; the same values where it fits.
    """
    if images.shape[1:3] == (size, size):
        return np.asarray(images, "float32")
    # Here, since reading files and drawing need no TensorFlow.
    import tensorflow as tf

    return tf.image.resize(images, (size, size), antialias=True).numpy()


def resize_weights(old_size, new_size):
    """The antialiased resize of a line of pixels, as a matrix.

    Triangles around the places of the new pixels, as wide as these, or as the
    old ones where these are wider.

    Returns:
        float32 `(new_size, old_size)`, whose rows sum to 1.
    """
    scale = old_size / new_size
    centers = (np.arange(new_size) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(old_size) - centers[:, None])
    weights = np.maximum(0.0, 1.0 - distances / max(scale, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def adjust_brightness(images, factor):
    """Multiplies pixel values, as `PIL.ImageEnhance.Brightness`.

    Args:
        images: `(..., height, width, 3)` in [0, 255].
        factor: 0 gives black, 1 the image. What exceeds 255 is clipped.
    """
    return np.clip(np.asarray(images, "float32") * factor, 0, 255)


def adjust_sharpness(images, factor):
    """Moves images away from their smoothed form, or towards it.

    As `PIL.ImageEnhance.Sharpness`, whose smoothing is a weighted mean of 3x3
    pixels that leaves the border as it is.

    Args:
        images: `(..., height, width, 3)` in [0, 255].
        factor: 0 gives the smoothed image, 1 the image, 2 a sharpened one.
    """
    images = np.asarray(images, "float32")
    height, width = images.shape[-3:-1]
    total = 4 * images[..., 1:-1, 1:-1, :]
    for top, left in itertools.product(range(3), range(3)):
        total = (
            total
            + images[..., top : height - 2 + top, left : width - 2 + left, :]
        )
    smooth = images.copy()
    smooth[..., 1:-1, 1:-1, :] = total / 13
    return np.clip(smooth + factor * (images - smooth), 0, 255)
