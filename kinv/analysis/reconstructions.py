"""Reconstructions of the same images by every model, and how near they are."""

import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import study

TITLE = "Reconstructions"
SHOWN = 10
IMAGES = 500


def run(data):
    """Shows a fixed set of images, and measures more.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. Metrics by model: agreement, the fidelity to what
        logits know beyond the class (`measures.logit_fidelity`), cosine and
        relative l2 distance of logits, pixel MSE and SSIM against the image and
        against a shuffled pairing, each with a 95 % interval.
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

        parts, pairs = [], []
        for index, (images, _, _) in enumerate(batches):
            noise = data.noise(model, len(images), 1, "measured", str(index))
            pictures = model.reconstruct(images, noise)[:, 0]
            logits, again = model.logits(images), model.logits(pictures)
            parts.append(compare(images, pictures, logits, again))
            pairs.append({"logits": logits, "again": again})
        found, pairs = study.concatenate(parts), study.concatenate(pairs)
        hits = found.pop("agreement")
        metrics[name] = {
            "images": len(hits),
            "agreement": study.summary(
                (hits.mean(), *measures.wilson_interval(hits.sum(), len(hits)))
            ),
            "logit_fidelity": study.summary(
                measures.bootstrap_interval(
                    measures.logit_fidelity,
                    measures.within_class_errors(**pairs),
                    data.random("fidelity", name),
                )
            ),
        }
        for measure_name, values in found.items():
            metrics[name][measure_name] = study.summary(
                measures.mean_interval(values)
            )
        rows += [
            {"model": name, "measure": key, **value}
            for key, value in metrics[name].items()
            if key != "images"
        ]
    figure = study.Figure(
        "grid",
        "Held-out images over their reconstructions from nothing but the "
        "classifier's logits, one noise each. Below: the class that the "
        "classifier gives the reconstruction, red where it gave the image "
        "another.",
        images_lib.captioned_grid(
            grid, captions, marked, row_captions=names, cell_size=96
        ),
    )
    return study.Result(metrics, {"measures": rows}, [figure])


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
        "pixel_mse": measures.pixel_mse(images, pictures),
        "shuffled_pixel_mse": measures.pixel_mse(images, shuffled),
        "ssim": measures.ssim(images, pictures),
        "shuffled_ssim": measures.ssim(images, shuffled),
    }
