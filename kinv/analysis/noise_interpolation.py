"""Pictures on the way between two noises of one image: section 3."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, study

TITLE = "Noise interpolation"
SHOWN = 4
IMAGES = 100
STEPS = 9


def run(data):
    """Interpolates linearly between two noises, with the logits of one image.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. `end_distance` is the distance between the logits that
        the classifier reads from the two ends, over that between the logits
        of two images; `class_changes` the share of ends of different classes;
        `length` and `largest_step` as for logit interpolation, in pixels.
    """
    metrics, rows, figures, distances = {}, [], [], {}
    for name, model, batches in data.by_model(
        data.count(IMAGES), "noise interpolation"
    ):
        found, shown = [], []
        for index, (images, _, _) in enumerate(batches):
            ends = data.noise(model, len(images), 2, str(index))
            pictures = model.reconstruct(images, between(ends, STEPS))
            first, last = (model.logits(pictures[:, end]) for end in (0, -1))
            logits = model.logits(images)
            found.append(
                {
                    "end_distance": np.linalg.norm(first - last, axis=-1),
                    "image_distance": np.linalg.norm(
                        logits - np.roll(logits, 1, axis=0), axis=-1
                    ),
                    "class_changes": first.argmax(-1) != last.argmax(-1),
                    **measures.path_smoothness(pictures),
                }
            )
            if not shown:
                originals = study.target(images[:SHOWN], model)
                shown = [
                    [image, *row]
                    for image, row in zip(originals, pictures, strict=False)
                ]
        found = study.concatenate(found)
        scale = found.pop("image_distance").mean()
        found["end_distance"] /= max(scale, 1e-12)
        distances[name] = found["end_distance"]
        changes = found.pop("class_changes")
        metrics[name] = {
            "images": len(changes),
            "steps": STEPS,
            "class_changes": study.summary(
                (
                    changes.mean(),
                    *measures.wilson_interval(changes.sum(), len(changes)),
                )
            ),
            **{
                key: study.summary(measures.mean_interval(values))
                for key, values in found.items()
            },
        }
        found["class_changes"] = changes.astype(int)
        rows += [
            {
                "model": name,
                "image": image,
                **dict(zip(found, row, strict=True)),
            }
            for image, row in enumerate(zip(*found.values(), strict=True))
        ]
        figures.append(
            study.Figure(
                name,
                f"{name}: linear interpolation between two noises. Left, the "
                "image whose logits all pictures of its row are made of.",
                grids.captioned_grid(
                    shown,
                    column_captions=[
                        "image",
                        *(f"{t:.3g}" for t in np.linspace(0, 1, STEPS)),
                    ],
                    cell_size=80,
                ),
            )
        )
    claims = []
    if data.pair:
        robust, standard = data.pair
        interval = measures.mean_interval(
            distances[standard] - distances[robust]
        )
        claims.append(
            study.Claim(
                "3",
                "The ends of the robust model's noise sequences are "
                "semantically closer.",
                "distance of the ends' logits over that of two images, "
                "standard minus robust",
                *map(float, interval),
                study.decide(*interval[1:]),
            )
        )
    return study.Result(metrics, {"images": rows}, figures, claims)


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
