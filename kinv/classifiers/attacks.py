"""Adversarial training and accuracy under attack (Madry et al., 2018)."""

import keras
import numpy as np
import tensorflow as tf

from kinv import errors

NORMS = ("linf", "l2")


class ProjectedGradientDescent:
    """The attack: gradient ascent on the loss within a ball around an image.

    The network is attacked in inference mode. That is the function which is
    evaluated and inverted afterwards, its normalisation does not mix the
    examples of a batch, and the attack leaves the moving statistics alone.

    Args:
        norm: `"linf"` or `"l2"`.
        radius: radius of the ball, in pixel values (images in [0, 255]).
        steps: number of ascent steps.

    Reference:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial
        Attacks" (2018), section 2.1.
    """

    def __init__(self, norm, radius, steps):
        if norm not in NORMS:
            raise errors.InputError(
                f"Expected a norm among {', '.join(NORMS)}. "
                f"Received: norm={norm}."
            )
        if radius <= 0 or steps < 1:
            raise errors.InputError(
                "Expected an attack of positive radius and at least one step. "
                f"Received: radius={radius}, steps={steps}."
            )
        self.norm, self.radius, self.steps = norm, float(radius), steps
        # In the same norm; reaches the edge of the ball from anywhere in it.
        self.step_size = 2.5 * self.radius / steps

    def random_offsets(self, shape, seed):
        """Draws where the attack starts, uniformly from the ball.

        Args:
            shape: `(batch, height, width, channels)`.
            seed: two integers; the same seed gives the same offsets.
        """
        seed = [tf.cast(part, tf.int64) for part in seed]
        if self.norm == "linf":
            return tf.random.stateless_uniform(
                shape, seed, -self.radius, self.radius
            )
        directions = tf.math.l2_normalize(
            tf.random.stateless_normal(shape, seed), [1, 2, 3], 1e-24
        )
        fractions = tf.random.stateless_uniform(
            (shape[0], 1, 1, 1), (seed[0], seed[1] + 2**40)
        )
        dimensions = tf.cast(tf.reduce_prod(shape[1:]), tf.float32)
        return self.radius * fractions ** (1 / dimensions) * directions

    def project(self, adversarial, images):
        """Moves images to the nearest ones in the ball and in [0, 255]."""
        offsets = adversarial - images
        if self.norm == "linf":
            offsets = tf.clip_by_value(offsets, -self.radius, self.radius)
        else:
            offsets = tf.clip_by_norm(offsets, self.radius, axes=[1, 2, 3])
        return tf.clip_by_value(images + offsets, 0.0, 255.0)

    def ascend(self, classifier, adversarial, images, labels):
        """Takes one step; all images `(batch, height, width, 3)`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(adversarial)
            logits = classifier(adversarial, training=False)
            # The sum: a mean would shrink the gradients of half-precision
            # networks by the batch size.
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, logits, from_logits=True
            )
            loss = tf.reduce_sum(losses)
        gradients = tape.gradient(loss, adversarial)
        if self.norm == "linf":
            steps = tf.sign(gradients)
        else:
            steps = tf.math.l2_normalize(gradients, [1, 2, 3], 1e-24)
        return self.project(adversarial + self.step_size * steps, images)

    def __call__(self, classifier, images, labels, offsets, ascend=None):
        """Attacks images.

        Args:
            classifier: `keras.Model` from images to logits.
            images: float32 `(batch, height, width, 3)` in [0, 255].
            labels: integers `(batch,)`, the right classes.
            offsets: where to start, see `random_offsets`.
            ascend: stands for `ascend`, such as that compiled. Defaults to it.

        Returns:
            Adversarial images, within `radius` of `images` and in [0, 255].
        """
        adversarial = self.project(images + offsets, images)
        # Unrolled in Python: the steps are few.
        ascend = ascend or self.ascend
        for _ in range(self.steps):
            adversarial = ascend(classifier, adversarial, images, labels)
        return adversarial


class AdversarialTraining(keras.Model):
    """Trains a classifier on the images that an attack makes of its own.

    `fit` takes batches `(images, labels)` of one global size, a multiple of
    the number of replicas. Its loss and metrics are those of adversarial
    images; validation adds `accuracy`, on the images as they are.

    The random start of the attack is a function of `seed`, the optimizer's
    step count and the example's place in the global batch. So a resumed run
    and a run on another number of replicas see the same adversarial images.

    Args:
        classifier: built `keras.Model` from images `(batch, size, size, 3)` in
            [0, 255] to logits `(batch, num_classes)`.
        attack: `ProjectedGradientDescent`.
        seed: integer.

    Reference:
        Madry et al. (2018), equation 2.1.
    """

    def __init__(self, classifier, attack, seed, **kwargs):
        # Pixel values above 128 are whole numbers in bfloat16.
        super().__init__(autocast=False, **kwargs)
        self.classifier, self.attack, self.seed = classifier, attack, seed
        # Of held-out images as they are. What `compile` is given is measured
        # of adversarial ones.
        self.accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        # The classifier is; only a model marked so can be saved and restored.
        self.built = True

    def call(self, images, training=False):
        return self.classifier(images, training=training)

    def train_step(self, data):
        """Attacks a batch, then descends on what the attack found."""
        images, labels = data
        adversarial = self._attack(images, labels, self.optimizer.iterations)
        logs = super().train_step((adversarial, labels))
        del logs["accuracy"]
        return logs

    def test_step(self, data):
        """Measures accuracy as it is and under the attack of the training."""
        images, labels = data
        self.accuracy.update_state(labels, self(images, training=False))
        return super().test_step((self._attack(images, labels, 0), labels))

    def _attack(self, images, labels, step):
        # Every replica draws for the whole batch and keeps its own rows.
        context = tf.distribute.get_replica_context()
        shape = tf.shape(images)
        global_shape = tf.concat(
            [shape[:1] * context.num_replicas_in_sync, shape[1:]], axis=0
        )
        seed = (tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64))
        offsets = self.attack.random_offsets(global_shape, seed)
        first = shape[0] * tf.cast(context.replica_id_in_sync_group, tf.int32)
        offsets = offsets[first : first + shape[0]]
        return self.attack(self.classifier, images, labels, offsets)


def accuracy(classifier, batches, attack=None, seed=0):
    """Counts the images that a classifier gets right.

    Args:
        classifier: `keras.Model` from images to logits.
        batches: finite iterable of `(images, labels)`; images of the label -1
            are passed over.
        attack: `ProjectedGradientDescent` on each image first. Defaults to
            `None`, the images as they are.
        seed: integer, decides where the attacks start.

    Returns:
        `(num_correct, num_examples)`.
    """
    ascend = None
    if attack is not None:
        # One step at a time: a graph of twenty takes long to trace.
        ascend = tf.function(attack.ascend, reduce_retracing=True)
    classify = tf.function(classifier, reduce_retracing=True)
    num_correct = num_examples = 0
    for index, (images, labels) in enumerate(batches):
        known = np.asarray(labels) >= 0
        if not known.any():
            continue
        images, labels = images[known], labels[known]
        adversarial = images
        if attack is not None:
            offsets = attack.random_offsets(tf.shape(images), (seed, index))
            adversarial = attack(classifier, images, labels, offsets, ascend)
        logits = classify(adversarial, training=False)
        num_correct += int(np.sum(np.argmax(logits, axis=-1) == labels))
        num_examples += len(labels)
    return num_correct, num_examples
