"""Batches as `InversionGAN.fit` takes them: images, with or without labels."""

import tensorflow as tf
from keras import ops

from kinv import errors, pixels


def full(images, size, seed):
    """Batches that are all of one size.

    Args:
        images: array `(examples, height, width, 3)`, which is shuffled, or a
            `tf.data.Dataset` of batches. Whether its last one is full is found
            by reading a data set of known length once.
        size: images of a batch, of an array.
        seed: of the order of an array.

    Returns:
        `tf.data.Dataset`.

    Raises:
        errors.InputError: if an array has too few images, or they are no
            colour images.
    """
    if not isinstance(images, tf.data.Dataset):
        if len(images) < size:
            raise errors.InputError(
                f"Expected at least {size} images, one step's worth. "
                f"Received: {len(images)}. Lower batch_size."
            )
        images = tf.data.Dataset.from_tensor_slices(images)
        images = images.shuffle(images.cardinality(), seed).batch(size, True)
    shape = tf.nest.flatten(images.element_spec)[0].shape
    check_shape(shape)
    if shape[0] is None:
        return _without_partial(images)
    return images


def _without_partial(batches):
    """Leaves out the batch that is smaller than the first, of a dataset."""

    def size(*batch):
        return tf.shape(tf.nest.flatten(batch)[0])[0]

    full_size = size(next(iter(batches)))
    count = int(batches.cardinality())
    if count < 0:
        return batches.filter(lambda *batch: size(*batch) == full_size)
    # Keras is told how many there are.
    last = size(next(iter(batches.skip(count - 1))))
    return batches.take(count if last == full_size else count - 1)


def unpack(batch):
    """Images of a batch, float32, and their logits where they are known.

    Args:
        batch: images, or a tuple of images, labels and, where known, logits.
    """
    if not isinstance(batch, (tuple, list)):
        batch = (batch,)
    images = ops.cast(batch[0], "float32")
    return images, batch[2] if len(batch) == 3 else None


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
            f"shape {tuple(shape)}. Repeat the channel of grey ones three "
            "times."
        )


def resize(images, size):
    """Antialiased resize to `size` pixels; nothing where it fits already.

    Of images that are not square the largest centred square.

    Raises:
        errors.InputError: if they are no colour images.
    """
    check_shape(images.shape)
    if tf.TensorShape(images.shape[1:3]).is_fully_defined():
        images = pixels.center_crop(images)
    if images.shape[1:3] == (size, size):
        return images
    return ops.image.resize(images, (size, size), antialias=True)
