"""Which of two models leaves more of the same images open, and where?"""

import functools
import itertools
import pathlib

import numpy as np

from kinv import measures, pixels
from kinv.analysis import grids, results
from kinv.analysis.diversity import picture_distances

TITLE = "Side by side"
# Images in the figures, and in one of them.
SHOWN = 48
PER_FIGURE = 8
IMAGES = 500
SAMPLES = measures.ERROR_RATIO_NOISES


def _root_mean_square(squares):
    return np.sqrt(squares.mean())


# By name: a statistic, and what of each image it is taken of.
MEASURES = {
    "spread": (_root_mean_square, ["variance"]),
    "error_of_mean": (_root_mean_square, ["of_mean"]),
    "error_ratio": (measures.error_ratio, ["of_mean", "of_single"]),
    "within_class_r2": (measures.explained_variance, ["own", "other"]),
}


def run(study):
    """Compares what two models show of the same images, and leave open.

    Any two, of whatever classifiers: nothing but the images is needed. Each
    measure is taken of both, and of the second minus the first on the same
    images, so that images that are hard for both do not blur the difference.
    The larger pictures of two are reduced to the size of the smaller.

    `spread` is the standard deviation over 8 noises, root mean square over
    pixels, in grey levels: what a model says is open. `error_of_mean`: how far
    the image is from the mean reconstruction, which is what the model shows.
    `error_ratio` tells whether the spread is to be believed
    (`measures.error_ratio`; 0.5625 is calibrated). `within_class_r2` is read by
    each model's own classifier, of images that both models' classifiers put
    into one class.

    Returns:
        `results.Result`. By pair of models: these four, of each and their
        difference, with bootstrap intervals. Tables: the same, and each image
        with its file, spreads, errors, classes and the distance of the two mean
        reconstructions (`diversity.picture_distances`, grey levels). Figures:
        at most 48 images, those of the largest distance first.
    """
    study.require(len(study.models) > 1, "two models, --model given twice")

    @functools.cache
    def measured(name, size):
        return study.per_image(
            _measure, name, study.count(IMAGES), label=name, size=size
        )

    metrics, rows, tables, figures = {}, [], {}, []
    for names in itertools.combinations(study.models, 2):
        size = min(study.models[name].image_size for name in names)
        both = [measured(name, size) for name in names]
        pair = " and ".join(names)
        metrics[pair] = _compare(study, names, both)
        rows += results.rows(metrics[pair], "of", "measure", models=pair)
        means = zip(*(of["mean"] for of in both), strict=True)
        apart = np.array([picture_distances(np.stack(x))[0, 1] for x in means])
        tables[f"images {pair}"] = _images(study, names, both, apart)
        farthest = np.argsort(-apart, kind="stable")[:SHOWN]
        figures += [
            _figure(study, names, both, farthest, first)
            for first in range(0, len(farthest), PER_FIGURE)
        ]
    return results.Result(metrics, {"differences": rows, **tables}, figures)


def _measure(study, model, batch, label, size):
    made = study.reconstruct(model, batch.images, SAMPLES, label, batch.key)
    logits = model.logits(batch.images)
    reconstruction_logits = model.logits(made[:, 0])
    images = pixels.resize(model.target(batch.images), size)
    made = pixels.resize(made.reshape(-1, *made.shape[2:]), size)
    made = made.reshape(len(images), SAMPLES, size, size, 3)
    of_mean, of_single = measures.reconstruction_errors(images, made)
    deviation = made.std(axis=1, ddof=1, dtype="float64")
    return {
        "of_mean": of_mean,
        "of_single": of_single,
        "variance": np.mean(deviation**2, axis=(1, 2, 3)),
        "logits": logits,
        "reconstruction_logits": reconstruction_logits,
        "image": pixels.to_uint8(images),
        "reconstruction": pixels.to_uint8(made[:, 0]),
        "deviation": grids.deviation_map(deviation),
        "mean": made.mean(axis=1),
    }


def _compare(study, names, both):
    """Each measure of each model, and the second's minus the first's."""
    # A class of both: the same pairs of images for both.
    classes = [of["logits"].argmax(-1) for of in both]
    _, classes = np.unique(classes, axis=1, return_inverse=True)
    both = [of | _within_class(of, classes.ravel()) for of in both]
    minus = f"{names[1]} minus {names[0]}"
    of_each = {name: {} for name in (*names, minus)}
    for measure, (statistic, keys) in MEASURES.items():
        one, two = ([of[key] for key in keys] for of in both)
        for name, arrays in zip(names, (one, two), strict=True):
            of_each[name][measure] = study.bootstrap(statistic, *arrays)
        of_each[minus][measure] = study.bootstrap_difference(
            statistic, two, one
        )
    return of_each


def _within_class(of, classes):
    own, other = measures.within_class_errors(
        of["logits"], of["reconstruction_logits"], classes
    )
    return {"own": own, "other": other}


def _images(study, names, both, apart):
    """One row for each image, the first one 0."""
    file_names = [study.source.name_of(i) for i in range(len(apart))]
    columns = {"file": file_names, "distance_of_means": apart}
    for name, of in zip(names, both, strict=True):
        class_names = study.models[name].class_names
        columns |= {
            f"class_{name}": [class_names[i] for i in of["logits"].argmax(-1)],
            f"spread_{name}": np.sqrt(of["variance"]),
            f"error_of_mean_{name}": np.sqrt(of["of_mean"]),
        }
    return results.image_rows(columns, "image")


def _figure(study, names, both, farthest, first):
    """Some images, from the `first` of the farthest on."""
    shown = farthest[first : first + PER_FIGURE]
    grid, row_captions = [both[0]["image"][shown]], ["image"]
    file_names = [pathlib.Path(study.source.name_of(i)).name for i in shown]
    captions = [file_names]
    for name, of in zip(names, both, strict=True):
        class_names = study.models[name].class_names
        grid += [of["reconstruction"][shown], of["deviation"][shown]]
        row_captions += [name, f"{name}: left open"]
        captions += [
            [class_names[i] for i in of["logits"][shown].argmax(-1)],
            [f"{np.sqrt(of['variance'][index]):.0f} of 255" for index in shown],
        ]
    caption = (
        f"The images whose mean reconstructions by {' and '.join(names)} "
        "differ most. For each model one reconstruction, with the class that "
        "its classifier gives the image below it, and the standard deviation "
        "over 8 noises, with its root mean square below it: black where the "
        f"noise changes nothing, white at {grids.WHITE_DEVIATION} grey levels "
        "or more."
    )
    if first:
        caption = f"Those that differ most after the first {first} images."
    return results.Figure(
        "-".join([*names, *([str(first)] if first else [])]),
        caption,
        grids.captioned_grid(
            grid, captions, row_captions=row_captions, cell_size=96
        ),
    )
