"""Batches as `InversionGAN.fit` takes them: images, with or without labels."""

import keras
import tensorflow as tf
from keras import ops

from kinv import errors, pixels


def full(images, size, seed, parts=1):
    """Batches that are all of one size.

    Args:
        images: array `(examples, height, width, 3)`, which is shuffled, or a
            `tf.data.Dataset` of batches, as of `unpack`. Whether its last one
            is full is found by reading a data set of known length once.
        size: images of a batch, of an array.
        seed: of the order of an array.
        parts: number of equal parts that a batch is computed in.

    Returns:
        `tf.data.Dataset`.

    Raises:
        errors.InputError: if an array has too few images, they are no colour
            images, a batch cannot be shared out, or it is neither.
    """
    if not isinstance(images, tf.data.Dataset):
        if isinstance(images, keras.utils.PyDataset) or not hasattr(
            images, "__len__"
        ):
            raise errors.InputError(
                "Expected an array of images, or a tf.data.Dataset of batches. "
                f"Received: a {type(images).__name__}. "
                "tf.data.Dataset.from_generator makes one of it."
            )
        if len(images) < size:
            raise errors.InputError(
                f"Expected at least {size} images, one step's worth. "
                f"Received: {len(images)}. Lower batch_size."
            )
        images = tf.data.Dataset.from_tensor_slices(images)
        images = images.shuffle(images.cardinality(), seed).batch(size, True)
    shape = _parts(images.element_spec)[0].shape
    check_shape(shape)
    if shape.rank is None or shape[0] is None:
        return _without_partial(images, parts)
    _check_size(shape[0], parts)
    return images


def at_most(batches, given, epochs=1, steps_per_epoch=None, **_):
    """What `fit` will read of an endless data set; others as they are.

    Args:
        batches: `full` of what was given.
        given: array or `tf.data.Dataset`.
        epochs, steps_per_epoch: of `keras.Model.fit`.
    """
    endless = tf.data.INFINITE_CARDINALITY
    if isinstance(given, tf.data.Dataset) and given.cardinality() == endless:
        return batches.take(epochs * (steps_per_epoch or 1))
    return batches


def _check_size(size, parts):
    if size % parts:
        raise errors.InputError(
            f"Expected a multiple of {parts} images for the updates of a step, "
            f"their micro-batches and all devices. Received: batches of {size}."
        )


def _without_partial(batches, parts):
    """Leaves out the batch that is smaller than the others, of a dataset."""

    def size(*batch):
        return tf.shape(tf.nest.flatten(batch)[0])[0]

    ends = batches.cardinality() >= 0
    # Where batches are shuffled, any may be the smaller one.
    read = batches if ends else batches.take(1)
    sizes = [int(found) for found in read.map(size)]
    if not sizes:
        raise errors.InputError("Expected images. Received: an empty data set.")
    full_size = max(sizes)
    _check_size(full_size, parts)
    batches = batches.filter(lambda *batch: size(*batch) == full_size)
    if not ends:
        return batches
    # Keras is told how many there are.
    return batches.apply(
        tf.data.experimental.assert_cardinality(sizes.count(full_size))
    )


def unpack(batch):
    """Images of a batch, float32, and their logits where they are known.

    Args:
        batch: images, or a dict of them as `image` or `images`, which may have
            `logits`, too; or a tuple of these and labels.

    Raises:
        errors.InputError: if it is anything else.
    """
    images, logits = _parts(batch)
    if logits is not None:
        logits = ops.cast(logits, "float32")
    return ops.cast(images, "float32"), logits


def _parts(batch):
    """Images and logits, or None, of a batch or of its specification."""
    images, logits = batch, None
    if isinstance(images, (tuple, list)) and len(images) in (1, 2):
        images = images[0]
    if isinstance(images, dict):
        logits = images.get("logits")
        images = images.get("images", images.get("image"))
    if not hasattr(images, "shape"):
        raise errors.InputError(
            "Expected images, alone or with labels, or dicts with an `image`. "
            f"Received: {_structure(batch)}. Weights of examples or classes "
            "are not used."
        )
    return images, logits


def _structure(batch):
    """The shape of a batch in words."""
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"({', '.join(map(_structure, batch))})"
    return "an array" if hasattr(batch, "shape") else type(batch).__name__


def targets(images, generator):
    """Images as a generator could make them: as large, grey if its are.

    Args:
        images: float32 `(batch, height, width, 3)` in [0, 255].
        generator: `networks.Generator`.
    """
    images = resize(images, generator.image_size)
    if generator.channels == 3:
        return images
    grey = ops.sum(images * pixels.LUMINANCE, axis=-1, keepdims=True)
    return ops.repeat(grey, 3, axis=-1)


def check_shape(shape):
    """Raises `InputError` unless the shape is one of colour images."""
    shape = tf.TensorShape(shape)
    if shape.rank is not None and (
        shape.rank != 4 or shape[3] not in (3, None)
    ):
        raise errors.InputError(
            "Expected images of shape (examples, height, width, 3). Received: "
            f"shape {tuple(shape)}. Make batches of single ones; repeat the "
            "channel of grey ones three times."
        )


def center_square(images, size):
    """`resize` where the size of images is known when they come."""
    height, width = tf.unstack(tf.shape(images)[1:3])
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, top : top + side, left : left + side]
    fits = side == size
    images = tf.cond(
        fits,
        lambda: tf.cast(images, "float32"),
        lambda: tf.image.resize(images, (size, size), antialias=True),
    )
    return tf.ensure_shape(images, (None, size, size, 3))


def resize(images, size):
    """Antialiased resize to `size` pixels; nothing where it fits already.

    Of images that are not square the largest centred square.

    Raises:
        errors.InputError: if they are no colour images.
    """
    check_shape(images.shape)
    if not tf.TensorShape(images.shape[1:3]).is_fully_defined():
        return center_square(images, size)
    images = pixels.center_crop(images)
    if images.shape[1] == size:
        return images
    # TensorFlow's own operation has no kernel on GPUs, in XLA and on TPUs.
    weights = pixels.resize_weights(images.shape[1], size)
    images = ops.einsum("iy,byxc->bixc", weights, images)
    return ops.einsum("jx,bixc->bijc", weights, images)
