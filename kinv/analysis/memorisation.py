"""Are pictures copies of training images?"""

import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import study

TITLE = "Memorisation"
SHOWN = 8
IMAGES = 100
TRAINING_IMAGES = 20_000


def run(data):
    """Looks for the training image nearest to each reconstruction.

    A generator that has learned its training images by heart makes pictures
    nearer to one of them than new images are. The comparison is with the held-
    out images themselves: `ratio` is the mean distance of reconstructions to
    their nearest training image over that of the images to theirs. Copies: 0.
    Blurred pictures are near to everything: `blur_ratio` takes both as 8 x 8
    pixels.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model: the ratios, with bootstrap intervals.
    """
    metrics, rows, figures = {}, [], []
    images, _, _ = data.first(data.count(IMAGES))
    for name, model in data.models.items():
        originals = study.target(images, model)
        noise = data.noise(model, len(images), 1, "memorisation")
        pictures = model.reconstruct(images, noise)[:, 0]
        both = np.concatenate([originals, pictures])
        source = data.training_source()
        limit = min(data.count(TRAINING_IMAGES), source.num_examples)

        batches = data.progress(
            data.batches(limit, source, batch_size=500),
            f"memorisation, {name}",
            -(-limit // 500),
        )
        small_gallery = []

        def embed(images, model=model, small_gallery=small_gallery):
            small_gallery.append(_flat(images, 8))
            return _flat(images, model.image_size)

        nearest, distances = study.nearest(
            batches, _flat(both, model.image_size), embed
        )
        small_distances = study.squared_distances(
            _flat(both, 8), np.concatenate(small_gallery)
        ).min(axis=1)
        found = {"ratio": distances, "blur_ratio": small_distances}
        metrics[name] = {
            key: _ratio(data, name, np.sqrt(values), len(images))
            for key, values in found.items()
        }
        rows += [
            {"model": name, "measure": key, **value}
            for key, value in metrics[name].items()
        ]
        figures.append(
            study.Figure(
                name.replace("/", "-"),
                f"{name}: held-out images, their reconstructions, and the "
                "training images that are nearest to each of the two in "
                "squared pixel differences.",
                images_lib.captioned_grid(
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
