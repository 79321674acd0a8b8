"""The factors of scenes as numbers, and the network that reads them."""

import functools
import pathlib

import keras
import numpy as np

from kinv import measures, pixels
from kinv.data import rendering, scenes

NETWORK = pathlib.Path(__file__).with_name("scene_factors.keras")
NETWORK_IMAGE_SIZE = 32


def _circle(values, period):
    angles = 2 * np.pi * np.asarray(values, "float64") / period
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _scaled(values, name):
    low, high = scenes.RANGES[name]
    values = np.asarray(values, "float64")
    return ((2 * values - low - high) / (high - low))[:, None]


# A factor's code: a vector whose squared distances mean something, also for
# kinds and for hues, which have no order.
ENCODINGS = {
    "shape": lambda values: np.eye(len(rendering.SHAPES))[values],
    "object_hue": lambda values: _circle(values, len(rendering.OBJECT_HUES)),
    "wall_hue": lambda values: _circle(values, 1),
    "floor_hue": lambda values: _circle(values, 1),
    "size": lambda values: _scaled(values, "size"),
    "azimuth": lambda values: _scaled(values, "azimuth"),
    "brightness": lambda values: _scaled(values, "brightness"),
}
WIDTHS = (len(rendering.SHAPES), 2, 2, 2, 1, 1, 1)
STARTS = np.cumsum((0, *WIDTHS))
HUES = ("object_hue", "wall_hue", "floor_hue")
# Columns of each factor in a row of codes.
PARTS = {
    name: slice(start, start + width)
    for name, start, width in zip(ENCODINGS, STARTS, WIDTHS, strict=False)
}


def are_known(study):
    """Whether all factors of the study's images are known."""
    return ENCODINGS.keys() <= set(study.source.factor_names)


def encode(factors):
    """Codes the factors of scenes as one row of numbers per image.

    Args:
        factors: dict as of `scenes.scene_factors`, arrays `(images,)`.

    Returns:
        float32 `(images, 19)`; `PARTS` has the columns of each factor. Kinds
        are one-hot, hues points of the unit circle, ranges scaled to [-1, 1].
    """
    columns = [encode(factors[name]) for name, encode in ENCODINGS.items()]
    return np.concatenate(columns, axis=1, dtype="float32")


def deviations(codes, readings=None):
    """Squared distances of codes from readings, or else from their mean.

    Args:
        codes: `(images, width)`.
        readings: the same; None for the mean of `codes`.

    Returns:
        float64 `(images,)`.
    """
    codes = np.asarray(codes, "float64")
    if readings is None:
        readings = codes.mean(axis=0)
    return np.sum((codes - readings) ** 2, axis=-1)


def r_squared(codes, readings):
    """Share of the codes' variance that readings explain, of vectors."""
    return measures.explained_variance(
        deviations(codes, readings), deviations(codes)
    )


def residuals(readings, codes):
    """Squared distances of codes from what readings tell of them.

    By a linear fit on the other half of the images. Of several samples of an
    image their mean is taken, whose noise is a share of what one sample's is;
    that share, which more samples would take away, does not count. (The fit is
    still a little flatter for it, so that of 16 samples of a code of which a
    quarter is known .244 are told.)

    Args:
        readings: `(images, width)`, or `(images, samples, width)`.
        codes: `(images, width)`.

    Returns:
        float64 `(images,)`; single ones may be below 0.
    """
    codes, samples = (np.asarray(x, "float64") for x in (codes, readings))
    samples = samples.reshape(len(codes), -1, samples.shape[-1])
    inputs = np.insert(samples.mean(axis=1), 0, 1.0, axis=-1)
    count, found = samples.shape[1], np.empty(len(codes))
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        fit, *_ = np.linalg.lstsq(inputs[other], codes[other], rcond=None)
        found[half] = deviations(codes[half], inputs[half] @ fit)
        if count > 1:
            told = samples[half] @ fit[1:]
            found[half] -= told.var(axis=1, ddof=1).sum(axis=-1) / count
    return found


def explained(study, readings, codes):
    """Summary of the share of codes' variance that readings explain."""
    errors = residuals(readings, codes), deviations(codes)
    return study.bootstrap(measures.explained_variance, *errors)


@functools.cache
def load_network():
    """The factor network: images `(batch, 32, 32, 3)` to codes."""
    return keras.models.load_model(NETWORK, compile=False)


def read(reconstructions):
    """Reads the factors' codes from reconstructions.

    Args:
        reconstructions: `(images, samples, height, width, 3)` in [0, 255].

    Returns:
        float32 `(images, samples, 19)`; hues are points of the unit circle.
    """
    images, samples = reconstructions.shape[:2]
    flat = reconstructions.reshape(-1, *reconstructions.shape[2:])
    flat = pixels.resize(flat, NETWORK_IMAGE_SIZE)
    codes = np.array(load_network()(flat, training=False))
    for name in HUES:
        codes[:, PARTS[name]] /= np.maximum(
            np.linalg.norm(codes[:, PARTS[name]], axis=-1, keepdims=True), 1e-6
        )
    return codes.reshape(images, samples, -1)
