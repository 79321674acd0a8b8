"""Fixed maps of the logits, before the networks see them."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="kinv")
class ClassCenteredWhitening(keras.layers.Layer):
    """What logits say beyond the class: their deviation from its mean.

    `whiten(logits - softmax(logits) class_means)`, where `whiten` rotates to
    the principal components within classes and gives each of them variance 1,
    no component being enlarged beyond what brings 1e-3 of the largest variance
    to 1. The identity, and class means of 0, until `set_statistics`.

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

    def set_statistics(self, logits):
        """Fits means and components.

        Args:
            logits: float array `(examples, num_classes)` of training images.
        """
        logits = np.asarray(logits, "float64")
        classes = logits.argmax(axis=-1)
        # A class that no image gets has the mean of all.
        means = np.tile(logits.mean(axis=0), (logits.shape[-1], 1))
        for index in np.unique(classes):
            means[index] = logits[classes == index].mean(axis=0)
        self.class_means.assign(means)
        self.transform.assign(_whitening(logits - means[classes], 1e-3))

    def whiten(self, differences):
        """Expresses differences of logits in units of what a class varies."""
        return ops.matmul(differences, self.transform)

    def call(self, logits):
        means = ops.matmul(ops.softmax(logits), self.class_means)
        return self.whiten(logits - means)


@keras.saving.register_keras_serializable(package="kinv")
class LogitNormalization(keras.layers.Layer):
    """Fixed map of the logits, before the networks see them.

    The identity (but for `one-hot`) until `set_statistics`.

    Args:
        kind: `standardize` gives each logit mean 0 and variance 1; `whiten`
            rotates to the principal components and gives each of them variance
            1, no component being enlarged beyond what brings 1e-4 of the
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
        self.transform = self.add_weight(
            name="transform",
            shape=(num_classes, num_classes),
            initializer="identity",
            trainable=False,
        )
        if self.deviation:
            self.deviation.build(input_shape)

    def set_statistics(self, logits):
        """Fits the map to logits of training images.

        Args:
            logits: float array `(examples, num_classes)`.
        """
        logits = np.asarray(logits, "float64")
        if self.kind == "whiten":
            transform = _whitening(logits, 1e-4)
        else:
            transform = np.diag(1 / np.maximum(logits.std(axis=0), 1e-6))
        self.mean.assign(logits.mean(axis=0))
        self.transform.assign(transform)
        if self.deviation:
            self.deviation.set_statistics(logits)

    def whiten(self, differences):
        """Expresses differences of logits in units of what they vary."""
        return ops.matmul(differences, self.transform)

    def call(self, logits):
        logits = ops.cast(logits, "float32")
        if self.kind == "one-hot":
            return ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1])
        outputs = ops.matmul(logits - self.mean, self.transform)
        if not self.deviation:
            return outputs
        deviation = self.deviation(logits) / self.DEVIATION_BOUND
        deviation = self.DEVIATION_BOUND * ops.tanh(deviation)
        return ops.concatenate([outputs, deviation], axis=-1)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def _whitening(vectors, floor):
    """Map to principal components of variance 1, of vectors `(examples, n)`.

    Args:
        floor: share of the largest variance below which a component is scaled
            like one of that variance.
    """
    variances, components = np.linalg.eigh(np.cov(vectors.T, bias=True))
    floor = max(floor * variances.max(), 1e-12)
    return components / np.sqrt(np.maximum(variances, floor))
