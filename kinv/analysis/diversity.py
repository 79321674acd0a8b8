"""How far apart can pictures of the same logits be?"""

from typing import NamedTuple

import numpy as np

from kinv import measures
from kinv.analysis import grids, results

TITLE = "The widest reconstructions"
IMAGES = 16
NUMBER = 6
CANDIDATES = 256
# Held-out images among which those of the same class are looked for.
POOL = 500
SHOWN = 3
# Pictures that are no farther apart, in grey levels, are equal.
EQUAL = 1e-3
# Of an image's noises, these many at a time.
PART = 64


def run(study):
    """Finds, of 256 noises, the six whose pictures differ most.

    Returns:
        `results.Result`: means over images of `spread`, the mean distance
        between two of the six in grey levels (`picture_distances`); of
        `widening`, that over the distance of any two reconstructions of the
        image; and of `of_class`, that over the distance of any two images of
        the class that the classifier finds.
    """
    metrics, grid, captions = {}, [], []
    for name, per_image in study.measured(_measure, IMAGES):
        classes = _class_distances(study, name)
        pictures = per_image.pop("pictures")
        apart = np.array([classes.get(c, np.nan) for c in per_image["class"]])
        spread = per_image["spread"]
        # Copies of one image are no measure.
        known = apart > EQUAL
        # Equal reconstructions are no wider than usual.
        usual = np.maximum(per_image["usual_spread"], EQUAL)
        metrics[name] = {
            "images": len(spread),
            "candidates": CANDIDATES,
            "spread": results.mean(spread),
            "widening": results.mean(spread / usual),
            "of_class": results.mean(spread[known] / apart[known]),
        }
        grid += list(pictures[:SHOWN])
        captions += [name] * len(pictures[:SHOWN])
    return results.Result(
        metrics,
        {"diversity": results.rows(metrics, "model", "measure")},
        [_figure(grid, captions)],
    )


def _measure(study, model, batch):
    found = []
    for index, image in enumerate(batch.images):
        random = study.random("diversity", batch.key, str(index))
        seed = random.integers(2**32)
        found.append(find(model, image, NUMBER, CANDIDATES, seed))
    own = model.target(batch.images)[:, None]
    chosen = np.stack([each.reconstructions for each in found])
    return {
        "pictures": np.concatenate([own, chosen], axis=1),
        "spread": np.array([each.spread for each in found]),
        "usual_spread": np.array([each.usual_spread for each in found]),
        "class": model.logits(batch.images).argmax(axis=-1),
    }


def _class_distances(study, name):
    """Mean distance of two images of a class, by the number of the class."""
    per_image = study.per_image(_classify, name, POOL)
    distances = picture_distances(per_image["images"])
    alike = {
        number: np.flatnonzero(per_image["class"] == number)
        for number in np.unique(per_image["class"])
    }
    return {
        number: mean_distance(distances[np.ix_(rows, rows)])
        for number, rows in alike.items()
        if len(rows) > 1
    }


def _classify(study, model, batch):
    return {
        "images": model.target(batch.images),
        "class": model.logits(batch.images).argmax(axis=-1),
    }


def _figure(grid, captions):
    return results.Figure(
        "widest",
        f"The image, then the {NUMBER} of {CANDIDATES} reconstructions that "
        "differ most from each other, among those whose logits are no farther "
        "from the image's than the median one's. What they do not share, the "
        "generator did not find in the logits.",
        grids.captioned_grid(
            grid,
            row_captions=captions,
            column_captions=["image", *[str(i + 1) for i in range(NUMBER)]],
        ),
    )


class Diverse(NamedTuple):
    """The reconstructions of an image that differ most from each other.

    Attributes:
        reconstructions: float32 `(number, size, size, 3)` in [0, 255].
        logits: float32 `(number, num_classes)`, read from them.
        logit_distances: float `(number,)`, from these to the image's logits.
        usual_logit_distance: the median of all candidates', which none of the
            chosen exceeds.
        spread: mean distance of two of the chosen, `picture_distances`.
        usual_spread: the same of all candidates.
    """

    reconstructions: np.ndarray
    logits: np.ndarray
    logit_distances: np.ndarray
    usual_logit_distance: float
    spread: float
    usual_spread: float


def find(model, image, number, candidates, seed=0, progress=None):
    """Finds the reconstructions of an image that differ most.

    Of the candidates whose logits are no farther from the image's than those of
    the median candidate, so that they say as much of it as ordinary ones, the
    two that differ most are taken, then again and again the one that is
    farthest from those taken.

    Args:
        model: `pipeline.Pipeline`.
        image: `(height, width, 3)` in [0, 255].
        number: of reconstructions to find, at least 2.
        candidates: of noises to try, at least twice as many.
        seed: of the noises.
        progress: function that is called with the number of candidates made
            since its last call, or None.

    Returns:
        `Diverse`.
    """
    random = np.random.default_rng(seed)
    noise = random.standard_normal((1, candidates, model.noise_dim), "float32")
    parts = []
    for start in range(0, candidates, PART):
        part = model.reconstruct(image[None], noise[:, start : start + PART])[0]
        parts.append((part, model.logits(part)))
        if progress:
            progress(len(part))
    pictures, logits = map(np.concatenate, zip(*parts, strict=True))
    logit_distances = np.linalg.norm(logits - model.logits(image[None]), axis=1)
    usual = np.median(logit_distances)
    near = np.flatnonzero(logit_distances <= usual)
    distances = picture_distances(pictures)
    chosen = near[farthest(distances[np.ix_(near, near)], number)]
    return Diverse(
        pictures[chosen],
        logits[chosen],
        logit_distances[chosen],
        float(usual),
        mean_distance(distances[np.ix_(chosen, chosen)]),
        mean_distance(distances),
    )


def picture_distances(pictures):
    """Distances between pictures: root mean squares over Laplacian bands.

    A band is what a picture has beyond itself at half the size; the last one is
    its mean. All bands count alike, so that hues and fine detail both matter.

    Args:
        pictures: `(count, size, size, 3)` in [0, 255].

    Returns:
        float64 `(count, count)`, in grey levels.
    """
    bands, low = [], np.asarray(pictures, "float64")
    while (size := low.shape[1]) > 1 and size % 2 == 0:
        shape = (len(low), size // 2, 2, size // 2, 2, 3)
        smaller = low.reshape(shape).mean((2, 4))
        bands.append(low - smaller.repeat(2, axis=1).repeat(2, axis=2))
        low = smaller
    bands = [band.reshape(len(low), -1) for band in (*bands, low)]
    # So that squared distances of these rows are means over bands.
    rows = [band / np.sqrt(band.shape[1] * len(bands)) for band in bands]
    rows = np.concatenate(rows, axis=1)
    return np.sqrt(measures.squared_distances(rows, rows))


def farthest(distances, number):
    """Greedy farthest points: indices of `number` that differ most.

    Args:
        distances: `(count, count)`, symmetric.
        number: of points, at least 2 and at most as many as there are.
    """
    # Equal pictures are two all the same.
    different = distances - np.eye(len(distances))
    chosen = list(np.unravel_index(different.argmax(), distances.shape))
    while len(chosen) < number:
        nearest = distances[chosen].min(axis=0)
        nearest[chosen] = -1
        chosen.append(nearest.argmax())
    return np.array(chosen)


def mean_distance(distances):
    """Mean over the pairs of different points."""
    count = len(distances)
    return float(distances.sum() / (count * (count - 1)))
