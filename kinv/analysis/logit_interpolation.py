"""Pictures on the way between two images' logits: section 2."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, study

TITLE = "Logit interpolation"
SHOWN = 4
PAIRS = 100
STEPS = 9


def run(data):
    """Interpolates linearly between the logits of pairs of images.

    Of a model that inverts another layer, between the layer's features.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. `length` is the length of the path of pictures over the
        distance of its ends, `largest_step` its longest step over that
        distance; in pixels, and in the logits that the model's classifier
        reads from the pictures.
    """
    pairs = _pairs(data)
    metrics, rows, figures, lengths = {}, [], [], {}
    for name, model in data.models.items():
        found, shown = [], []
        progress = data.progress(pairs, f"logit interpolation, {name}", None)
        for index, (first, second) in enumerate(progress):
            noise = data.noise(model, 1, 1, str(index))
            pictures = interpolate(model, first, second, noise)
            logits = model.logits(pictures)
            found.append(
                {
                    f"{space}_{measure}": values
                    for space, points in (
                        ("pixel", pictures),
                        ("logit", logits),
                    )
                    for measure, values in measures.path_smoothness(
                        points[None]
                    ).items()
                }
            )
            if index < SHOWN:
                start, stop = study.target(np.stack([first, second]), model)
                shown.append([start, *pictures, stop])
        found = study.concatenate(found)
        lengths[name] = found["pixel_length"]
        metrics[name] = {
            "pairs": len(found["pixel_length"]),
            "steps": STEPS,
            **{
                key: study.summary(measures.mean_interval(values))
                for key, values in found.items()
            },
        }
        rows += [
            {
                "model": name,
                "pair": pair,
                **dict(zip(found, values, strict=True)),
            }
            for pair, values in enumerate(zip(*found.values(), strict=True))
        ]
        figures.append(
            study.Figure(
                name,
                f"{name}: linear interpolation between the "
                f"{study.inverted(model)} of two images with one noise. The "
                "ends, left and right, are the images themselves; beside them "
                "their reconstructions.",
                grids.captioned_grid(
                    shown,
                    column_captions=[
                        "image",
                        *(f"{t:.3g}" for t in np.linspace(0, 1, STEPS)),
                        "image",
                    ],
                    cell_size=80,
                ),
            )
        )
    claims = []
    if data.pair:
        robust, standard = data.pair
        interval = measures.mean_interval(lengths[standard] - lengths[robust])
        claims.append(
            study.Claim(
                "2",
                "The robust model's sequence between two logits is smoother.",
                "length of the path of pictures over the distance of its ends, "
                "standard minus robust",
                *map(float, interval),
                study.decide(*interval[1:]),
            )
        )
    return study.Result(metrics, {"pairs": rows}, figures, claims)


def _pairs(data):
    """Pairs of images at random, those of one class left out."""
    count = data.count(PAIRS)
    images, labels, _ = data.first(2 * count)
    first, second = np.split(
        data.random("pairs").permutation(len(images) // 2 * 2), 2
    )
    different = labels[first] != labels[second]
    if different.any():
        first, second = first[different], second[different]
    return list(zip(images[first], images[second], strict=True))


def interpolate(model, first, second, noise, steps=STEPS):
    """Reconstructs from logits on the line between two images' logits.

    Args:
        model: `pipeline.Pipeline`.
        first: image `(height, width, 3)` in [0, 255].
        second: another of the same size.
        noise: `(1, 1, noise_dim)`, the same all along.
        steps: number of pictures, ends included.

    Returns:
        float32 `(steps, image_size, image_size, 3)` in [0, 255].
    """
    t = np.linspace(0, 1, steps, dtype="float32")
    _, given = model.classify(second[None])
    shift = t[None, :, None] * given[:, None]
    noise = np.repeat(noise, steps, axis=1)
    return model.reconstruct(first[None], noise, 1 - t[None], shift)[0]
