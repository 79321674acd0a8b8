"""Measures against closed forms, textbooks, SciPy and Pillow."""

import math

import numpy as np
import PIL.Image
import pytest
import scipy.integrate
import scipy.linalg
from scipy import stats

from kinv import intervals, measures
from kinv.analysis import distributions


@pytest.fixture
def random():
    return np.random.default_rng(0)


# Newcombe (1998), Table I; textbook values to four digits.
@pytest.mark.parametrize(
    "hits, trials, expected",
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(hits, trials, expected):
    interval = intervals.wilson_interval(hits, trials)
    np.testing.assert_allclose(interval, expected, atol=5e-5)


# Newcombe (1998), Table II, method 10.
@pytest.mark.parametrize(
    "first, second, expected",
    [
        ((56, 70), (48, 80), (0.2, 0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.6, 0.1705, 0.8090)),
        ((10, 10), (0, 20), (1.0, 0.6791, 1.0)),
    ],
)
def test_newcombe_interval(first, second, expected):
    interval = intervals.newcombe_interval(first, second)
    np.testing.assert_allclose(interval, expected, atol=5e-5)


def test_what_is_shown_within_classes_by_hand():
    logits = np.array([[9.0, 1], [9, 3], [0, 5], [9, 2]])
    read = np.array([[9.0, 0], [9, 3], [7, 7], [9, 4]])
    own, other = measures.within_class_errors(logits, read)
    # The second meets the first's picture, the fourth the second's; the third
    # has no other of its class.
    np.testing.assert_array_equal(own, [0, 4])
    np.testing.assert_array_equal(other, [9, 1])
    assert measures.explained_variance(own, other) == pytest.approx(0.6)
    assert measures.explained_variance(0 * own, other) == 1
    # Nor has a single image another.
    for one in measures.within_class_errors(logits[2:3], read[2:3]):
        assert one.shape == (0,)
    nothing = measures.within_class_errors(logits[1:3], read[1:3])
    found = intervals.bootstrap_interval(
        measures.explained_variance, nothing, np.random.default_rng(0)
    )
    assert np.isnan(found).all()


def test_no_trials_no_difference():
    assert all(map(math.isnan, intervals.newcombe_interval((0, 0), (1, 2))))


def test_mean_interval_is_students(random):
    values = random.normal(3, 2, 40)
    mean, low, high = intervals.mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose((low, high), expected)
    assert math.isnan(intervals.mean_interval(values[:1])[1])


@pytest.mark.parametrize("count", [1, 9, 10])
def test_few_examples_have_no_interval(random, count):
    values = random.normal(0.6, 1, count)
    value, *ends = intervals.bootstrap_interval(np.mean, [values], random)
    assert value == values.mean()
    assert np.isnan(ends).all() == (count < 10)


def test_bootstrap_interval_covers(random):
    # Of 200 intervals of a mean, some 190 cover it.
    covered = 0
    for _ in range(200):
        values = random.normal(0, 1, 50)
        _, low, high = intervals.bootstrap_interval(np.mean, (values,), random)
        covered += low < 0 < high
    assert 178 <= covered <= 199


def test_logit_measures():
    logits, others = (
        np.array([[3.0, 4.0], [1.0, 0.0]]),
        np.array([[4.0, -3.0]] * 2),
    )
    np.testing.assert_allclose(measures.logit_cosine(logits, others), [0, 0.8])
    np.testing.assert_allclose(
        measures.logit_distance(logits, others),
        [math.sqrt(50) / 5, math.sqrt(18)],
    )


def test_pixel_measures(random):
    images = random.uniform(0, 255, (3, 16, 16, 3)).astype("float32")
    assert measures.pixel_mse(images, images + 2) == pytest.approx(4, rel=1e-4)
    np.testing.assert_allclose(measures.ssim(images, images), 1, atol=1e-5)
    assert (measures.ssim(images, 255 - images) < 0).all()


def test_noise_spread(random):
    samples = random.normal(0, 5, (4, 500, 6, 6, 3))
    np.testing.assert_allclose(measures.noise_spread(samples), 5, rtol=0.02)
    assert measures.noise_spread(samples[:, :1].repeat(3, 1)).max() < 1e-9


def gaussian_toy(random, scale, images=4000, samples=8, size=2):
    """Images of unit variance about 0, reconstructions of `scale` times it."""
    shape = (size, size, 3)
    return (
        random.normal(100, 1, (images, *shape)),
        random.normal(100, scale, (images, samples, *shape)),
    )


# A = 1 and s = scale: e = (1 + scale^2 / 8) / (1 + scale^2).
@pytest.mark.parametrize(
    "scale, expected", [(1, 0.5625), (0.5, 0.825), (2, 0.3), (0, 1)]
)
def test_error_ratio_and_spread_skill_in_closed_form(random, scale, expected):
    errors = measures.reconstruction_errors(*gaussian_toy(random, scale))
    assert errors[0].shape == errors[1].shape == (4000,)
    found = measures.error_ratio(*errors)
    assert found == pytest.approx(expected, rel=0.01)
    assert measures.spread_skill(expected, 8) == pytest.approx(scale)
    assert measures.spread_skill(found, 8) == pytest.approx(scale, rel=0.03)


def test_reconstruction_errors_by_hand():
    images = np.full((2, 1, 1, 3), 10.0)
    samples = np.full((2, 2, 1, 1, 3), 10.0)
    samples[0, 0], samples[0, 1] = 8, 14
    of_mean, of_single = measures.reconstruction_errors(images, samples)
    # A mean of 11; errors of 4 and 16.
    np.testing.assert_allclose(of_mean, [1, 0])
    np.testing.assert_allclose(of_single, [10, 0])
    assert measures.error_ratio(of_mean, of_single) == pytest.approx(0.1)
    # Pictures that equal their images have no ratio.
    assert math.isnan(measures.error_ratio(of_mean[1:], of_single[1:]))


@pytest.mark.parametrize(
    "error_ratio, expected",
    [(1, 0), (1.01, 0), (1 / 8, math.inf), (0.1, math.inf), (0, math.inf)],
)
def test_spread_skill_beyond_its_range(error_ratio, expected):
    assert measures.spread_skill(error_ratio, 8) == expected
    assert math.isnan(measures.spread_skill(math.nan, 8))


@pytest.mark.parametrize(
    "value, verdict",
    [
        (0.93, "the noise says 0.93 of what the generator leaves open"),
        (0.85, "the noise says 0.85 of what the generator leaves open"),
        (
            0.4,
            "the noise says 0.40 of what the generator leaves open: its "
            "pictures vary too little",
        ),
        (
            1.2,
            "the noise says 1.20 of what the generator leaves open: its "
            "pictures vary too much",
        ),
        (
            math.inf,
            "the noise says more than 10 times what the generator leaves open: "
            "its pictures vary too much",
        ),
        (math.nan, "the pictures equal the images: nothing is left open"),
    ],
)
def test_calibration_verdict(value, verdict):
    assert measures.calibration_verdict(value) == verdict
    assert measures.is_calibrated(value) == ("too" not in verdict)


def test_ranks_by_hand():
    samples = np.array([[1.0, 2, 3], [4, 5, 6]])
    assert measures.ranks(np.array([2.5, 0]), samples).tolist() == [2, 0]
    # Along two directions.
    values = np.array([[2.5, 9], [7, 4.5]])
    both = np.stack([samples, samples], axis=-1)
    assert measures.ranks(values, both).tolist() == [[2, 3], [3, 1]]
    histogram = measures.rank_histogram(np.array([2, 0, 2, 2]), 3)
    assert histogram.tolist() == [0.25, 0, 0.75, 0]
    # (0 + 0.25 + 0.5 + 0.25) / 2.
    assert measures.rank_distance(histogram) == 0.5
    assert measures.rank_distance(np.full(17, 1 / 17)) == pytest.approx(0)


def rank_probabilities(scale, samples=16):
    """Of the rank of N(0, 1) among samples of N(0, scale^2), by integration."""
    z = np.linspace(-8, 8, 4001)
    below = stats.norm.cdf(z / scale)
    return np.array(
        [
            scipy.integrate.trapezoid(
                stats.binom.pmf(rank, samples, below) * stats.norm.pdf(z), z
            )
            for rank in range(samples + 1)
        ]
    )


@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_rank_distance_of_the_gaussian_toy(random, scale):
    values = random.normal(size=20_000)
    samples = random.normal(0, scale, (20_000, 16))
    expected = rank_probabilities(scale)
    histogram = measures.rank_histogram(measures.ranks(values, samples), 16)
    np.testing.assert_allclose(histogram, expected, atol=0.01)
    distance = np.abs(expected - 1 / 17).sum() / 2
    assert measures.rank_distance(histogram) == pytest.approx(
        distance, abs=0.02
    )


def test_what_chance_leaves_of_a_flat_histogram(random):
    histograms = random.multinomial(500, [1 / 17] * 17, 400) / 500
    distances = np.abs(histograms - 1 / 17).sum(axis=1) / 2
    assert measures.flat_rank_distance(500, 16) == pytest.approx(
        distances.mean(), rel=0.03
    )


def test_brightness_and_contrast_are_pillows(random):
    pixels = random.integers(0, 256, (9, 8, 3), dtype="uint8")
    grey = np.asarray(PIL.Image.fromarray(pixels).convert("L"), "float64")
    assert measures.brightness(pixels[None])[0] == pytest.approx(
        grey.mean(), abs=0.6
    )
    assert measures.contrast(pixels[None])[0] == pytest.approx(
        grey.std(), abs=0.6
    )


def test_sharpness():
    flat = np.full((1, 8, 8, 3), 90.0)
    ramp = flat + 10 * np.arange(8)[:, None]
    assert measures.sharpness(flat) == pytest.approx(0)
    assert measures.sharpness(ramp) == pytest.approx(0)
    dot = flat.copy()
    dot[0, 4, 4] += 9
    # The dot counts four times, each of its four neighbours once.
    assert measures.sharpness(dot) == pytest.approx(9 * 8 / 36)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "across, down, band",
    [(3, 0, 0), (0, 6, 1), (11, 0, 2), (8, 12, 3), (16, 16, 4)],
)
def test_band_power_of_a_wave(size, across, down, band):
    """A wave of so many periods in 32 pixels is in one band."""
    y, x = np.mgrid[:size, :size]
    wave = 20 * np.cos(2 * np.pi * (across * x + down * y) / 32)
    images = np.stack([90 + wave, 90 + 2 * wave])[..., None].repeat(3, -1)
    weak, strong = measures.band_power(images)
    np.testing.assert_allclose(strong, 4 * weak, atol=1e-6)
    others = np.delete(weak, band)
    assert weak[band] > 1e3 and others.max() < 1e-6
    assert len(weak) == len(measures.BANDS)


def test_white_noise_has_equal_power_in_all_bands(random):
    images = random.normal(90, 10, (200, 32, 32, 1)).repeat(3, -1)
    power = measures.band_power(images).mean(axis=0)
    # Parseval: the sum of squares of 32 x 32 pixels.
    np.testing.assert_allclose(power, 10**2 * 32**2, rtol=0.05)


def test_gradients():
    x, y = np.meshgrid(np.arange(5), np.arange(4))
    images = np.repeat((3.0 * x + 7 * y)[None, ..., None], 3, axis=-1)
    found = measures.gradients(images)
    assert found.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(found[0, 0], 3)
    np.testing.assert_allclose(found[0, 1], 7)


def test_path_smoothness():
    line = np.linspace([0, 0], [3, 4], 6)
    there_and_back = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 2]])
    circle = line[[0, 2, 4, 4, 2, 0]]
    found = measures.path_smoothness(np.stack([line, there_and_back, circle]))
    # Of equal ends nothing is known.
    np.testing.assert_allclose(found["length"], [1, 2, np.nan])
    np.testing.assert_allclose(found["largest_step"], [0.2, 1, np.nan])


def test_frechet_distance_is_scipy_s(random):
    first = random.normal(size=(40, 5)) @ random.normal(size=(5, 5))
    second = random.normal(1, 2, size=(60, 5))
    one, two = np.cov(first.T), np.cov(second.T)
    difference = first.mean(axis=0) - second.mean(axis=0)
    expected = difference @ difference + np.trace(
        one + two - 2 * scipy.linalg.sqrtm(one @ two).real
    )
    found = distributions.frechet_distance(first, second)
    assert found == pytest.approx(expected)
    same = distributions.frechet_distance(first, first)
    assert same == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_two_normals_in_closed_form(random):
    # Exactly of moments (0, 1) and (3, 4), in each of two directions.
    features = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]) * np.sqrt(0.75)
    # 2 (3^2 + (1 - 2)^2).
    assert distributions.frechet_distance(
        features, 2 * features + 3
    ) == pytest.approx(20)


def test_kernel_distance_by_hand():
    first, second = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # Pairs: (1 2 + 1)^3, (0 3 + 1)^3; between: 1, 64, 1, 343.
    assert distributions.kernel_distance(first, second) == pytest.approx(
        27 + 1 - 2 * (1 + 64 + 1 + 343) / 4
    )


def test_kernel_distance_of_one_distribution_is_unbiased(random):
    found = [
        distributions.kernel_distance(*random.normal(size=(2, 20, 3)))
        for _ in range(300)
    ]
    low, high = np.mean(found) + np.array([-3, 3]) * np.std(found) / 300**0.5
    assert low < 0 < high


def test_inception_score():
    assert distributions.inception_score(
        np.full((9, 4), 0.25)
    ) == pytest.approx(1)
    assert distributions.inception_score(np.eye(4)) == pytest.approx(4)


def test_psnr_in_closed_form():
    images = np.zeros((3, 4, 4, 3))
    others = images + np.array([0, 1, 25.5])[:, None, None, None]
    # 20 log10(255) of an error of one grey level; a tenth of the range: 20.
    np.testing.assert_allclose(
        measures.psnr(images, others), [100, 48.1308, 20], rtol=1e-5
    )


def test_spread_of_two_samples():
    samples = np.zeros((1, 2, 1, 1, 3))
    samples[0, 1] = 2
    assert measures.noise_spread(samples) == pytest.approx(np.sqrt(2))


def test_rank_among_equal_values():
    ranks = measures.ranks(np.array([2.0]), np.array([[1.0, 2, 2, 3]]))
    assert ranks.tolist() == [1]


def test_structural_similarity_of_pictures_smaller_than_its_window():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(measures.ssim(images, images), 1, atol=1e-5)


def test_nothing_to_explain():
    assert measures.explained_variance(np.zeros(3), np.zeros(3)) == 1


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_error_ratio_of_a_spread(spread):
    ratio = measures.error_ratio_of(spread)
    assert measures.spread_skill(ratio) == pytest.approx(spread)


def test_ratio_of_small_means():
    ratio = measures.ratio_of_means(np.array([0.2]), np.array([0.1]))
    assert ratio == pytest.approx(2)


def test_intervals_of_nothing():
    assert all(map(math.isnan, intervals.newcombe_interval((1, 2), (0, 0))))
    assert np.isnan(intervals.mean_interval(np.zeros(0))).all()
