"""The networks of `keras.applications`, behind their own preprocessing."""

import difflib
import inspect
import os

import keras
import numpy as np

from kinv import errors

PREFIX = "keras.applications:"
# Pixels, of networks that name no size of their own.
IMAGENET_SIZE = 224


def load(name, weights, size=None, **options):
    """Builds an application with its preprocessing in front.

    Args:
        name: of a function of `keras.applications`, with or without `PREFIX`.
        weights: `imagenet`, `none` for random ones, or a file.
        size: side of the images in pixels. Defaults to that which the network
            was trained at.
        **options: of that function.

    Returns:
        A functional `keras.Model` of images `(batch, size, size, 3)` in
        [0, 255].

    Raises:
        errors.InputError: if there is no such application, its weights cannot
            be had, or it does not take the size.
    """
    name = name.removeprefix(PREFIX)
    model = _build(name, weights, options)
    # Without its top a network takes any size: its whole one has it.
    size = size or model.input_shape[1]
    build = getattr(keras.applications, name)
    if size is None:
        size = build(weights=None).input_shape[1] or IMAGENET_SIZE
    if model.input_shape[1] not in (None, size):
        model = _resized(build, model, size, options)
    # Families that scale their input outside the model.
    module = next(
        (
            module
            for _, module in inspect.getmembers(
                keras.applications, inspect.ismodule
            )
            if hasattr(module, name) and hasattr(module, "preprocess_input")
        ),
        None,
    )
    images = keras.Input((size, size, 3), name="images")
    inputs = module.preprocess_input(images) if module else images
    return keras.Model(images, model(inputs), name=name.lower())


def _build(name, weights, options):
    """The network as Keras makes it."""
    known = [x for x in dir(keras.applications) if x[:1].isupper()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise errors.InputError(
            f"Expected an application of Keras. Received: {name}. Closest: "
            f"{', '.join(near)}."
        )
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise errors.InputError(
            "Expected weights imagenet, none or a file. Received: "
            f"{weights}, which does not exist."
        )
    build = getattr(keras.applications, name)
    try:
        return build(weights=None if weights == "none" else weights, **options)
    # A failed download, or whatever another model's file makes h5py raise.
    except Exception as error:
        reason = errors.reason(error)
        home = os.environ.get("KERAS_HOME", "~/.keras")
        raise errors.InputError(
            f"Expected weights for {name}. Received: {reason}. Put the file "
            f"that the message names into {home}/models, name a file of your "
            "own with --classifier-weights, or take random weights with "
            "--classifier-weights none."
        ) from error


def _resized(build, model, size, options):
    """The same network for images of another size."""
    try:
        resized = build(weights=None, input_shape=(size, size, 3), **options)
        resized.set_weights(model.get_weights())
    # A size below the least, or dense layers that count on a size.
    except ValueError as error:
        raise errors.InputError(
            f"Expected a size of images that {model.name} takes. Received: "
            f"--classifier-size {size}: {errors.reason(error)}."
        ) from error
    # EfficientNet's input is scaled a second time with the word "imagenet"
    # alone: here by the first kernel, which has no bias.
    for scaling in _scalings(model)[len(_scalings(resized)) :]:
        kernel = resized.get_layer("stem_conv").kernel
        kernel.assign(kernel * np.reshape(scaling.scale, (3, 1)))
    return resized


def _scalings(model):
    return [x for x in model.layers if isinstance(x, keras.layers.Rescaling)]
