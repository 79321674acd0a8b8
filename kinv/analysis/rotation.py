"""Images rotated by 90 degrees: section 6.1, Figure 17."""

import numpy as np
import scipy.stats

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import study

TITLE = "Rotation by 90 degrees"
SHOWN = 6
IMAGES = 200


def run(data):
    """Compares reconstructions of images and of rotated images.

    The reconstruction of the image rotated by 90 degrees anticlockwise is
    rotated back, and would equal that of the image if orientation were kept.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model, upright and rotated: class agreement with
        the image, and similarity of texture and of shape (`similarity`); and
        `loss`, upright minus rotated.
    """
    metrics, rows, figures, claims = {}, [], [], []
    for name, model, batches in data.by_model(data.count(IMAGES), "rotation"):
        parts, shown = [], None
        for index, (images, _, _) in enumerate(batches):
            noise = data.noise(model, len(images), 1, str(index))
            upright = model.reconstruct(images, noise)[:, 0]
            rotated = np.rot90(images, axes=(1, 2))
            rotated = model.reconstruct(rotated, noise)[:, 0]
            rotated = np.rot90(rotated, -1, axes=(1, 2))
            wanted = study.target(images, model)
            classes = model.logits(images).argmax(-1)
            part = {}
            for key, pictures in (("upright", upright), ("rotated", rotated)):
                same = model.logits(pictures).argmax(-1) == classes
                part[f"agreement_{key}"] = same.astype(float)
                for kind, values in similarity(wanted, pictures).items():
                    part[f"{kind}_{key}"] = values
            parts.append(part)
            if shown is None:
                shown = [group[:SHOWN] for group in (wanted, upright, rotated)]
        found = study.concatenate(parts)
        metrics[name] = {"images": len(found["agreement_upright"])}
        losses = {}
        for kind in ("agreement", "texture", "shape"):
            upright, rotated = (
                found[f"{kind}_{key}"] for key in ("upright", "rotated")
            )
            losses[kind] = upright - rotated
            metrics[name][kind] = {
                key: study.summary(measures.mean_interval(values))
                for key, values in (
                    ("upright", upright),
                    ("rotated", rotated),
                    ("loss", losses[kind]),
                )
            }
            rows += [
                {"model": name, "measure": kind, "of": key, **value}
                for key, value in metrics[name][kind].items()
            ]
        interval = measures.mean_interval(losses["shape"] - losses["texture"])
        claims.append(
            study.Claim(
                "6.1",
                f"Rotation keeps texture and loses shape ({name}).",
                "loss of shape minus loss of texture (similarities, of which "
                "1 is equality and 0 chance)",
                *map(float, interval),
                study.decide(*interval[1:]),
            )
        )
        figures.append(
            study.Figure(
                name,
                f"{name}: images, their reconstructions, and reconstructions "
                "of the images rotated by 90 degrees, rotated back (Figure 17 "
                "of the supplementary).",
                images_lib.captioned_grid(
                    shown,
                    row_captions=["image", "upright", "rotated"],
                    cell_size=112,
                ),
            )
        )
    return study.Result(metrics, {"measures": rows}, figures, claims)


def similarity(images, pictures):
    """Likeness of texture and of shape, each 1 for equal images.

    Texture is the distribution of the lengths of luminance gradients, wherever
    they lie, compared by Wasserstein's distance; shape is where they lie and
    point to, compared by squared distance. Both are set against the distance
    to the next image's picture, averaged over the batch: 0 is chance.

    Args:
        images: `(batch, height, width, 3)` in [0, 255].
        pictures: the same.

    Returns:
        dict of `texture` and `shape`, arrays `(batch,)`.
    """
    wanted, found = measures.gradients(images), measures.gradients(pictures)
    return {
        kind: 1
        - distance(wanted, found)
        / max(distance(wanted, np.roll(found, 1, axis=0)).mean(), 1e-12)
        for kind, distance in (("texture", _texture), ("shape", _shape))
    }


def _texture(wanted, found):
    lengths = (
        np.linalg.norm(field, axis=1).reshape(len(field), -1)
        for field in (wanted, found)
    )
    return np.array(
        [
            scipy.stats.wasserstein_distance(one, other)
            for one, other in zip(*lengths, strict=True)
        ]
    )


def _shape(wanted, found):
    return np.mean((wanted - found) ** 2, axis=(1, 2, 3))
