"""The training step: what it updates, on how many replicas, and how exactly."""

import contextlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kinv import devices, errors, pixels
from kinv.classifiers import loading
from kinv.inversion import (
    batches,
    checkpoints,
    conditioning,
    gan,
    layers,
    networks,
    training_step,
    validation,
)
from kinv.inversion import losses as losses_lib
from kinv.serving import pipeline

BATCH = 8
SIZE = 8
# The objectives of the presets `paper` and `small`.
PAPER = {
    "adversary": "hinge",
    "adversary_weight": 1.0,
    "score_weight": 0.0,
    "readback_weight": 0.0,
    "renormalization": False,
}
SMALL = {
    "adversary": "relativistic",
    "adversary_weight": 0.5,
    "score_weight": 20.0,
    "readback_weight": 2.0,
}


def make_model(
    ema_decay=0.9,
    ema_start_step=0,
    num_classes=5,
    size=SIZE,
    normalization="standardize",
    discriminator_steps=2,
    classifier=None,
    graph=False,
    **options,
):
    """Small networks; without `graph` they step eagerly, four times as soon."""
    keras.utils.set_random_seed(3)
    classifier = classifier or keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )
    sizes = {
        "image_size": SIZE,
        "condition_dim": 5,
        "base_channels": 4,
        "logit_normalization": normalization,
    }
    model = gan.InversionGAN(
        classifier,
        networks.Generator(**sizes, gain_offset=1.0),
        networks.Discriminator(**sizes),
        discriminator_steps=discriminator_steps,
        ema_decay=ema_decay,
        ema_start_step=ema_start_step,
        seed=1,
        **{**PAPER, **options},
    )
    model.compile(adam(), adam(), jit_compile=False, run_eagerly=not graph)
    return model


@pytest.mark.parametrize("given", ["generator", "discriminator"])
def test_one_network_alone_is_not_taken(given):
    classifier = featured_classifier()
    inversion = gan.InversionGAN(classifier, image_size=8, base_channels=4)
    network = {given: getattr(inversion, given)}
    with pytest.raises(errors.InputError, match=f"{given} alone"):
        gan.InversionGAN(classifier, **network)


def test_features_are_not_taken_for_logits():
    classifier = featured_classifier()
    options = {"image_size": 8, "base_channels": 4}
    model = gan.InversionGAN(classifier, **options)
    assert model.generator.logit_normalization == "whiten"
    for name in ("class-centered", "one-hot"):
        with pytest.raises(errors.InputError, match="tell no class"):
            gan.InversionGAN(classifier, logit_normalization=name, **options)


def test_losses_are_scaled_in_mixed_float16():
    model = make_model()
    assert isinstance(model.generator_optimizer, keras.optimizers.Adam)
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        scaled = keras.optimizers.LossScaleOptimizer(adam())
        model.compile("adam", scaled)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    kind = keras.optimizers.LossScaleOptimizer
    assert isinstance(model.generator_optimizer, kind)
    assert model.discriminator_optimizer is scaled


def test_batches_that_cannot_be_shared_out_are_refused():
    images, _ = make_data()
    batches_of_9 = tf.data.Dataset.from_tensor_slices(images).batch(9)
    model = make_model(micro_batches=2)
    for given in (images, batches_of_9):
        with pytest.raises(errors.InputError, match="a multiple of 6 images"):
            model.fit(given, batch_size=3, verbose=0)


def test_pixels_in_another_range_are_told_of():
    images = make_data(9)[0]
    model = gan.InversionGAN(
        featured_classifier(), image_size=8, base_channels=4
    )
    # What is fitted would stay as it is when they are mended.
    with (
        pytest.warns(UserWarning, match="Multiply those in"),
        pytest.raises(errors.InputError, match=r"Multiply those in \[0, 1\]"),
    ):
        model.adapt(images / 255, verbose=0)
    with pytest.raises(errors.InputError, match=r"in \[0, 255\]"):
        model.adapt(images / 127.5 - 1, verbose=0)


def featured_classifier(width=5):
    """Seven logits, and so many features."""
    images = keras.Input((SIZE, SIZE, 3))
    maps = keras.layers.Conv2D(width, 3, strides=2)(images / 255.0)
    features = keras.layers.GlobalAveragePooling2D()(maps)
    return keras.Model(images, [keras.layers.Dense(7)(features), features])


def adam():
    # The larger epsilon keeps Adam from blowing up the rounding errors of
    # gradients that are zero (biases before a normalisation).
    return keras.optimizers.Adam(1e-3, beta_1=0.0, beta_2=0.999, epsilon=1e-5)


def make_data(num_batches=3, size=SIZE):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (num_batches * BATCH, size, size, 3))
    labels = np.zeros(num_batches * BATCH, "int64")
    return images.astype("float32"), labels


def fit(model, steps=1, data=None):
    dataset = tf.data.Dataset.from_tensor_slices(data or make_data())
    dataset = dataset.batch(3 * BATCH, drop_remainder=True).repeat()
    return model.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False)


def weights(model):
    return [variable.numpy() for variable in model.variables]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="paper", marks=pytest.mark.slow),
        pytest.param(
            {
                "normalization": "class-centered",
                "discriminator_steps": 1,
                **SMALL,
            },
            id="small",
        ),
    ],
)
def test_one_step_on_several_replicas_equals_one(options):
    alone = make_model(**options)
    fit(alone)
    strategy = devices.make_strategy("mirrored")
    with strategy.scope():
        together = make_model(**options, graph=True)
    fit(together)
    # Everything: both networks, averages, spectral vectors, Adam's moments.
    for one, two in zip(alone.variables, together.variables, strict=True):
        np.testing.assert_allclose(
            one.numpy(), two.numpy(), atol=2e-5, err_msg=one.path
        )
    for variable in together.variables:
        first, *others = strategy.experimental_local_results(variable.value)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def test_a_step_updates_both_networks_and_leaves_the_classifier():
    model = make_model()
    before = [v.numpy() for v in model.classifier.variables]
    kernels = [
        network.trainable_variables[0].numpy()
        for network in (model.generator, model.discriminator)
    ]
    fit(model)
    for variable, value in zip(model.classifier.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    for network, value in zip(
        (model.generator, model.discriminator), kernels, strict=True
    ):
        moved = network.trainable_variables[0].numpy()
        assert np.abs(moved - value).max() > 1e-4
    assert int(model.generator_optimizer.iterations) == 1
    assert int(model.discriminator_optimizer.iterations) == 2


def test_first_discriminator_step_is_adam_on_the_hinge_loss():
    model = make_model()
    images, labels = make_data()
    # Otherwise the first `fit` would do so.
    model.adapt(images)
    model.discriminator_steps = 1
    # Without momentum Adam's first step is learning rate times sign, but for
    # epsilon, which Keras adds before it corrects the second moment's bias.
    score = model.discriminator.score
    before = score.bias.numpy()
    logits = model.classifier(images[::2])
    noise = tf.random.stateless_normal((12, 120), seed=[1, 0])
    fakes = model.generator(
        {"condition": logits, "noise": noise}, training=True
    )

    def scores(batch):
        inputs = {"images": batch, "condition": logits}
        return np.array(model.discriminator(inputs, training=True))

    real, fake = scores(images[::2]), scores(fakes)
    gradient = np.mean(fake > -1) - np.mean(real < 1)
    dataset = tf.data.Dataset.from_tensors((images, labels))
    model.fit(dataset, verbose=0, shuffle=False)
    scale = abs(gradient) + 1e-5 / np.sqrt(1 - 0.999)
    expected = before - 1e-3 * gradient / scale
    np.testing.assert_allclose(score.bias.numpy(), expected, atol=1e-6)


def test_a_decoder_learns_its_terms_without_an_adversary():
    model = make_model(
        discriminator_steps=0,
        readback_weight=2.0,
        pixel_weight=3.0,
        graph=True,
    )
    images, labels = make_data(1)
    logits = np.array(model.classifier(images))
    for layer in model.normalizations:
        layer.set_statistics(logits)
    noise = training_step.draw_noise(model, tf.constant(logits), 0)
    pictures = np.array(
        model.generator({"condition": logits, "noise": noise}, training=True)
    )
    again = np.array(model.classifier(pictures))
    deviations = (
        again - logits
    ) @ model.class_centered_whitening.transform.numpy()
    expected = 2 * np.log1p(deviations**2).mean() + 3 * np.mean(
        ((images - pictures) / 127.5) ** 2
    )
    before = [v.numpy() for v in model.discriminator.variables]
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    options = {"steps_per_epoch": 1, "verbose": 0, "shuffle": False}
    history = model.fit(dataset, **options).history
    assert history["generator_loss"][0] == pytest.approx(expected, rel=1e-3)
    assert history["discriminator_loss"] == [0]
    for variable, value in zip(
        model.discriminator.variables, before, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), value)
    again = model.fit(dataset, **{**options, "steps_per_epoch": 20}).history
    assert again["generator_loss"][0] < history["generator_loss"][0]


def test_generator_loss_is_score_read_back_and_adversary():
    model = make_model(
        **SMALL, class_readback_weight=3.0, discriminator_steps=1
    )
    images, _ = make_data(1)
    logits = np.array(model.classifier(images))
    for layer in model.normalizations:
        layer.set_statistics(logits)
    # Two reconstructions of each image, one after the other.
    twice = logits.repeat(2, axis=0)
    noise = training_step.draw_noise(model, tf.constant(twice), 1)
    pictures = model.generator(
        {"condition": twice, "noise": noise}, training=True
    ).numpy()

    def scores(pictures, logits):
        inputs = {"images": pictures, "condition": logits}
        return np.array(model.discriminator(inputs, training=True))

    fake, real = scores(pictures, twice), scores(images, logits)
    readings = np.array(model.classifier(pictures))
    deviations = (
        readings - twice
    ) @ model.class_centered_whitening.transform.numpy()
    distances = [
        np.array(losses_lib.picture_distance(difference)).mean()
        for difference in (
            pictures[::2] - images,
            pictures[1::2] - images,
            pictures[::2] - pictures[1::2],
        )
    ]
    expected = (
        0.5 * np.log1p(np.exp(real.repeat(2, axis=0) - fake)).mean()
        + 10 * (distances[0] + distances[1] - distances[2])
        + 2 * np.log1p(deviations**2).mean()
        + 3
        * stats.entropy(
            *special.softmax([twice, readings], axis=-1), axis=-1
        ).mean()
    )
    loss = training_step.update_generator(
        model, tf.constant(images), tf.constant(logits)
    )
    assert float(loss) == pytest.approx(expected, rel=2e-3)


def test_read_back_of_a_classifier_that_sees_more_pixels():
    model = make_model(
        **{**SMALL, "score_weight": 1.0}, size=2 * SIZE, discriminator_steps=0
    )
    images = tf.constant(make_data(1)[0])
    pictures = tf.repeat(images, 2, axis=0)
    # Perfect pictures of half the pixels: the loss asks for no more, whatever
    # the classifier reads from the images at their full size.
    far = tf.fill((2 * BATCH, 5), 1e3)
    (logits, read), (probable, expected) = training_step.read_back(
        model, images, pictures, far
    )
    loss = training_step.readback_loss(model, read, expected)
    np.testing.assert_allclose(loss, np.zeros(BATCH), atol=2e-3)
    np.testing.assert_allclose(logits, probable, atol=1e-4)


@pytest.mark.parametrize("class_weight", [0.0, 1.0])
def test_read_back_of_features(class_weight):
    model = make_model(
        normalization="whiten",
        classifier=featured_classifier(),
        class_readback_weight=class_weight,
    )
    images = tf.constant(make_data(1)[0])
    logits, features = model.classifier(images)
    read, expected = training_step.read_back(model, images, images, features)
    for found in (read[1], expected[1]):
        np.testing.assert_allclose(found, features, atol=1e-4)
    # Nobody asks for these logits without a weight.
    np.testing.assert_allclose(
        expected[0], logits if class_weight else features, atol=1e-4
    )


def test_nothing_to_learn_is_refused():
    with pytest.raises(errors.InputError, match="Received: 0 of each"):
        make_model(discriminator_steps=0)


def test_average_is_a_copy_until_its_start_step():
    model = make_model(ema_decay=0.9, ema_start_step=2)
    pairs = list(
        zip(
            model.averaged_generator.trainable_variables,
            model.generator.trainable_variables,
            strict=True,
        )
    )
    for _ in range(2):
        fit(model)
        for average, variable in pairs:
            np.testing.assert_array_equal(average.numpy(), variable.numpy())
    before = [average.numpy() for average, _ in pairs]
    fit(model)
    for (average, variable), previous in zip(pairs, before, strict=True):
        expected = 0.9 * previous + 0.1 * variable.numpy()
        np.testing.assert_allclose(average.numpy(), expected, atol=1e-6)


def test_noise_differs_between_steps_and_batches():
    model = make_model()
    logits = tf.zeros((BATCH, 5))
    first, second = (
        training_step.draw_noise(model, logits, 0),
        training_step.draw_noise(model, logits, 1),
    )
    assert np.abs(first - second).max() > 0.1
    model.generator_optimizer.iterations.assign(1)
    later = training_step.draw_noise(model, logits, 0)
    assert np.abs(later - first).max() > 0.1


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    data = make_data(6)
    whole = make_model()
    whole.adapt(data[0])
    fit(whole, steps=2, data=data)

    first = make_model()
    first.adapt(data[0])
    first_half, second_half = ([x[i : i + 24] for x in data] for i in (0, 24))
    fit(first, data=tuple(first_half))
    first.save_weights(tmp_path / "checkpoint.weights.h5")
    second = make_model()
    second.load_weights(tmp_path / "checkpoint.weights.h5")
    fit(second, data=tuple(second_half))
    for one, two in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_array_equal(one, two)


def test_both_rates_decay_over_the_generator_s_updates():
    model = make_model(discriminator_steps=2)
    model.compile(2e-3, 5e-4, steps=10)
    optimizers = model.generator_optimizer, model.discriminator_optimizer
    for step in (0, 5, 10):
        shares = []
        for optimizer, first, updates in zip(
            optimizers, (2e-3, 5e-4), (step, 2 * step)
        ):
            optimizer.iterations.assign(updates)
            shares.append(float(optimizer.learning_rate) / first)
        # A half cosine from 1 to .02.
        expected = 0.51 + 0.49 * np.cos(np.pi * step / 10)
        assert shares == pytest.approx([expected] * 2, rel=1e-5)


def test_a_lone_image_is_not_its_own_neighbour():
    images = np.ones((1, 8, 8, 3), "float32")
    logits = np.eye(1, 3, dtype="float32")
    found = validation.measure(images, [images, images], logits, logits)
    for name in ("logit_error", "shuffled_logit_error"):
        assert np.array(found[name][1]).tolist() == [0.0]


def test_validation_measures_against_numpy():
    model = make_model()
    images, labels = make_data()
    dataset = tf.data.Dataset.from_tensors((images, labels))
    results = model.evaluate(dataset, return_dict=True, verbose=0)
    logits = np.array(model.classifier(images))
    # Eight reconstructions of each image, normalised together.
    noise = tf.random.stateless_normal((8 * 24, 120), seed=[1, -1])
    samples = model.averaged_generator(
        {"condition": np.tile(logits, (8, 1)), "noise": noise}, training=True
    )
    samples = np.array(samples).reshape(8, 24, SIZE, SIZE, 3)
    reconstructions = samples[0]
    again = np.array(model.classifier(reconstructions))
    cosine = np.sum(logits * again, 1) / (
        np.linalg.norm(logits, axis=1) * np.linalg.norm(again, axis=1)
    )
    expected = {
        "agreement": np.mean(logits.argmax(1) == again.argmax(1)),
        "logit_cosine": cosine.mean(),
        "pixel_mse": np.mean((images - reconstructions) ** 2),
        "shuffled_pixel_mse": np.mean(
            (images - np.roll(reconstructions, 1, axis=0)) ** 2
        ),
    }
    expected["single_error"] = np.mean((samples - images) ** 2)
    expected["mean_error"] = np.mean((samples.mean(0) - images) ** 2)
    distance = losses_lib.picture_distance
    scores = [
        distance(one - images) + distance(two - images) - distance(one - two)
        for one, two in zip(samples[::2], samples[1::2], strict=True)
    ]
    expected["energy_score"] = np.mean(scores) / 2
    # Each image but the first of its class, and the picture of the one before.
    own, others = [], []
    for index in np.unique(logits.argmax(1)):
        rows = np.flatnonzero(logits.argmax(1) == index)
        own.append(np.square(logits[rows[1:]] - again[rows[1:]]))
        others.append(np.square(logits[rows[1:]] - again[rows[:-1]]))
    expected["logit_error"] = np.mean(np.concatenate(own))
    expected["shuffled_logit_error"] = np.mean(np.concatenate(others))
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, rel=2e-2), name
    ratio = results["logit_error"] / results["shuffled_logit_error"]
    assert results["within_class_r2"] == pytest.approx(1 - ratio, abs=1e-6)
    ratio = results["mean_error"] / results["single_error"]
    assert results["error_ratio"] == pytest.approx(ratio, abs=1e-6)


def test_grey_reconstructions_are_compared_with_grey_images():
    model = make_model()
    images, _ = make_data(1)
    np.testing.assert_array_equal(model.targets(images), images)
    model.generator.channels = 1
    expected = images @ [[0.299], [0.587], [0.114]] * np.ones(3)
    np.testing.assert_allclose(model.targets(images), expected, rtol=1e-5)


def test_images_of_any_dtype():
    images = make_data()[0].round()
    trained = []
    for dtype in ("float32", "uint8", "float64"):
        model = make_model(discriminator_steps=1)
        model.fit(images[:16].astype(dtype), batch_size=8, verbose=0)
        trained.append(weights(model))
    for expected, *others in zip(*trained, strict=True):
        for found in others:
            np.testing.assert_allclose(found, expected, atol=1e-4)
    measured = [
        model.evaluate(images.astype(dtype), verbose=0, return_dict=True)
        for dtype in ("float32", "uint8")
    ]
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)


def test_call_reconstructs_images_of_another_size():
    model = make_model(size=12)
    reconstructions = model(make_data(1, size=12)[0])
    assert reconstructions.shape == (BATCH, SIZE, SIZE, 3)
    fit(model, data=make_data(size=12))


def test_other_number_of_logits_is_refused():
    with pytest.raises(errors.InputError, match="classifier's 7 logits"):
        make_model(num_classes=7)


def test_features_take_the_place_of_the_logits():
    model = make_model(
        normalization="whiten",
        classifier=featured_classifier(),
        readback_weight=1.0,
    )
    images, labels = make_data()
    logits, features = (np.array(x) for x in model.classifier(images))
    for layer in model.normalizations:
        layer.set_statistics(features)
    assert model.generator.normalize_condition.mean.shape == (5,)
    np.testing.assert_allclose(
        model.class_centered_whitening.mean, features.mean(axis=0), rtol=1e-4
    )
    noise = tf.random.stateless_normal((24, 120), seed=[1, -1])
    pictures = np.array(
        model.averaged_generator(
            {"condition": features, "noise": noise}, training=True
        )
    )
    np.testing.assert_allclose(
        model.reconstruct(images, noise), pictures, atol=0.1
    )
    dataset = tf.data.Dataset.from_tensors((images, labels))
    results = model.evaluate(dataset, return_dict=True, verbose=0)
    again = np.array(model.classifier(pictures)[0])
    agreement = np.mean(logits.argmax(1) == again.argmax(1))
    assert results["agreement"] == pytest.approx(agreement, abs=0.05)
    history = fit(model).history
    assert np.isfinite(history["generator_loss"][0])


def test_other_number_of_features_is_refused():
    with pytest.raises(errors.InputError, match="classifier's 6 features"):
        make_model(classifier=featured_classifier(6))


def assert_equal_but_for_rounding(whole, parts):
    # Weights, spectral vectors, Adam's moments.
    for one, two in zip(whole.variables, parts.variables, strict=True):
        np.testing.assert_allclose(
            one.numpy(), two.numpy(), atol=2e-5, err_msg=one.path
        )


def test_micro_batches_of_the_discriminator_are_one_batch(monkeypatch):
    def call(self, inputs, training):
        # A generator that normalises nothing.
        tiles = tf.tile(inputs["noise"][:, :48], (1, 4))
        return tf.reshape(127.5 + 30 * tiles, (-1, SIZE, SIZE, 3))

    whole, parts = make_model(), make_model(micro_batches=4)
    monkeypatch.setattr(networks.Generator, "call", call)
    images = make_data(1)[0]
    logits = np.array(whole.classifier(images))
    before = weights(whole.discriminator)
    losses = [
        training_step.update_discriminator(
            model, tf.constant(images), tf.constant(logits), 0
        )
        for model in (whole, parts)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    after = weights(whole.discriminator)
    moved = [
        np.abs(a - b).max() > 1e-5 for a, b in zip(before, after, strict=True)
    ]
    # All but the attention, whose scale is 0 at first.
    assert np.mean(moved) > 0.5
    assert_equal_but_for_rounding(whole, parts)


@pytest.mark.parametrize("score_weight", [0.0, 20.0])
def test_micro_batches_of_equal_moments_are_one_batch(
    score_weight, monkeypatch
):
    # Logits and noise come twice, so that the moments of a half are those of
    # the whole; the targets differ.
    draw = training_step.draw_noise

    def same_noise(model, logits, batch):
        half = draw(model, logits, batch)[: logits.shape[0] // 2]
        return tf.concat([half, half], 0)

    monkeypatch.setattr(training_step, "draw_noise", same_noise)
    options = {**SMALL, "score_weight": score_weight}
    # Its averages go on with every part.
    options["renormalization"] = False
    whole = make_model(**options)
    parts = make_model(**options, micro_batches=2)
    images = make_data(1)[0]
    logits = np.array(whole.classifier(images[: BATCH // 2]))
    logits = np.concatenate([logits, logits])
    losses = [
        training_step.update_generator(
            model, tf.constant(images), tf.constant(logits)
        )
        for model in (whole, parts)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_equal_but_for_rounding(whole, parts)


@pytest.mark.slow
def test_a_step_in_micro_batches_on_two_replicas():
    strategy = devices.make_strategy("mirrored")
    with strategy.scope():
        model = make_model(micro_batches=2, discriminator_steps=1, graph=True)
    fit(model)
    assert model.generator_optimizer.iterations.numpy() == 1
    assert model.discriminator_optimizer.iterations.numpy() == 1
    for variable in model.variables:
        assert np.isfinite(variable.numpy()).all()
        first, second = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


@pytest.mark.slow
def test_a_keras_model_by_its_defaults(tmp_path):
    classifier = make_model().classifier
    model = gan.InversionGAN(classifier, image_size=SIZE, base_channels=4)
    assert model.get_config()["score_weight"] == 20.0
    assert model.generator.get_config()["upsampling"] == "nearest"
    assert model.discriminator.get_config()["patch_scores"] is True
    assert model.discriminator.get_config()["sees_detail"] is True
    model.compile(steps=4)
    images, _ = make_data()
    # 24 images: three steps of two batches.
    history = model.fit(images, batch_size=4, epochs=2, verbose=0)
    assert len(history.history["generator_loss"]) == 2
    assert int(model.generator_optimizer.iterations) == 6
    # A cosine to 2 % over 4 steps has ended.
    rate = float(model.generator_optimizer.learning_rate)
    assert rate == pytest.approx(1e-3 * 0.02)
    logits = np.array(classifier(images))
    whitened = (logits - logits.mean(0)) / logits.std(0)
    normalize = model.generator.normalize_condition
    np.testing.assert_allclose(
        normalize(logits)[:, :5], whitened, rtol=1e-3, atol=1e-3
    )
    reconstructions = model.predict(images, verbose=0)
    assert reconstructions.shape == images.shape
    measured = model.evaluate(images, return_dict=True, verbose=0)
    assert 0 <= measured["agreement"] <= 1

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, two in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    noise = np.random.default_rng(0).standard_normal((24, 120))
    np.testing.assert_allclose(
        *(x.reconstruct(images, noise) for x in (model, loaded)), atol=1e-3
    )
    # It goes on where it was: optimizers and their rates are of the file too.
    loaded.fit(images, batch_size=4, verbose=0)
    assert int(loaded.generator_optimizer.iterations) == 9


@pytest.mark.slow
def test_a_model_is_loaded_in_a_new_process(tmp_path):
    make_model().save(tmp_path / "model.keras")
    code = (
        "import kinv; model = kinv.load_model('model.keras'); "
        "print(type(model).__name__, model.generator.image_size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["InversionGAN", str(SIZE)]


def test_images_of_a_notebook():
    model = make_model()
    images, _ = make_data()
    assert len(images) == 24
    grey = "Received: shape .*8, 8.*repeat the channel"
    for wrong in (images[..., 0], images[..., :1]):
        with pytest.raises(errors.InputError, match=grey):
            model.fit(wrong, batch_size=4, verbose=0)
        # Keras tells it in its own way from within a graph.
        with pytest.raises(Exception, match=grey):
            model.predict(wrong, verbose=0)
    with pytest.raises(errors.InputError, match="in \\[0, 1\\] by 255"):
        with pytest.warns(UserWarning, match="by 255"):
            model.fit(images / 255, batch_size=4, verbose=0)
    # The centred square, as everywhere.
    wide = np.pad(images, [(0, 0), (0, 0), (5, 6), (0, 0)])
    noise = np.random.default_rng(0).standard_normal(
        (24, model.generator.noise_dim)
    )
    np.testing.assert_allclose(
        model.reconstruct(wide, noise),
        model.reconstruct(images, noise),
        atol=1e-3,
    )
    # More steps than the array has batches of 8 images.
    model.fit(images, batch_size=4, steps_per_epoch=4, epochs=2, verbose=0)
    assert int(model.generator_optimizer.iterations) == 8


def test_a_discriminator_alone_is_restored(tmp_path):
    def generators(model):
        return [
            *model.generator.get_weights(),
            *model.averaged_generator.get_weights(),
        ]

    one, other = make_model(), make_model()
    fit(one)
    one.save_weights(tmp_path / checkpoints.CHECKPOINTS[0])
    kept = generators(other)
    checkpoints.restore_discriminator(other, tmp_path / "no run")
    checkpoints.restore_discriminator(other, tmp_path)
    for expected, found in (
        (one.discriminator.get_weights(), other.discriminator.get_weights()),
        (kept, generators(other)),
    ):
        for first, second in zip(expected, found, strict=True):
            np.testing.assert_array_equal(first, second)
    other.discriminator = networks.Discriminator(SIZE, 5, 8)
    with pytest.raises(errors.InputError, match="a discriminator like"):
        checkpoints.restore_discriminator(other, tmp_path)


def test_datasets_of_images_alone_and_a_partial_batch():
    model = make_model(discriminator_steps=1)
    images, _ = make_data()
    batches = tf.data.Dataset.from_tensor_slices(images).batch(10)
    model.fit(batches, verbose=0)
    assert int(model.generator_optimizer.iterations) == 2
    # The partial one first.
    shuffled = batches.skip(len(batches) - 1).concatenate(batches)
    model.fit(shuffled, verbose=0)
    assert int(model.generator_optimizer.iterations) == 4
    optimizers = ("sgd", "adam")
    model.compile(*optimizers)
    model.fit(images[:16], batch_size=8, verbose=0)
    assert isinstance(model.generator_optimizer, keras.optimizers.SGD)
    with pytest.raises(errors.InputError, match="at least 50 images"):
        model.fit(images, batch_size=25)


def test_probabilities_are_refused_where_nothing_is_fitted():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Dense(5)(keras.layers.Flatten()(inputs))
    classifier = keras.Model(inputs, keras.layers.Softmax()(x))
    model = gan.InversionGAN(
        classifier,
        image_size=SIZE,
        base_channels=4,
        logit_normalization="none",
        embedding_layers=0,
        readback_weight=0.0,
    )
    model.compile(None, 1)
    assert float(model.discriminator_optimizer.learning_rate) == 1
    with pytest.raises(errors.InputError, match="returns logits"):
        model.fit(make_data()[0], batch_size=8, verbose=0)


def test_a_model_is_compiled_before_it_is_fitted():
    classifier = make_model().classifier
    model = gan.InversionGAN(classifier, image_size=SIZE, base_channels=4)
    with pytest.raises(errors.InputError, match="Call compile"):
        model.fit(make_data()[0])
    for rate in (0.0, -1.0):
        with pytest.raises(errors.InputError, match="rate above 0"):
            model.compile(rate)


def test_every_fit_has_an_order_of_its_own(monkeypatch):
    model = make_model()
    seeds = []

    def full(x, batch_size, seed, parts):
        seeds.append(seed)
        return tf.data.Dataset.from_tensor_slices(x).batch(batch_size)

    monkeypatch.setattr(gan.batches, "full", full)
    for _ in range(2):
        model.fit(make_data()[0][:24], batch_size=8, verbose=0)
    assert len(set(seeds)) == 2


def test_a_fitted_embedding_begins_without_noise():
    keras.utils.set_random_seed(0)
    classifier = make_model().classifier
    model = gan.InversionGAN(classifier, image_size=SIZE, base_channels=4)
    images, _ = make_data()
    before = model.generator.embed_condition.get_weights()
    model.adapt(images, verbose=0)
    condition = np.array(model.condition_of(images))
    for network in (model.generator, model.averaged_generator):
        embedded = [
            np.array(network._embed(condition, noise)[0])
            for noise in np.random.default_rng(0).normal(
                size=(2, len(images), network.noise_dim)
            )
        ]
        np.testing.assert_array_equal(*embedded)
        assert embedded[0].std(axis=0).min() > 1e-3
        after = network.embed_condition.get_weights()
        assert not any(map(np.array_equal, before[:1], after[:1]))


def test_probabilities_are_no_logits():
    classifier = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "softmax"),
        ]
    )
    images = np.random.default_rng(0).uniform(0, 255, (8, SIZE, SIZE, 3))
    with pytest.raises(errors.InputError, match=r"kinv.load_classifier\("):
        make_model(classifier=classifier).adapt(images.astype("float32"))
    classifier = loading.load_classifier(classifier)
    make_model(classifier=classifier).adapt(images.astype("float32"))


def test_renormalization_is_of_the_generator_alone():
    model = make_model(**{**SMALL, "renormalization": True})
    fit(model, steps=2)
    for layer in model.generator.moments:
        # Three batches a step.
        assert layer.calls_per_update == 3 and int(layer.count) == 6
    for layer in model.averaged_generator.moments:
        assert layer.calls_per_update == 0 and int(layer.count) == 0
    parts = make_model(**{**SMALL, "renormalization": True, "micro_batches": 2})
    assert {x.calls_per_update for x in parts.generator.moments} == {6}


def test_the_average_has_the_vectors_of_the_generator():
    """Random ones would change its pictures from call to call."""
    model = make_model()
    fit(model)
    noise = np.random.default_rng(0).standard_normal((BATCH, 120))
    images = make_data(1)[0]
    vectors = [
        [x.spectral_vector for x in layers.spectral_layers(network)]
        for network in (model.averaged_generator, model.generator)
    ]
    for own, other in zip(*vectors, strict=True):
        np.testing.assert_array_equal(own, other)
    first = np.array(model.reconstruct(images, noise))
    before = model.averaged_generator.get_weights()
    model.evaluate(images, verbose=0)
    np.testing.assert_array_equal(model.reconstruct(images, noise), first)
    for value, own in zip(
        before, model.averaged_generator.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, own)


@pytest.mark.parametrize("known", [True, False])
def test_images_are_cropped_and_resized_where_xla_compiles(known):
    images = np.random.default_rng(0).uniform(0, 255, (2, 24, 31, 3))
    images = images.astype("float32")
    shape = images.shape if known else (None, None, None, 3)
    resize = tf.function(
        lambda x: batches.resize(x, 9),
        [tf.TensorSpec(shape)],
        # TensorFlow's own antialiased resize has no kernel there.
        jit_compile=known,
    )
    expected = pixels.resize(images[:, :, 3:27], 9)
    np.testing.assert_allclose(resize(images), expected, atol=5e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: x,
        lambda x, y: (x, y),
        lambda x, y: {"image": x, "label": y},
        lambda x, y: ({"images": x}, y),
    ],
)
def test_batches_with_and_without_labels(make):
    images, labels = make_data(1)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).map(make)
    found, logits = batches.unpack(next(iter(data.batch(len(images)))))
    np.testing.assert_array_equal(found, images)
    assert logits is None
    full = batches.full(data.batch(5), 5, 0)
    assert int(full.cardinality()) == len(images) // 5
    made = make_model().predict(data.batch(BATCH), verbose=0)
    assert made.shape == images.shape


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x, y: (x, y, y), r"Received: \(an array, an array, an array"),
        (lambda x, y: ((x, y), y), "alone or with labels"),
        (lambda x, y: {"pixels": x}, "a dict of pixels"),
    ],
)
def test_other_batches_are_refused(make, message):
    images, labels = make_data(1)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).map(make)
    with pytest.raises(errors.InputError, match=message):
        make_model().fit(data.batch(BATCH), verbose=0)


def test_data_that_is_none_is_refused():
    empty = tf.data.Dataset.from_tensor_slices(np.zeros((0, SIZE, SIZE, 3)))
    for data, message in (
        (empty.batch(4), "an empty data set"),
        ((image for image in ()), "a generator"),
        (np.zeros((SIZE, SIZE, 3)), "Make batches of single ones"),
    ):
        with pytest.raises(errors.InputError, match=message):
            batches.full(data, 4, 0)


def test_data_of_no_full_batch_are_refused():
    images, _ = make_data(1)
    data = tf.data.Dataset.from_tensor_slices(images)
    data = data.batch(2 * len(images), drop_remainder=True)
    with pytest.raises(errors.InputError, match="Make its batches smaller"):
        model = gan.InversionGAN(
            make_model().classifier, image_size=SIZE, base_channels=4
        )
        model.compile()
        model.fit(data, verbose=0)


def test_an_endless_data_set_is_fitted_to_as_far_as_it_is_read():
    data = tf.data.Dataset.from_tensor_slices(make_data(1)[0]).batch(4)
    endless = data.repeat()
    seen = batches.at_most(
        batches.full(endless, 4, 0), endless, epochs=3, steps_per_epoch=2
    )
    assert len(list(seen)) == 6
    assert batches.at_most(data, data, epochs=3) is data


def test_trained_networks_keep_what_was_fitted():
    options = {"normalization": "class-centered", **SMALL}
    model = make_model(**options)
    images = make_data(1)[0]
    model.adapt(images, verbose=0)
    other = make_model(**options)
    networks = "generator", "averaged_generator", "discriminator"
    for name in networks:
        getattr(other, name).set_weights(getattr(model, name).get_weights())
    assert not other.is_adapted()
    other.adapt(255 - images, verbose=0)
    assert other.is_adapted()
    for name in networks:
        for one, two in zip(
            getattr(model, name).get_weights(),
            getattr(other, name).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)


def test_every_worker_maps_logits_as_the_first_one(monkeypatch):
    """That of another machine may turn a principal component round."""
    model = make_model(**{**SMALL, "normalization": "whiten"})
    monkeypatch.setattr(
        devices, "broadcast_from_first_worker", lambda _, of: [-x for x in of]
    )
    images = make_data(1)[0]
    model.adapt(images, verbose=0)
    logits = np.array(model.classifier(images))
    expected = conditioning.LogitNormalization("whiten")
    expected(logits)
    expected.set_statistics(logits)
    for network in (model.generator, model.averaged_generator):
        np.testing.assert_allclose(
            network.normalize_condition.transform, -expected.transform.numpy()
        )


def test_a_trained_model_is_exported_from_python(tmp_path):
    model = make_model(**SMALL)
    fit(model)
    images = make_data()[0]
    before = model.averaged_generator.get_weights()
    names = ["a", "b", "c", "d", 5]
    model.export(tmp_path / "names" / "1", batched(images[:16], 16), names)
    for value, own in zip(
        before, model.averaged_generator.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, own)
    exported = pipeline.Pipeline.load(tmp_path / "names")
    assert exported.class_names == ["a", "b", "c", "d", "5"]
    logits = np.array(model.classifier(images))
    np.testing.assert_allclose(exported.logits(images), logits, atol=1e-4)
    noise = np.random.default_rng(0).standard_normal((len(images), 120))
    found = exported.reconstruct(images, noise[:, None].astype("float32"))
    # Moments of many images are about those of a batch.
    expected = model.reconstruct(images, noise)
    correlation = np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1]
    assert correlation > 0.9
    # A partial batch would weigh as much as a full one.
    more = np.concatenate([images[:16], 255 * np.ones_like(images[:1])])
    model.export(tmp_path / "names" / "2", batched(more, 16), names)
    other = pipeline.Pipeline.load(tmp_path / "names")
    made = other.reconstruct(images, noise[:, None].astype("float32"))
    np.testing.assert_array_equal(made, found)
    for wrong in (images[:0], images * np.nan):
        with pytest.raises(errors.InputError, match="Expected"):
            model.export(tmp_path / "wrong", wrong, names)
    with pytest.raises(errors.InputError, match="names of 5 classes"):
        model.export(tmp_path / "other", images, names[:3])
    with pytest.raises(errors.InputError, match="next version"):
        model.export(tmp_path / "names" / "1", images, names)


def batched(images, size):
    return tf.data.Dataset.from_tensor_slices(images).batch(size)


def test_an_export_computes_in_float32(tmp_path):
    classifier = make_model().classifier
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model(**SMALL, classifier=classifier)
        model.export(tmp_path / "1", make_data()[0], "abcde")
    finally:
        keras.config.set_dtype_policy("float32")
    function = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    assert "DT_BFLOAT16" not in str(function.graph.as_graph_def())


def test_held_out_images_on_several_replicas():
    """Noises, means and ratios are those of one replica."""
    images = make_data(1)[0]
    strategy = devices.make_strategy("mirrored")
    measured = []
    for scope in (contextlib.nullcontext(), strategy.scope()):
        with scope:
            model = make_model(graph=True)
        data = tf.data.Dataset.from_tensor_slices(images).batch(len(images))
        measured.append(model.evaluate(data, return_dict=True, verbose=0))
    one, two = measured
    # A replica's moments are those of all; a neighbour is its own.
    for name in ("agreement", "pixel_mse", "error_ratio", "energy_score"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_every_batch_of_every_step_has_noise_of_its_own():
    model, drawn = make_model(), set()
    for step in range(3):
        model.generator_optimizer.iterations.assign(step)
        for batch in range(3):
            noise = training_step.draw_noise(model, tf.zeros((1, 5)), batch)
            drawn.add(noise.numpy().tobytes())
    assert len(drawn) == 9


def test_adam_of_the_paper_has_no_momentum():
    optimizer = training_step.make_optimizer(2e-3)
    variable = tf.Variable(1.0)
    optimizer.build([variable])
    for gradient in (4.0, -1.0):
        optimizer.apply([tf.constant(gradient)], [variable])
    # Against the last gradient, over the root of the mean square of both.
    square = (0.999 * 0.001 * 16 + 0.001 * 1) / (1 - 0.999**2)
    expected = 1 - 2e-3 + 2e-3 / np.sqrt(square)
    assert variable.numpy() == pytest.approx(expected, abs=1e-6)


def test_every_update_of_a_step_sees_images_of_its_own(monkeypatch):
    model, seen = make_model(), []

    def record(model, images, condition, *_):
        seen.append((images, condition))

    for name in ("update_discriminator", "update_generator"):
        monkeypatch.setattr(training_step, name, record)
    monkeypatch.setattr(training_step, "update_average", lambda _: None)
    images = make_data(3)[0]
    numbers = np.repeat(np.arange(24.0)[:, None], 5, axis=1)
    training_step.run(model, tf.constant(images), tf.constant(numbers))
    assert len(seen) == 3
    for first, (part, condition) in enumerate(seen):
        np.testing.assert_array_equal(part, images[first::3])
        np.testing.assert_array_equal(condition, numbers[first::3])


@pytest.mark.parametrize("score_weight", [0.0, 1.0])
def test_what_a_larger_classifier_reads_is_compared_in_its_units(score_weight):
    model = make_model(**{**SMALL, "score_weight": score_weight}, size=16)
    transform = np.diag([1.0, 2, 3, 4, 5]).astype("float32")
    model.class_centered_whitening.transform.assign(transform)
    random = np.random.default_rng(0)
    read, expected = random.standard_normal((2, 8, 5)).astype("float32")
    if score_weight:
        expected = expected[::2].repeat(2, axis=0)
    found = training_step.readback_loss(model, read, expected)
    deviations = (read - expected) @ transform
    if score_weight:
        one, two = deviations[::2], deviations[1::2]
        lengths = [np.sqrt((x**2).mean(-1)) for x in (one, two, one - two)]
        value = (lengths[0] + lengths[1] - lengths[2]) / 2
    else:
        value = np.log1p(deviations**2).mean(-1)
    np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-3)


def test_classes_read_back_diverge_from_those_of_the_image():
    model = make_model(discriminator_steps=0, class_readback_weight=1.0)
    images = make_data(1)[0]
    # Far from what is read.
    logits = 4 * np.random.default_rng(0).standard_normal((8, 5), "float32")
    noise = training_step.draw_noise(model, tf.constant(logits), 0)
    inputs = {"condition": logits, "noise": noise}
    read = np.array(model.classifier(model.generator(inputs, training=True)))
    shares = special.softmax([logits, read], axis=-1)
    loss = training_step.update_generator(
        model, tf.constant(images), tf.constant(logits)
    )
    expected = stats.entropy(*shares, axis=-1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_shares_of_means():
    means = {"logit_error": 1, "shuffled_logit_error": 4, "single_error": 1}
    # s² = 4 A: (A + 4 A / 8) / (A + 4 A) = 0.3. And more than the noise says.
    for of_mean, spread_skill in ((0.3, 2), (1.1, 0)):
        values = {**means, "mean_error": of_mean}
        values = {name: tf.constant(float(x)) for name, x in values.items()}
        found = validation.shares(values, 8)
        assert float(found["spread_skill"]) == pytest.approx(spread_skill, 1e-4)
        assert float(found["within_class_r2"]) == pytest.approx(0.75)


def test_a_single_held_out_image():
    model = make_model()
    found = model.evaluate(make_data(1)[0][:1], return_dict=True, verbose=0)
    assert np.isfinite(list(found.values())).all()
    assert found["within_class_r2"] == 0
