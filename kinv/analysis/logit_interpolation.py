"""Reconstructions on the way between two images' logits: section 2."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, results
from kinv.analysis import study as study_lib

TITLE = "Logit interpolation"
SHOWN = 4
PAIRS = 100
STEPS = 9


def run(study):
    """Interpolates linearly between the logits of pairs of images.

    Of a model that inverts another layer, between the layer's features.

    Returns:
        `results.Result`. `length` is the length of the path of reconstructions
        over the distance of its ends, `largest_step` its longest step over that
        distance; in pixels, and in the logits that the model's classifier
        reads from the reconstructions.
    """
    study.require_images(2)
    metrics, rows, figures, lengths = {}, [], [], {}
    for name, model in study.models.items():
        parts, grid, pairs = [], [], _pairs(study, name)
        progress = study.progress(pairs, len(pairs), name)
        for index, pair in enumerate(progress):
            noise = study.noise(model, 1, 1, str(index))
            reconstructions = interpolate(model, *pair, noise)
            parts.append(_smoothness(model, reconstructions))
            if index < SHOWN:
                start, stop = model.target(np.stack(pair))
                grid.append([start, *reconstructions, stop])
        per_pair = study_lib.concatenate(parts)
        lengths[name] = per_pair["pixel_length"]
        metrics[name] = {
            "pairs": len(pairs),
            "steps": STEPS,
            **results.summaries(per_pair),
        }
        rows += results.image_rows(per_pair, "pair", model=name)
        figures.append(_figure(name, model, grid))
    claims = study.contrast(
        "2",
        "The robust model's sequence between two logits is smoother.",
        "length of the path of reconstructions over the distance of its ends",
        lengths,
    )
    return results.Result(metrics, {"pairs": rows}, figures, claims)


def _smoothness(model, reconstructions):
    spaces = {"pixel": reconstructions, "logit": model.logits(reconstructions)}
    return {
        f"{space}_{measure}": values
        for space, points in spaces.items()
        for measure, values in measures.path_smoothness(points[None]).items()
    }


def _pairs(study, name):
    """Pairs of images at random, for a model, those of one class left out.

    A data set may hold an image twice: from it to itself there is no way.
    """
    batch = study.first(2 * study.count(PAIRS), name)
    places = study.random("pairs").permutation(len(batch.images) // 2 * 2)
    first, second = np.split(places, 2)
    differ = (batch.images[first] != batch.images[second]).any(axis=(1, 2, 3))
    study.require(differ.any(), "two images that differ")
    classes = differ & (batch.labels[first] != batch.labels[second])
    chosen = classes if classes.any() else differ
    first, second = first[chosen], second[chosen]
    return list(zip(batch.images[first], batch.images[second], strict=True))


def interpolate(model, first, second, noise):
    """Reconstructs from logits on the line between two images' logits.

    Args:
        model: `pipeline.Pipeline`.
        first: image `(height, width, 3)` in [0, 255].
        second: another of the same size.
        noise: `(1, 1, noise_dim)`, the same all along.

    Returns:
        float32 `(STEPS, image_size, image_size, 3)` in [0, 255].
    """
    t = np.linspace(0, 1, STEPS, dtype="float32")
    _, condition = model.classify(second[None])
    shift = t[None, :, None] * condition[:, None]
    noise = np.repeat(noise, STEPS, axis=1)
    return model.reconstruct(first[None], noise, 1 - t[None], shift)[0]


def _figure(name, model, grid):
    steps = [f"{t:.3g}" for t in np.linspace(0, 1, STEPS)]
    return results.Figure(
        name,
        f"{name}: linear interpolation between the {model.inverted} "
        "of two images with one noise. The ends, left and right, are the "
        "images themselves; beside them their reconstructions.",
        grids.captioned_grid(
            grid, column_captions=["image", *steps, "image"], cell_size=80
        ),
    )
