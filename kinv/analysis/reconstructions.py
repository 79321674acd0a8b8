"""Reconstructions of the same images by every model, and how near they are."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, plots, results

TITLE = "Reconstructions"
SHOWN = 10
IMAGES = 500


def run(study):
    """Shows a fixed set of images, and measures more.

    Returns:
        `results.Result`. Metrics by model: agreement, the share shown of what
        logits know beyond the class, cosine and relative l2 distance of logits,
        pixel MSE, PSNR and SSIM against the image and against a shuffled
        pairing, each with a 95 % interval; with a perceptual distance, that
        too; and `power`, by band of frequency that of reconstructions over
        that of images (`measures.band_power`), 1 where they are as sharp. Of
        a model that inverts another layer
        `within_class_r2_of_features`, the share of what its features know
        beyond the class.
    """
    metrics = {name: metrics_of(study, name) for name in study.models}
    power = {name: of["power"] for name, of in metrics.items()}
    return results.Result(
        metrics,
        {
            "measures": results.rows(metrics, "model", "measure"),
            "power": results.rows(power, "model", "cycles_per_pixel"),
        },
        [_figure(study), _power_figure(power)],
    )


def metrics_of(study, name):
    """The metrics of one model."""
    per_image = study.per_image(_measure, name, study.count(IMAGES))
    conditions = per_image.pop("condition"), per_image.pop("read_condition")
    powers = per_image.pop("made_power"), per_image.pop("image_power")
    pairs = per_image.pop("logits"), per_image.pop("reconstruction_logits")
    classes = pairs[0].argmax(-1)

    def within_class(pairs):
        errors = measures.within_class_errors(*pairs, classes)
        return study.bootstrap(measures.explained_variance, *errors)

    metrics = {
        "images": len(classes),
        "within_class_r2": within_class(pairs),
        **results.summaries(per_image),
    }
    if study.models[name].layer:
        metrics["within_class_r2_of_features"] = within_class(conditions)
    metrics["power"] = {
        band: study.bootstrap(measures.ratio_of_means, *pair)
        for band, *pair in zip(
            measures.BANDS, *(power.T for power in powers), strict=True
        )
    }
    return metrics


def _measure(study, model, batch):
    made = study.reconstruct(model, batch.images, 1, "measured", batch.key)
    reconstructions = made[:, 0]
    logits, condition = model.classify(batch.images)
    read_logits, read_condition = model.classify(reconstructions)
    images = model.target(batch.images)
    per_image = {
        "logits": logits,
        "reconstruction_logits": read_logits,
        "condition": condition,
        "read_condition": read_condition,
        "made_power": measures.band_power(reconstructions),
        "image_power": measures.band_power(images),
        **compare(images, reconstructions, logits, read_logits),
    }
    if study.perceptual:
        shuffled = _shuffled(reconstructions)
        per_image |= {
            "perceptual_distance": study.perceptual(images, reconstructions),
            "shuffled_perceptual_distance": study.perceptual(images, shuffled),
        }
    return per_image


def _figure(study):
    batch = study.first(SHOWN)
    grid, captions, marked = [list(batch.images)], [[]], [[]]
    for name, model in study.models.items():
        images = study.first(SHOWN, name).images
        reconstructions = study.reconstruct(model, images, 1, "shown")[:, 0]
        before, after = (
            model.logits(x).argmax(-1) for x in (images, reconstructions)
        )
        grid.append(list(reconstructions))
        captions.append([model.class_names[index] for index in after])
        marked.append(list(after != before))
    what = "logits"
    if any(model.layer for model in study.models.values()):
        what = "logits, or the features of the layer that a model inverts"
    return results.Figure(
        "grid",
        "Held-out images over their reconstructions from nothing but the "
        f"classifier's {what}, one noise each. Below: the class that the "
        "classifier gives the reconstruction, red where it gave the image "
        "another.",
        grids.captioned_grid(
            grid,
            captions,
            marked,
            row_captions=["image", *study.models],
            cell_size=96,
        ),
    )


def _power_figure(power):
    return results.Figure(
        "power",
        "Power of reconstructions over that of images, by frequency, with 95 % "
        "intervals. At 1 (dotted) they are as sharp: below, blurred; above, "
        "grainy, or show a checkerboard.",
        plots.curves(
            range(len(measures.BANDS)),
            {name: by_band.values() for name, by_band in power.items()},
            "frequency, cycles per pixel",
            "power over that of images",
            identity=(None, 1),
            ticks=measures.BANDS,
        ),
    )


def _shuffled(reconstructions):
    """Those of the images before; NaN where there is no other."""
    if len(reconstructions) == 1:
        return np.full_like(reconstructions, np.nan)
    return np.roll(reconstructions, 1, axis=0)


def compare(images, reconstructions, logits, reconstruction_logits):
    """Compares images and their logits with their reconstructions.

    Args:
        images: `(batch, image_size, image_size, 3)` in [0, 255], as of
            `Pipeline.target`.
        reconstructions: of that shape.
        logits: `(batch, num_classes)` of the images.
        reconstruction_logits: `(batch, num_classes)`.

    Returns:
        dict of arrays `(batch,)`; "shuffled" compares each image with the
        reconstruction of the one before.
    """
    read, shuffled = reconstruction_logits, _shuffled(reconstructions)
    return {
        "agreement": logits.argmax(-1) == read.argmax(-1),
        "logit_cosine": measures.logit_cosine(logits, read),
        "logit_distance": measures.logit_distance(logits, read),
        "psnr": measures.psnr(images, reconstructions),
        "shuffled_psnr": measures.psnr(images, shuffled),
        "pixel_mse": measures.pixel_mse(images, reconstructions),
        "shuffled_pixel_mse": measures.pixel_mse(images, shuffled),
        "ssim": measures.ssim(images, reconstructions),
        "shuffled_ssim": measures.ssim(images, shuffled),
    }
