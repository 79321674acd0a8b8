"""What the networks are given of the logits: fixed maps, and an embedding."""

import keras
import numpy as np
from keras import ops

from kinv import errors
from kinv.inversion import presets


def make_normalization(kind):
    """The `LogitNormalization` of one of these kinds; for `none` None."""
    presets.check_choice("logit_normalization", kind)
    return None if kind == "none" else LogitNormalization(kind)


@keras.saving.register_keras_serializable(package="kinv")
class ClassCenteredWhitening(keras.layers.Layer):
    """What logits say beyond the class: their deviation from its mean.

    `(logits - softmax(logits) class_means) transform`, where this rotates to
    the principal components within classes and gives each of them variance 1,
    no component being enlarged beyond what brings 1e-3 of the largest variance
    to 1. The identity, and class means of 0, until `set_statistics`.

    Means of few images are drawn towards the mean of all, the more, the further
    images lie from their class's mean and the nearer these to each other (James
    and Stein). What varies within classes is measured from the mean of a
    class's other images, and from that of all where there are none: the
    distance of an image from itself would make it small.

    Call arguments:
        logits: float32 `(batch, num_classes)`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, input_shape):
        shape = (input_shape[-1], input_shape[-1])
        self.class_means = self.add_weight(
            name="class_means",
            shape=shape,
            initializer="zeros",
            trainable=False,
        )
        self.transform = self.add_weight(
            name="transform",
            shape=shape,
            initializer="identity",
            trainable=False,
        )

    @property
    def fitted(self):
        """Whether `set_statistics` was called."""
        transform = np.asarray(self.transform)
        return not np.array_equal(transform, np.eye(len(transform)))

    def set_statistics(self, logits):
        """Fits means and components.

        Args:
            logits: float array `(examples, num_classes)` of training images.
        """
        logits = finite(logits)
        classes = logits.argmax(axis=-1)
        overall = logits.mean(axis=0)
        logits = logits - overall
        counts = np.bincount(classes, minlength=logits.shape[-1])[:, None]
        sums = np.zeros((len(counts), len(counts)))
        np.add.at(sums, classes, logits)
        strength = _prior_strength(logits, classes, counts, sums)
        means = _shrunk_means(sums, counts, strength)
        # Of an image's class without itself.
        others = _shrunk_means(
            sums[classes] - logits, counts[classes] - 1, strength
        )
        self.class_means.assign(overall + means)
        self.transform.assign(_whitening(logits - others, 1e-3))

    def call(self, logits):
        means = ops.matmul(ops.softmax(logits), self.class_means)
        return ops.matmul(logits - means, self.transform)


@keras.saving.register_keras_serializable(package="kinv")
class LogitNormalization(keras.layers.Layer):
    """Fixed map of the logits, before the networks see them.

    The identity (but for `one-hot`) until `set_statistics`.

    Args:
        kind: `standardize` gives each logit mean 0 and variance 1, none being
            enlarged beyond what brings 1e-2 of the largest deviation to 1;
            `whiten` rotates to the principal components and gives each of them
            variance 1, none being enlarged beyond what brings 1e-4 of the
            largest variance to 1; `class-centered` puts the standardised
            logits beside the `ClassCenteredWhitening`, which is bounded to +-3;
            `one-hot` leaves of the logits only the predicted class, the control
            that shows what the class alone explains.

    Note:
        Not in the paper, which feeds raw logits. Raw logits are tens long, so
        at first they drown the noise and saturate the projection term; and what
        they know beyond the class is in directions a hundred times shorter
        than those that tell classes apart.
    """

    DEVIATION_BOUND = 3.0

    def __init__(self, kind, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.kind = kind
        self.deviation = (
            ClassCenteredWhitening() if kind == "class-centered" else None
        )

    def build(self, input_shape):
        num_classes = input_shape[-1]
        self.mean = self.add_weight(
            name="mean",
            shape=(num_classes,),
            initializer="zeros",
            trainable=False,
        )
        # A thousand standard deviations are no matrix of a million numbers.
        rotates = self.kind == "whiten"
        self.transform = self.add_weight(
            name="transform",
            shape=(num_classes, num_classes) if rotates else (num_classes,),
            initializer="identity" if rotates else "ones",
            trainable=False,
        )
        if self.deviation:
            self.deviation.build(input_shape)

    @property
    def fitted(self):
        """Whether `set_statistics` was called."""
        return bool(np.any(self.mean))

    def set_statistics(self, logits):
        """Fits the map to logits of training images.

        Args:
            logits: float array `(examples, num_classes)`.
        """
        logits = finite(logits)
        if self.kind == "whiten":
            transform = _whitening(logits, 1e-4)
        else:
            deviations = logits.std(axis=0)
            floor = max(1e-2 * deviations.max(), 1e-6)
            transform = 1 / np.maximum(deviations, floor)
        self.mean.assign(logits.mean(axis=0))
        self.transform.assign(transform)
        if self.deviation:
            self.deviation.set_statistics(logits)

    def call(self, logits):
        logits = ops.cast(logits, "float32")
        if self.kind == "one-hot":
            return ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1])
        outputs = logits - self.mean
        if self.kind == "whiten":
            outputs = ops.matmul(outputs, self.transform)
        else:
            outputs = outputs * self.transform
        if not self.deviation:
            return outputs
        deviation = self.deviation(logits) / self.DEVIATION_BOUND
        deviation = self.DEVIATION_BOUND * ops.tanh(deviation)
        return ops.concatenate([outputs, deviation], axis=-1)


@keras.saving.register_keras_serializable(package="kinv")
class Embedding(keras.layers.Layer):
    """What the generator's norms are given of the condition.

    A linear map, as in the paper, of what `hidden_layers` gated layers make.
    Each of these gives `(x A + a) silu(x B + b)`, 4 times as wide as the
    embedding; the next one sees this beside the condition, and so does the
    linear map. What logits know of an image beyond its class points elsewhere
    in each class: products read it sooner than sums (docs/measurements.md).

    Never spectrally normalised, and float32 in every precision.

    Products of what no image gives, such as of logits that are perturbed, grow
    beyond what was trained. `max_norm` is the length that an embedding is
    shortened to where it is longer. It is None, for no such length, until the
    generator fills its standing statistics, and without hidden layers.

    Args:
        units: size of the embedding.
        hidden_layers: 0 as in the paper.

    Call arguments:
        condition: float32 `(batch, condition_dim)`.

    Returns:
        float32 `(batch, units)`.

    Reference:
        Shazeer, GLU Variants Improve Transformer (2020), SwiGLU; He et al.,
        Delving Deep into Rectifiers, ICCV 2015.
    """

    max_norm = None

    def __init__(self, units, hidden_layers, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.units = units
        self.hidden_layers = hidden_layers

        def hidden(initializer):
            return keras.layers.Dense(
                4 * units, kernel_initializer=initializer, dtype="float32"
            )

        self.values = [hidden("lecun_normal") for _ in range(hidden_layers)]
        self.gates = [hidden("he_normal") for _ in range(hidden_layers)]
        self.embed = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer="orthogonal",
            dtype="float32",
        )
        # By the first call of its layers, as the networks are.
        self.built = True

    def call(self, condition):
        x = condition
        for value, gate in zip(self.values, self.gates, strict=True):
            # Not `ops.silu`, whose gradient is TensorFlow's own: no gradient
            # could be taken of an exported model then.
            gates = gate(x)
            x = value(x) * gates * ops.sigmoid(gates)
            x = ops.concatenate([x, condition], axis=-1)
        embedded = self.embed(x)
        if self.max_norm is None:
            return embedded
        # The root of a maximum has a gradient at 0, too.
        squares = ops.sum(ops.square(embedded), axis=-1, keepdims=True)
        lengths = ops.sqrt(ops.maximum(squares, self.max_norm**2))
        return embedded * (self.max_norm / lengths)


def finite(logits):
    """Logits of training images as float64.

    Raises:
        errors.InputError: if the classifier gives NaN or infinity.
    """
    logits = np.asarray(logits, "float64")
    bad = np.count_nonzero(~np.isfinite(logits).all(axis=-1))
    if bad:
        raise errors.InputError(
            "Expected a classifier whose outputs are finite. Received: NaN or "
            f"infinity for {bad:,} of {len(logits):,} training images. Mend "
            "what it does to these, or leave them out."
        )
    return logits


def _prior_strength(logits, classes, counts, sums):
    """How many images of a class the mean of all weighs as much as.

    The variance within classes over that between them, both unbiased.
    """
    seen = counts[:, 0] > 0
    means = sums / np.maximum(counts, 1)
    squares = np.square(logits - means[classes]).sum()
    within = squares / max(len(logits) - seen.sum(), 1)
    between = np.square(means[seen]).sum() / max(seen.sum() - 1, 1)
    between -= within * (1 / counts[seen]).mean()
    known = len(logits) > seen.sum() and between > 0
    return within / between if known else np.inf


def _shrunk_means(sums, counts, strength):
    """Means of as many vectors with these sums, drawn towards 0."""
    return sums / np.maximum(counts + strength, 1e-12)


def _whitening(vectors, floor):
    """Map to principal components of variance 1, of vectors `(examples, n)`.

    Args:
        floor: share of the largest variance below which a component is scaled
            like one of that variance.
    """
    covariance = np.atleast_2d(np.cov(vectors.T, bias=True))
    variances, components = np.linalg.eigh(covariance)
    floor = max(floor * variances.max(), 1e-12)
    return components / np.sqrt(np.maximum(variances, floor))
