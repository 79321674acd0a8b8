"""Do two inversions of the same classifier show the same things?"""

import itertools

import numpy as np

from kinv import measures
from kinv.analysis import grids, results, scene_factors

TITLE = "Two inversions of one classifier"
SHOWN = 8
IMAGES = 500
SAMPLES = 8


def run(study):
    """Compares models that invert the same of a classifier, as of two seeds.

    What both show, the classifier knows; what only one shows of an image is
    that generator's own. Reconstructions are averaged over 4 noises, and
    compared within the image's class, as `within_class_r2` is: `shared_r2` is 1
    where two inversions show the same of an image, 0 where they share no more
    of it than its class. The ceilings are the same of one model with itself, by
    4 noises and 4 others. Two models cannot agree where one's ceiling is low:
    its noise hides what they share.

    Returns:
        `results.Result`. By pair of models: `shared_r2`, `ceiling_of_first` and
        `ceiling_of_second`, with bootstrap intervals; and, of scenes, each
        factor's R² of one model's readings from the other's.
    """
    pairs = [
        pair
        for pair in itertools.combinations(study.models, 2)
        if len({study.models[name].layer for name in pair}) == 1
        and study.same_classifier(pair)
    ]
    study.require(
        pairs,
        "two models of the same classifier and layer that make pictures of "
        "one size, such as inversions trained with another --seed",
    )
    per_image = {
        name: study.per_image(_measure, name, study.count(IMAGES), label=name)
        for name in dict.fromkeys(itertools.chain(*pairs))
    }
    metrics, figures = {}, []
    for first, second in pairs:
        both = per_image[first], per_image[second]
        metrics[f"{first} and {second}"] = _compare(study, *both)
        figures.append(_figure(study, first, second, *both))
    rows = results.rows(metrics, "models", "measure")
    return results.Result(metrics, {"shared_r2": rows}, figures)


def _measure(study, model, batch, label):
    # Each model its own noise: an accident must not look like agreement.
    made = study.reconstruct(model, batch.images, SAMPLES, label, batch.key)
    per_image = {
        "logits": model.logits(batch.images),
        "half": made[:, : SAMPLES // 2].mean(axis=1),
        "other_half": made[:, SAMPLES // 2 :].mean(axis=1),
    }
    if scene_factors.are_known(study):
        per_image["codes"] = scene_factors.read(made).mean(axis=1)
    return per_image


def _compare(study, one, two):
    classes = one["logits"].argmax(-1)
    measured = {
        key: _shared(study, classes, first, second)
        for key, first, second in (
            ("shared_r2", one["half"], two["half"]),
            ("ceiling_of_first", one["half"], one["other_half"]),
            ("ceiling_of_second", two["half"], two["other_half"]),
        )
    }
    for factor, part in scene_factors.PARTS.items() if "codes" in one else ():
        measured[factor] = scene_factors.explained(
            study,
            two["codes"][:, part],
            one["codes"][:, part],
        )
    return measured


def _shared(study, classes, first, second):
    first, second = (x.reshape(len(x), -1) for x in (first, second))
    errors = measures.within_class_errors(first, second, classes)
    return study.bootstrap(measures.explained_variance, *errors)


def _figure(study, first, second, *both):
    means = [(x["half"][:SHOWN] + x["other_half"][:SHOWN]) / 2 for x in both]
    difference = np.clip(2 * np.abs(means[0] - means[1]), 0, 255)
    images = study.first(SHOWN).images
    return results.Figure(
        f"{first}-{second}",
        f"Images, the mean reconstruction over {SAMPLES} noises of {first} and "
        f"of {second}, and where the two differ: black where they agree, "
        "white where they differ by 128 grey levels or more.",
        grids.captioned_grid(
            [images, *means, difference],
            row_captions=["image", first, second, "difference"],
            cell_size=96,
        ),
    )
