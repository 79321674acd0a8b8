"""One step of the training: section 7 of the paper, and kinv's objective.

All are functions of a `gan.InversionGAN`, which holds the networks, their
optimizers and the weights of the losses; of `images`, targets `(batch,
image_size, image_size, 3)` in [0, 255]; of `reconstructions` `(batch * noises,
image_size, image_size, 3)`, those of an image as neighbours; and of the
`condition` that these were made of, `(batch * noises, condition_dim)`.

The generator's loss is a weighted sum. The adversary is the paper's whole loss;
it rewards pictures that look real, and neither that they show what the logits
know nor that the noise does what they leave open. The energy score of two
reconstructions of each image asks for both. The read-back asks that the
classifier finds in every reconstruction the logits that it was made of. The
squared error of pixels, a control, teaches the generator to show what the
logits know and to ignore the noise (Dosovitskiy and Brox, Generating Images
with Perceptual Similarity Metrics based on Deep Networks, NeurIPS 2016).
"""

import functools
import numbers

import keras
import tensorflow as tf
from keras import ops

from kinv import errors
from kinv.inversion import layers, losses, presets

DISCRIMINATOR_LOSSES = {
    "hinge": losses.hinge_discriminator_loss,
    "relativistic": losses.relativistic_discriminator_loss,
}


def run(model, images, condition=None):
    """Updates the discriminator, then the generator, then its average.

    Reconstructions are always of the logits of the images that they are
    compared with.

    Args:
        model: `gan.InversionGAN`, compiled.
        images: float32 `(batches * batch, height, width, 3)` in [0, 255], where
            `batches = discriminator_steps + 1`: every update sees fresh ones.
            The images of a batch lie `batches` apart, so that replicas share
            out every batch.
        condition: `(batches * batch, condition_dim)`, what the networks are
            given of the images, where it is known.

    Returns:
        The losses of the last discriminator update and of the generator's.
    """
    if condition is None:
        condition = _in_parts(model, model.condition_of, images)
    images = model.targets(images)
    batches = model.discriminator_steps + 1

    discriminator_loss = 0.0
    for batch in range(model.discriminator_steps):
        discriminator_loss = update_discriminator(
            model, images[batch::batches], condition[batch::batches], batch
        )
    last = model.discriminator_steps
    generator_loss = update_generator(
        model, images[last::batches], condition[last::batches]
    )
    update_average(model)
    return discriminator_loss, generator_loss


def update_discriminator(model, images, condition, batch):
    """Descends the discriminator's loss of one batch; returns the loss."""
    noise = draw_noise(model, condition, batch)
    # Outside the tape: these reconstructions are constants.
    reconstructions = _in_parts(
        model, functools.partial(_generate, model), condition, noise
    )

    def mean_loss(images, reconstructions, condition):
        scores = _score(
            model,
            ops.concatenate([images, reconstructions]),
            ops.concatenate([condition, condition]),
        )
        loss = DISCRIMINATOR_LOSSES[model.adversary]
        return ops.mean(loss(*ops.split(scores, 2)))

    return _descend(
        model,
        model.discriminator_optimizer,
        model.discriminator.trainable_variables,
        mean_loss,
        (images, reconstructions, condition),
    )


def update_generator(model, images, condition):
    """Descends the generator's loss of one batch; returns the loss."""
    # Neighbours, so that replicas and micro-batches share out both.
    condition = ops.repeat(condition, model.noises, axis=0)
    noise = draw_noise(model, condition, model.discriminator_steps)

    def mean_loss(images, condition, noise):
        reconstructions = _generate(model, condition, noise)
        loss = 0.0
        if model.discriminator_steps and model.adversary_weight:
            loss += model.adversary_weight * ops.mean(
                adversarial_loss(model, images, reconstructions, condition)
            )
        if model.score_weight:
            first, second = reconstructions[::2], reconstructions[1::2]
            loss += model.score_weight * ops.mean(
                losses.energy_score(first, second, images)
            )
        if model.readback_weight or model.class_readback_weight:
            read, expected = read_back(
                model, images, reconstructions, condition
            )
        if model.readback_weight:
            loss += model.readback_weight * ops.mean(
                readback_loss(model, read[-1], expected[-1])
            )
        if model.class_readback_weight:
            loss += model.class_readback_weight * ops.mean(
                losses.class_divergence(read[0], expected[0])
            )
        if model.pixel_weight:
            targets = ops.repeat(images, model.noises, axis=0)
            loss += model.pixel_weight * ops.mean(
                losses.pixel_loss(reconstructions, targets)
            )
        return loss

    return _descend(
        model,
        model.generator_optimizer,
        model.generator.trainable_variables,
        mean_loss,
        (images, condition, noise),
    )


def adversarial_loss(model, images, reconstructions, condition):
    """What the discriminator's scores say, `(batch * noises, places)`."""
    fake_scores = _score(model, reconstructions, condition)
    if model.adversary == "hinge":
        return losses.hinge_generator_loss(fake_scores)
    real_scores = _score(model, images, condition[:: model.noises])
    real_scores = ops.repeat(real_scores, model.noises, axis=0)
    return losses.relativistic_generator_loss(real_scores, fake_scores)


def read_back(model, images, reconstructions, condition):
    """What the classifier reads from reconstructions, and what it should.

    Where it sees more pixels than `image_size`, no picture of that size has the
    image's logits: what it reads from the image at that size is expected.

    Returns:
        Two pairs, as `InversionGAN.classify` gives them, of `batch * noises`
        each. Of features, the expected logits are known only where
        `class_readback_weight` asks for them.
    """
    read = model.classify(reconstructions)
    # Features alone do not tell the probabilities of classes.
    tells_all = (
        len(model.classifier.outputs) == 1 or not model.class_readback_weight
    )
    if tells_all and not sees_more_pixels(model):
        return read, (condition, condition)
    expected = model.classify(images)
    return read, [ops.repeat(x, model.noises, axis=0) for x in expected]


def readback_loss(model, read, expected):
    """How far what the classifier reads is from what it should be.

    In units of what logits vary within a class, or features in their principal
    components. Of a classifier that sees more pixels than `image_size` an
    energy score of two reconstructions.

    Returns:
        Float tensor `(batch * noises,)`, or `(batch,)` of an energy score.
    """

    def whiten(differences):
        transform = model.class_centered_whitening.transform
        return ops.matmul(differences, transform)

    if model.noises == 1 or not sees_more_pixels(model):
        return losses.readback_loss(whiten(read - expected))
    return losses.readback_score(
        *(whiten(x) for x in (read[::2], read[1::2], expected[::2]))
    )


def sees_more_pixels(model):
    """Whether the classifier sees more pixels than the generator makes."""
    return model.classifier.input_shape[1] > model.generator.image_size


def draw_noise(model, condition, batch):
    """The noise of a step's batch, N(0, 1), `(batch, noise_dim)`.

    A function of the seed, the step and the example's place in the batch. So a
    resumed run repeats an uninterrupted one, and several replicas draw what one
    would.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    # The size of a worker's share is known at run time only.
    shape = (replicas, tf.shape(condition)[0], model.generator.noise_dim)
    step = model.generator_optimizer.iterations
    draws = step * (model.discriminator_steps + 1) + batch
    noise = tf.random.stateless_normal(
        shape, seed=[model.seed, tf.cast(draws, "int32")]
    )
    return noise[context.replica_id_in_sync_group]


def update_average(model):
    """Moves the averaged generator towards the generator."""
    # `iterations` has just been increased by the generator's update.
    step = model.generator_optimizer.iterations
    started = ops.cast(step > model.ema_start_step, "float32")
    weight = 1.0 - started * model.ema_decay
    for average, variable in zip(
        model.averaged_generator.trainable_variables,
        model.generator.trainable_variables,
        strict=True,
    ):
        average.assign(average + weight * (variable - average))
    # Those of its own would be random until calls have moved them.
    for layer, trained in zip(
        layers.spectral_layers(model.averaged_generator),
        layers.spectral_layers(model.generator),
        strict=True,
    ):
        layer.spectral_vector.assign(trained.spectral_vector)


def make_optimizer(optimizer, steps=None):
    """A network's optimizer; it scales losses in mixed float16.

    Args:
        optimizer: Keras optimizer, its name, or the learning rate of the Adam
            of section 7.2.
        steps: number of updates over which such a rate decays along a cosine;
            constant without.
    """
    if isinstance(optimizer, numbers.Real):
        rate = float(optimizer)
        if not rate > 0:
            raise errors.InputError(
                f"Expected a learning rate above 0. Received: {rate:g}."
            )
        if steps:
            rate = keras.optimizers.schedules.CosineDecay(
                rate, steps, presets.FINAL_RATE_RATIO
            )
        optimizer = keras.optimizers.Adam(
            rate, beta_1=0.0, beta_2=0.999, epsilon=1e-8
        )
    optimizer = keras.optimizers.get(optimizer)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if keras.config.dtype_policy().name == "mixed_float16" and not scales:
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _generate(model, condition, noise):
    inputs = {"condition": condition, "noise": noise}
    return model.generator(inputs, training=True)


def _score(model, images, condition):
    inputs = {"images": images, "condition": condition}
    return model.discriminator(inputs, training=True)


def _in_parts(model, function, *batch):
    """A function of a batch, a micro-batch at a time."""
    results = []
    for part in micro_batches(model, batch, results):
        results.append(function(*part))
    return ops.concatenate(results)


def _descend(model, optimizer, variables, mean_loss, batch):
    """Updates variables once; returns the mean loss of the batch."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    values = [variable.value for variable in variables]
    total_loss, sums = 0.0, []
    for part in micro_batches(model, batch, sums):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = mean_loss(*part) / model.micro_batches
            # Optimizers sum the gradients of replicas; the loss is a mean.
            scaled_loss = optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(scaled_loss, values)
        total_loss += loss
        pairs = zip(sums or [0.0] * len(values), gradients, strict=True)
        sums[:] = [one + other for one, other in pairs]
    optimizer.apply(sums, variables)
    return total_loss


def micro_batches(model, batch, results):
    """Yields the parts of a batch, each after `results` of the ones before.

    Otherwise the activations of all of them would live at once. Every part
    sees the same normalised kernels: power iterations move once per update.

    Args:
        batch: sequence of tensors, whose first axes are multiples of
            `model.micro_batches`.
        results: list of tensors; the caller puts into it what it has made of
            the parts before.

    Yields:
        Lists of tensors, a part of each in `batch`.
    """
    vectors = [
        layer.spectral_vector
        for network in (model.generator, model.discriminator)
        for layer in layers.spectral_layers(network)
    ]
    starts = [tf.identity(vector.value) for vector in vectors]
    parts = (tf.split(tensor, model.micro_batches) for tensor in batch)
    for index, part in enumerate(zip(*parts, strict=True)):
        if index:
            for vector, start in zip(vectors, starts, strict=True):
                vector.assign(start)
        if results:
            with tf.control_dependencies(results):
                part = [tf.identity(tensor) for tensor in part]
        yield part
