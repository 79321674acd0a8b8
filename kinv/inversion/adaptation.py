"""What is fitted to the data before training: maps of the logits."""

import keras
import numpy as np
import tensorflow as tf

from kinv import devices, errors, pixels
from kinv.inversion import conditioning, losses, presets

# Images that the normalisation of the logits is fitted to.
STATISTICS_IMAGES = 10_000
CHECKED_IMAGES = 100
# Images that the embedding is fitted to, and how.
REGRESSION_IMAGES = 120_000
# Fewer where more numbers than these would be kept of their logits.
REGRESSION_VALUES = 2**27
EPOCHS = 12
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
# Without it the embedding memorises its images, and predicts them better than
# held-out ones.
WEIGHT_DECAY = 1.0
# Bound on the norm of the gradient. Logits stay below it; with a thousand
# features, products of products diverge without it.
CLIP_NORM = 1.0
# Side of the finest band that it predicts.
FINEST_BAND = 16
# Standard deviation, in [-1, 1], below which a value counts the less.
FAINT = 0.02
# Images that are computed at once.
PART = 10_000


def adapt(model, batches, verbose):
    """Fits the normalisation of the logits, and a first embedding of them.

    The embedding of normalised logits, where it has hidden layers, is fitted by
    `pretrain` to small pictures.
    A model that was made of trained networks keeps theirs.

    Args:
        model: `gan.InversionGAN`.
        batches: `tf.data.Dataset` of float32 images `(batch, size, size, 3)` in
            [0, 255]. The first 10,000 are used, 120,000 for an embedding, 100
            where nothing is fitted.
        verbose: of `keras.Model.fit`.

    Raises:
        errors.InputError: if the classifier gives NaN, infinity or
            probabilities, or pixels are not in [0, 255].
    """
    generator = model.generator
    # One that was given, and has its map of logits.
    normalization = generator.normalize_condition
    trained = not model.is_adapted() and normalization and normalization.fitted
    pretrains = normalization and not trained and generator.embedding_layers
    fits = normalization or model.readback_weight
    # Without anything to fit, what classifier and images are is checked all
    # the same.
    count = STATISTICS_IMAGES if fits else CHECKED_IMAGES
    if pretrains:
        most = REGRESSION_VALUES // generator.condition_dim
        count = min(REGRESSION_IMAGES, most)
        if verbose:
            print(
                f"fitting the embedding to at most {count:,} images", flush=True
            )
    condition, pictures = _read(model, batches, count)
    conditioning.finite(condition)
    sum_to_one = np.allclose(condition.sum(axis=-1), 1, atol=1e-3)
    if (
        sum_to_one
        and condition.min() >= 0
        and len(model.classifier.outputs) < 2
    ):
        raise errors.InputError(
            "Expected a classifier that returns logits. Received: one whose "
            "outputs are probabilities, 1 in all. Take its softmax off with "
            "kinv.load_classifier(classifier)."
        )
    if not fits:
        return
    statistics = condition[:STATISTICS_IMAGES]
    for layer in model.normalizations:
        if not (trained and layer.fitted):
            layer.set_statistics(statistics)
        # By the rounding errors of another worker, principal components may
        # point the other way.
        weights = devices.broadcast_from_first_worker(
            model.distribute_strategy, layer.get_weights()
        )
        layer.set_weights(weights)
    if not pretrains:
        return
    condition = _in_parts(normalization, condition)
    # No noise: it tells nothing of the images.
    noise_dim = generator.noise_dim // (len(generator.blocks) + 1)
    condition = np.pad(condition, [(0, 0), (0, noise_dim)])
    weights = pretrain(
        generator.embed_condition,
        condition,
        _bands(pictures),
        model.seed,
        verbose,
    )
    weights = devices.broadcast_from_first_worker(
        model.distribute_strategy, weights
    )
    # Noise has the last rows of every kernel. At random it would drown what was
    # fitted; from 0 it learns.
    for kernel in weights:
        if kernel.ndim == 2:
            kernel[-noise_dim:] = 0.0
    for network in (generator, model.averaged_generator):
        network.embed_condition.set_weights(weights)


def pretrain(embedding, condition, targets, seed, verbose=0):
    """Fits an embedding so that a linear map of it predicts the targets.

    To read the logits is much of what a generator has to learn, and cheap to
    learn beforehand: no picture is made (docs/measurements.md, *A first
    embedding*). Least squares, with weights that decay. The embedding keeps
    its mean length, which the generator's first layers are made for.

    Args:
        embedding: `conditioning.Embedding` to begin with, which stays as it is.
        condition: float32 `(images, condition_dim)`, normalised.
        targets: float32 `(images, any)`, of mean 0.
        seed: of the linear map and the order of the images.
        verbose: of `keras.Model.fit`; its loss is the share of the targets'
            variance that is not explained, where that is 1.

    Returns:
        The weights, list of arrays as of `embedding.get_weights`.
    """
    fitted = conditioning.Embedding.from_config(embedding.get_config())
    inputs = keras.Input((condition.shape[-1],), dtype="float32")
    head = keras.layers.Dense(
        targets.shape[-1],
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        dtype="float32",
    )
    regression = keras.Model(inputs, head(fitted(inputs)))
    fitted.set_weights(embedding.get_weights())
    length = _length(fitted, condition)

    rows = tf.data.Dataset.range(len(condition)).shuffle(len(condition), seed)
    rows = rows.batch(min(BATCH_SIZE, len(condition)), drop_remainder=True)
    steps = EPOCHS * len(rows)
    of_rows = tf.constant(condition), tf.constant(targets)
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, steps, presets.FINAL_RATE_RATIO
    )
    regression.compile(
        keras.optimizers.AdamW(
            rate,
            WEIGHT_DECAY,
            beta_1=0.0,
            epsilon=1e-8,
            global_clipnorm=CLIP_NORM,
        ),
        "mse",
    )
    regression.fit(
        rows.repeat(EPOCHS).map(
            lambda rows: tuple(tf.gather(x, rows) for x in of_rows)
        ),
        verbose=verbose,
        shuffle=False,
    )
    kernel = fitted.embed.kernel
    kernel.assign(kernel * (length / _length(fitted, condition)))
    return fitted.get_weights()


def _read(model, batches, count):
    """Conditions of the first images, and small pictures of these."""
    size = min(FINEST_BAND, model.generator.image_size)

    @tf.function
    def read(images):
        targets = model.targets(images)
        factor = targets.shape[1] // size
        pictures = tf.nn.avg_pool2d(targets, factor, factor, "VALID")
        limits = tf.reduce_min(images), tf.reduce_max(images)
        return model.condition_of(images), pictures, *limits

    parts, found, highest = [], 0, 0.0
    for images in batches:
        condition, pictures, low, high = (part.numpy() for part in read(images))
        pixels.check_range(low, high)
        parts.append((condition, pictures.astype("float16")))
        found += len(images)
        highest = max(highest, high)
        if found >= count:
            break
    if not parts:
        raise errors.InputError(
            "Expected at least one full batch of images. Received: an empty "
            "data set. Make its batches smaller."
        )
    if 0 < highest <= 1:
        raise errors.InputError(
            "Expected images with values in [0, 255]. Received: values up to "
            f"{highest:g}. Multiply those in [0, 1] by 255."
        )
    return [np.concatenate(part)[:count] for part in zip(*parts, strict=True)]


def _bands(pictures):
    """The Laplacian pyramid of pictures as vectors `(images, values)`.

    Every band has the same share in their variance, 1, and within a band every
    value, but those that hardly vary.
    """
    parts = [
        losses.laplacian_pyramid(part.astype("float32") / 127.5 - 1)
        for part in _parts(pictures)
    ]
    vectors = [
        np.concatenate(bands).reshape(len(pictures), -1)
        for bands in zip(*parts, strict=True)
    ]
    for band in vectors:
        band -= band.mean(axis=0)
        band /= (band.std(axis=0) + FAINT) * np.sqrt(band.shape[-1])
    vectors = np.concatenate(vectors, axis=-1)
    vectors /= max(np.sqrt(np.square(vectors).mean()), 1e-12)
    return vectors


def _length(embedding, condition):
    return np.sqrt(np.square(_in_parts(embedding, condition)).mean())


def _in_parts(function, array):
    return np.concatenate([np.asarray(function(x)) for x in _parts(array)])


def _parts(array):
    return np.array_split(array, -(-len(array) // PART))
