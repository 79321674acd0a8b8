"""What is lost from layer to layer of one classifier."""

import numpy as np

from kinv import measures
from kinv.analysis import factors as factors_lib
from kinv.analysis import plots, reconstructions, study

TITLE = "Layer by layer"
IMAGES = 500
SAMPLES = 8


def run(data):
    """Measures inversions of several layers of one classifier side by side.

    In the order in which the models were given, which should be that of the
    layers. Trained alike, what a deeper one shows less of an image, the layers
    between have thrown away; or the generator has found it harder to read.

    Args:
        data: `study.Study`, of models that invert several layers of one
            classifier, `tools/train.py --layer`.

    Returns:
        `study.Result`. By model: `numbers`, how many the generator is given;
        agreement, the within-class share and the measures of
        `reconstructions`, of one noise; and, of scenes, R² of each factor as it
        is read from 8 reconstructions.

    Raises:
        study.NotApplicable: of models of one layer, or of several classifiers.
    """
    layers = {model.layer for model in data.models.values()}
    if len(layers) < 2 or not study.same_classifier(data, data.models):
        raise study.NotApplicable(
            "needs models that invert several layers of one classifier, "
            "trained with --layer"
        )
    known = factors_lib.are_known(data)
    network = factors_lib.load_network() if known else None
    metrics, rows = {}, []
    for name, model, batches in data.by_model(data.count(IMAGES), "layers"):
        found = _measure(data, model, batches, network)
        metrics[name] = {
            "layer": study.inverted(model),
            "numbers": model.condition_dim,
            **found,
        }
        rows += [
            {
                "model": name,
                "layer": study.inverted(model),
                "numbers": model.condition_dim,
                "measure": measure,
                **value,
            }
            for measure, value in found.items()
        ]
    groups = {
        "pixels": (
            ("pixel_mse", "shuffled_pixel_mse"),
            "squared error of pixels, (grey levels)²",
            "Squared error of reconstructions by layer, from the first to the "
            "last, against that image's and against another image's picture, "
            "which is chance.",
        ),
        "similarity": (
            ("ssim", "within_class_r2", "agreement"),
            "share, or similarity",
            "By layer: structural similarity to the image, share of what "
            "the logits know beyond the class, and agreement of the class.",
        ),
    }
    if known:
        groups["factors"] = (
            tuple(factors_lib.PARTS),
            "R² of what the pictures show",
            "What the pictures of each layer show of each factor: R² of a "
            f"factor network's readings of {SAMPLES} reconstructions.",
        )
    figures = [
        study.Figure(
            group,
            f"{caption} With 95 % intervals.",
            plots.curves(
                range(len(metrics)),
                {
                    key.replace("_", " "): np.array(
                        [
                            [
                                np.nan
                                if found[key][end] is None
                                else found[key][end]
                                for end in ("value", "low", "high")
                            ]
                            for found in metrics.values()
                        ]
                    )
                    for key in keys
                },
                "inverted, from the first layer to the last",
                label,
                ticks=list(metrics),
            ),
        )
        for group, (keys, label, caption) in groups.items()
    ]
    return study.Result(metrics, {"layers": rows}, figures)


def _measure(data, model, batches, network):
    parts, pairs, readings = [], [], []
    for index, (images, _, values) in enumerate(batches):
        noise = data.noise(model, len(images), SAMPLES, str(index))
        # Without known factors one picture of each image is enough.
        noise = noise if network else noise[:, :1]
        pictures = model.reconstruct(images, noise)
        logits, again = model.logits(images), model.logits(pictures[:, 0])
        parts.append(
            reconstructions.compare(images, pictures[:, 0], logits, again)
        )
        pairs.append({"logits": logits, "again": again})
        if network:
            readings.append(
                {
                    "codes": factors_lib.encode(values),
                    "read": factors_lib.read(network, pictures).mean(axis=1),
                }
            )
    found, pairs = study.concatenate(parts), study.concatenate(pairs)
    hits = found.pop("agreement")
    result = {
        **reconstructions.read_back(hits, pairs, data.random("within class")),
        **{
            key: study.summary(measures.mean_interval(values))
            for key, values in found.items()
        },
    }
    if network:
        readings = study.concatenate(readings)
        for factor, part in factors_lib.PARTS.items():
            result[factor] = _shown(data, factor, part, **readings)
    return result


def _shown(data, factor, part, codes, read):
    codes = np.asarray(codes[:, part], "float64")
    total = np.sum((codes - codes.mean(axis=0)) ** 2, axis=-1)
    fitted = factors_lib.calibrate(read[:, part], codes)
    residual = np.sum((codes - fitted) ** 2, axis=-1)
    return study.summary(
        measures.bootstrap_interval(
            lambda total, residual: 1 - residual.sum() / total.sum(),
            (total, residual),
            data.random("layers", factor),
        )
    )
