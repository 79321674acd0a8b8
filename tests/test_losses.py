"""Losses whose values can be worked out in one's head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from kinv.inversion import losses


def test_hinge_discriminator_loss():
    real = np.array([[2.0], [0.5], [-1.0]], "float32")
    fake = np.array([[-2.0], [-0.5], [1.0]], "float32")
    np.testing.assert_allclose(
        losses.hinge_discriminator_loss(real, fake), [[0.0], [1.0], [4.0]]
    )


def test_hinge_generator_loss_is_not_clipped():
    fake = np.array([[3.0], [-2.0]], "float32")
    np.testing.assert_allclose(
        losses.hinge_generator_loss(fake), [[-3.0], [2.0]]
    )


def test_readback_loss():
    differences = np.array([[0.0, 0.0], [np.sqrt(np.e - 1), 0.0]], "float32")
    np.testing.assert_allclose(
        losses.readback_loss(differences), [0.0, 0.5], atol=1e-6
    )


def test_class_divergence():
    random = np.random.default_rng(0)
    read, expected = random.normal(scale=3, size=(2, 4, 7)).astype("float32")
    probabilities = special.softmax([expected, read], axis=-1)
    np.testing.assert_allclose(
        losses.class_divergence(read, expected),
        stats.entropy(*probabilities, axis=-1),
        rtol=1e-4,
    )
    # Probabilities alone count.
    np.testing.assert_allclose(
        losses.class_divergence(read + 5, read), np.zeros(4), atol=1e-5
    )


def test_relativistic_losses():
    real = np.array([[2.0], [0.0]], "float32")
    fake = np.array([[2.0], [np.log(3.0)]], "float32")
    # log(1 + 1) and log(1 + 3); log(1 + 1/3).
    np.testing.assert_allclose(
        losses.relativistic_discriminator_loss(real, fake),
        np.log([[2.0], [4.0]]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        losses.relativistic_generator_loss(real, fake),
        np.log([[2.0], [4.0 / 3]]),
        rtol=1e-6,
    )


def test_pixel_loss():
    images = np.zeros((2, 4, 4, 3), "float32")
    pictures = np.stack([images[0], images[1] + 255])
    np.testing.assert_allclose(losses.pixel_loss(pictures, images), [0, 4])


def laplacian_pyramid(picture):
    """Bands of one picture `(size, size, 3)`, finest first, and the rest."""
    bands = []
    while len(picture) > 4:
        half = len(picture) // 2
        low = picture.reshape(half, 2, half, 2, 3).mean((1, 3))
        bands.append(picture - low.repeat(2, axis=0).repeat(2, axis=1))
        picture = low
    return bands, picture


def root_mean_squares(picture, sides):
    """For each side, the mean over patches half a side apart."""
    means = []
    for side, stride in sides:
        starts = range(0, len(picture) - side + 1, stride)
        patches = [
            picture[i : i + side, j : j + side] for i in starts for j in starts
        ]
        means.append(np.mean([np.sqrt(np.mean(p**2)) for p in patches]))
    return means


def test_picture_distance_against_numpy():
    difference = np.random.default_rng(0).normal(0, 60, (2, 16, 16, 3))
    expected = []
    for picture in difference / 127.5:
        whole = root_mean_squares(picture, [(1, 1), (4, 2), (8, 4), (16, 16)])
        bands, rest = laplacian_pyramid(picture)
        parts = root_mean_squares(1.5 * rest, [(1, 1), (4, 4)])
        for band in bands:
            size = len(band)
            weight = 3 * (size / 8) ** 0.7
            sides = [(1, 1), (4, 2), (size, size)]
            parts += root_mean_squares(weight * band, sides)
        expected.append(2 * np.mean(whole) + np.mean(parts))
    distance = losses.picture_distance(difference.astype("float32"))
    np.testing.assert_allclose(distance, expected, rtol=1e-4)


def test_energy_score_is_half_of_what_is_left_of_the_triangle():
    first, second, images = np.random.default_rng(0).uniform(
        0, 255, (3, 2, 8, 8, 3)
    )
    sides = [
        np.array(losses.picture_distance(a - b))
        for a, b in ((first, images), (second, images), (first, second))
    ]
    np.testing.assert_allclose(
        losses.energy_score(first, second, images),
        (sides[0] + sides[1] - sides[2]) / 2,
        rtol=1e-6,
    )


def fit_gaussian(loss, mean, deviation):
    """Mean and deviation of the sampler `a + b z` that minimises a loss.

    Images are of one grey, drawn from a Gaussian.
    """
    draw = np.random.default_rng(0).standard_normal
    parameters = tf.Variable([100.0, 5.0])
    rates = keras.optimizers.schedules.CosineDecay(1.0, 600, 0.01)
    optimizer = keras.optimizers.Adam(rates)

    @tf.function
    def step(images, noise):
        with tf.GradientTape() as tape:
            samples = parameters[0] + parameters[1] * noise
            first, second, images = (
                tf.tile(x[:, None, None, None], (1, 4, 4, 3))
                for x in (*tf.unstack(samples), images)
            )
            value = tf.reduce_mean(loss(first, second, images))
        gradient = tape.gradient(value, parameters)
        optimizer.apply_gradients([(gradient, parameters)])

    for _ in range(600):
        images = mean + deviation * draw(2000)
        step(images.astype("float32"), draw((2, 2000), "float32"))
    return parameters.numpy()


def test_the_energy_score_recovers_a_gaussian_and_a_mean_error_does_not():
    mean, deviation = fit_gaussian(losses.energy_score, 130.0, 20.0)
    assert mean == pytest.approx(130, rel=0.02)
    assert deviation == pytest.approx(20, rel=0.02)

    # The squared error of the mean over noises, which is the same whatever
    # the noise does.
    def mean_error(first, second, images):
        return (first - images) * (second - images)

    mean, deviation = fit_gaussian(mean_error, 130.0, 20.0)
    assert mean == pytest.approx(130, rel=0.02)
    assert not deviation == pytest.approx(20, rel=0.3)


def test_readback_score_is_the_distance_where_nothing_is_open():
    logits = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
    read = logits + np.array([[2.0, 0.0, 0.0, 0.0]], "float32")
    # Two equal samples, 2 away in one of four logits: a root mean square of 1.
    np.testing.assert_allclose(
        losses.readback_score(read, read, logits), [1.0], atol=1e-3
    )


def test_readback_score_of_two_reconstructions():
    first = np.array([[3.0, 0]], "float32")
    second = np.array([[0, 4.0]], "float32")
    # Of lengths 3, 4 and, apart, 5, over the root of 2: (3 + 4 - 5) / 2.
    np.testing.assert_allclose(
        losses.readback_score(first, second, 0 * first),
        [1 / np.sqrt(2)],
        atol=1e-3,
    )
