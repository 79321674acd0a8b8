"""Are reconstructions copies of training images?"""

import hashlib

import numpy as np

from kinv import measures, pixels
from kinv.analysis import cache, grids, results
from kinv.analysis import study as study_lib

TITLE = "Memorisation"
SHOWN = 8
IMAGES = 100
# That are searched at most: the first.
TRAINING_IMAGES = 300_000
# Blurred pictures are near to everything: small ones are compared, too.
BLURRED_SIZE = 8


def run(study):
    """Looks for the training image nearest to each reconstruction.

    A generator that has learned its training images by heart makes
    reconstructions nearer to one of them than new images are. The comparison is
    with the held-out images themselves: `ratio` is the mean distance of
    reconstructions to their nearest training image over that of the images to
    theirs. Copies of images that were searched: 0. `blur_ratio` takes both as 8
    x 8 pixels. Models of the same training images share one search.

    Returns:
        `results.Result`. By model: the ratios, with bootstrap intervals; the
        number of images `searched`, also with `--quick` all of the
        `training_images` if they are no more than `TRAINING_IMAGES`; and
        whose these are, `training_set`.
    """
    alike = {}
    for name, model in study.models.items():
        source, training_set = study.training_images(model)
        channels = model.metadata.get("channels", 3)
        key = training_set, study.size(name), model.image_size, channels
        alike.setdefault(key, (source, []))[1].append(name)
    metrics, rows, figures = {}, [], []
    for (training_set, *_), (source, names) in alike.items():
        searched = {
            "searched": min(TRAINING_IMAGES, source.num_examples),
            "training_images": source.num_examples,
            "training_set": training_set,
        }
        pictures = study.first(study.count(IMAGES), names[0]).images
        groups = [study.models[names[0]].target(pictures)]
        for name in names:
            model = study.models[name]
            made = study.reconstruct(model, pictures, 1, "memorisation")
            groups.append(made[:, 0])
        distances = _found(study, source, names[0], np.stack(groups))
        nearest = distances.pop("nearest")
        for row, name in enumerate(names, start=1):
            ratios = {
                measure: study.bootstrap(
                    measures.ratio_of_means, of[row], of[0]
                )
                for measure, of in distances.items()
            }
            metrics[name] = {**ratios, **searched}
            rows += results.rows({name: ratios}, "model", "measure", **searched)
            grid = [groups[0], nearest[0], groups[row], nearest[row]]
            figures.append(_figure(name, grid, searched))
    return results.Result(metrics, {"ratios": rows}, figures)


def _found(study, source, name, groups):
    """What `_nearest` finds, kept for the next report of the same images."""
    queries, digest = hashlib.sha256(groups).hexdigest(), source.identity()
    key = digest and ["nearest", digest, TRAINING_IMAGES, queries]
    return cache.kept(key, lambda: _nearest(study, source, name, groups))


def _nearest(study, source, name, groups):
    """The training images nearest to groups of images, in one pass.

    Args:
        source: `source.Source` of the training images.
        name: label of the model as whose pictures they are taken.
        groups: `(groups, images, size, size, 3)`.

    Returns:
        dict of distances `(groups, images)`, `ratio` and `blur_ratio`, and the
        `nearest` images `(groups, images, size, size, 3)`.
    """
    queries = np.concatenate(groups)
    # By products of matrices, since a resize takes several times as long.
    shrink = pixels.resize_weights(queries.shape[1], BLURRED_SIZE)
    flat = _compared(queries, shrink)
    best = {measure: np.full(len(queries), np.inf) for measure in flat}
    nearest = np.zeros_like(queries)
    for batch in study.batches(
        TRAINING_IMAGES, source, study_lib.TRAINING_BATCH_SIZE, name
    ):
        images = study.models[name].target(batch.images)
        for measure, rows in _compared(images, shrink).items():
            distances = measures.squared_distances(flat[measure], rows)
            closest = distances.min(axis=1)
            nearer = closest < best[measure]
            best[measure][nearer] = closest[nearer]
            if measure == "ratio":
                nearest[nearer] = images[distances.argmin(axis=1)[nearer]]
    shape = len(groups), len(groups[0])
    distances = {key: np.sqrt(of).reshape(shape) for key, of in best.items()}
    return {**distances, "nearest": nearest.reshape(groups.shape)}


def _compared(images, shrink):
    """By measure, images as the vectors whose distances it takes."""
    blurred = np.einsum(
        "ai,nijc,bj->nabc", shrink, images, shrink, optimize=True
    )
    return {
        "ratio": images.reshape(len(images), -1),
        "blur_ratio": blurred.reshape(len(images), -1),
    }


def _figure(name, grid, searched):
    return results.Figure(
        name,
        f"{name}: held-out images, their reconstructions, and the training "
        "images that are nearest to each of the two in squared pixel "
        f"differences. Searched: {searched['searched']:,} of "
        f"{searched['training_images']:,} training images, "
        f"{searched['training_set']}.",
        grids.captioned_grid(
            [list(row[:SHOWN]) for row in grid],
            row_captions=[
                "image",
                "nearest training image",
                "reconstruction",
                "nearest training image",
            ],
            cell_size=96,
        ),
    )
