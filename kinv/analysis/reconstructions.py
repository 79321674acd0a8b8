"""Reconstructions of the same images by every model, and how near they are."""

import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import grids, study

TITLE = "Reconstructions"
SHOWN = 10
IMAGES = 500


def run(data):
    """Shows a fixed set of images, and measures more.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. Metrics by model: agreement, the share shown of what
        logits know beyond the class (`measures.within_class_r2`), cosine and
        relative l2 distance of logits, pixel MSE, PSNR and SSIM against the
        image and against a shuffled pairing, each with a 95 % interval; with a
        perceptual distance, that too. Of a model that inverts another layer
        `within_class_r2_of_features`, the share of what its features know
        beyond the class.
    """
    shown, _, _ = data.first(SHOWN)
    grid, names, captions, marked = [list(shown)], ["image"], [[""] * SHOWN], []
    marked.append([False] * SHOWN)
    metrics, rows = {}, []
    for name, model, batches in data.by_model(
        data.count(IMAGES), "reconstructions"
    ):
        noise = data.noise(model, len(shown), 1, "shown")
        pictures = model.reconstruct(shown, noise)[:, 0]
        before, after = (
            model.logits(images).argmax(-1) for images in (shown, pictures)
        )
        grid.append(list(pictures))
        names.append(name)
        captions.append([model.class_names[index] for index in after])
        marked.append(list(after != before))

        parts, pairs, features = [], [], []
        for index, (images, _, _) in enumerate(batches):
            noise = data.noise(model, len(images), 1, "measured", str(index))
            pictures = model.reconstruct(images, noise)[:, 0]
            logits, given = model.classify(images)
            again, given_again = model.classify(pictures)
            parts.append(
                {
                    **compare(images, pictures, logits, again),
                    **_perceptual(data, study.target(images, model), pictures),
                }
            )
            pairs.append({"logits": logits, "again": again})
            if model.layer:
                features.append({"logits": given, "again": given_again})
        found, pairs = study.concatenate(parts), study.concatenate(pairs)
        hits = found.pop("agreement")
        metrics[name] = {
            "images": len(hits),
            **read_back(hits, pairs, data.random("within class", name)),
        }
        if features:
            metrics[name]["within_class_r2_of_features"] = study.summary(
                measures.bootstrap_interval(
                    measures.within_class_r2,
                    measures.within_class_errors(
                        **study.concatenate(features),
                        classes=pairs["logits"].argmax(-1),
                    ),
                    data.random("features", name),
                )
            )
        for measure_name, values in found.items():
            metrics[name][measure_name] = study.summary(
                measures.mean_interval(values)
            )
        rows += [
            {"model": name, "measure": key, **value}
            for key, value in metrics[name].items()
            if key != "images"
        ]
    what = "logits"
    if any(model.layer for model in data.models.values()):
        what = "logits, or the features of the layer that a model inverts"
    figure = study.Figure(
        "grid",
        "Held-out images over their reconstructions from nothing but the "
        f"classifier's {what}, one noise each. Below: the class that the "
        "classifier gives the reconstruction, red where it gave the image "
        "another.",
        grids.captioned_grid(
            grid, captions, marked, row_captions=names, cell_size=96
        ),
    )
    return study.Result(metrics, {"measures": rows}, [figure])


def _perceptual(data, images, pictures):
    if not data.perceptual:
        return {}
    shuffled = np.roll(pictures, 1, axis=0)
    return {
        "perceptual_distance": data.perceptual(images, pictures),
        "shuffled_perceptual_distance": data.perceptual(images, shuffled),
    }


def read_back(hits, pairs, random):
    """Agreement of the class and what is read beyond it, with intervals.

    Args:
        hits: bool `(images,)`, whether the class was found again.
        pairs: dict of `logits` and `again`, as of `compare`, of all images.
        random: `numpy.random.Generator` of the bootstrap.
    """
    return {
        "agreement": study.summary(
            (hits.mean(), *measures.wilson_interval(hits.sum(), len(hits)))
        ),
        "within_class_r2": study.summary(
            measures.bootstrap_interval(
                measures.within_class_r2,
                measures.within_class_errors(**pairs),
                random,
            )
        ),
    }


def compare(images, pictures, logits, again):
    """Compares images and their logits with pictures made of them.

    Args:
        images: `(batch, height, width, 3)` in [0, 255].
        pictures: `(batch, image_size, image_size, 3)` in [0, 255].
        logits: `(batch, num_classes)` of the images.
        again: `(batch, num_classes)` of the pictures.

    Returns:
        dict of arrays `(batch,)`; "shuffled" compares each image with the
        next one's picture.
    """
    images = images_lib.resize(images, pictures.shape[1])
    shuffled = np.roll(pictures, 1, axis=0)
    return {
        "agreement": logits.argmax(-1) == again.argmax(-1),
        "logit_cosine": measures.logit_cosine(logits, again),
        "logit_distance": measures.logit_distance(logits, again),
        "psnr": measures.psnr(images, pictures),
        "shuffled_psnr": measures.psnr(images, shuffled),
        "pixel_mse": measures.pixel_mse(images, pictures),
        "shuffled_pixel_mse": measures.pixel_mse(images, shuffled),
        "ssim": measures.ssim(images, pictures),
        "shuffled_ssim": measures.ssim(images, shuffled),
    }
