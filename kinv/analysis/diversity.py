"""How far apart can pictures of the same logits be?"""

import numpy as np

from kinv.analysis import grids, results
from kinv.analysis import study as study_lib
from kinv.serving import diverse

TITLE = "The widest reconstructions"
IMAGES = 16
NUMBER = 6
CANDIDATES = 256
# Held-out images among which those of the same class are looked for.
POOL = 500
SHOWN = 3


def run(study):
    """Finds, of 256 noises, the six whose pictures differ most.

    Returns:
        `results.Result`: means over images of `spread`, the mean distance
        between two of the six in grey levels (`diverse.picture_distances`); of
        `widening`, that over the distance of any two reconstructions of the
        image; and of `of_class`, that over the distance of any two images of
        the class that the classifier finds.
    """
    metrics, grid, captions = {}, [], []
    for name, model in study.models.items():
        classes = _class_distances(study, name)
        per_image = study.per_image(_measure, name, study.count(IMAGES))
        pictures = per_image.pop("pictures")
        apart = np.array([classes.get(c, np.nan) for c in per_image["class"]])
        spread = per_image["spread"]
        # Copies of one image are no measure.
        known = apart > 0
        # Equal reconstructions are no wider than usual.
        usual = np.maximum(per_image["usual_spread"], 1e-3)
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
        {"diversity": results.rows(metrics)},
        [_figure(grid, captions)],
    )


def _measure(study, model, batch):
    found = []
    for index, image in enumerate(batch.images):
        random = study.random("diversity", batch.key, str(index))
        seed = random.integers(2**32)
        found.append(diverse.find(model, image, NUMBER, CANDIDATES, seed))
    own = study_lib.target(batch.images, model)[:, None]
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
    distances = diverse.picture_distances(per_image["images"])
    alike = {
        number: np.flatnonzero(per_image["class"] == number)
        for number in np.unique(per_image["class"])
    }
    return {
        number: diverse.mean_distance(distances[np.ix_(rows, rows)])
        for number, rows in alike.items()
        if len(rows) > 1
    }


def _classify(study, model, batch):
    return {
        "images": study_lib.target(batch.images, model),
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
