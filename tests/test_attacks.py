import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import devices, errors
from kinv.classifiers import attacks, small

NORM_OF_DIRECTION = 2.0


def linear_classifier():
    """Logits (0, direction . pixels); the steepest ascent is known."""
    direction = np.random.default_rng(0).normal(size=48)
    direction *= NORM_OF_DIRECTION / np.linalg.norm(direction)
    classifier = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(2, use_bias=False),
        ]
    )
    kernel = np.stack([np.zeros(48), 1e-3 * direction], axis=1)
    classifier.set_weights([kernel])
    return classifier, direction.reshape(4, 4, 3).astype("float32")


def images_and_labels(count, size=8, num_classes=3):
    random = np.random.default_rng(1)
    images = random.uniform(0, 255, (count, size, size, 3)).astype("float32")
    return images, random.integers(0, num_classes, count)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_finds_the_optimum_of_a_linear_classifier(norm):
    classifier, direction = linear_classifier()
    images = np.full((2, 4, 4, 3), 127.0, "float32")
    labels = np.array([0, 1])
    attack = attacks.ProjectedGradientDescent(norm, 6.0, 20)
    attack.step_size = 6.0
    offsets = attack.random_offsets(tf.shape(images), (0, 0))
    adversarial = attack(classifier, images, labels, offsets)
    if norm == "linf":
        towards = 6.0 * np.sign(direction)
    else:
        towards = 6.0 * direction / NORM_OF_DIRECTION
    expected = images + np.stack([towards, -towards])
    np.testing.assert_allclose(adversarial, expected, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_stays_in_the_ball_and_in_range(norm):
    classifier = small.build_classifier(8, 3, width=2)
    images, labels = images_and_labels(6)
    attack = attacks.ProjectedGradientDescent(norm, 40.0, 3)
    attack.step_size = 30.0
    offsets = attack.random_offsets(tf.shape(images), (0, 0))
    adversarial = np.asarray(attack(classifier, images, labels, offsets))
    order = np.inf if norm == "linf" else 2
    moved = (adversarial - images).reshape(6, -1)
    norms = np.linalg.norm(moved, ord=order, axis=1)
    assert norms.max() <= 40.0 + 1e-3
    assert norms.min() > 1.0
    assert adversarial.min() >= 0 and adversarial.max() <= 255


def test_random_offsets_fill_the_ball():
    shape = tf.constant([2000, 1, 1, 2])
    attack = attacks.ProjectedGradientDescent("l2", 10.0, 1)
    offsets = np.asarray(attack.random_offsets(shape, (0, 0))).reshape(-1, 2)
    norms = np.linalg.norm(offsets, axis=1)
    assert norms.max() <= 10.0
    # Of a disc's area a quarter lies within half its radius.
    assert (norms < 5.0).mean() == pytest.approx(0.25, abs=0.04)
    attack = attacks.ProjectedGradientDescent("linf", 10.0, 1)
    offsets = np.asarray(attack.random_offsets(shape, (0, 0)))
    assert np.abs(offsets).max() <= 10.0
    # The standard deviation of a uniform variable of width 20.
    assert offsets.std() == pytest.approx(20 / 12**0.5, rel=0.03)


def test_random_offsets_depend_on_the_seed_alone():
    attack = attacks.ProjectedGradientDescent("l2", 10.0, 1)
    shape = tf.constant([2, 4, 4, 3])
    first = np.asarray(attack.random_offsets(shape, (3, 1)))
    np.testing.assert_array_equal(attack.random_offsets(shape, (3, 1)), first)
    assert not np.allclose(attack.random_offsets(shape, (3, 2)), first)


def test_attack_leaves_the_classifier_alone():
    classifier = small.build_classifier(8, 3, width=2)
    before = classifier.get_weights()
    images, labels = images_and_labels(4)
    attack = attacks.ProjectedGradientDescent("linf", 8.0, 2)
    attack(classifier, images, labels, tf.zeros_like(images))
    for old, new in zip(before, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("l1", 8, 4), "Received: norm=l1"),
        (("linf", 0, 4), "Received: radius=0"),
        (("linf", 8, 0), "steps=0"),
    ],
)
def test_attack_rejects(arguments, message):
    with pytest.raises(errors.InputError, match=message):
        attacks.ProjectedGradientDescent(*arguments)


@pytest.mark.parametrize("norm", [None, "linf"])
def test_images_without_labels_do_not_count(norm):
    images, labels = images_and_labels(6)
    labels = np.array(labels)
    classifier = small.build_classifier(8, 3, width=4)
    attack = norm and attacks.ProjectedGradientDescent(norm, 0.01, 1)
    found = attacks.accuracy(classifier, [(images, labels)], attack)
    assert found[1] == 6
    hidden = np.where(np.arange(6) < 2, -1, labels)
    batches = [(images, hidden), (images[:1], hidden[:1])]
    correct = classifier.predict(images, verbose=0).argmax(1) == labels
    found = attacks.accuracy(classifier, batches, attack)
    assert found == (correct[2:].sum(), 4)


def take_a_step(strategy, norm):
    """Trains one Adam step; returns the weights and what `fit` logged."""
    images, labels = images_and_labels(8)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        classifier = small.build_classifier(8, 3, width=4)
        model = classifier
        if norm is not None:
            attack = attacks.ProjectedGradientDescent(norm, 8.0, 2)
            model = attacks.AdversarialTraining(classifier, attack, seed=5)
        # Adam divides a gradient by its own size. The larger epsilon keeps
        # rounding errors of vanishing gradients from turning it.
        model.compile(
            keras.optimizers.Adam(0.01, epsilon=1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.optimizer.build(classifier.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    history = model.fit(batches, verbose=0, shuffle=False)
    return classifier.get_weights(), history.history


@pytest.mark.parametrize("norm", [None, "linf", "l2"])
def test_several_replicas_step_as_one_does(norm):
    one, one_log = take_a_step(devices.make_strategy("single"), norm)
    two, two_log = take_a_step(devices.make_strategy("mirrored"), norm)
    keras.utils.set_random_seed(0)
    initial = small.build_classifier(8, 3, width=4).get_weights()
    moved = [np.abs(a - b).max() for a, b in zip(initial, one, strict=True)]
    assert min(moved) > 0
    for first, second in zip(one, two, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
    if norm is not None:
        assert one_log["loss"] == pytest.approx(two_log["loss"], abs=1e-5)


def test_training_raises_accuracy_under_attack():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 64)
    images = random.uniform(100, 155, (64, 8, 8, 3)).astype("float32")
    images[:, :, :, 0] += np.where(labels, 50, -50)[:, None, None]
    keras.utils.set_random_seed(0)
    classifier = small.build_classifier(8, 2, width=4)
    attack = attacks.ProjectedGradientDescent("linf", 8.0, 2)
    model = attacks.AdversarialTraining(classifier, attack, seed=0)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")
        ],
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
    log = model.fit(batches, epochs=20, verbose=0, shuffle=False).history
    assert log["adversarial_accuracy"][-1] > 0.95
    assert log["loss"][-1] < log["loss"][0]
    log = model.evaluate(batches, verbose=0, return_dict=True)
    assert set(log) == {"loss", "accuracy", "adversarial_accuracy"}
    assert log["accuracy"] >= log["adversarial_accuracy"] > 0.95


def test_accuracy_counts():
    classifier, direction = linear_classifier()
    # Signed distances from the decision boundary, in pixel values along the
    # unit direction; class 1 where positive.
    distances = np.array([30.0, 10.0, -10.0, 30.0, -30.0], "float32")
    unit = direction / NORM_OF_DIRECTION
    center = 127.0 - unit * (127.0 * unit.sum())
    images = center + distances[:, None, None, None] * unit
    labels = np.array([1, 1, 1, 1, 0])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    assert attacks.accuracy(classifier, batches) == (4, 5)
    # A ball of radius 20 reaches across the boundary from 10, not from 30.
    attack = attacks.ProjectedGradientDescent("l2", 20.0, 10)
    assert attacks.accuracy(classifier, batches, attack) == (3, 5)


def test_steps_reach_the_edge_of_the_ball_from_its_other_side():
    classifier, direction = linear_classifier()
    images = np.full((1, 4, 4, 3), 127.0, "float32")
    attack = attacks.ProjectedGradientDescent("linf", 8.0, 20)
    edge = 8.0 * np.sign(direction)[None]
    made = attack(classifier, images, np.array([0]), -edge)
    np.testing.assert_allclose(made - images, edge, atol=1e-3)


def test_where_an_attack_starts_has_nothing_to_do_with_how_far():
    attack = attacks.ProjectedGradientDescent("l2", 1.0, 1)
    shape = tf.constant([20000, 1, 1, 2])
    x, y = np.reshape(attack.random_offsets(shape, (0, 0)), (-1, 2)).T
    angles, lengths = np.arctan2(y, x), np.hypot(x, y)
    for of_angle in (np.cos, np.sin):
        for times in (1, 2):
            values = of_angle(times * angles)
            assert abs(np.corrcoef(values, lengths)[0, 1]) < 0.03


def test_every_batch_is_attacked_from_a_start_of_its_own(monkeypatch):
    attack = attacks.ProjectedGradientDescent("linf", 8.0, 1)
    draw, seeds = attack.random_offsets, []

    def recording(shape, seed):
        seeds.append(tuple(seed))
        return draw(shape, seed)

    monkeypatch.setattr(attack, "random_offsets", recording)
    classifier = small.build_classifier(8, 3, width=2)
    batches = [images_and_labels(6)] * 3
    attacks.accuracy(classifier, batches, attack, seed=4)
    assert len(set(seeds)) == 3
    assert {first for first, _ in seeds} == {4}


def test_every_step_is_attacked_from_a_start_of_its_own():
    starts = []

    class Attack(attacks.ProjectedGradientDescent):
        def __call__(self, classifier, images, labels, offsets, ascend=None):
            starts.append(np.array(offsets).tobytes())
            return images

    classifier = small.build_classifier(8, 3, width=2)
    attack = Attack("linf", 8.0, 1)
    model = attacks.AdversarialTraining(classifier, attack, seed=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices(images_and_labels(4)).batch(2)
    model.fit(data, epochs=2, verbose=0, shuffle=False)
    assert len(set(starts)) == 4


def test_held_out_images_are_classified_in_inference_mode():
    modes = []

    class Recording(keras.layers.Layer):
        def call(self, x, training=None):
            modes.append(training)
            return x

    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            Recording(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    attack = attacks.ProjectedGradientDescent("linf", 8.0, 1)
    model = attacks.AdversarialTraining(classifier, attack, seed=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    modes.clear()
    model.evaluate(*images_and_labels(4), verbose=0)
    assert modes and not any(modes)


def test_pixels_are_not_rounded_in_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = small.build_classifier(8, 3, width=2)
        attack = attacks.ProjectedGradientDescent("linf", 8.0, 1)
        model = attacks.AdversarialTraining(classifier, attack, seed=5)
        images = images_and_labels(4)[0] + 0.37
        np.testing.assert_array_equal(model(images), classifier(images))
    finally:
        keras.config.set_dtype_policy(before)
