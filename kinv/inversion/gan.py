"""Training the inversion model: one `train_step`, section 7 of the paper."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kinv import errors, measures
from kinv import images as images_lib
from kinv.inversion import (
    adaptation,
    conditioning,
    losses,
    micro_batches,
    networks,
    presets,
    validation,
)

# Defaults, here as in `tools/train.py`.
SMALL = presets.PRESETS["small"]

DISCRIMINATOR_LOSSES = {
    "hinge": losses.hinge_discriminator_loss,
    "relativistic": losses.relativistic_discriminator_loss,
}


@keras.saving.register_keras_serializable(package="kinv")
class InversionGAN(keras.Model):
    """Trains a generator to make images of a frozen classifier's logits.

    A training step takes `discriminator_steps + 1` batches in one: as many
    updates of the discriminator, each on fresh images, then one of the
    generator, then one of its running average. Reconstructions are always
    conditioned on the logits of the real images that they are compared with.

    The generator's loss is a weighted sum. The adversary is the paper's whole
    loss; it rewards pictures that look real, and neither that they show what
    the logits know nor that the noise does what they leave open. The energy
    score of two reconstructions of each image asks for both. The read-back asks
    that the classifier finds in every reconstruction the logits that it was
    made of. The squared error of pixels, a control, teaches what logits know
    and to pass over the noise (Dosovitskiy and Brox).

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
        generator: `networks.Generator`. Without it, both networks are made by
            the preset `small`.
        discriminator: `networks.Discriminator` of the same sizes.
        seed: seed of the noise.
        discriminator_steps, adversary, adversary_weight, score_weight,
            readback_weight, pixel_weight, ema_decay, ema_start_step,
            micro_batches: settings of the objective, as `presets.SETTINGS`
            says; by default the preset `small`'s. The read-back is measured in
            units of what logits vary within a class, features in those of
            their principal components. Of a classifier that sees more pixels
            than `image_size` it is an energy score, against what the
            classifier reads from the image at that size.
        **kwargs: of `keras.Model`; without `generator` also settings of
            networks, such as `image_size`.

    Attributes:
        averaged_generator: the generator with averaged weights, which
            reconstructs and is exported. It keeps spectral vectors of its own.

    Example:
        model = InversionGAN(classifier)
        model.compile(steps=2000)
        model.fit(images, steps_per_epoch=500, epochs=4)
        reconstructions = model.predict(images)

    Reference:
        Supplementary, sections 7.1 and 7.2; Dosovitskiy and Brox, Generating
        Images with Perceptual Similarity Metrics based on Deep Networks,
        NeurIPS 2016.
    """

    MODELS = ("classifier", "generator", "discriminator")
    SETTINGS = (
        "seed",
        "discriminator_steps",
        "adversary",
        "adversary_weight",
        "score_weight",
        "readback_weight",
        "pixel_weight",
        "ema_decay",
        "ema_start_step",
        "micro_batches",
    )

    def __init__(
        self,
        classifier,
        generator=None,
        discriminator=None,
        seed=presets.SEED,
        discriminator_steps=SMALL["discriminator_steps"],
        adversary=SMALL["adversary"],
        adversary_weight=SMALL["adversary_weight"],
        score_weight=SMALL["score_weight"],
        readback_weight=SMALL["readback_weight"],
        pixel_weight=SMALL["pixel_weight"],
        ema_decay=SMALL["ema_decay"],
        ema_start_step=SMALL["ema_start_step"],
        micro_batches=SMALL["micro_batches"],
        **kwargs,
    ):
        if generator is None:
            network_settings = {
                name: kwargs.pop(name, SMALL[name])
                for name in presets.NETWORK_SETTINGS
            }
            generator, discriminator = presets.make_networks(
                classifier, network_settings
            )
        # Pixel values above 128 are whole numbers in bfloat16.
        super().__init__(autocast=False, **kwargs)
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
        self._check_settings()
        # Features do not tell the class whose mean they deviate from.
        self.class_centered_whitening = (
            conditioning.ClassCenteredWhitening()
            if len(classifier.outputs) == 1
            else conditioning.LogitNormalization("whiten")
        )
        self.class_centered_whitening.build((None, generator.condition_dim))
        self.trackers = _means("discriminator_loss", "generator_loss")
        self.validation_trackers = _means(*validation.MEASURES)
        self.built = True

    def _check_settings(self):
        condition_dim = self.classifier.outputs[-1].shape[-1]
        received = (
            self.generator.condition_dim,
            self.discriminator.condition_dim,
        )
        if received != (condition_dim, condition_dim):
            kind = "logits" if len(self.classifier.outputs) == 1 else "features"
            raise errors.InputError(
                f"Expected networks for the classifier's {condition_dim} "
                f"{kind}. Received: a generator for {received[0]} and a "
                f"discriminator for {received[1]}."
            )
        if self.adversary not in DISCRIMINATOR_LOSSES:
            raise errors.InputError(
                f"Expected one of {', '.join(DISCRIMINATOR_LOSSES)}. "
                f"Received: adversary={self.adversary!r}."
            )
        weights = (self.score_weight, self.readback_weight, self.pixel_weight)
        adversary = self.discriminator_steps and self.adversary_weight
        if not (adversary or any(weights)):
            raise errors.InputError(
                "Expected something for the generator to learn: an adversary "
                "(discriminator steps and a weight), or a score, read-back or "
                "pixel weight. Received: 0 of each."
            )

    def compile(
        self,
        generator_optimizer=None,
        discriminator_optimizer=None,
        steps=None,
        **kwargs,
    ):
        """Takes the two optimizers and builds them.

        Args:
            generator_optimizer: Keras optimizer or its name; by default
                `presets.make_optimizer` at the preset `small`'s rate.
            discriminator_optimizer: another one, as the first.
            steps: number of generator updates over which the rates of the
                default optimizers decay; constant without.
            **kwargs: of `keras.Model.compile`, such as `jit_compile`.
        """
        # Keras would make a third optimizer, with slots for every weight.
        super().compile(optimizer=None, **kwargs)
        self.generator_optimizer = keras.optimizers.get(
            generator_optimizer
            or presets.make_optimizer(SMALL["generator_learning_rate"], steps)
        )
        self.discriminator_optimizer = keras.optimizers.get(
            discriminator_optimizer
            or presets.make_optimizer(
                SMALL["discriminator_learning_rate"],
                # It is updated that many times as often.
                steps and steps * self.discriminator_steps,
            )
        )
        # Keras builds only `self.optimizer`. Unbuilt ones fail on several
        # replicas, and a checkpoint cannot be restored into them.
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(
            self.discriminator.trainable_variables
        )

    def get_compile_config(self):
        """The two optimizers, for `save`."""
        if not self.compiled:
            return None
        serialize = keras.saving.serialize_keras_object
        return {
            "generator_optimizer": serialize(self.generator_optimizer),
            "discriminator_optimizer": serialize(self.discriminator_optimizer),
        }

    def compile_from_config(self, config):
        """Compiles with the two optimizers that were saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self):
        """The networks and settings, from which `load_model` makes another."""
        serialize = keras.saving.serialize_keras_object
        return {
            **{name: serialize(getattr(self, name)) for name in self.MODELS},
            **{name: getattr(self, name) for name in self.SETTINGS},
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Makes the model that `get_config` describes."""
        return cls(**keras.saving.deserialize_keras_object(config))

    def fit(self, x, y=None, batch_size=SMALL["batch_size"], **kwargs):
        """Trains on images; labels are not needed.

        The first `fit` adapts the model to the images.

        Args:
            x: images `(examples, height, width, 3)` in [0, 255], of any
                dtype, or a `tf.data.Dataset` of batches of them, with or
                without labels, each of which is the images of one step. A last
                batch that is not full is dropped; whether it is, is found by
                reading a data set of known length once.
            y: labels, which are not used.
            batch_size: images of one update, where `x` is an array. A step
                takes this times `discriminator_steps + 1`.
            **kwargs: of `keras.Model.fit`.
        """
        if not isinstance(x, tf.data.Dataset):
            size = batch_size * (self.discriminator_steps + 1)
            if len(x) < size:
                raise errors.InputError(
                    f"Expected at least {size} images, one step's worth. "
                    f"Received: {len(x)}. Lower batch_size."
                )
            x = tf.data.Dataset.from_tensor_slices(x)
            x = x.shuffle(x.cardinality(), self.seed).batch(size, True)
        first = tf.nest.flatten(x.element_spec)[0]
        if first.shape[0] is None:
            x = _without_partial(x)
        if not self._is_adapted():
            self.adapt(x, kwargs.get("verbose", "auto"))
        return super().fit(x, **{"shuffle": False, **kwargs})

    def adapt(self, images, verbose="auto", embedding=True):
        """Fits to images what does not learn, and a first embedding.

        The normalisation of the logits, the read-back's units, and the
        embedding of the logits (`adaptation`).

        Args:
            images: array or `tf.data.Dataset` of batches, as of `fit`, of
                which the first 10,000 images are used, 120,000 for an
                embedding that has hidden layers.
            verbose: of `keras.Model.fit`.
            embedding: whether to fit one; of no use before another's weights
                are loaded.
        """
        if not isinstance(images, tf.data.Dataset):
            images = tf.data.Dataset.from_tensor_slices(images).batch(500)
        batches = images.map(lambda *batch: _unpack(batch)[0])
        adaptation.adapt(self, batches, verbose, embedding)

    def _is_adapted(self):
        transform = np.asarray(self.class_centered_whitening.transform)
        return not np.array_equal(transform, np.eye(len(transform)))

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

        The moments of the batch count, as `reconstruct` says: `predict` of a
        number that is no multiple of its `batch_size` normalises the last
        pictures otherwise than the first.

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
        inputs = {"condition": self.condition_of(images), "noise": noise}
        return self.averaged_generator(inputs, training=True)

    def _classify(self, images):
        """Logits, and what the networks are given: these, or features."""
        images = resize(images, self.classifier.input_shape[1])
        outputs = self.classifier(images, training=False)
        if len(self.classifier.outputs) == 1:
            outputs = [outputs]
        outputs = [ops.cast(x, "float32") for x in outputs]
        return outputs[0], outputs[-1]

    def targets(self, images):
        """Images as reconstructions could be: as large, grey if they are."""
        images = resize(images, self.generator.image_size)
        if self.generator.channels == 3:
            return images
        grey = ops.sum(images * images_lib.LUMINANCE, axis=-1, keepdims=True)
        return ops.repeat(grey, 3, axis=-1)

    def condition_of(self, images):
        return self._classify(images)[1]

    def train_step(self, data):
        """One step: discriminator updates, generator update, average.

        Args:
            data: images `(batches * batch, size, size, 3)` and labels, where
                `batches = discriminator_steps + 1`, and the images' logits
                where they are known. The images of a batch lie `batches`
                apart, so that replicas share out every batch.
        """
        images, known = _unpack(data)
        condition = (
            self._in_parts(self.condition_of, images)
            if known is None
            else known
        )
        images = self.targets(images)
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
        readings = self.condition_of(reconstructions)

        # In units of what a class varies, or of what features do.
        def whiten(differences):
            transform = self.class_centered_whitening.transform
            return ops.matmul(differences, transform)

        if self.classifier.input_shape[1] <= self.generator.image_size:
            return losses.readback_loss(whiten(readings - condition))
        # Fewer pixels than the classifier sees: no picture has the logits.
        targets = self.condition_of(images)
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
        images, _ = _unpack(data)
        logits, condition = self._classify(images)
        samples = self._validation_samples(condition)
        readings, _ = self._classify(samples[0])
        images = self.targets(images)
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
        noises = measures.ERROR_RATIO_NOISES
        # All at once, attention to larger pictures would fill the memory.
        calls = 1 if self.generator.image_size <= 32 else noises
        noise = tf.random.stateless_normal(
            (noises * tf.shape(condition)[0], self.generator.noise_dim),
            seed=[self.seed, -1],
        )
        condition = ops.tile(condition, (noises // calls, 1))
        samples = [
            self.averaged_generator(
                {"condition": condition, "noise": part}, training=True
            )
            for part in tf.split(noise, calls)
        ]
        return tf.split(ops.concatenate(samples), noises)


def _without_partial(batches):
    """Leaves out the batch that is smaller than the first, of a dataset."""

    def size(*batch):
        return tf.shape(tf.nest.flatten(batch)[0])[0]

    full = size(next(iter(batches)))
    count = int(batches.cardinality())
    if count < 0:
        return batches.filter(lambda *batch: size(*batch) == full)
    # Keras is told how many there are.
    last = size(next(iter(batches.skip(count - 1))))
    return batches.take(count if last == full else count - 1)


def _unpack(data):
    """Images of a batch, float32, and their logits where they are known."""
    if not isinstance(data, (tuple, list)):
        data = (data,)
    return ops.cast(data[0], "float32"), data[2] if len(data) == 3 else None


def _means(*names):
    return [keras.metrics.Mean(name=name) for name in names]


def _num_replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def resize(images, size):
    """Antialiased resize to `size` pixels; nothing where it fits already."""
    if images.shape[1:3] == (size, size):
        return images
    return ops.image.resize(images, (size, size), antialias=True)
