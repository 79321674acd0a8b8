"""Layers against NumPy and closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from kinv import errors
from kinv.inversion import conditioning, layers, normalization


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_spectral_norm_of_four_times_identity_is_four():
    layer = layers.SpectralDense(8, use_bias=False)
    layer.build((None, 8))
    layer.kernel.assign(4 * np.eye(8))
    np.testing.assert_allclose(
        layer.normalized_kernel(training=False), np.eye(8), atol=1e-6
    )


@pytest.mark.parametrize(
    "shape", [(24, 7), (7, 24), (3, 3, 5, 6), (1, 1, 8, 8)]
)
def test_spectral_norm_converges_to_the_largest_singular_value(shape):
    layer = layers.SpectralConv2D(shape[-1], shape[0])
    layer.add_kernel(shape)
    kernel = random(*shape)
    layer.kernel.assign(kernel)
    for _ in range(300):
        normalized = layer.normalized_kernel(training=True)
    largest = np.linalg.svd(kernel.reshape(-1, shape[-1]))[1][0]
    np.testing.assert_allclose(
        normalized, kernel / largest, rtol=1e-3, atol=1e-5
    )
    # The vector is kept on the smaller side.
    assert layer.spectral_vector.shape == (min(np.prod(shape[:-1]), shape[-1]),)


def test_folding_leaves_a_largest_singular_value_of_one():
    layer = layers.SpectralDense(16)
    layer.build((None, 40))
    layer.kernel.assign(random(40, 16))
    layer.fold(iterations=200)
    largest = np.linalg.svd(layer.kernel.numpy())[1][0]
    np.testing.assert_allclose(largest, 1.0, rtol=1e-4)
    # And a folded kernel is used as it is.
    np.testing.assert_array_equal(
        layer.normalized_kernel(training=True), layer.kernel.numpy()
    )


def test_spectral_gradient_is_orthogonal_to_the_kernel():
    layer = layers.SpectralDense(5)
    inputs = random(6, 9)
    layer(inputs)
    layer.kernel.assign(3 * random(9, 5, seed=1))
    for _ in range(200):
        layer(inputs, training=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(
            layer(inputs, training=True) * random(6, 5, seed=2)
        )
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    kernel = layer.kernel.numpy()
    cosine = np.sum(gradient * kernel) / (
        np.linalg.norm(gradient) * np.linalg.norm(kernel)
    )
    assert abs(cosine) < 1e-4


def test_only_training_moves_the_spectral_vector():
    layer = layers.SpectralDense(5)
    inputs = random(6, 9)
    layer(inputs)
    layer.kernel.assign(random(9, 5))
    before = layer.spectral_vector.numpy()
    layer(inputs, training=False)
    np.testing.assert_array_equal(layer.spectral_vector.numpy(), before)
    layer(inputs, training=True)
    assert np.abs(layer.spectral_vector.numpy() - before).max() > 1e-3


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("upsampling", ["zeros", "nearest"])
def test_upsampling_equals_convolving_the_larger_map(upsampling, kernel_size):
    inputs = random(2, 5, 5, 3)
    layer = layers.SpectralConv2D(4, kernel_size, upsampling=upsampling)
    layer.build(inputs.shape)
    layer.kernel.assign(random(kernel_size, kernel_size, 3, 4, seed=1))
    layer.bias.assign(random(4, seed=2))
    kernel = layer.normalized_kernel(training=False)

    larger = inputs.repeat(2, axis=1).repeat(2, axis=2)
    if upsampling == "zeros":
        larger[:, 1::2] = 0
        larger[:, :, 1::2] = 0
    expected = tf.nn.conv2d(larger, kernel, 1, "SAME") + layer.bias
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("upsampling", [None, "nearest"])
def test_edge_padding_equals_convolving_a_padded_map(upsampling):
    inputs = random(2, 5, 5, 3)
    layer = layers.SpectralConv2D(4, 3, upsampling=upsampling, padding="edge")
    layer.build(inputs.shape)
    layer.kernel.assign(random(3, 3, 3, 4, seed=1))
    layer.bias.assign(random(4, seed=2))
    kernel = layer.normalized_kernel(training=False)

    if upsampling:
        large = inputs.repeat(2, axis=1).repeat(2, axis=2)
    else:
        large = inputs
    padded = np.pad(large, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    expected = tf.nn.conv2d(padded, kernel, 1, "VALID") + layer.bias
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)
    # What is flat stays flat, up to the corners.
    flat = np.array(layer(np.ones((1, 5, 5, 3), "float32")))
    np.testing.assert_allclose(np.ptp(flat, axis=(0, 1, 2)), 0, atol=1e-5)


def test_inserted_zeros_have_zeros_beyond_the_border():
    inputs, kernel = random(2, 5, 5, 3), random(3, 3, 3, 4, seed=1)
    outputs = []
    for padding in ("zeros", "edge"):
        layer = layers.SpectralConv2D(4, 3, upsampling="zeros", padding=padding)
        layer.build(inputs.shape)
        layer.kernel.assign(kernel)
        layer.spectral_vector.assign(np.ones(4))
        outputs.append(np.array(layer(inputs)))
    np.testing.assert_array_equal(*outputs)


def test_pool_equals_averaging_the_convolution():
    inputs = random(2, 6, 8, 3)
    layer = layers.SpectralConv2D(4, 3, pool=True)
    layer.build(inputs.shape)
    layer.kernel.assign(random(3, 3, 3, 4, seed=1))
    layer.bias.assign(random(4, seed=2))
    kernel = layer.normalized_kernel(training=False)

    convolved = tf.nn.conv2d(inputs, kernel, 1, "SAME") + layer.bias
    expected = tf.nn.avg_pool2d(convolved, 2, 2, "VALID")
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)


def test_insert_zeros_keeps_values_at_even_places():
    inputs = random(2, 3, 3, 2)
    outputs = np.array(layers.insert_zeros(inputs))
    np.testing.assert_array_equal(outputs[:, ::2, ::2], inputs)
    assert np.count_nonzero(outputs) == inputs.size


def test_repeated_pixels_leave_no_checkerboard():
    # A constant map stays constant, but for the border's padding; zeros make
    # four different values of it.
    kernel = random(3, 3, 2, 1)
    patterns = {}
    for upsampling in ("zeros", "nearest"):
        layer = layers.SpectralConv2D(1, 3, upsampling=upsampling)
        layer.build((1, 6, 6, 2))
        layer.kernel.assign(kernel)
        outputs = np.array(layer(np.ones((1, 6, 6, 2), "float32")))
        patterns[upsampling] = np.ptp(outputs[0, 2:-2, 2:-2])
    assert patterns["nearest"] < 1e-5 < 1e-2 < patterns["zeros"]


@pytest.mark.parametrize("gain_offset", [0.0, 1.0])
def test_conditional_batch_normalization_against_numpy(gain_offset):
    inputs, condition = random(4, 3, 3, 5), random(4, 7, seed=1)
    layer = normalization.ConditionalBatchNormalization(gain_offset)
    outputs = layer(inputs, condition, training=True)
    # Orthogonal kernels: their spectral norm is 1 from the start.
    gain = gain_offset + condition @ layer.gain.kernel.numpy()
    offset = condition @ layer.offset.kernel.numpy()
    mean = inputs.mean((0, 1, 2))
    deviation = np.sqrt(inputs.var((0, 1, 2)) + 1e-5)
    expected = (inputs - mean) / deviation * gain[:, None, None]
    expected += offset[:, None, None]
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_zero_condition_gives_zero_without_gain_offset():
    layer = normalization.ConditionalBatchNormalization(0.0)
    outputs = layer(
        random(4, 3, 3, 5), np.zeros((4, 7), "float32"), training=True
    )
    np.testing.assert_array_equal(outputs, np.zeros((4, 3, 3, 5)))


def test_standing_statistics_are_the_average_over_batches():
    layer = normalization.BatchNormalization()
    batches = [2 + 3 * random(8, 4, 4, 2, seed=seed) for seed in range(3)]
    layer(batches[0])
    layer.moments.accumulating = True
    for batch in batches:
        layer(batch, training=True)
    mean = np.mean([b.mean((0, 1, 2)) for b in batches], axis=0)
    variance = np.mean([b.var((0, 1, 2)) for b in batches], axis=0)
    expected = (batches[0] - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(layer(batches[0]), expected, atol=1e-5)


def test_without_statistics_inference_leaves_the_input():
    inputs = random(2, 3, 3, 4)
    outputs = normalization.BatchNormalization()(inputs, training=False)
    np.testing.assert_allclose(outputs, inputs, rtol=1e-4)


def test_attention_starts_as_the_identity_and_matches_numpy():
    inputs = random(1, 4, 4, 16)
    layer = layers.SelfAttention()
    np.testing.assert_array_equal(layer(inputs), inputs)
    layer.scale.assign(0.5)

    def kernel(part):
        return part.normalized_kernel(training=False).numpy()[0, 0]

    def pool(x):
        return x.reshape(2, 2, 2, 2, -1).max((1, 3)).reshape(4, -1)

    pixels = inputs.reshape(16, 16)
    queries = pixels @ kernel(layer.queries)
    keys = pool((pixels @ kernel(layer.keys)).reshape(4, 4, -1))
    values = pool((pixels @ kernel(layer.values)).reshape(4, 4, -1))
    weights = np.exp(queries @ keys.T)
    weights /= weights.sum(1, keepdims=True)
    expected = pixels + 0.5 * weights @ values @ kernel(layer.outputs)
    np.testing.assert_allclose(
        layer(inputs), expected.reshape(1, 4, 4, 16), atol=1e-5
    )


def test_standardised_logits_have_unit_variance():
    logits = random(500, 3) * [1, 5, 20] + [0, 3, -4]
    layer = conditioning.LogitNormalization("standardize")
    np.testing.assert_allclose(layer(logits), logits, rtol=1e-6)
    layer.set_statistics(logits)
    outputs = np.array(layer(logits))
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(outputs.std(0), 1, atol=1e-4)


def test_a_logit_that_hardly_varies_is_not_enlarged_beyond_bounds():
    logits = random(500, 3) * [1, 20, 0]
    layer = conditioning.LogitNormalization("standardize")
    layer.build((None, 3))
    layer.set_statistics(logits)
    expected = 0.5 / (0.01 * logits[:, 1].std())
    found = np.array(layer(np.full((1, 3), 0.5, "float32")))[0, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_whitened_logits_are_uncorrelated():
    logits = random(500, 3) @ random(3, 3, seed=1) + 2
    layer = conditioning.LogitNormalization("whiten")
    layer(logits)
    layer.set_statistics(logits)
    np.testing.assert_allclose(
        np.cov(np.array(layer(logits)).T, bias=True), np.eye(3), atol=1e-3
    )


def test_a_single_feature_is_whitened():
    features = 3 * random(500, 1) + 2
    layer = conditioning.LogitNormalization("whiten")
    layer(features)
    layer.set_statistics(features)
    outputs = np.array(layer(features))
    assert outputs.mean() == pytest.approx(0, abs=1e-5)
    assert outputs.std() == pytest.approx(1, abs=1e-5)


def test_whitening_does_not_blow_up_a_direction_without_variance():
    logits = np.repeat(random(500, 1), 2, axis=1)
    layer = conditioning.LogitNormalization("whiten")
    layer(logits)
    layer.set_statistics(logits)
    assert np.isfinite(layer.transform.numpy()).all()
    assert np.abs(layer.transform.numpy()).max() < 200


def class_logits():
    """500 logits of 3 far classes, and what they are beyond the class."""
    classes = np.arange(500) % 3
    # Correlated, and a hundred times shorter along the second direction.
    beyond = random(500, 2) * [1, 0.1] @ random(2, 3, seed=1)
    for index in range(3):
        beyond[classes == index] -= beyond[classes == index].mean(0)
    return 50 * np.eye(3)[classes] + beyond, beyond


def test_deviation_from_the_class_is_white_and_free_of_the_class():
    logits, beyond = class_logits()
    layer = conditioning.ClassCenteredWhitening()
    layer(logits)
    layer.set_statistics(logits)
    deviation = np.array(layer(logits))
    np.testing.assert_allclose(
        deviation, beyond @ np.array(layer.transform), atol=1e-2
    )
    variances = np.linalg.eigvalsh(np.cov(deviation.T, bias=True))
    # One of the three directions does not vary. From the mean of the others:
    # 166 / 165 further.
    np.testing.assert_allclose(variances, [0, 1, 1], atol=2e-2)


def test_classes_of_few_images():
    """What held-out images deviate by, of 60 classes and 90 images."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(60, 60)) + 5 * np.eye(60)

    def draw(count):
        classes = generator.integers(0, 60, count)
        return centres[classes] + 0.7 * generator.normal(size=(count, 60))

    fitted, held_out = draw(90), draw(2000)
    classes = fitted.argmax(axis=1)
    alone = np.bincount(classes, minlength=60)[classes] == 1
    assert alone.sum() > 10
    layer = conditioning.ClassCenteredWhitening()
    layer(fitted)
    layer.set_statistics(fitted)
    deviation = np.array(layer(held_out.astype("float32")))
    assert 0.5 < np.sqrt(np.mean(deviation**2)) < 3
    # A class's mean lies between its only image and the mean of all.
    means = layer.class_means.numpy()
    for image, index in zip(fitted[alone], classes[alone], strict=True):
        shares = (means[index] - fitted.mean(0)) / (image - fitted.mean(0))
        np.testing.assert_allclose(shares, shares[0], rtol=1e-2)
        assert 0.1 < shares[0] < 0.9
    # With plain means, directions in which these 90 do not vary are enlarged.
    plain = np.stack([fitted[classes == c].mean(0) for c in classes])
    variances, components = np.linalg.eigh(np.cov((fitted - plain).T))
    scale = np.sqrt(np.maximum(variances, 1e-3 * variances.max()))
    noise = held_out - centres[held_out.argmax(axis=1)]
    assert np.sqrt(np.mean((noise @ components / scale) ** 2)) > 6


def test_logits_that_are_no_numbers_are_counted():
    logits = random(9, 3)
    logits[2:4, 0] = np.nan, np.inf
    layer = conditioning.LogitNormalization("standardize")
    layer.build((None, 3))
    with pytest.raises(errors.InputError, match="for 2 of 9 training images"):
        layer.set_statistics(logits)


def test_normalisation_within_classes():
    logits, _ = class_logits()
    layer = conditioning.LogitNormalization("class-centered")
    layer(logits)
    layer.set_statistics(logits)
    outputs = np.array(layer(logits))
    assert outputs.shape == (500, 6)
    np.testing.assert_allclose(outputs[:, :3].std(0), 1, atol=1e-4)
    expected = 3 * np.tanh(np.array(layer.deviation(logits)) / 3)
    np.testing.assert_allclose(outputs[:, 3:], expected, atol=1e-5)
    assert np.abs(np.array(layer(100 * logits))[:, 3:]).max() <= 3


def test_one_hot_leaves_the_class_alone():
    layer = conditioning.LogitNormalization("one-hot")
    layer.build((None, 3))
    layer.set_statistics(random(9, 3))
    outputs = layer(np.array([[1.0, 7.0, 2.0], [-3.0, -9.0, -4.0]]))
    np.testing.assert_array_equal(outputs, [[0, 1, 0], [1, 0, 0]])


def test_the_embedding_is_gated_and_sees_the_condition_at_every_layer():
    layer, condition = conditioning.Embedding(3, 2), random(4, 5)
    layer(condition)
    for seed, variable in enumerate(layer.variables):  # Biases begin at 0.
        variable.assign(0.5 * random(*variable.shape, seed=seed))
    x = condition
    for value, gate in zip(layer.values, layer.gates, strict=True):
        # Four times as wide.
        assert value.kernel.shape == (x.shape[1], 12)
        a = x @ np.array(value.kernel) + np.array(value.bias)
        b = x @ np.array(gate.kernel) + np.array(gate.bias)
        x = np.concatenate([a * b / (1 + np.exp(-b)), condition], axis=1)
    expected = x @ np.array(layer.embed.kernel)
    np.testing.assert_allclose(layer(condition), expected, 1e-4, 1e-5)


def test_an_embedding_without_hidden_layers_is_linear():
    layer, condition = conditioning.Embedding(3, 0), random(4, 5)
    outputs = layer(condition)
    (kernel,) = layer.variables
    np.testing.assert_allclose(outputs, condition @ np.array(kernel), 1e-5)


def test_no_embedding_is_longer_than_the_longest():
    layer, condition = conditioning.Embedding(3, 1), random(4, 5)
    before = np.array(layer(condition))
    lengths = np.linalg.norm(before, axis=1)
    layer.max_norm = float(np.median(lengths))
    shortened = np.minimum(1, layer.max_norm / lengths)[:, None]
    np.testing.assert_allclose(layer(condition), before * shortened, 1e-5)


def renormalizing(calls):
    """A norm that has seen some batches, and these."""
    layer = normalization.BatchNormalization()
    layer.build((None, 4, 4, 3))
    layer.moments.calls_per_update = 2
    batches = [1 + 2 * random(6, 4, 4, 3, seed=seed) for seed in range(calls)]
    for batch in batches:
        layer(batch, training=True)
    return layer, np.stack(batches)


def test_running_averages_of_batch_renormalization():
    layer, batches = renormalizing(70)
    average = 0.0
    for index, mean in enumerate(batches.mean(axis=(1, 2, 3))):
        average += (mean - average) / min(index + 1, 2 * normalization.MEMORY)
    moments = layer.moments
    np.testing.assert_allclose(moments.mean_sum / moments.count, average, 1e-5)
    # Inference standardises with them.
    inputs = random(2, 4, 4, 3)
    variance = np.array(moments.variance_sum / moments.count)
    np.testing.assert_allclose(
        layer(inputs), (inputs - average) / np.sqrt(variance + 1e-5), rtol=1e-4
    )


@pytest.mark.parametrize(
    "calls, share",
    [
        (0, 0.0),
        (2 * normalization.FIRST_UPDATE, 0.0),
        (normalization.FIRST_UPDATE + normalization.FULL_UPDATE, 0.5),
        (4 * normalization.FULL_UPDATE, 1.0),
    ],
)
def test_batch_renormalization_gives_what_the_averages_do(calls, share):
    layer, _ = renormalizing(20)
    moments = layer.moments
    for total in (moments.mean_sum, moments.variance_sum):
        total.assign(total / moments.count * max(calls - 1, 0))
    moments.count.assign(max(calls - 1, 0))
    inputs = tf.constant(1.5 + 3 * random(6, 4, 4, 3, seed=9))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        loss = tf.reduce_sum(outputs * random(6, 4, 4, 3, seed=10))
    mean, variance = np.mean(inputs, (0, 1, 2)), np.var(inputs, (0, 1, 2))
    average = np.array(moments.mean_sum / moments.count)
    average_variance = np.array(moments.variance_sum / moments.count)
    deviation, average_deviation = np.sqrt(
        [variance + 1e-5, average_variance + 1e-5]
    )
    ratio = 1 + share * (deviation / average_deviation - 1)
    shift = share * (mean - average) / average_deviation
    np.testing.assert_allclose(
        outputs, (inputs - mean) / deviation * ratio + shift, atol=1e-4
    )
    # Those of the batch's own moments: nothing changes if all values do.
    gradient = np.array(tape.gradient(loss, inputs))
    np.testing.assert_allclose(gradient.sum(axis=(0, 1, 2)), 0, atol=1e-3)


def test_batch_renormalization_is_bounded():
    layer, _ = renormalizing(20)
    layer.moments.count.assign(4.0 * normalization.FULL_UPDATE)
    layer.moments.variance_sum.assign([1e-4] * 3)
    factor, summand = layer.moments.renormalize(
        np.full(3, 9.0, "float32"), np.ones(3, "float32")
    )
    np.testing.assert_allclose(factor, normalization.LARGEST_RATIO)
    np.testing.assert_allclose(summand, normalization.LARGEST_SHIFT)


def settled(layer, mean, variance):
    """Gives a norm averages that one more batch hardly moves."""
    moments, count = layer.moments, 4.0 * normalization.FULL_UPDATE
    moments.calls_per_update = 1
    shape = moments.mean_sum.shape
    moments.mean_sum.assign(np.full(shape, mean * count))
    moments.variance_sum.assign(np.full(shape, variance * count))
    moments.count.assign(count)
    return moments


def test_gradients_of_batch_renormalization_take_its_factors_for_constants():
    layer = normalization.BatchNormalization()
    layer.build((None, 4, 4, 3))
    moments = settled(layer, 1.0, 4.0)
    inputs = 1.5 + 3 * random(6, 4, 4, 3, seed=9)
    weights = random(6, 4, 4, 3, seed=10)
    x = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True) * weights)
    axes = (0, 1, 2)
    deviation = np.sqrt(inputs.var(axes) + 1e-5)
    hat = (inputs - inputs.mean(axes)) / deviation
    average = np.sqrt(moments.variance_sum / moments.count + 1e-5)
    # That of batch normalisation, times a constant.
    expected = weights - weights.mean(axes) - hat * (weights * hat).mean(axes)
    np.testing.assert_allclose(
        tape.gradient(loss, x), expected / average, atol=1e-4
    )


def test_settled_averages_bound_factor_and_summand():
    layer = normalization.BatchNormalization()
    layer.build((None, 4, 4, 3))
    moments = settled(layer, 0.0, 100.0)
    mean, variance = np.full(3, -1e4, "float32"), np.ones(3, "float32")
    factor, summand = moments.renormalize(mean, variance)
    np.testing.assert_allclose(factor, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(summand, -5)


def test_statistics_of_a_single_batch():
    layer, batch = (
        normalization.BatchNormalization(),
        2 + 3 * random(8, 4, 4, 2),
    )
    layer(batch)
    layer.moments.accumulating = True
    layer(batch, training=True)
    axes = (0, 1, 2)
    expected = (batch - batch.mean(axes)) / np.sqrt(batch.var(axes) + 1e-5)
    np.testing.assert_allclose(layer(batch), expected, atol=1e-4)


def test_conditional_norms_scale_what_renormalization_adds():
    inputs, condition = 1.5 + random(4, 3, 3, 5), random(4, 7, seed=1)
    layer = normalization.ConditionalBatchNormalization(1.0)
    layer(inputs, condition)
    moments = settled(layer, 1.0, 4.0)
    outputs = layer(inputs, condition, training=True)
    mean = moments.mean_sum / moments.count
    variance = moments.variance_sum / moments.count
    gain = 1 + condition @ layer.gain.kernel.numpy()
    offset = condition @ layer.offset.kernel.numpy()
    expected = (inputs - mean) / np.sqrt(variance + 1e-5)
    expected = expected * gain[:, None, None] + offset[:, None, None]
    np.testing.assert_allclose(outputs, expected, atol=1e-3)


def prior_strength(logits, classes, num_classes):
    logits = logits - logits.mean(axis=0)
    counts = np.bincount(classes, minlength=num_classes)[:, None]
    sums = np.zeros((num_classes, logits.shape[1]))
    np.add.at(sums, classes, logits)
    return conditioning._prior_strength(logits, classes, counts, sums)


def test_how_far_class_means_are_drawn_to_the_mean_of_all():
    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(500), 2)
    centers = 2 * generator.normal(size=(500, 20))
    logits = centers[classes] + 3 * generator.normal(size=(1000, 20))
    # Variances of 9 within classes and of 4 between them.
    assert prior_strength(logits, classes, 500) == pytest.approx(9 / 4, 0.1)
    # Two classes of 100, of means -1 and 1 and variance 1.
    classes = np.repeat([0, 1], 100)
    logits = np.tile([-1.0, 1.0], 100) + np.repeat([-1.0, 1.0], 100)
    within = 200 / 198
    assert prior_strength(logits[:, None], classes, 2) == pytest.approx(
        within / (2 - within / 100)
    )
    # Classes of one mean: nothing lies between them.
    logits = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    assert prior_strength(logits, np.array([0, 0, 1, 1]), 2) == np.inf


def test_classes_of_single_images_have_the_mean_of_all():
    logits = 9 * np.eye(3) + random(3, 3)
    layer = conditioning.ClassCenteredWhitening()
    layer(logits)
    layer.set_statistics(logits)
    expected = [logits.mean(axis=0)] * 3
    np.testing.assert_allclose(layer.class_means, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["standardize", "whiten"])
def test_logits_that_never_vary(kind):
    layer = conditioning.LogitNormalization(kind)
    layer.build((None, 3))
    layer.set_statistics(np.ones((9, 3)))
    assert np.isfinite(layer.transform.numpy()).all()
    found = layer(np.ones((2, 3), "float32"))
    np.testing.assert_array_equal(found, np.zeros((2, 3)))
