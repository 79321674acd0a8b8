"""Training the inversion model: one `train_step`, section 7 of the paper."""

import keras
import tensorflow as tf
from keras import ops

from kinv import errors, measures
from kinv.inversion import (
    conditioning,
    losses,
    micro_batches,
    networks,
    validation,
)

DISCRIMINATOR_LOSSES = {
    "hinge": losses.hinge_discriminator_loss,
    "relativistic": losses.relativistic_discriminator_loss,
}


class InversionGAN(keras.Model):
    """Trains a generator to make images of a frozen classifier's logits.

    A training step takes `discriminator_steps + 1` batches in one: as many
    updates of the discriminator, each on fresh images, then one of the
    generator, then one of its running average. Reconstructions are always
    conditioned on the logits of the real images that they are compared with.

    The generator's loss is a weighted sum. The adversary is the paper's whole
    loss; it rewards pictures that look real, and neither that they show what
    the logits know nor that the noise does what they leave open. The score asks
    for both: with it, of each image two reconstructions are made with different
    noise, and their energy score (`losses.energy_score`) is smallest when they
    are drawn from the distribution of images given the logits. The read-back
    asks that the frozen classifier finds in every reconstruction the logits
    that it was made of. A squared error of pixels, the fourth, teaches what
    logits know and to pass over the noise; with it alone the generator is a
    decoder as of Dosovitskiy and Brox, a control.

    Noise is a function of the seed, the step and the example's place in the
    batch. So a resumed run repeats an uninterrupted one, and several replicas
    draw what one would.

    A classifier of two outputs, as `features.add_features` makes it, gives
    the features of a layer beside its logits. These then take the logits' place
    in all that the networks are given; classes are those of the logits.

    Args:
        classifier: frozen Keras model, float32 images `(batch, size, size, 3)`
            in [0, 255] to logits `(batch, num_classes)`, or to these and
            features `(batch, condition_dim)`.
        generator: `networks.Generator`.
        discriminator: `networks.Discriminator` of the same sizes.
        discriminator_steps: discriminator updates per step. The paper: 2. With
            0 there is no adversary.
        ema_decay: decay of the averaged generator, in [0, 1). The paper's
            code: 0.9999.
        ema_start_step: the average is a copy of the generator until then. The
            paper's code: 40,000.
        seed: seed of the noise.
        adversary: `relativistic`, or `hinge` as the paper.
        adversary_weight: weight of the adversary in the generator's loss.
        score_weight: weight of the energy score. 0 as the paper.
        readback_weight: weight of the logits read back, their difference in
            units of what they vary within a class
            (`conditioning.ClassCenteredWhitening`), features in those of their
            principal components. 0 as the paper. Of a classifier that sees
            more pixels than `image_size` it is their energy score, against
            what it reads from the image at that size.
        pixel_weight: weight of the squared error of pixels in [-1, 1].
        micro_batches: parts, one after the other, into which every update
            splits each replica's share of the batch, so that the activations
            of one part are in memory at a time. Exact but for the moments: in
            the generator each part (over all replicas) is normalised by its
            own.

    Attributes:
        averaged_generator: the generator with averaged weights, which
            reconstructs and is exported. It keeps spectral vectors of its own.

    Reference:
        Supplementary, sections 7.1 and 7.2; Dosovitskiy and Brox, Generating
        Images with Perceptual Similarity Metrics based on Deep Networks,
        NeurIPS 2016.
    """

    def __init__(
        self,
        classifier,
        generator,
        discriminator,
        discriminator_steps,
        ema_decay,
        ema_start_step,
        seed,
        adversary="hinge",
        adversary_weight=1.0,
        score_weight=0.0,
        readback_weight=0.0,
        pixel_weight=0.0,
        micro_batches=1,
        **kwargs,
    ):
        # Pixel values above 128 are whole numbers in bfloat16.
        super().__init__(autocast=False, **kwargs)
        condition_dim = classifier.outputs[-1].shape[-1]
        if (
            not condition_dim
            == generator.condition_dim
            == discriminator.condition_dim
        ):
            kind = "logits" if len(classifier.outputs) == 1 else "features"
            raise errors.InputError(
                f"Expected networks for the classifier's {condition_dim} "
                f"{kind}. Received: a generator for {generator.condition_dim} "
                f"and a discriminator for {discriminator.condition_dim}."
            )
        if adversary not in DISCRIMINATOR_LOSSES:
            raise errors.InputError(
                f"Expected one of {', '.join(DISCRIMINATOR_LOSSES)}. "
                f"Received: adversary={adversary!r}."
            )
        weights = (score_weight, readback_weight, pixel_weight)
        if not (discriminator_steps and adversary_weight or any(weights)):
            raise errors.InputError(
                "Expected something for the generator to learn: an adversary "
                "(discriminator steps and a weight), or a score, read-back or "
                "pixel weight. Received: 0 of each."
            )
        classifier.trainable = False
        self.classifier = classifier
        self.generator = generator
        self.discriminator = discriminator
        self.averaged_generator = networks.Generator.from_config(
            generator.get_config()
        )
        self.averaged_generator.set_weights(generator.get_weights())
        self.discriminator_steps = discriminator_steps
        self.ema_decay = ema_decay
        self.ema_start_step = ema_start_step
        self.seed = seed
        self.adversary = adversary
        self.adversary_weight = adversary_weight
        self.score_weight = score_weight
        self.readback_weight = readback_weight
        self.pixel_weight = pixel_weight
        # Reconstructions of an image in a generator update.
        self.noises = 2 if score_weight else 1
        self.micro_batches = micro_batches
        # Features do not tell the class whose mean they deviate from.
        self.class_centered_whitening = (
            conditioning.ClassCenteredWhitening()
            if len(classifier.outputs) == 1
            else conditioning.LogitNormalization("whiten")
        )
        self.class_centered_whitening.build((None, condition_dim))
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in ("discriminator_loss", "generator_loss")
        ]
        self.validation_trackers = [
            keras.metrics.Mean(name=name) for name in validation.MEASURES
        ]
        self.built = True

    def compile(self, generator_optimizer, discriminator_optimizer, **kwargs):
        """Takes the two optimizers and builds them.

        Args:
            generator_optimizer: Keras optimizer.
            discriminator_optimizer: another one.
            **kwargs: of `keras.Model.compile`, such as `jit_compile`.
        """
        super().compile(**kwargs)
        # Keras builds only `self.optimizer`. Unbuilt ones fail on several
        # replicas, and a checkpoint cannot be restored into them.
        generator_optimizer.build(self.generator.trainable_variables)
        discriminator_optimizer.build(self.discriminator.trainable_variables)
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    @property
    def metrics(self):
        """The means that `fit` resets at every epoch."""
        return self.trackers + self.validation_trackers

    def set_logit_statistics(self, logits):
        """Fits the networks' logit normalisation and the read-back's units.

        Args:
            logits: float array `(examples, condition_dim)` of training images:
                what the networks are given of them.
        """
        self.class_centered_whitening.set_statistics(logits)
        for network in (
            self.generator,
            self.discriminator,
            self.averaged_generator,
        ):
            if network.normalize_condition:
                network.normalize_condition.set_statistics(logits)

    def call(self, images, training=False):
        """Reconstructs images, with noise drawn afresh.

        Args:
            images: float32 `(batch, height, width, 3)` in [0, 255].

        Returns:
            float32 `(batch, image_size, image_size, 3)` in [0, 255].
        """
        noise_dim = self.generator.noise_dim
        return self.reconstruct(
            images, tf.random.normal((tf.shape(images)[0], noise_dim))
        )

    def reconstruct(self, images, noise):
        """Reconstructs images with given noise.

        The batch's own moments normalise, as in training: standing statistics
        are filled at export. Reconstruct at least some dozens at a time.

        Args:
            images: float32 `(batch, height, width, 3)` in [0, 255].
            noise: float32 `(batch, noise_dim)`, N(0, 1).
        """
        inputs = {"condition": self._condition_of(images), "noise": noise}
        return self.averaged_generator(inputs, training=True)

    def _classify(self, images):
        """Logits, and what the networks are given: these, or features."""
        images = resize(images, self.classifier.input_shape[1])
        outputs = self.classifier(images, training=False)
        if len(self.classifier.outputs) == 1:
            outputs = [outputs]
        outputs = [ops.cast(x, "float32") for x in outputs]
        return outputs[0], outputs[-1]

    def _condition_of(self, images):
        return self._classify(images)[1]

    def train_step(self, data):
        """One step: discriminator updates, generator update, average.

        Args:
            data: images `(batches * batch, size, size, 3)` and labels, where
                `batches = discriminator_steps + 1`, and the images' logits
                where they are known. The images of a batch lie `batches`
                apart, so that replicas share out every batch.
        """
        images, _, *known = data
        [condition] = known or [self._in_parts(self._condition_of, images)]
        images = resize(images, self.generator.image_size)
        batches = self.discriminator_steps + 1

        discriminator_loss = 0.0
        for batch in range(self.discriminator_steps):
            discriminator_loss = self._update_discriminator(
                images[batch::batches], condition[batch::batches], batch
            )
        last = self.discriminator_steps
        generator_loss = self._update_generator(
            images[last::batches], condition[last::batches]
        )
        self._update_average()

        results = (discriminator_loss, generator_loss)
        for tracker, result in zip(self.trackers, results, strict=True):
            tracker.update_state(result)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def _update_discriminator(self, images, condition, batch):
        noise = self._noise(condition, batch)
        # Outside the tape: these reconstructions are constants.
        reconstructions = self._in_parts(self._generate, condition, noise)

        def mean_loss(images, reconstructions, condition):
            scores = self._score(
                ops.concatenate([images, reconstructions]),
                ops.concatenate([condition, condition]),
            )
            loss = DISCRIMINATOR_LOSSES[self.adversary]
            return ops.mean(loss(*ops.split(scores, 2)))

        return self._descend(
            self.discriminator_optimizer,
            self.discriminator.trainable_variables,
            mean_loss,
            (images, reconstructions, condition),
        )

    def _update_generator(self, images, condition):
        # Neighbours, so that replicas and micro-batches share out both.
        condition = ops.repeat(condition, self.noises, axis=0)
        noise = self._noise(condition, self.discriminator_steps)

        def mean_loss(images, condition, noise):
            reconstructions = self._generate(condition, noise)
            loss = 0.0
            if self.discriminator_steps and self.adversary_weight:
                loss += self.adversary_weight * ops.mean(
                    self._adversarial_loss(images, reconstructions, condition)
                )
            if self.score_weight:
                first, second = reconstructions[::2], reconstructions[1::2]
                loss += self.score_weight * ops.mean(
                    losses.energy_score(first, second, images)
                )
            if self.readback_weight:
                loss += self.readback_weight * ops.mean(
                    self._readback_loss(images, reconstructions, condition)
                )
            if self.pixel_weight:
                targets = ops.repeat(images, self.noises, axis=0)
                loss += self.pixel_weight * ops.mean(
                    losses.pixel_loss(reconstructions, targets)
                )
            return loss

        return self._descend(
            self.generator_optimizer,
            self.generator.trainable_variables,
            mean_loss,
            (images, condition, noise),
        )

    def _adversarial_loss(self, images, reconstructions, condition):
        fake_scores = self._score(reconstructions, condition)
        if self.adversary == "hinge":
            return losses.hinge_generator_loss(fake_scores)
        real_scores = self._score(images, condition[:: self.noises])
        real_scores = ops.repeat(real_scores, self.noises, axis=0)
        return losses.relativistic_generator_loss(real_scores, fake_scores)

    def _readback_loss(self, images, reconstructions, condition):
        readings = self._condition_of(reconstructions)
        whiten = self.class_centered_whitening.whiten
        if self.classifier.input_shape[1] <= self.generator.image_size:
            return losses.readback_loss(whiten(readings - condition))
        # Fewer pixels than the classifier sees: no picture has the logits.
        targets = self._condition_of(images)
        if self.noises == 1:
            return losses.readback_loss(whiten(readings - targets))
        return losses.readback_score(
            *(whiten(x) for x in (readings[::2], readings[1::2], targets))
        )

    def _generate(self, condition, noise):
        inputs = {"condition": condition, "noise": noise}
        return self.generator(inputs, training=True)

    def _score(self, images, condition):
        inputs = {"images": images, "condition": condition}
        return self.discriminator(inputs, training=True)

    def _in_parts(self, function, *batch):
        """A function of a batch, a micro-batch at a time."""
        results = []
        for part in micro_batches.split(
            batch,
            self.micro_batches,
            results,
            (self.generator, self.discriminator),
        ):
            results.append(function(*part))
        return ops.concatenate(results)

    def _descend(self, optimizer, variables, mean_loss, batch):
        """Updates variables once; returns the mean loss of the batch."""
        loss, gradients = micro_batches.accumulate(
            mean_loss,
            [variable.value for variable in variables],
            batch,
            self.micro_batches,
            (self.generator, self.discriminator),
            # Optimizers sum the gradients of replicas; the loss is a mean.
            lambda loss: optimizer.scale_loss(loss / _num_replicas()),
        )
        optimizer.apply(gradients, variables)
        return loss

    def _noise(self, condition, batch):
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        # The size of a worker's share is known at run time only.
        shape = (replicas, tf.shape(condition)[0], self.generator.noise_dim)
        step = self.generator_optimizer.iterations
        draws = step * (self.discriminator_steps + 1) + batch
        noise = tf.random.stateless_normal(
            shape, seed=[self.seed, tf.cast(draws, "int32")]
        )
        return noise[context.replica_id_in_sync_group]

    def _update_average(self):
        # `iterations` has just been increased by the generator's update.
        step = self.generator_optimizer.iterations
        started = ops.cast(step > self.ema_start_step, "float32")
        weight = 1.0 - started * self.ema_decay
        for average, variable in zip(
            self.averaged_generator.trainable_variables,
            self.generator.trainable_variables,
            strict=True,
        ):
            average.assign(average + weight * (variable - average))

    def test_step(self, data):
        """Measures held-out images, by 8 reconstructions of each.

        The logs are what `validation.measure` and `validation.shares` give.
        """
        images, _ = data
        logits, condition = self._classify(images)
        samples = self._validation_samples(condition)
        readings, _ = self._classify(samples[0])
        images = resize(images, self.generator.image_size)
        results = validation.measure(images, samples, logits, readings)
        for tracker in self.validation_trackers:
            tracker.update_state(*results[tracker.name])
        means = {
            tracker.name: tracker.result()
            for tracker in self.validation_trackers
        }
        return {**means, **validation.shares(means, len(samples))}

    def _validation_samples(self, condition):
        """Reconstructions of each image, `(batch, ...)` for each noise."""
        batch = tf.shape(condition)[0]
        noise = tf.random.stateless_normal(
            (measures.ERROR_RATIO_NOISES * batch, self.generator.noise_dim),
            seed=[self.seed, -1],
        )
        condition = ops.tile(condition, (measures.ERROR_RATIO_NOISES, 1))
        samples = self.averaged_generator(
            {"condition": condition, "noise": noise}, training=True
        )
        return tf.split(samples, measures.ERROR_RATIO_NOISES)


def _num_replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def resize(images, size):
    """Antialiased resize to `size` pixels; nothing where it fits already."""
    if images.shape[1:3] == (size, size):
        return images
    return ops.image.resize(images, (size, size), antialias=True)
