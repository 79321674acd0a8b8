"""Images rotated by 90 degrees: section 6.1, Figure 17."""

import numpy as np
import scipy.stats

from kinv import measures
from kinv.analysis import grids, study

TITLE = "Rotation by 90 degrees"
SHOWN = 6
IMAGES = 200
# "Keeps": more than this share of the similarity of upright images.
KEPT = 0.5


def run(data):
    """Compares reconstructions of images and of rotated images.

    The reconstruction of the image rotated by 90 degrees anticlockwise is
    rotated back, and would equal that of the image if orientation were kept.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model, upright and rotated: class agreement with
        the image, and similarity of texture and of shape (`similarity`);
        `loss`, upright minus rotated; and of the similarities `kept`, rotated
        over upright, each a mean.
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
        pairs = {
            kind: [found[f"{kind}_{key}"] for key in ("upright", "rotated")]
            for kind in ("agreement", "texture", "shape")
        }
        kept = {
            kind: measures.bootstrap_interval(
                share_kept, pairs[kind], data.random("rotation", name)
            )
            for kind in ("texture", "shape")
        }
        for kind, (upright, rotated) in pairs.items():
            interval = (
                _share_interval
                if kind == "agreement"
                else measures.mean_interval
            )
            metrics[name][kind] = {
                "upright": study.summary(interval(upright)),
                "rotated": study.summary(interval(rotated)),
                "loss": study.summary(
                    measures.mean_interval(upright - rotated)
                ),
            }
            if kind in kept:
                metrics[name][kind]["kept"] = study.summary(kept[kind])
            rows += [
                {"model": name, "measure": kind, "of": key, **value}
                for key, value in metrics[name][kind].items()
            ]
        claims += _claims(data, name, pairs, kept)
        figures.append(
            study.Figure(
                name,
                f"{name}: images, their reconstructions, and reconstructions "
                "of the images rotated by 90 degrees, rotated back (Figure 17 "
                "of the supplementary).",
                grids.captioned_grid(
                    shown,
                    row_captions=["image", "upright", "rotated"],
                    cell_size=112,
                ),
            )
        )
    return study.Result(metrics, {"measures": rows}, figures, claims)


def _claims(data, name, pairs, kept):
    more = measures.bootstrap_interval(
        lambda *arrays: share_kept(*arrays[:2]) - share_kept(*arrays[2:]),
        (*pairs["texture"], *pairs["shape"]),
        data.random("rotation", name),
    )
    means = (
        f"{kind} {upright.mean():.2f} and {rotated.mean():.2f}"
        for kind, (upright, rotated) in pairs.items()
        if kind in kept
    )
    note = "similarity (1 is equality, 0 chance) upright and rotated: "
    note += ", ".join(means)
    return [
        study.Claim(
            "6.1",
            f"Rotation keeps texture ({name}).",
            f"similarity of texture, rotated over upright; holds above {KEPT}",
            *kept["texture"],
            study.decide(*kept["texture"][1:], threshold=KEPT),
            note,
        ),
        study.Claim(
            "6.1",
            f"Rotation keeps more of texture than of shape ({name}).",
            "similarity rotated over upright, of texture minus of shape",
            *more,
            study.decide(*more[1:]),
            note,
        ),
    ]


def _share_interval(hits):
    return hits.mean(), *measures.wilson_interval(hits.sum(), len(hits))


def share_kept(upright, rotated):
    """Mean similarity of rotated over that of upright images.

    NaN if upright images have none, of which nothing can be kept.
    """
    most = upright.mean()
    return rotated.mean() / most if most > 0 else np.nan


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
