"""Training the inversion model: one `train_step`, section 7 of the paper."""

import keras
import tensorflow as tf
from keras import ops

from kinv import errors, layers, losses, networks

# What the noise does where an adversary follows a decoder, over what the logits
# do. At 0.7 noise still did little, at 2.7 it spoiled the mean picture
# (docs/measurements.md).
NOISE_SHARE = 1.5


class InversionGAN(keras.Model):
    """Trains a generator to make images of a frozen classifier's logits.

    A training step takes `discriminator_steps + 1` batches in one: as many
    updates of the discriminator, each on fresh images, then one of the
    generator, then one of its running average. Reconstructions are always
    conditioned on the logits of the real images that they are compared with.

    The generator's loss is the paper's, adversarial alone, plus two optional
    terms. With `logit_consistency` the frozen classifier reads the
    reconstruction and must find the logits that it was made of. An adversary
    learns last, if ever, what logits know beyond the class; this term asks for
    it directly. With `pixel_consistency` reconstructions must equal the images;
    both terms without the adversary are a decoder as of Dosovitskiy and Brox.

    Noise is a function of the seed, the step and the example's place in the
    batch. So a resumed run repeats an uninterrupted one, and several replicas
    draw what one would.

    A classifier of two outputs, as `classifiers.add_features` makes it, gives
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
        logit_consistency: weight of `log(1 + d^2)`, mean over logits, where d
            is the difference between the logits that a reconstruction was made
            of and those that the classifier reads from it, in units of what
            they vary within a class (`layers.ClassDeviation`), features in
            those of their principal components. 0 as the paper.
        pixel_consistency: weight of the squared error of pixels in [-1, 1].
            With an adversary, that of the mean over noise: the product of the
            errors of two reconstructions with different noise, which leaves to
            the adversary how they vary. 0 as the paper.
        micro_batches: parts, one after the other, into which every update
            splits each replica's share of the batch, so that the activations
            of one part are in memory at a time. Exact but for the moments: in
            the generator each part (over all replicas) is normalised by its
            own. Parts are of an even number of images where a pixel term goes
            with an adversary.

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
        logit_consistency=0.0,
        pixel_consistency=0.0,
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
        if not (discriminator_steps or logit_consistency or pixel_consistency):
            raise errors.InputError(
                "Expected something for the generator to learn: discriminator "
                "steps, logit consistency or pixel consistency. Received: 0 of "
                "each."
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
        self.logit_consistency = logit_consistency
        self.pixel_consistency = pixel_consistency
        self.micro_batches = micro_batches
        # Features do not tell the class whose mean they deviate from.
        self.class_deviation = (
            layers.ClassDeviation()
            if len(classifier.outputs) == 1
            else layers.LogitNormalization("whiten")
        )
        self.class_deviation.build((None, condition_dim))
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in ("discriminator_loss", "generator_loss")
        ]
        self.validation_trackers = [
            keras.metrics.Mean(name=name)
            for name in (
                "agreement",
                "logit_cosine",
                "pixel_mse",
                "shuffled_pixel_mse",
                "logit_error",
                "shuffled_logit_error",
            )
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
        """Fits the networks' logit normalisation and the consistency's units.

        Args:
            logits: float array `(examples, condition_dim)` of training images:
                what the networks are given of them.
        """
        self.class_deviation.set_statistics(logits)
        for network in (
            self.generator,
            self.discriminator,
            self.averaged_generator,
        ):
            if network.normalize_logits:
                network.normalize_logits.set_statistics(logits)

    def begin_adversary(self, discriminator_steps, images):
        """Goes on from a decoder, trained with 0 discriminator steps.

        The generator starts from its average, with the noise that the decoder
        has learned to pass over strengthened again.

        Args:
            discriminator_steps: discriminator updates per step from now on.
            images: some dozens, as `reconstruct` takes them: the noise becomes
                `NOISE_SHARE` times as strong as what their logits do.
        """
        _, logits = self._classify(images)
        # Not the average's spectral vectors: pictures for the summaries move
        # those, on the first of several workers alone.
        for variable, average in zip(
            self.generator.trainable_variables,
            self.averaged_generator.trainable_variables,
            strict=True,
        ):
            variable.assign(average)
        self.generator.strengthen_noise(NOISE_SHARE, logits, self.seed)
        self.averaged_generator.set_weights(self.generator.get_weights())
        self.discriminator_steps = discriminator_steps
        # `fit` traces the step again.
        self.train_function = None

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
        _, logits = self._classify(images)
        return self._generate(logits, noise)

    def _generate(self, logits, noise):
        inputs = {"logits": logits, "noise": noise}
        return self.averaged_generator(inputs, training=True)

    def _classify(self, images):
        """Logits, and what the networks are given: these, or features."""
        images = resize(images, self.classifier.input_shape[1])
        outputs = self.classifier(images, training=False)
        if len(self.classifier.outputs) == 1:
            outputs = [outputs]
        outputs = [ops.cast(x, "float32") for x in outputs]
        return outputs[0], outputs[-1]

    def train_step(self, data):
        """One step: discriminator updates, generator update, average.

        Args:
            data: images `(batches * batch, size, size, 3)` and labels, where
                `batches = discriminator_steps + 1`, and the images' logits
                where they are known. The images of a batch lie `batches`
                apart, so that replicas share out every batch.
        """
        images, _, *conditions = data
        if not conditions:
            for part in tf.split(images, self.micro_batches):
                _, condition = self._classify(*_after(conditions, (part,)))
                conditions.append(condition)
        logits = ops.concatenate(conditions)
        images = resize(images, self.generator.image_size)
        batches = self.discriminator_steps + 1

        discriminator_loss = 0.0
        for batch in range(self.discriminator_steps):
            discriminator_loss = self._update_discriminator(
                images[batch::batches], logits[batch::batches], batch
            )
        last = self.discriminator_steps
        generator_loss = self._update_generator(
            images[last::batches], logits[last::batches]
        )
        self._update_average()

        results = (discriminator_loss, generator_loss)
        for tracker, result in zip(self.trackers, results, strict=True):
            tracker.update_state(result)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def _update_discriminator(self, images, logits, batch):
        noise = self._noise(logits, batch)
        # Outside the tape: these reconstructions are constants.
        reconstructions = []
        for part in self._micro_batches((logits, noise), reconstructions):
            inputs = dict(zip(("logits", "noise"), part, strict=True))
            reconstructions.append(self.generator(inputs, training=True))
        reconstructions = ops.concatenate(reconstructions)

        def mean_loss(images, reconstructions, logits):
            both = {
                "images": ops.concatenate([images, reconstructions]),
                "logits": ops.concatenate([logits, logits]),
            }
            scores = self.discriminator(both, training=True)
            real_scores, fake_scores = ops.split(scores, 2)
            return ops.mean(
                losses.hinge_discriminator_loss(real_scores, fake_scores)
            )

        return self._descend(
            self.discriminator_optimizer,
            self.discriminator.trainable_variables,
            mean_loss,
            (images, reconstructions, logits),
        )

    def _update_generator(self, images, logits):
        pairs = self.discriminator_steps and self.pixel_consistency
        if pairs:
            # Each second image twice, with different noise: neighbours, so
            # that replicas share out the pairs as one would have them.
            images, logits = (
                ops.repeat(x[: tf.shape(x)[0] // 2 * 2 : 2], 2, axis=0)
                for x in (images, logits)
            )
        noise = self._noise(logits, self.discriminator_steps)

        def mean_loss(images, logits, noise):
            reconstructions = self.generator(
                {"logits": logits, "noise": noise}, training=True
            )
            loss = 0.0
            if self.discriminator_steps:
                fake_scores = self.discriminator(
                    {"images": reconstructions, "logits": logits}, training=True
                )
                loss += ops.mean(losses.hinge_generator_loss(fake_scores))
            if self.logit_consistency:
                _, again = self._classify(reconstructions)
                differences = self.class_deviation.whiten(again - logits)
                loss += self.logit_consistency * ops.mean(
                    losses.logit_consistency_loss(differences)
                )
            if self.pixel_consistency:
                first = second = (reconstructions - images) / 127.5
                if pairs:
                    first, second = first[::2], first[1::2]
                loss += self.pixel_consistency * ops.mean(first * second)
            return loss

        return self._descend(
            self.generator_optimizer,
            self.generator.trainable_variables,
            mean_loss,
            (images, logits, noise),
        )

    def _descend(self, optimizer, variables, mean_loss, batch):
        """Updates variables once, on the mean loss over the micro-batches."""
        values = [variable.value for variable in variables]
        total_loss, sums = 0.0, []
        for part in self._micro_batches(batch, sums):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                loss = mean_loss(*part)
                scaled_loss = self._scale(loss / self.micro_batches, optimizer)
            gradients = tape.gradient(scaled_loss, values)
            total_loss += loss
            sums[:] = (
                [
                    one + other
                    for one, other in zip(sums, gradients, strict=True)
                ]
                if sums
                else gradients
            )
        optimizer.apply(sums, variables)
        return total_loss / self.micro_batches

    def _micro_batches(self, batch, results):
        """Yields the parts of a batch, each after `results` of the ones before.

        Otherwise the activations of all of them would live at once. Every part
        sees the same normalised kernels: power iterations move once per update.
        """
        vectors = [
            variable
            for network in (self.generator, self.discriminator)
            for variable in network.non_trainable_variables
            if variable.name == "spectral_vector"
        ]
        starts = [tf.identity(vector.value) for vector in vectors]
        parts = (tf.split(tensor, self.micro_batches) for tensor in batch)
        for index, part in enumerate(zip(*parts, strict=True)):
            if index:
                for vector, start in zip(vectors, starts, strict=True):
                    vector.assign(start)
            yield _after(results, part)

    def _scale(self, loss, optimizer):
        # Optimizers sum the gradients of replicas; the loss is a mean.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return optimizer.scale_loss(loss / replicas)

    def _noise(self, logits, batch):
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        # The size of a worker's share is known at run time only.
        shape = (replicas, tf.shape(logits)[0], self.generator.noise_dim)
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
        """Measures held-out images.

        `agreement` is the share of images whose reconstruction gets the class
        that the image itself gets; `logit_cosine` the cosine between their
        logits; `pixel_mse` the squared error of pixel values in [0, 255], and
        `shuffled_pixel_mse` the same against the neighbour's reconstruction.
        `logit_fidelity` tells how much of what logits know beyond the class the
        reconstructions show, for the batch's images that share their class with
        another: 1 - `logit_error` / `shuffled_logit_error`, the squared
        distances from an image's logits to those of its own reconstruction and
        to those of the other's. 1 is all of it; 0 is the class alone.
        """
        images, _ = data
        logits, given = self._classify(images)
        shape = (tf.shape(images)[0], self.generator.noise_dim)
        noise = tf.random.stateless_normal(shape, seed=[self.seed, -1])
        reconstructions = self._generate(given, noise)
        again, _ = self._classify(reconstructions)
        images = resize(images, self.generator.image_size)

        classes = ops.argmax(logits, axis=-1)
        same = classes == ops.argmax(again, axis=-1)
        cosine = ops.sum(
            ops.normalize(logits, axis=-1) * ops.normalize(again, axis=-1),
            axis=-1,
        )
        shuffled = ops.roll(reconstructions, 1, axis=0)
        # Neighbours in the order of classes share their class.
        order = ops.argsort(classes)
        logits, again = (ops.take(x, order, axis=0) for x in (logits, again))
        classes = ops.take(classes, order)
        paired = ops.cast(classes == ops.roll(classes, 1), "float32")
        others = ops.roll(again, 1, axis=0)
        results = (
            (ops.cast(same, "float32"), None),
            (cosine, None),
            (_squared_error(images, reconstructions), None),
            (_squared_error(images, shuffled), None),
            (_squared_error(logits, again), paired),
            (_squared_error(logits, others), paired),
        )
        for tracker, (result, weights) in zip(
            self.validation_trackers, results, strict=True
        ):
            tracker.update_state(result, weights)
        logs = {
            tracker.name: tracker.result()
            for tracker in self.validation_trackers
        }
        error, shuffled_error = (
            logs["logit_error"],
            logs["shuffled_logit_error"],
        )
        # Of no pairs nothing is known: 0.
        logs["logit_fidelity"] = ops.divide_no_nan(
            shuffled_error - error, shuffled_error
        )
        return logs


def _after(earlier, tensors):
    """Tensors that are there only when `earlier` ones are."""
    if not earlier:
        return tensors
    with tf.control_dependencies(earlier):
        return [tf.identity(tensor) for tensor in tensors]


def _squared_error(first, second):
    """Mean over all but the first axis, `(batch,)`."""
    squares = ops.square(first - second)
    return ops.mean(ops.reshape(squares, (ops.shape(squares)[0], -1)), axis=-1)


def resize(images, size):
    """Antialiased resize to `size` pixels; nothing where it fits already."""
    if images.shape[1:3] == (size, size):
        return images
    return ops.image.resize(images, (size, size), antialias=True)
