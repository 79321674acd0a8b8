"""Are pictures copies of training images?"""

import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import grids, study

TITLE = "Memorisation"
SHOWN = 8
IMAGES = 100
# That are searched at most: the first. 240,000 scenes of 32 pixels take 75
# seconds a model, on 2 cores beside two trainings.
TRAINING_IMAGES = 300_000


def run(data):
    """Looks for the training image nearest to each reconstruction.

    A generator that has learned its training images by heart makes pictures
    nearer to one of them than new images are. The comparison is with the held-
    out images themselves: `ratio` is the mean distance of reconstructions to
    their nearest training image over that of the images to theirs. Copies of
    images that were searched: 0. Blurred pictures are near to everything:
    `blur_ratio` takes both as 8 x 8 pixels.

    Args:
        data: `study.Study`, whose `training_source` takes, if a model names
            what it was trained on, the name of a data set and a split.

    Returns:
        `study.Result`. By model: the ratios, with bootstrap intervals; the
        number of images `searched`, also with `--quick` all of the
        `training_images` if they are no more than `TRAINING_IMAGES`; and
        whose these are, `training_set`.
    """
    metrics, rows, figures = {}, [], []
    images, _, _ = data.first(data.count(IMAGES))
    for name, model in data.models.items():
        originals = study.target(images, model)
        noise = data.noise(model, len(images), 1, "memorisation")
        pictures = model.reconstruct(images, noise)[:, 0]
        both = np.concatenate([originals, pictures])
        source, training_set = study.training_images(data, model)
        limit = min(TRAINING_IMAGES, source.num_examples)

        batches = data.progress(
            data.batches(limit, source, batch_size=500),
            f"memorisation, {name}",
            -(-limit // 500),
        )
        small = _flat(both, 8)
        small_distances = np.full(len(both), np.inf)

        def embed(
            images, model=model, small=small, small_distances=small_distances
        ):
            found = study.squared_distances(small, _flat(images, 8))
            np.minimum(small_distances, found.min(axis=1), out=small_distances)
            return _flat(images, model.image_size)

        nearest, distances = study.nearest(
            batches, _flat(both, model.image_size), embed
        )
        found = {"ratio": distances, "blur_ratio": small_distances}
        ratios = {
            key: _ratio(data, name, np.sqrt(values), len(images))
            for key, values in found.items()
        }
        searched = {
            "searched": limit,
            "training_images": source.num_examples,
            "training_set": training_set,
        }
        metrics[name] = {**ratios, **searched}
        rows += [
            {"model": name, "measure": key, **value, **searched}
            for key, value in ratios.items()
        ]
        figures.append(
            study.Figure(
                name,
                f"{name}: held-out images, their reconstructions, and the "
                "training images that are nearest to each of the two in "
                f"squared pixel differences. Searched: {limit:,} of "
                f"{source.num_examples:,} training images, {training_set}.",
                grids.captioned_grid(
                    [
                        list(row[:SHOWN])
                        for row in (
                            originals,
                            study.target(nearest[: len(images)], model),
                            pictures,
                            study.target(nearest[len(images) :], model),
                        )
                    ],
                    row_captions=[
                        "image",
                        "nearest training image",
                        "reconstruction",
                        "nearest training image",
                    ],
                    cell_size=96,
                ),
            )
        )
    return study.Result(metrics, {"ratios": rows}, figures)


def _flat(images, size):
    pixels = images_lib.resize(images, size)
    return pixels.reshape(len(pixels), -1)


def _ratio(data, name, distances, count):
    own, made = distances[:count], distances[count:]
    return study.summary(
        measures.bootstrap_interval(
            lambda made, own: made.mean() / max(own.mean(), 1e-12),
            (made, own),
            data.random("memorisation", name),
        )
    )
