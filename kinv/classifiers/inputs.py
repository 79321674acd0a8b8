"""What a classifier is given: images in [0, 255], made into what it takes."""

from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from kinv import errors, pixels

# What pixel values are, outside of every network.
PIXELS = (0.0, 255.0)


class Layout(NamedTuple):
    """How the shape of a network's input is read as images.

    Attributes:
        height, width: in pixels, None where the network takes any.
        channels: 3, or 1 of a grey network.
        axis: where the channels are: -1, 1, or None of grey images without.
    """

    height: int | None
    width: int | None
    channels: int
    axis: int | None


def layout(shape):
    """The `Layout` of a shape `(batch, ...)`, or None if it is no image's."""
    if len(shape) == 3 and shape[1] and shape[1] == shape[2]:
        return Layout(shape[1], shape[2], 1, None)
    if len(shape) != 4:
        return None
    _, first, second, last = shape
    if last in (1, 3) or (last is None and first not in (1, 3)):
        return Layout(first, second, last or 3, -1)
    if first in (1, 3):
        return Layout(second, last, first, 1)
    return None


class Scaling(NamedTuple):
    """What a network takes pixel values as: `(x - mean) / std`, x of `range`.

    Attributes:
        range: what 0 and 255 become. None for 0 and 255, or, with a mean or
            standard deviation, 0 and 1, as in PyTorch.
        mean, std: one number, or one for each channel. None for 0 and 1.
    """

    range: tuple | None = None
    mean: tuple | None = None
    std: tuple | None = None

    def layer(self, channels, name):
        """The layer that does so, or None where nothing is to be done."""
        mean, std = (
            default if value is None else tuple(np.ravel(value).tolist())
            for value, default in ((self.mean, (0.0,)), (self.std, (1.0,)))
        )
        for option, values, positive in (
            ("mean", mean, ""),
            ("std", std, ", above 0"),
        ):
            if len(values) not in (1, channels) or (
                positive and min(values) <= 0
            ):
                raise errors.InputError(
                    f"Expected an input {option} of one number, or one for "
                    f"each of the {channels} channels of {name}{positive}. "
                    f"Received: {' '.join(map(str, values))}."
                )
        normalizes = self.mean is not None or self.std is not None
        low, high = (0.0, 1.0) if normalizes else PIXELS
        if self.range is not None:
            if np.shape(self.range) != (2,):
                raise errors.InputError(
                    "Expected an input range of two numbers, such as (0, 1). "
                    f"Received: {self.range!r}."
                )
            low, high = map(float, self.range)
        if self.mean is not None and not (
            low <= min(mean) <= max(mean) <= high
        ):
            raise errors.InputError(
                f"Expected an input mean from {low:g} to {high:g}, the range "
                f"of pixels. Received: {' '.join(map(str, mean))}. Of pixels "
                "in [0, 255], give the input range 0 255 as well."
            )
        if (low, high) == PIXELS and not normalizes:
            return None
        if not normalizes:
            return own_layer(layers.Rescaling, (high - low) / 255, low)
        count = max(len(mean), len(std))
        mean, std = (x * (count // len(x)) for x in (mean, std))
        return own_layer(
            layers.Rescaling,
            [(high - low) / 255 / s for s in std],
            [(low - m) / s for m, s in zip(mean, std, strict=True)],
        )


def own_layer(kind, *arguments, **options):
    """A layer that kinv puts beside a model, float32.

    Its name is kinv's own: the model may be called as Keras would call the
    layer, in every process alike.

    Args:
        kind: class of the layer.
        *arguments, **options: of its constructor.
    """
    options = {"name": f"kinv_{kind.__name__.lower()}", **options}
    return kind(*arguments, dtype="float32", **options)


def take_images(model, name, size, scaling):
    """The model from square RGB images to what it makes of them.

    What it takes otherwise is made of them: other values; the luminance, where
    it is grey; the square stretched to its height and width, where they differ;
    channels first.

    Args:
        model: `keras.Model` with one input of images.
        name: of the classifier, for messages.
        size: side of the images where it takes any, or None.
        scaling: `Scaling`.

    Returns:
        `keras.Model` of float images `(batch, side, side, 3)` in [0, 255],
        where side is the greater of height and width.

    Raises:
        errors.InputError: if it does not take images, or the size is another.
    """
    shapes = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    received = f"Received: {name} with inputs {shapes}."
    taken = layout(shapes[0]) if len(shapes) == 1 else None
    if taken is None:
        raise errors.InputError(
            "Expected a classifier that takes images, one input of shape "
            "(batch, height, width, channels), with 3 channels or 1, last "
            f"or first. {received} Wrap it in a keras.Model of such an input "
            "and save that."
        )
    height, width = _sides(taken, size, received)
    side = max(height, width)
    inputs = keras.Input((side, side, 3), name="kinv_images")
    x = inputs
    if height != width:
        x = own_layer(layers.Resizing, height, width, antialias=True)(x)
    if taken.channels == 1:
        luminance = own_layer(
            layers.Dense, 1, use_bias=False, name=pixels.LUMINANCE_LAYER
        )
        x = luminance(x)
        luminance.kernel.assign([[weight] for weight in pixels.LUMINANCE])
    rescaling = scaling.layer(taken.channels, name)
    x = rescaling(x) if rescaling else x
    if not model.inputs[0].dtype.startswith(("float", "bfloat")):
        x = keras.ops.round(x)
    if taken.axis == 1:
        x = own_layer(layers.Permute, (3, 1, 2))(x)
    if taken.axis is None:
        x = own_layer(layers.Reshape, (height, width))(x)
    if x is inputs and shapes[0] == (None, side, side, 3):
        return model
    try:
        # `Resizing` would have the layers behind it train unless told not to.
        outputs = model(x, training=False)
        return keras.Model(inputs, outputs, name=model.name)
    # Layers that count on the batch or the size that they were built for.
    except Exception as error:
        raise errors.InputError(
            f"Expected a classifier of any number of images of {side} pixels. "
            f"{received} {errors.reason(error)}."
        ) from error


def _sides(layout, size, received):
    """Height and width of what the network is given."""
    height, width = layout.height, layout.width
    if height is None and width is None and size:
        return size, size
    if height is None or width is None:
        raise errors.InputError(
            "Expected --classifier-size for a classifier of images of any "
            f"size. {received} Give the size that it was trained at."
        )
    if size not in (None, max(height, width)):
        raise errors.InputError(
            f"Expected --classifier-size {max(height, width)}, or none. "
            f"{received}"
        )
    return height, width
