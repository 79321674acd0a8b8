"""Reconstructions on the way between two noises of one image: section 3."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, results

TITLE = "Noise interpolation"
SHOWN = 4
IMAGES = 100
STEPS = 9


def run(study):
    """Interpolates linearly between two noises, with the logits of one image.

    Returns:
        `results.Result`. `end_distance` is the distance between the logits that
        the classifier reads from the two ends, over that between the logits
        of two images; `class_changes` the share of ends of different classes;
        `length` and `largest_step` as for logit interpolation, in pixels.
    """
    study.require_images(2)
    metrics, rows, figures, distances = {}, [], [], {}
    for name, per_image in study.measured(_measure, IMAGES):
        ends, between = (
            per_image.pop(key) for key in ("end_distance", "image_distance")
        )
        distances[name] = ends, between
        metrics[name] = {
            "images": len(ends),
            "steps": STEPS,
            **results.summaries(per_image),
            "end_distance": study.bootstrap(
                measures.ratio_of_means, ends, between
            ),
        }
        per_image["end_distance"] = ends / max(between.mean(), 1e-12)
        rows += results.image_rows(per_image, "image", model=name)
        figures.append(_figure(study, name))
    claims = _claims(study, distances) if study.pair else []
    return results.Result(metrics, {"images": rows}, figures, claims)


def _claims(study, distances):
    robust, standard = (distances[name] for name in study.pair)
    return [
        results.claim(
            "3",
            "The ends of the robust model's noise sequences are semantically "
            "closer.",
            "distance of the ends' logits over that of two images, standard "
            "minus robust",
            study.bootstrap_difference(
                measures.ratio_of_means, standard, robust
            ),
        )
    ]


def _measure(study, model, batch):
    reconstructions = _interpolate(study, model, batch)
    first, last = (model.logits(reconstructions[:, end]) for end in (0, -1))
    logits = model.logits(batch.images)
    return {
        "end_distance": np.linalg.norm(first - last, axis=-1),
        "image_distance": np.linalg.norm(
            logits - np.roll(logits, 1, axis=0), axis=-1
        ),
        "class_changes": first.argmax(-1) != last.argmax(-1),
        **measures.path_smoothness(reconstructions),
    }


def _interpolate(study, model, batch):
    ends = study.noise(model, len(batch.images), 2, batch.key)
    return model.reconstruct(batch.images, between(ends, STEPS))


def between(ends, steps):
    """Noise on the line between two.

    Args:
        ends: `(images, 2, noise_dim)`.
        steps: number of noises, ends included.

    Returns:
        float32 `(images, steps, noise_dim)`.
    """
    t = np.linspace(0, 1, steps, dtype="float32")[None, :, None]
    return (1 - t) * ends[:, :1] + t * ends[:, 1:]


def _figure(study, name):
    model, batch = study.models[name], study.first(SHOWN, name)
    images = model.target(batch.images)
    steps = [f"{t:.3g}" for t in np.linspace(0, 1, STEPS)]
    return results.Figure(
        name,
        f"{name}: linear interpolation between two noises. On the left, the "
        f"image from whose {model.inverted} every reconstruction in the row is "
        "made.",
        grids.captioned_grid(
            [
                [image, *row]
                for image, row in zip(
                    images, _interpolate(study, model, batch), strict=True
                )
            ],
            column_captions=["image", *steps],
            cell_size=80,
        ),
    )
