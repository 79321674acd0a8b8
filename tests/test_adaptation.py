"""What is fitted before training: statistics and a first embedding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv.inversion import adaptation, conditioning

SIDE = 8


def cells(images):
    """Mean colours of 4 x 4 cells, by NumPy."""
    step = images.shape[1] // 4
    shape = (len(images), 4, step, 4, step, 3)
    return images.reshape(shape).mean((2, 4)).reshape(len(images), -1)


def make_images(examples, seed=0):
    """Images of which two factors and a class decide four blocks."""
    generator = np.random.default_rng(seed)
    factors = generator.uniform(-1, 1, (examples, 2)).astype("float32")
    classes = generator.integers(3, size=examples)
    images = np.full((examples, SIDE, SIDE, 3), 127.5, "float32")
    images[:, :4, :4] += 100 * factors[:, :1, None, None]
    images[:, :4, 4:] += 100 * factors[:, 1:, None, None]
    images[:, 4:, :4] += 50.0 * (classes[:, None, None, None] - 1)
    return images, factors, classes


def condition_of(factors, classes):
    """Logits that tell the factors in other directions for each class."""
    directions = np.random.default_rng(1).standard_normal((3, 2, 4))
    deviations = np.einsum("if,ifd->id", factors, directions[classes])
    return np.concatenate([6 * np.eye(3)[classes], deviations], axis=-1).astype(
        "float32"
    )


def explained(embedding, train, test):
    """R² of cells by least squares on an embedding, of other images."""
    columns = [
        np.c_[np.array(embedding(condition)), np.ones(len(condition))]
        for condition, _ in (train, test)
    ]
    coefficients = np.linalg.lstsq(columns[0], train[1], rcond=None)[0]
    errors = np.square(columns[1] @ coefficients - test[1]).sum()
    return 1 - errors / np.square(test[1] - test[1].mean(axis=0)).sum()


def test_regression_makes_the_embedding_tell_pictures():
    sets = []
    for seed in (2, 3):
        images, factors, classes = make_images(20_000, seed)
        sets.append((condition_of(factors, classes), cells(images)))
    train, test = sets
    keras.utils.set_random_seed(0)
    embedding = conditioning.Embedding(8, 2)
    embedding(train[0][:1])
    first = explained(embedding, train, test)
    before = np.array(embedding(test[0]))
    weights = adaptation.pretrain(
        embedding, train[0], train[1] / train[1].std(), seed=0
    )
    # The embedding that was given is left alone.
    np.testing.assert_array_equal(embedding(test[0]), before)
    embedding.set_weights(weights)
    # Two factors and a class are four numbers: eight can tell them all.
    assert first < 0.9
    assert explained(embedding, train, test) > 0.97
    after = np.array(embedding(test[0]))
    assert np.square(after).mean() == pytest.approx(
        np.square(before).mean(), rel=0.1
    )


def test_bands_share_the_variance_and_hold_the_whole_picture():
    images = np.random.default_rng(0).uniform(0, 255, (500, 16, 16, 3))
    vectors = adaptation._bands(images.astype("float16"))
    assert vectors.shape == (500, 3 * (16**2 + 8**2 + 4**2))
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-4)
    assert np.square(vectors).mean() == pytest.approx(1, rel=1e-4)
    shares = [
        np.square(part).sum()
        for part in np.split(vectors, [3 * 16**2, 3 * (16**2 + 8**2)], axis=-1)
    ]
    np.testing.assert_allclose(np.array(shares) / sum(shares), 1 / 3, atol=0.04)
    # The coarsest is the picture's cells, but for scale and mean.
    coarsest, expected = vectors[:, -48:], cells(images)
    for column in range(48):
        correlation = np.corrcoef(coarsest[:, column], expected[:, column])
        assert correlation[0, 1] > 0.999


def test_of_many_images_the_first_are_used(monkeypatch):
    monkeypatch.setattr(adaptation, "REGRESSION_IMAGES", 10)
    read = []

    class Model:
        class generator:
            image_size = SIDE

        def targets(self, images):
            return images

        def condition_of(self, images):
            read.append(images)
            return images[:, 0, 0]

    images, _, _ = make_images(32)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(8)
    condition, pictures = adaptation._read(Model(), batches, 10)
    np.testing.assert_allclose(condition, images[:10, 0, 0])
    np.testing.assert_allclose(pictures, images[:10], atol=0.1)


def test_weights_decay_while_the_embedding_is_fitted():
    random = np.random.default_rng(0)
    condition = random.standard_normal((8, 5), "float32")
    condition[:, 2] = 0
    targets = random.standard_normal((8, 4), "float32")
    embedding = conditioning.Embedding(3, 1)
    embedding(condition)
    before = embedding.values[0].kernel.numpy()
    after, *_ = adaptation.pretrain(embedding, condition, targets, seed=0)
    # No gradient reaches this row: it decays, once in each pass.
    rates = 1e-3 * (0.51 + 0.49 * np.cos(np.pi * np.arange(12) / 12))
    np.testing.assert_allclose(after[2], before[2] * np.prod(1 - rates), 1e-4)


def test_faint_values_of_small_pictures_count_the_less():
    random = np.random.default_rng(0)
    # Standard deviations, in [-1, 1], of .02 and of .4.
    faint, strong = (
        127.5 * (1 + deviation * random.normal(size=(4000, 8, 4, 3)))
        for deviation in (0.02, 0.4)
    )
    pictures = np.concatenate([faint, strong], axis=2)
    finest = adaptation._bands(pictures)[:, : 3 * 8**2]
    finest = finest.reshape(4000, 8, 8, 3).std(axis=0)
    # Three quarters of the variance are in the finest band.
    deviations = np.sqrt(0.75) * np.array([0.02, 0.4])
    left, right = deviations / (deviations + 0.02)
    assert finest[:, :4].mean() / finest[:, 4:].mean() == pytest.approx(
        left / right, rel=0.03
    )
