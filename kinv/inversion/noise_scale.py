"""The scale of an exported generator's noise, fitted to held-out images."""

import keras
import numpy as np

from kinv import measures
from kinv.inversion import batches

# Scales beyond which the noise is not what was trained.
RANGE = (0.5, 1.5)


def fit(generator, pairs, seed, verbose=0):
    """Scales the noise until it says as much as the generator leaves open.

    That is, until the error ratio of 8 reconstructions is that of samples of
    the true distribution (`measures.error_ratio`). In training it need not be:
    there the noise also covers what the moments of a small batch and rates that
    have not decayed yet add to the error, and averaged weights and standing
    statistics do not. One number leaves to the training what varies, and how.

    Args:
        generator: `networks.Generator` with folded kernels, whose
            `noise_scale` is set; to 1 where no scale in `RANGE` is right, as
            of a generator that passes over its noise. Its standing statistics
            are filled on the way, and have to be filled again.
        pairs: iterable of images, float32 `(batch, height, width, 3)` in [0,
            255], and what the generator is given of them, `(batch,
            condition_dim)`, in batches of one size.
        seed: of the noise.
        verbose: 1 for a progress bar.

    Returns:
        The spread of the noise over what is left open, before
        (`measures.spread_skill`).

    Reference:
        Guo et al., On Calibration of Modern Neural Networks (ICML 2017):
        temperature scaling, of class probabilities.
    """
    pairs = [
        (np.asarray(batches.targets(images, generator)), condition)
        for images, condition in pairs
    ]
    progress = keras.utils.Progbar(2 * len(pairs), verbose=verbose)
    low, high = RANGE
    before = _spread(generator, 1.0, pairs, seed, progress)
    if not before or not low <= 1 / before <= high:
        progress.update(progress.target, finalize=True)
        return before
    # The noise grows only about in proportion to its scale.
    after = _spread(generator, 1 / before, pairs, seed, progress)
    generator.noise_scale = float(np.clip(1 / (before * after), low, high))
    return before


def _spread(generator, scale, pairs, seed, progress):
    generator.noise_scale = scale
    # As at inference: the moments of a batch would add to the error.
    generator.fill_standing_statistics(
        {"condition": condition, "noise": noises[0]}
        for (_, condition), noises in _with_noise(generator, pairs, seed)
    )
    errors = []
    for (images, condition), noises in _with_noise(generator, pairs, seed):
        samples = [
            generator({"condition": condition, "noise": noise})
            for noise in noises
        ]
        samples = np.stack(samples, axis=1)
        errors.append(measures.reconstruction_errors(images, samples))
        progress.add(1)
    of_mean, of_single = np.concatenate(errors, axis=1)
    ratio = measures.error_ratio(of_mean, of_single)
    return measures.spread_skill(ratio)


def _with_noise(generator, pairs, seed):
    """The pairs, and noises for each, the same in every pass."""
    random = np.random.default_rng(seed)
    for images, condition in pairs:
        shape = measures.ERROR_RATIO_NOISES, len(images), generator.noise_dim
        yield (images, condition), random.standard_normal(shape, "float32")
