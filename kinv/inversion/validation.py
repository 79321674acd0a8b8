"""What is measured of held-out images after every epoch.

`images` are `(batch, size, size, 3)` in [0, 255]; `samples` a list of as many
reconstructions, of one noise each; logits and readings `(batch, num_classes)`.
"""

import tensorflow as tf
from keras import ops

from kinv import measures
from kinv.inversion import losses

# What `measure` gives for each image.
MEASURES = (
    "agreement",
    "logit_cosine",
    "pixel_mse",
    "shuffled_pixel_mse",
    "logit_error",
    "shuffled_logit_error",
    "energy_score",
    "mean_error",
    "single_error",
)


def samples(generator, condition, seed):
    """Reconstructions of each image, of the same noises in every epoch.

    Returns:
        List of `measures.ERROR_RATIO_NOISES` tensors `(batch, image_size,
        image_size, 3)` in [0, 255], of one noise each.
    """
    noises = measures.ERROR_RATIO_NOISES
    # All at once, attention to larger pictures would fill the memory.
    calls = 1 if generator.image_size <= 32 else noises
    # Several replicas share out what one would draw.
    context = tf.distribute.get_replica_context()
    shape = noises, context.num_replicas_in_sync, tf.shape(condition)[0]
    noise = tf.random.stateless_normal(
        (*shape, generator.noise_dim), seed=[seed, -1]
    )[:, context.replica_id_in_sync_group]
    noise = ops.reshape(noise, (-1, generator.noise_dim))
    condition = ops.tile(condition, (noises // calls, 1))
    made = [
        generator({"condition": condition, "noise": part}, training=True)
        for part in tf.split(noise, calls)
    ]
    return tf.split(ops.concatenate(made), noises)


def measure(images, samples, logits, readings):
    """Compares images with reconstructions of their logits.

    * `agreement`: whether the first reconstruction gets the image's class;
      `logit_cosine`: the cosine between their logits; `pixel_mse`: the squared
      error of pixel values, `shuffled_pixel_mse` the same against the
      neighbour's reconstruction;
    * `logit_error`: the squared distance from an image's logits to those of
      its own reconstruction, `shuffled_logit_error` to those of another image
      of its class, the one before in the batch; of images that have one;
    * `energy_score`: the score that is trained with, averaged over pairs of
      reconstructions: how near they come to the distribution of images of these
      logits, the lower, the better; `mean_error`: the squared error of the mean
      reconstruction, `single_error` that of single ones.

    Returns:
        dict by `MEASURES` of `(values, weights)`, tensors `(batch,)`, or None
        for equal weights.
    """
    reconstructions = samples[0]
    classes = ops.argmax(logits, axis=-1)
    agrees = classes == ops.argmax(readings, axis=-1)
    directions = [ops.normalize(x, axis=-1) for x in (logits, readings)]
    shuffled = ops.roll(reconstructions, 1, axis=0)
    # Neighbours in the order of classes share their class.
    order = ops.argsort(classes)
    classes, own, read = (
        ops.take(x, order, axis=0) for x in (classes, logits, readings)
    )
    paired = classes == ops.roll(classes, 1)
    # A lone image would be its own neighbour.
    paired = ops.cast(paired & (ops.shape(images)[0] > 1), "float32")
    pairs = zip(samples[::2], samples[1::2], strict=True)
    scores = [losses.energy_score(*pair, images) for pair in pairs]
    single_errors = [_squared_error(images, x) for x in samples]
    values = (
        (ops.cast(agrees, "float32"), None),
        (ops.sum(directions[0] * directions[1], axis=-1), None),
        (_squared_error(images, reconstructions), None),
        (_squared_error(images, shuffled), None),
        (_squared_error(own, read), paired),
        (_squared_error(own, ops.roll(read, 1, axis=0)), paired),
        (ops.mean(scores, axis=0), None),
        (_squared_error(images, ops.mean(samples, axis=0)), None),
        (ops.mean(single_errors, axis=0), None),
    )
    return dict(zip(MEASURES, values, strict=True))


def means(trackers):
    """Their means over all replicas, by name."""
    context = tf.distribute.get_replica_context()
    # Several workers add tensors alone, no variables.
    totals, counts = (
        context.all_reduce("SUM", ops.stack([tf.identity(x) for x in sums]))
        for sums in zip(*((t.total, t.count) for t in trackers), strict=True)
    )
    values = ops.unstack(ops.divide_no_nan(totals, counts))
    names = (tracker.name for tracker in trackers)
    return dict(zip(names, values, strict=True))


def shares(means, num_samples):
    """What the means say.

    * `within_class_r2`: the share that reconstructions show of what logits know
      beyond the class, 1 - `logit_error` / `shuffled_logit_error`; 0 where no
      two images share a class;
    * `error_ratio`: `mean_error` / `single_error`, .5625 of 8 reconstructions
      that vary as images of the same logits do;
    * `spread_skill`: how much of what is left open the noise says, as
      `measures.spread_skill`, but always finite.

    Returns:
        dict of scalars.
    """
    error, shuffled = means["logit_error"], means["shuffled_logit_error"]
    ratio = ops.divide_no_nan(means["mean_error"], means["single_error"])
    open_share = ops.maximum(ratio - 1 / num_samples, 1e-6)
    return {
        "within_class_r2": ops.divide_no_nan(shuffled - error, shuffled),
        "error_ratio": ratio,
        "spread_skill": ops.sqrt(ops.relu(1 - ratio) / open_share),
    }


def _squared_error(first, second):
    """Mean over all but the first axis, `(batch,)`."""
    squares = ops.square(first - second)
    return ops.mean(ops.reshape(squares, (ops.shape(squares)[0], -1)), axis=-1)
