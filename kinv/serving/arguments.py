"""What a pipeline is called with: checked, and made into arrays."""

import math
import numbers

import numpy as np

from kinv import errors, pixels


def center_squares(images):
    """The middle squares of images `(batch, height, width, 3)` in [0, 255].

    Raises:
        errors.InputError: if their shape or values are others.
    """
    # Neither copied nor cast here: a large batch may be a memory map of bytes.
    images = np.asanyarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise errors.InputError(
            "Expected images (batch, height, width, 3). "
            f"Received: shape {images.shape}."
        )
    low, high = (images.min(), images.max()) if len(images) else (0, 0)
    pixels.check_range(low, high)
    # As exports do themselves since they have one rule; older ones squeeze.
    return pixels.center_crop(images)


def given_or_drawn(noise, shape, seed):
    """Noise of a shape `(batch, samples, noise_dim)`, or drawn by the seed.

    Raises:
        errors.InputError: if both are given, or neither, or other noise.
    """
    if (noise is None) == (seed is None):
        raise errors.InputError(
            "Expected either noise or a seed. Received: "
            f"{'neither' if noise is None else 'both'}."
        )
    if noise is None:
        for name, value in (("samples", shape[1]), ("seed", seed)):
            if not isinstance(value, numbers.Integral) or value < 0:
                raise errors.InputError(
                    f"Expected {name} to be an integer, 0 or more. Received: "
                    f"{name}={value!r}."
                )
        return np.random.default_rng(seed).standard_normal(shape, "float32")
    batch, _, noise_dim = shape
    return check_array(noise, (batch, None, noise_dim), "noise")


def check_array(array, shape, name):
    """A float32 array of a shape, in which None stands for any size.

    Raises:
        errors.InputError: if it has another, or holds NaN or infinity.
    """
    array = np.asarray(array, "float32")
    wrong = array.ndim != len(shape) or any(
        expected not in (None, size)
        for expected, size in zip(shape, array.shape, strict=True)
    )
    if wrong:
        raise errors.InputError(
            f"Expected {name} of shape {_written(shape)}. "
            f"Received: shape {array.shape}."
        )
    _check_finite(array, name)
    return array


def broadcast(array, shape, name):
    """A number, or an array whose sizes may be 1, as float32 of a shape.

    Raises:
        errors.InputError: if it cannot be, or holds NaN or infinity.
    """
    array = np.asarray(array, "float32")
    try:
        if array.ndim not in (0, len(shape)):
            raise ValueError
        values = np.broadcast_to(array, shape)
    except ValueError:
        raise errors.InputError(
            f"Expected {name} to be a number or of shape {_written(shape)}, "
            f"each of which may be 1. Received: shape {array.shape}."
        ) from None
    _check_finite(array, name)
    return values


def _check_finite(array, name):
    if not math.isfinite(array.sum(dtype="float64")):
        raise errors.InputError(
            f"Expected finite values of {name}. Received: NaN or infinity."
        )


def _written(shape):
    sizes = ("any" if size is None else str(size) for size in shape)
    return f"({', '.join(sizes)})"
