"""Networks: sizes derived by hand, options, serialisation."""

import functools

import keras
import numpy as np
import pytest

from kinv import errors, pixels
from kinv.inversion import blocks, layers, networks, presets


def parameters(network):
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def inputs_of(generator, batch=4):
    rng = np.random.default_rng(0)
    shape = (batch, generator.condition_dim)
    return {
        "condition": rng.normal(size=shape).astype("f4"),
        "noise": rng.normal(size=(batch, generator.noise_dim)).astype("f4"),
    }


def conv(size, inputs, outputs):
    return size * size * inputs * outputs + outputs


def attention(channels):
    return 2 * channels * channels // 8 + 2 * channels * channels // 2 + 1


def expected_generator(channels, attended, num_classes, chunk):
    """Counts by the formulas of Table 1, without the code under test."""
    total = num_classes * 128 + chunk * 16 * channels[0] + 16 * channels[0]
    for before, after in zip(channels, channels[1:]):
        total += 2 * (chunk + 128) * (before + after)
        total += conv(3, before, after) + conv(3, after, after)
        total += conv(1, before, after)
    return (
        total
        + attention(attended)
        + 2 * channels[-1]
        + conv(3, channels[-1], 3)
    )


def expected_discriminator(channels, attended, num_classes):
    total = 0
    for before, after in zip([3, *channels], channels):
        total += conv(3, before, after) + conv(3, after, after)
        total += conv(1, before, after) if before != after else 0
    return total + attention(attended) + channels[-1] * (num_classes + 1) + 1


def test_parameters_at_the_size_of_the_paper(monkeypatch):
    # Not orthogonal: the decompositions take longer than all else here.
    monkeypatch.setattr(
        keras.initializers.Orthogonal,
        "__call__",
        lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype),
    )
    # The published figures of compare_gan's code at 64 px, 1000 logits.
    assert parameters(networks.Generator(64, 1000, 96)) == 70_239_108
    assert parameters(networks.Discriminator(64, 1000, 96)) == 87_752_258


def test_parameters_at_32_pixels():
    generator = networks.Generator(32, 80, 16)
    expected = expected_generator([128, 128, 64, 32], 64, 80, chunk=30)
    assert parameters(generator) == expected
    discriminator = networks.Discriminator(32, 80, 16)
    expected = expected_discriminator([32, 64, 128, 128], 32, 80)
    assert parameters(discriminator) == expected


def test_parameters_at_128_pixels():
    generator = networks.Generator(128, 10, 8)
    expected = expected_generator([128, 128, 64, 32, 16, 8], 16, 10, chunk=20)
    assert parameters(generator) == expected
    discriminator = networks.Discriminator(128, 10, 8)
    expected = expected_discriminator([8, 16, 32, 64, 128, 128], 8, 10)
    assert parameters(discriminator) == expected


def test_all_tables_have_the_same_sizes():
    for table in (
        networks.GENERATOR_CHANNELS,
        networks.DISCRIMINATOR_CHANNELS,
        networks.GENERATOR_ATTENTION,
        networks.DISCRIMINATOR_ATTENTION,
    ):
        assert tuple(table) == presets.IMAGE_SIZES


@pytest.mark.parametrize("image_size", [8, 32, 64, 128])
def test_shapes_and_ranges(image_size):
    generator = networks.Generator(image_size, 5, 8)
    inputs = inputs_of(generator)
    images = np.array(generator(inputs, training=True))
    assert images.shape == (4, image_size, image_size, 3)
    assert images.min() >= 0 and images.max() <= 255 and images.std() > 1
    discriminator = networks.Discriminator(image_size, 5, 8)
    scores = discriminator({"images": images, "condition": inputs["condition"]})
    assert scores.shape == (4, 1)


def test_making_a_network_calls_each_layer_once(monkeypatch):
    """Keras's own way to build calls each twice, blocks four times."""
    calls = []

    def counted(call):
        @functools.wraps(call)
        def counting(self, *args, **kwargs):
            calls.append(self)
            return call(self, *args, **kwargs)

        return counting

    classes = (
        *(blocks.GeneratorBlock, blocks.DiscriminatorBlock),
        *(layers.SpectralConv2D, layers.SpectralDense, layers.SelfAttention),
    )
    for layer in classes:
        monkeypatch.setattr(layer, "call", counted(layer.call))
    for network in (networks.Generator, networks.Discriminator):
        calls.clear()
        made = network(32, 5, 4)
        of_these = [
            layer
            for layer in made._flatten_layers()
            if isinstance(layer, classes)
        ]
        assert len(of_these) > 6
        assert sorted(map(id, calls)) == sorted(map(id, of_these))


def test_grey_images_have_three_equal_channels():
    luminance = keras.layers.Dense(1, name=pixels.LUMINANCE_LAYER)
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.Sequential([luminance, keras.layers.Flatten()]),
            keras.layers.Dense(2),
        ]
    )
    settings = {**presets.PRESETS["small"], "image_size": 8, "base_channels": 4}
    generator, _ = networks.make(classifier, settings)
    generator = networks.Generator.from_config(generator.get_config())
    images = np.array(generator(inputs_of(generator), training=True))
    assert images.shape == (4, 8, 8, 3)
    assert images.std() > 0
    for channel in (1, 2):
        np.testing.assert_array_equal(images[..., channel], images[..., 0])


@pytest.mark.parametrize("size, told", [(8, False), (32, True)])
def test_pictures_larger_than_what_is_seen_are_told(size, told, caplog):
    classifier = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    small = {**presets.PRESETS["small"], "base_channels": 4}
    networks.make(classifier, {**small, "image_size": size})
    assert ("32 pixels will be made of images" in caplog.text) == told


@pytest.mark.parametrize(
    "classes, normalization, told",
    [
        (80, "class-centered", False),
        (1000, "class-centered", True),
        (1000, "standardize", False),
    ],
)
def test_settings_that_do_not_suit_many_classes_are_told(
    classes, normalization, told, caplog
):
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(classes),
        ]
    )
    settings = {**presets.PRESETS["small"], "base_channels": 4}
    settings |= {"image_size": 8, "logit_normalization": normalization}
    networks.make(classifier, settings)
    assert ("with the 1,000 of this classifier" in caplog.text) == told


def test_score_is_affine_in_the_logits():
    discriminator = networks.Discriminator(32, 5, 4)
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3))

    def score(logits):
        inputs = {"images": images, "condition": np.array([logits], "float32")}
        return float(discriminator(inputs)[0, 0])

    zero, one = score([0, 0, 0, 0, 0]), score([1, 2, 3, 4, 5])
    assert score([3, 6, 9, 12, 15]) == pytest.approx(
        zero + 3 * (one - zero), 1e-3
    )
    assert abs(one - zero) > 1e-6


def test_patch_scores_average_to_the_score_of_the_picture():
    whole = networks.Discriminator(32, 5, 4)
    patches = networks.Discriminator(32, 5, 4, patch_scores=True)
    patches.set_weights(whole.get_weights())
    random = np.random.default_rng(0)
    inputs = {
        "images": random.uniform(0, 255, (3, 32, 32, 3)).astype("float32"),
        "condition": random.standard_normal((3, 5)).astype("float32"),
    }
    scores = np.array(patches(inputs))
    # One for each place of the last map.
    assert scores.shape == (3, 4 * 4)
    assert scores.std(axis=1).min() > 1e-4
    np.testing.assert_allclose(
        scores.mean(axis=1, keepdims=True), whole(inputs), rtol=1e-4
    )


def test_detail_is_what_averages_leave_out(monkeypatch):
    discriminator = networks.Discriminator(32, 5, 4, sees_detail=True)
    seen, first = [], discriminator.blocks[0]
    call = first.call

    def seeing(inputs, training=False):
        seen.append(np.array(inputs))
        return call(inputs, training=training)

    monkeypatch.setattr(first, "call", seeing)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    discriminator({"images": images, "condition": np.ones((2, 5), "float32")})
    pixels = images / 255

    def means(size):
        side = 32 // size
        cells = pixels.reshape(2, side, size, side, size, 3).mean(axis=(2, 4))
        return cells.repeat(size, axis=1).repeat(size, axis=2)

    # Eight and four times as strong, 0.5 where there is none.
    finest, second = pixels - means(2), means(2) - means(4)
    expected = [pixels, 0.5 + 8 * finest, 0.5 + 4 * second]
    np.testing.assert_allclose(
        seen[0], np.concatenate(expected, axis=-1), atol=1e-5
    )


def test_third_norm_and_attention_are_options():
    two = networks.Generator(32, 5, 4)
    three = networks.Generator(32, 5, 4, norms_per_block=3)
    # A third norm conditions each block's output: channels 32, 16 and 8.
    extra = 2 * (30 + 128) * (32 + 16 + 8)
    assert parameters(three) == parameters(two) + extra
    without = networks.Generator(32, 5, 4, attention=False)
    assert parameters(without) == parameters(two) - attention(16)


@pytest.mark.parametrize("bounded", [False, True])
def test_rare_noise_leaves_the_range_of_colours_unless_bounded(bounded):
    generator = networks.Generator(
        32, 5, 4, gain_offset=1.0, bounded_noise=bounded
    )
    inputs = inputs_of(generator)
    generator.fill_standing_statistics([inputs])
    noise = inputs["noise"].copy()
    noise[:, :30] *= 1000.0
    images = np.array(generator({**inputs, "noise": noise}))
    # Without a bound nearly every value is black or white.
    share = np.mean((images < 1) | (images > 254))
    assert share < 0.05 if bounded else share > 0.5


def test_gain_offset_decides_what_a_zero_condition_does():
    # Without "+1" nothing but biases (0) reaches the output: mid grey.
    generator = networks.Generator(32, 5, 4, gain_offset=0.0)
    zero = {
        "condition": np.zeros((2, 5), "float32"),
        "noise": np.zeros((2, 120), "float32"),
    }
    np.testing.assert_allclose(generator(zero, training=True), 127.5, atol=1e-3)


def test_noise_chunks_reach_their_own_block():
    # The last chunk conditions the last block only, whose input it cannot
    # change: all of the first 90 numbers, all of the earlier maps.
    generator = networks.Generator(32, 5, 4, gain_offset=1.0)
    condition = generator.blocks[-1].norms[0].gain.kernel
    assert condition.shape == (30 + 128, 16)


@pytest.mark.parametrize(("hidden_layers", "seen"), [(0, ""), (2, "first")])
def test_hidden_layers_see_the_first_chunk_of_noise(
    monkeypatch, hidden_layers, seen
):
    generator = networks.Generator(
        32, 5, 4, gain_offset=1.0, embedding_layers=hidden_layers
    )
    inputs = inputs_of(generator, 2)
    embedded = []
    call = generator.embed_condition.call

    def recording(condition):
        embedded.append(np.array(call(condition)))
        return call(condition)

    monkeypatch.setattr(generator.embed_condition, "call", recording)
    changes = {"first": slice(0, 30), "others": slice(30, 120)}
    generator(inputs)
    for name, columns in changes.items():
        noise = inputs["noise"].copy()
        noise[:, columns] += 1
        generator({**inputs, "noise": noise})
        same = np.allclose(embedded[-1], embedded[0], atol=1e-6)
        assert same == (name != seen)


def test_last_discriminator_block_has_no_shortcut():
    discriminator = networks.Discriminator(32, 5, 4)
    assert [block.shortcut is None for block in discriminator.blocks] == [
        False,
        False,
        False,
        True,
    ]


def test_statistics_make_an_example_independent_of_its_batch():
    generator = networks.Generator(32, 5, 4, gain_offset=1.0)
    inputs = inputs_of(generator, 8)
    generator.fold_spectral_norms(iterations=20)
    generator.fill_standing_statistics([inputs, inputs])
    together = np.array(generator(inputs))
    alone = np.array(generator({k: v[:1] for k, v in inputs.items()}))
    np.testing.assert_allclose(together[:1], alone, atol=1e-2)
    # One batch seen twice: the same moments as in training.
    np.testing.assert_allclose(
        together, generator(inputs, training=True), atol=0.05
    )
    for layer in generator._flatten_layers():
        if isinstance(layer, layers.SpectralLayer):
            kernel = layer.kernel.numpy()
            matrix = kernel.reshape(-1, kernel.shape[-1])
            assert np.linalg.svd(matrix)[1][0] == pytest.approx(1, abs=1e-3)


def test_the_scale_of_the_noise_is_that_of_all_of_it(tmp_path):
    generator = networks.Generator(8, 5, 4, noise_dim=8, embedding_layers=1)
    inputs = inputs_of(generator, 8)
    generator.fill_standing_statistics([inputs])
    half = np.array(generator({**inputs, "noise": inputs["noise"] / 2}))
    generator.noise_scale = 0.5
    np.testing.assert_allclose(generator(inputs), half, atol=1e-3)
    # Saved beside the statistics, as is the longest embedding.
    generator.save(tmp_path / "generator.keras")
    loaded = keras.models.load_model(tmp_path / "generator.keras")
    assert loaded.noise_scale == 0.5
    longer = {**inputs, "condition": 9 * inputs["condition"]}
    np.testing.assert_allclose(loaded(longer), generator(longer), atol=1e-3)


def test_the_longest_embedding_is_that_of_the_last_statistics():
    generator = networks.Generator(8, 5, 4, noise_dim=8, embedding_layers=1)
    inputs = inputs_of(generator, 8)
    embedding = generator.embed_condition
    # Of conditions twice as long after those, and then of the first again.
    for factor in (1.0, 2.0, 1.0):
        seen = {**inputs, "condition": factor * inputs["condition"]}
        generator.fill_standing_statistics([seen])
        max_norm, embedding.max_norm = embedding.max_norm, None
        lengths = np.linalg.norm(generator._embed(**seen)[0], axis=1)
        assert max_norm == pytest.approx(lengths.max(), rel=1e-5)
        embedding.max_norm = max_norm
    # Of longer conditions, and so of all that is made of them.
    seen["condition"] = 9 * inputs["condition"]
    lengths = np.linalg.norm(generator._embed(**seen)[0], axis=1)
    assert lengths.max() == pytest.approx(max_norm, rel=1e-5)


def test_a_folded_generator_is_itself_when_saved_and_loaded(tmp_path):
    generator = networks.Generator(8, 5, 4, noise_dim=8)
    inputs = inputs_of(generator, 8)
    generator.fold_spectral_norms(iterations=60)
    generator.save(tmp_path / "generator.keras")
    loaded = keras.models.load_model(tmp_path / "generator.keras")
    np.testing.assert_allclose(
        loaded(inputs, training=True), generator(inputs, training=True), atol=1
    )


def test_a_linear_embedding_follows_the_scale_of_the_logits():
    generator = networks.Generator(8, 5, 4, noise_dim=8)
    inputs = inputs_of(generator, 8)
    generator.fill_standing_statistics([inputs])
    kernel = np.array(generator.embed_condition.embed.kernel)
    condition = 9 * inputs["condition"]
    embedded, _ = generator._embed(condition, inputs["noise"])
    np.testing.assert_allclose(embedded, condition @ kernel, rtol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        lambda: networks.Generator(
            32,
            5,
            4,
            noise_dim=40,
            embedding_dim=16,
            gain_offset=1.0,
            norms_per_block=3,
            attention=False,
            logit_normalization="class-centered",
            embedding_layers=2,
        ),
        lambda: networks.Discriminator(
            32, 5, 4, attention=False, logit_normalization="standardize"
        ),
    ],
    ids=["generator", "discriminator"],
)
def test_file_round_trip(network, tmp_path):
    network = network()
    for variable in network.variables:
        variable.assign(variable + 0.01)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert loaded.get_config() == network.get_config()
    for before, after in zip(network.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(before.numpy(), after.numpy())


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"image_size": 48}, "image_size=48"),
        ({"base_channels": 6}, "base_channels=6"),
        ({"base_channels": 4, "image_size": 128}, "base_channels=4"),
        ({"noise_dim": 121}, "noise_dim=121"),
        ({"norms_per_block": 4}, "norms_per_block=4"),
        ({"upsampling": "bilinear"}, "upsampling='bilinear'"),
        ({"padding": "reflect"}, "padding='reflect'"),
        ({"logit_normalization": "softmax"}, "logit_normalization='softmax'"),
    ],
)
def test_wrong_options_say_what_was_received(options, received):
    valid = {"image_size": 32, "condition_dim": 5, "base_channels": 4}
    with pytest.raises(errors.InputError, match=f"Received: {received}"):
        networks.Generator(**{**valid, **options})


def test_mixed_precision_does_not_round_logits():
    # In bfloat16 both are 300.
    logits = np.full((2, 5), [[300.0], [300.8]], "float32")
    fitted = np.random.default_rng(0).normal(300.4, 0.4, (50, 5))
    assert len(np.unique(keras.ops.cast(logits, "bfloat16"))) == 1
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    generator = networks.Generator(32, 5, 4, logit_normalization="standardize")
    noise = np.ones((2, generator.noise_dim), "float32")
    discriminator = networks.Discriminator(
        32, 5, 4, logit_normalization="standardize"
    )
    images = np.full((2, 32, 32, 3), 100, "float32")
    for network, other in (
        (generator, {"noise": noise}),
        (discriminator, {"images": images}),
    ):
        network.normalize_condition.set_statistics(fitted)
        first, second = np.array(network({"condition": logits, **other}))
        assert not np.allclose(first, second)
