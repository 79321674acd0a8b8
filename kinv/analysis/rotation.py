"""Images rotated by 90 degrees: section 6.1, Figure 17."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, results

TITLE = "Rotation by 90 degrees"
SHOWN = 6
IMAGES = 200
# "Keeps": more than this share of the similarity of upright images.
KEPT = 0.5
SIMILARITIES = ("texture", "shape")


def run(study):
    """Compares reconstructions of images and of rotated images.

    The reconstruction of the image rotated by 90 degrees anticlockwise is
    rotated back, and would equal that of the image if orientation were kept.

    Returns:
        `results.Result`. By model, upright and rotated: class agreement with
        the image, and similarity of texture and of shape (`similarity`);
        `loss`, upright minus rotated; and of the similarities `kept`, rotated
        over upright, each a mean.
    """
    # Chance is another image.
    study.require_images(2)
    metrics, figures, claims = {}, [], []
    for name, per_image in study.measured(_measure, IMAGES):
        pairs = {
            kind: [per_image[f"{kind}_{key}"] for key in ("upright", "rotated")]
            for kind in ("agreement", *SIMILARITIES)
        }
        metrics[name] = {"images": len(pairs["agreement"][0])}
        for kind, (upright, rotated) in pairs.items():
            summarize = results.share if kind == "agreement" else results.mean
            metrics[name][kind] = {
                "upright": summarize(upright),
                "rotated": summarize(rotated),
                "loss": results.mean(upright.astype(float) - rotated),
            }
            if kind in SIMILARITIES:
                metrics[name][kind]["kept"] = study.bootstrap(
                    share_kept, upright, rotated
                )
        if name in (study.pair or ()):
            claims += _claims(
                study, name, pairs, metrics[name]["texture"]["kept"]
            )
        figures.append(_figure(study, name))
    rows = results.rows(metrics, "model", "measure", "of")
    return results.Result(metrics, {"measures": rows}, figures, claims)


def _reconstruct(study, model, batch):
    """Images at the model's size, and their two reconstructions."""
    upright, rotated = (
        study.reconstruct(model, images, 1, batch.key)[:, 0]
        for images in (batch.images, np.rot90(batch.images, axes=(1, 2)))
    )
    return (
        model.target(batch.images),
        upright,
        np.rot90(rotated, -1, axes=(1, 2)),
    )


def _measure(study, model, batch):
    images, *both = _reconstruct(study, model, batch)
    classes = model.logits(batch.images).argmax(-1)
    per_image = {}
    for key, made in zip(("upright", "rotated"), both, strict=True):
        per_image[f"agreement_{key}"] = model.logits(made).argmax(-1) == classes
        for kind, values in similarity(images, made).items():
            per_image[f"{kind}_{key}"] = values
    return per_image


def _claims(study, name, pairs, kept):
    more = study.bootstrap_difference(
        share_kept, pairs["texture"], pairs["shape"]
    )
    note = "similarity (1 is equality, 0 chance) upright and rotated: "
    note += ", ".join(
        f"{kind} {pairs[kind][0].mean():.2f} and {pairs[kind][1].mean():.2f}"
        for kind in SIMILARITIES
    )
    return [
        results.claim(
            "6.1",
            f"Rotation keeps texture ({name}).",
            f"similarity of texture, rotated over upright; holds above {KEPT}",
            kept,
            KEPT,
            note,
        ),
        results.claim(
            "6.1",
            f"Rotation keeps more of texture than of shape ({name}).",
            "similarity rotated over upright, of texture minus of shape",
            more,
            note=note,
        ),
    ]


def share_kept(upright, rotated):
    """Mean similarity of rotated over that of upright images.

    NaN if upright images have none, of which nothing can be kept.
    """
    most = upright.mean()
    return rotated.mean() / most if most > 0 else np.nan


def similarity(images, reconstructions):
    """Likeness of texture and of shape, each 1 for equal images.

    Texture is the distribution of the lengths of luminance gradients, wherever
    they lie, compared by Wasserstein's distance; shape is where they lie and
    point to, compared by squared distance. Both are set against the distance
    to another image's reconstruction, averaged over the batch: 0 is chance.

    Args:
        images: `(batch, height, width, 3)` in [0, 255].
        reconstructions: the same.

    Returns:
        dict of `texture` and `shape`, arrays `(batch,)`, whose mean counts.
    """
    fields = [measures.gradients(x) for x in (images, reconstructions)]
    shuffled = fields[0], np.roll(fields[1], 1, axis=0)
    return {
        kind: _against_chance(distance(*fields), distance(*shuffled))
        for kind, distance in (("texture", _texture), ("shape", _shape))
    }


def _against_chance(own, others):
    """`1 - own / mean(others)`, and what each image adds to that mean.

    The second part has mean 0: an interval of the first alone would take the
    batch's mean as known.
    """
    chance = max(others.mean(), 1e-12)
    return 1 - own / chance + own.mean() / chance * (others / chance - 1)


def _texture(fields, others):
    # Wasserstein's distance of as many numbers.
    lengths, other_lengths = (
        np.sort(np.linalg.norm(field, axis=1).reshape(len(field), -1))
        for field in (fields, others)
    )
    return np.abs(lengths - other_lengths).mean(axis=1)


def _shape(fields, others):
    return np.mean((fields - others) ** 2, axis=(1, 2, 3))


def _figure(study, name):
    batch = study.first(SHOWN, name)
    groups = _reconstruct(study, study.models[name], batch)
    return results.Figure(
        name,
        f"{name}: images, their reconstructions, and reconstructions of the "
        "images rotated by 90 degrees, rotated back (Figure 17 of the "
        "supplementary).",
        grids.captioned_grid(
            groups, row_captions=["image", "upright", "rotated"], cell_size=112
        ),
    )
