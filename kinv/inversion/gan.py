"""The inversion model as a Keras model: how it is made, fitted and asked."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kinv import devices, errors
from kinv.inversion import (
    adaptation,
    batches,
    conditioning,
    export,
    layers,
    networks,
    presets,
    training_step,
    validation,
)

# Defaults, here as in `tools/train.py`.
SMALL = presets.PRESETS["small"]


@keras.saving.register_keras_serializable(package="kinv")
class InversionGAN(keras.Model):
    """Trains a generator to make images of a frozen classifier's logits.

    A training step takes `discriminator_steps + 1` batches in one: as many
    updates of the discriminator, each on fresh images, then one of the
    generator, then one of its running average (`training_step`).

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
            readback_weight, class_readback_weight, pixel_weight,
            renormalization, ema_decay, ema_start_step, micro_batches: settings
            as `presets.SETTINGS` says; by default the preset `small`'s.
        **kwargs: of `keras.Model`; without `generator` also settings of
            networks, such as `image_size`.

    Attributes:
        averaged_generator: the generator with averaged weights, which
            reconstructs and is exported.

    Example:
        model = InversionGAN(classifier)
        model.compile(steps=2000)
        model.fit(images, steps_per_epoch=500, epochs=4)
        reconstructions = model.predict(images)

    Reference:
        Supplementary, sections 7.1 and 7.2.
    """

    MODELS = ("classifier", "generator", "discriminator")
    SETTINGS = ("seed", *presets.OBJECTIVE_SETTINGS)

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
        class_readback_weight=SMALL["class_readback_weight"],
        pixel_weight=SMALL["pixel_weight"],
        renormalization=SMALL["renormalization"],
        ema_decay=SMALL["ema_decay"],
        ema_start_step=SMALL["ema_start_step"],
        micro_batches=SMALL["micro_batches"],
        **kwargs,
    ):
        if (generator is None) != (discriminator is None):
            given = "discriminator" if generator is None else "generator"
            raise errors.InputError(
                "Expected a generator and a discriminator, or neither, which "
                f"makes both of the settings. Received: a {given} alone."
            )
        if generator is None:
            defaults = dict(SMALL)
            if len(classifier.outputs) == 2:
                defaults["logit_normalization"] = presets.OF_FEATURES
            network_settings = {
                name: kwargs.pop(name, defaults[name])
                for name in presets.NETWORK_SETTINGS
            }
            generator, discriminator = networks.make(
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
        # Calls that measure do not move its vectors; `update_average` does.
        for layer in layers.spectral_layers(self.averaged_generator):
            layer.moves = False
        self.renormalization = renormalization
        # Updates of both networks make pictures, each in parts.
        calls = (discriminator_steps + 1) * micro_batches
        for layer in generator.moments:
            layer.calls_per_update = calls if renormalization else 0
        self.discriminator_steps = discriminator_steps
        self.ema_decay, self.ema_start_step = ema_decay, ema_start_step
        self.seed = seed
        self.adversary, self.adversary_weight = adversary, adversary_weight
        self.score_weight = score_weight
        self.readback_weight = readback_weight
        self.class_readback_weight = class_readback_weight
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
        losses = "discriminator_loss", "generator_loss"
        self.trackers, self.validation_trackers = (
            [keras.metrics.Mean(name) for name in names]
            for names in (losses, validation.MEASURES)
        )
        self.built = True

    def _check_settings(self):
        condition_dim = self.classifier.outputs[-1].shape[-1]
        both = self.generator, self.discriminator
        received = tuple(network.condition_dim for network in both)
        if received != (condition_dim, condition_dim):
            kind = "logits" if len(self.classifier.outputs) == 1 else "features"
            raise errors.InputError(
                f"Expected networks for the classifier's {condition_dim} "
                f"{kind}. Received: a generator for {received[0]} and a "
                f"discriminator for {received[1]}."
            )
        presets.check_choice("adversary", self.adversary)
        weights = (
            self.discriminator_steps and self.adversary_weight,
            self.score_weight,
            self.readback_weight,
            self.class_readback_weight,
            self.pixel_weight,
        )
        if not any(weights):
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
            generator_optimizer: Keras optimizer, its name, or the learning rate
                of the paper's; by default that at the preset `small`'s rate.
            discriminator_optimizer: another one, as the first.
            steps: number of generator updates over which learning rates
                decay; constant without.
            **kwargs: of `keras.Model.compile`. `jit_compile` is by default
                Keras's choice where `devices.can_use_xla` lets it.
        """
        if not devices.can_use_xla(self.distribute_strategy, self.classifier):
            kwargs = {"jit_compile": False, **kwargs}
        # Keras would make a third optimizer, with slots for every weight.
        super().compile(optimizer=None, **kwargs)
        if generator_optimizer is None:
            generator_optimizer = SMALL["generator_learning_rate"]
        if discriminator_optimizer is None:
            discriminator_optimizer = SMALL["discriminator_learning_rate"]
        self.generator_optimizer = training_step.make_optimizer(
            generator_optimizer, steps
        )
        self.discriminator_optimizer = training_step.make_optimizer(
            discriminator_optimizer,
            # It is updated that many times as often.
            steps and steps * self.discriminator_steps,
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
            "run_eagerly": self.run_eagerly,
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
                without labels, each of which is the images of one step: a
                multiple of its updates, their micro-batches and all devices.
                Smaller batches than the largest are dropped. It is found by
                reading a data set of known length once; else it is the first.
            y: labels, which are not used.
            batch_size: images of one update, where `x` is an array. A step
                takes this times `discriminator_steps + 1`.
            **kwargs: of `keras.Model.fit`.
        """
        if not self.compiled:
            raise errors.InputError(
                "Expected a compiled model. Received: fit before compile. Call "
                "compile() first."
            )
        updates = self.discriminator_steps + 1
        replicas = self.distribute_strategy.num_replicas_in_sync
        parts = updates * self.micro_batches * replicas
        # Another order in every call.
        seed = self.seed + int(np.asarray(self.generator_optimizer.iterations))
        given, x = x, batches.full(x, batch_size * updates, seed, parts)
        if not self.is_adapted():
            seen = batches.at_most(x, given, **kwargs)
            self.adapt(seen, kwargs.get("verbose", "auto"))
        if kwargs.get("steps_per_epoch") and not isinstance(
            given, tf.data.Dataset
        ):
            x = x.repeat()
        return super().fit(x, **{"shuffle": False, **kwargs})

    def adapt(self, images, verbose="auto"):
        """Fits what gradients do not train, and pretrains the embedding.

        The normalisation of the logits, the read-back's units, and the
        embedding of the logits (`adaptation`).

        Args:
            images: array or `tf.data.Dataset` of batches, as of `fit`, of
                which the first 10,000 images are used, 120,000 for an
                embedding, of normalised logits, that has hidden layers, 100
                where nothing is fitted, to check them.
            verbose: of `keras.Model.fit`.
        """
        if not isinstance(images, tf.data.Dataset):
            images = tf.data.Dataset.from_tensor_slices(images).batch(500)
        images = images.map(lambda *batch: batches.unpack(batch)[0])
        adaptation.adapt(self, images, verbose)

    def is_adapted(self):
        return self.class_centered_whitening.fitted

    @property
    def metrics(self):
        """The means that `fit` resets at every epoch."""
        return self.trackers + self.validation_trackers

    @property
    def normalizations(self):
        """Maps that are fitted to logits, and the units of the read-back."""
        networks = self.generator, self.averaged_generator, self.discriminator
        own = (network.normalize_condition for network in networks)
        return [self.class_centered_whitening, *filter(None, own)]

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
        images, _ = batches.unpack(images)
        shape = tf.shape(images)[0], self.generator.noise_dim
        return self.reconstruct(images, tf.random.normal(shape))

    def reconstruct(self, images, noise):
        """Reconstructs images with given noise.

        The batch's own moments normalise: standing statistics are filled at
        export. Reconstruct at least some dozens at a time.

        Args:
            images: float32 `(batch, height, width, 3)` in [0, 255].
            noise: float32 `(batch, noise_dim)`, N(0, 1).
        """
        inputs = {"condition": self.condition_of(images), "noise": noise}
        return self.averaged_generator(inputs, training=True)

    def export(self, path, images, class_names):
        """Writes one SavedModel with the classifier: `export.save_trained`."""
        export.save_trained(self, path, images, class_names)

    def classify(self, images):
        """Logits, and what the networks are given: these, or features.

        Args:
            images: float tensor `(batch, height, width, 3)` in [0, 255].

        Returns:
            Two float32 tensors: `(batch, num_classes)` and
            `(batch, condition_dim)`.
        """
        images = batches.resize(images, self.classifier.input_shape[1])
        outputs = tf.nest.flatten(self.classifier(images, training=False))
        outputs = [ops.cast(x, "float32") for x in outputs]
        return outputs[0], outputs[-1]

    def targets(self, images):
        """Images as reconstructions could be: as large, grey if they are."""
        return batches.targets(images, self.generator)

    def condition_of(self, images):
        return self.classify(images)[1]

    def train_step(self, data):
        """One step of `training_step`.

        Args:
            data: images of all of its updates, labels, and the images' logits
                where they are known.
        """
        results = training_step.run(self, *batches.unpack(data))
        for tracker, result in zip(self.trackers, results, strict=True):
            tracker.update_state(result)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def test_step(self, data):
        """Measures held-out images, by 8 reconstructions of each.

        The logs are what `validation.measure` and `validation.shares` give.
        """
        images, _ = batches.unpack(data)
        logits, condition = self.classify(images)
        samples = validation.samples(
            self.averaged_generator, condition, self.seed
        )
        readings, _ = self.classify(samples[0])
        images = self.targets(images)
        results = validation.measure(images, samples, logits, readings)
        for tracker in self.validation_trackers:
            tracker.update_state(*results[tracker.name])
        means = validation.means(self.validation_trackers)
        return {**means, **validation.shares(means, len(samples))}
