"""How near images, logits and reconstructions are to each other."""

import itertools
import math

import numpy as np
import tensorflow as tf

from kinv.pixels import LUMINANCE

# Reconstructions of an image whose mean the error ratio is of.
ERROR_RATIO_NOISES = 8
# Spread-skill ratios beyond which tools and report warn.
CALIBRATED = (0.85, 1.15)
# The share shown of what logits know beyond the class below which they warn.
LOW_WITHIN_CLASS_R2 = 0.5
# Frequencies, in cycles per pixel, between which power is measured: the last
# band, in the corner of the spectrum, is beyond that of every other pixel.
BAND_EDGES = (1 / 16, 5 / 32, 9 / 32, 13 / 32, 0.503, 0.75)
BANDS = tuple(
    f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(BAND_EDGES)
)
WITHIN_CLASS_ADVICE = (
    "More updates show more, as does --preset small if another one was used."
)


def logit_cosine(logits, others):
    """Cosine between logits `(..., num_classes)`; shape `(...)`."""
    lengths = np.linalg.norm(logits, axis=-1) * np.linalg.norm(others, axis=-1)
    return np.sum(logits * others, axis=-1) / np.maximum(lengths, 1e-12)


def logit_distance(logits, others):
    """l2 distance over the length of `logits`; shape `(...)`."""
    lengths = np.linalg.norm(logits, axis=-1)
    return np.linalg.norm(logits - others, axis=-1) / np.maximum(lengths, 1e-12)


def within_class_errors(logits, reconstruction_logits, classes=None):
    """How far logits are read back, from own reconstructions and others'.

    Args:
        logits: `(images, num_classes)` of images.
        reconstruction_logits: the same, read from their reconstructions.
        classes: `(images,)`, predicted; None for the highest of `logits`.

    Returns:
        `(own, other)`, each `(pairs,)`: squared distances from an image's
        logits to those of its own reconstruction, and to those of the
        reconstruction of another image of the same predicted class: the one
        before it. The first image of each class is left out if there are
        several classes.
    """
    if classes is None:
        classes = logits.argmax(axis=-1)
    order = np.argsort(classes, kind="stable")
    partners = np.roll(order, 1)
    paired = classes[order] == classes[partners]
    paired &= order != partners
    rows, partners = order[paired], partners[paired]
    return tuple(
        np.sum(
            (logits[rows] - reconstruction_logits[of]) ** 2,
            axis=-1,
            dtype="float64",
        )
        for of in (rows, partners)
    )


def explained_variance(residuals, totals):
    """Share of squared deviations that is explained, R².

    Args:
        residuals: `(images,)`, squared errors that are left.
        totals: `(images,)`, squared errors without explanation.

    Returns:
        1 - sum of residuals / sum of totals: 1 explains all, 0 nothing. Of
        `within_class_errors` the share of what logits know beyond the class
        that reconstructions show; 0 where the image's own logits made no
        difference. NaN without images.
    """
    if not len(residuals):
        return math.nan
    return 1 - residuals.sum() / max(totals.sum(), 1e-12)


def ratio_of_means(values, others):
    """Mean of values over the mean of others."""
    return values.mean() / max(others.mean(), 1e-12)


def pixel_mse(images, others):
    """Mean squared error of pixel values in [0, 255]; one per image."""
    return np.mean(
        np.square(images - others, dtype="float64"), axis=(-3, -2, -1)
    )


def ssim(images, others):
    """Structural similarity, at most 1, of images in [0, 255]; one per image.

    Windows of 11 pixels, or all of a smaller image.

    Reference:
        Wang et al., Image quality assessment (2004), as `tf.image.ssim`.
    """
    return tf.image.ssim(
        tf.constant(images, "float32"),
        tf.constant(others, "float32"),
        255,
        filter_size=min(11, *images.shape[-3:-1]),
    ).numpy()


def psnr(images, others):
    """Peak signal over noise in decibels, of images in [0, 255]; one per image.

    `10 log10(255^2 / pixel_mse)`, at most 100, which equal images get.
    """
    return 10 * np.log10(
        255**2 / np.maximum(pixel_mse(images, others), 255**2 * 1e-10)
    )


def squared_distances(vectors, others):
    """Between each two, `(vectors, others)`, by one matrix product."""
    lengths, other_lengths = (
        np.einsum("ij,ij->i", rows, rows) for rows in (vectors, others)
    )
    distances = lengths[:, None] - 2 * vectors @ others.T + other_lengths
    # Rounding may leave something between equal vectors.
    return np.maximum(distances, 0.0)


def noise_spread(samples):
    """How much reconstructions of an image differ, one value per image.

    Args:
        samples: `(images, samples, height, width, 3)` in [0, 255], at least
            two samples.

    Returns:
        `(images,)`: standard deviation over the samples, mean over pixels, in
        grey levels.
    """
    return samples.std(axis=1, ddof=1, dtype="float64").mean(axis=(1, 2, 3))


def reconstruction_errors(images, samples):
    """Squared errors of the mean reconstruction and of single ones.

    Args:
        images: `(images, height, width, 3)` in [0, 255].
        samples: `(images, samples, height, width, 3)` in [0, 255],
            reconstructions of each image with different noise.

    Returns:
        `(of_mean, of_single)`, each `(images,)`, means over pixels: the error
        of the samples' mean, and the mean of the samples' errors.
    """
    of_mean = pixel_mse(images, samples.mean(axis=1, dtype="float64"))
    of_single = [pixel_mse(images, sample) for sample in samples.swapaxes(0, 1)]
    return of_mean, np.mean(of_single, axis=0)


def error_ratio(of_mean, of_single):
    """Error of the mean of K reconstructions over the error of one, e.

    `E_K = A + s^2 / K` and `E_1 = A + s^2`, with `s^2` the variance of the
    noise and `A` the error of the mean of endless noises, what the generator
    leaves open. Of samples of the true distribution both are equal, and
    `e = E_K / E_1 = (1 + 1 / K) / 2`: 0.5625 of K = 8. Above, the noise varies
    too little, below, too much.

    Args:
        of_mean: `(images,)`, as of `reconstruction_errors`.
        of_single: `(images,)`, as of `reconstruction_errors`.

    Returns:
        From 1 / K, nothing but noise, to 1, no noise. NaN where all
        reconstructions equal their images.
    """
    of_mean, of_single = np.mean(of_mean), np.mean(of_single)
    return float(of_mean / of_single) if of_single > 0 else math.nan


def spread_skill(error_ratio, num_samples=ERROR_RATIO_NOISES):
    """Spread of the noise over what the generator leaves open.

    `sqrt((1 - e) / (e - 1 / K))`, which is `s / sqrt(A)` of `error_ratio`: 1 is
    calibrated, below 1 the noise varies too little, above it too much. `A` has
    the errors of the generator's own mean in it: one that reads little of the
    logits can be calibrated about what it reads. What it leaves open is what
    the logits do where `within_class_r2` is near 1.

    Args:
        error_ratio: e, as of `error_ratio`.
        num_samples: K.

    Returns:
        At least 0; infinity where e is 1 / K or less, NaN of NaN.

    Reference:
        The spread-skill ratio of ensemble forecasting, without the share of
        the error that K samples add: Fortin et al., Why Should Ensemble Spread
        Match the RMSE of the Ensemble Mean?, J. Hydrometeorology 15 (2014).
    """
    open_share = error_ratio - 1 / num_samples
    if open_share <= 0:
        return math.inf
    return math.sqrt(max(1 - error_ratio, 0) / open_share)


def error_ratio_of(spread_skill):
    """The error ratio of 8 noises that has this spread-skill ratio."""
    variance = spread_skill**2
    return (1 + variance / ERROR_RATIO_NOISES) / (1 + variance)


def is_calibrated(spread_skill):
    """Whether the noise may be read as what the generator leaves open."""
    low, high = CALIBRATED
    # NaN: nothing is left open, and nothing varies.
    return math.isnan(spread_skill) or low <= spread_skill <= high


def calibration_verdict(spread_skill):
    """What the noise says, in words, with a warning outside `CALIBRATED`.

    Args:
        spread_skill: as of `spread_skill`.

    Returns:
        A sentence without its full stop.
    """
    if math.isnan(spread_skill):
        return "the pictures equal the images: nothing is left open"
    share = f"{spread_skill:.2f} of"
    if spread_skill > 10:
        share = "more than 10 times"
    verdict = f"the noise says {share} what the generator leaves open"
    if is_calibrated(spread_skill):
        return verdict
    amount = "little" if spread_skill < 1 else "much"
    return f"{verdict}: its pictures vary too {amount}"


def ranks(values, samples):
    """How many samples lie below each value.

    Of samples of the true distribution, which cannot be told from the value,
    every rank from 0 to the number of samples is as likely. Too little spread
    gives extreme ranks, too much middle ones.

    Args:
        values: `(images, ...)`, such as images along given directions.
        samples: `(images, samples, ...)`, reconstructions along the same.

    Returns:
        int `(images, ...)` in [0, samples].

    Reference:
        Hamill, Interpretation of Rank Histograms for Verifying Ensemble
        Forecasts, Monthly Weather Review 129 (2001).
    """
    return np.sum(samples < np.expand_dims(values, 1), axis=1)


def rank_histogram(ranks, num_samples):
    """Share of each rank, `(num_samples + 1,)`, of ranks of any shape."""
    counts = np.bincount(np.ravel(ranks), minlength=num_samples + 1)
    return counts / max(counts.sum(), 1)


def rank_distance(histogram):
    """Total variation distance of a rank histogram from a flat one.

    The share of images whose rank would have to be another: 0 is flat.
    """
    histogram = np.asarray(histogram)
    return float(np.abs(histogram - 1 / len(histogram)).sum() / 2)


def flat_rank_distance(num_images, num_samples):
    """`rank_distance` that chance leaves calibrated samples, on average.

    `sqrt(num_samples / (2 pi num_images))`: counts of a rank are about normal,
    with variance `num_images p (1 - p)`, `p = 1 / (num_samples + 1)`.
    """
    return math.sqrt(num_samples / (2 * math.pi * max(num_images, 1)))


def luminance(images):
    """Grey images `(..., height, width)` in [0, 255] (ITU-R 601)."""
    return np.asarray(images, "float64") @ LUMINANCE


def brightness(images):
    """Mean luminance, in grey levels; one per image."""
    return luminance(images).mean(axis=(-2, -1))


def contrast(images):
    """Standard deviation of luminance, in grey levels; one per image."""
    return luminance(images).std(axis=(-2, -1))


def sharpness(images):
    """Mean absolute Laplacian of luminance, in grey levels; one per image."""
    grey = luminance(images)
    across = np.diff(grey, 2, axis=-1)[..., 1:-1, :]
    down = np.diff(grey, 2, axis=-2)[..., 1:-1]
    return np.abs(across + down).mean(axis=(-2, -1))


def band_power(images):
    """Power of grey pictures in bands of frequency.

    Blurred ones lack the upper bands; checkerboards and grain are in them.

    Args:
        images: `(batch, size, size, 3)` in [0, 255].

    Returns:
        float64 `(batch, bands)`: mean squared magnitudes of the Fourier
        transform from each number of `BAND_EDGES` to the next.
    """
    spectrum = np.abs(np.fft.fft2(luminance(images))) ** 2
    frequencies = np.fft.fftfreq(images.shape[1])
    bands = np.digitize(
        np.hypot(*np.meshgrid(frequencies, frequencies)), BAND_EDGES
    )
    return np.stack(
        [
            spectrum[:, bands == band].mean(axis=-1)
            for band in range(1, len(BAND_EDGES))
        ],
        axis=-1,
    )


def gradients(images):
    """Slopes of luminance in grey levels per pixel, by central differences.

    Returns:
        `(..., 2, height - 2, width - 2)`.
    """
    down, across = np.gradient(luminance(images), axis=(-2, -1))
    return np.stack([across, down], axis=-3)[..., 1:-1, 1:-1]


def path_smoothness(points):
    """How straight and how even a sequence of images or vectors is.

    Args:
        points: `(paths, steps, ...)`, at least two steps.

    Returns:
        Dict of arrays `(paths,)`: `length`, that of the path over the distance
        of its ends, 1 for a straight one; and `largest_step`, the longest
        single step over that distance, `1 / (steps - 1)` for an even, straight
        one; NaN where the ends are one.
    """
    points = np.asarray(points, "float64")
    points = points.reshape(*points.shape[:2], -1)
    steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    ends = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1)
    ends = np.where(ends > 0, ends, np.nan)
    return {
        "length": steps.sum(axis=1) / ends,
        "largest_step": steps.max(axis=1) / ends,
    }
