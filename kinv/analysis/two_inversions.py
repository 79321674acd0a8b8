"""Do two inversions of the same classifier show the same things?"""

import itertools

import numpy as np

from kinv import measures
from kinv.analysis import factors as factors_lib
from kinv.analysis import grids, study

TITLE = "Two inversions of one classifier"
SHOWN = 8
IMAGES = 500
SAMPLES = 8


def run(data):
    """Compares models that invert the same of a classifier, as of two seeds.

    What both show, the classifier knows; what only one shows of an image is
    that generator's own. Pictures are averaged over 4 noises, and compared
    within the image's class, as `within_class_r2` is: `shared_r2` is 1 where
    two inversions show the same of an image, 0 where they share no more of it
    than its class. The ceilings are the same of one model with itself, by 4
    noises and 4 others. Two models cannot agree where one's ceiling is low: its
    noise hides what they share.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By pair of models: `shared_r2`, `ceiling_of_first` and
        `ceiling_of_second`, with bootstrap intervals; and, of scenes, each
        factor's R² of one model's readings from the other's.

    Raises:
        study.NotApplicable: if no two models have the same classifier and
            invert the same layer.
    """
    pairs = [
        pair
        for pair in itertools.combinations(data.models, 2)
        if len({data.models[name].layer for name in pair}) == 1
        and study.same_classifier(data, pair)
    ]
    if not pairs:
        raise study.NotApplicable(
            "needs two models of the same classifier and layer, such as "
            "inversions trained with another --seed"
        )
    known = factors_lib.are_known(data)
    network = factors_lib.load_network() if known else None
    needed = list(dict.fromkeys(itertools.chain(*pairs)))
    found = {
        name: _means(data, name, batches, model, network)
        for name, model, batches in data.by_model(
            data.count(IMAGES), "two inversions"
        )
        if name in needed
    }
    metrics, rows, figures = {}, [], []
    shown, _, _ = data.first(SHOWN)
    for first, second in pairs:
        one, two = found[first], found[second]
        key = f"{first} and {second}"
        metrics[key] = {
            "shared_r2": _shared_r2(data, one, one["half"], two["half"]),
            "ceiling_of_first": _shared_r2(
                data, one, one["half"], one["other_half"]
            ),
            "ceiling_of_second": _shared_r2(
                data, two, two["half"], two["other_half"]
            ),
        }
        if known:
            for factor, part in factors_lib.PARTS.items():
                readings = [x["codes"][:, part] for x in (one, two)]
                metrics[key][factor] = _explained(data, *readings)
        rows += [
            {"models": key, "measure": measure, **value}
            for measure, value in metrics[key].items()
        ]
        figures.append(
            study.Figure(
                f"{first}-{second}",
                f"Images, the mean picture over {SAMPLES} noises of {first} "
                f"and of {second}, and where the two differ: black nowhere, "
                "white by 128 grey levels or more.",
                grids.captioned_grid(
                    [
                        list(shown),
                        *(list(x["mean"][:SHOWN]) for x in (one, two)),
                        list(
                            np.clip(
                                2 * np.abs(one["mean"] - two["mean"])[:SHOWN],
                                0,
                                255,
                            )
                        ),
                    ],
                    row_captions=["image", first, second, "difference"],
                    cell_size=96,
                ),
            )
        )
    return study.Result(metrics, {"shared_r2": rows}, figures)


def _means(data, name, batches, model, network):
    parts = []
    for index, (images, _, _) in enumerate(batches):
        # Each model its own noise: an accident must not look like agreement.
        noise = data.noise(model, len(images), SAMPLES, name, str(index))
        pictures = model.reconstruct(images, noise)
        half = pictures[:, : SAMPLES // 2].mean(axis=1)
        other_half = pictures[:, SAMPLES // 2 :].mean(axis=1)
        part = {
            "logits": model.logits(images),
            "half": half,
            "other_half": other_half,
            "mean": (half + other_half) / 2,
        }
        if network:
            part["codes"] = factors_lib.read(network, pictures).mean(axis=1)
        parts.append(part)
    return study.concatenate(parts)


def _shared_r2(data, found, first, second):
    flat = [x.reshape(len(x), -1) for x in (first, second)]
    return study.summary(
        measures.bootstrap_interval(
            measures.within_class_r2,
            measures.within_class_errors(*flat, found["logits"].argmax(-1)),
            data.random("two inversions"),
        )
    )


def _explained(data, targets, readings):
    """R² of a linear map of one's readings to the other's, by halves."""
    fitted = factors_lib.calibrate(readings, np.asarray(targets, "float64"))
    total = np.sum((targets - targets.mean(axis=0)) ** 2, axis=-1)
    residual = np.sum((targets - fitted) ** 2, axis=-1)
    return study.summary(
        measures.bootstrap_interval(
            lambda total, residual: 1 - residual.sum() / total.sum(),
            (total, residual),
            data.random("two inversions", "factors"),
        )
    )
