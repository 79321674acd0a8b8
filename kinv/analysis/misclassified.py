"""Images that the classifier gets wrong: section 4."""

import numpy as np
import scipy.stats

from kinv import measures
from kinv.analysis import grids, reconstructions, study

TITLE = "Misclassified images"
SHOWN = 8
IMAGES = 500
# Fewer wrong images than this tell nothing; then all are degraded alike.
ENOUGH = 20
# Standard deviations of Gaussian pixel noise, in grey levels.
STRENGTHS = (0, 10, 20, 40, 60, 80, 120)
# "As well as": the share of right images' quality that may be lost.
MARGIN = 0.1


def run(data):
    """Compares reconstructions of images classified right and wrong.

    Where the classifier is wrong about too few images, Gaussian noise is added
    to all of them, the weakest of a few strengths that makes enough wrong;
    right and wrong are then compared at that strength. Pictures are always
    compared with the image without noise, which no generator could draw.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. Metrics by model: the strength, and each measure for
        right and for wrong images with the p-value of a two-sided
        Mann-Whitney test; and each group's `quality`, without a test.

    Raises:
        study.NotApplicable: without labels.
    """
    if not data.source.class_numbers:
        raise study.NotApplicable("needs labels of the classifier's classes")
    metrics, rows, figures, claims = {}, [], [], []
    for name, model in data.models.items():
        strength, found, shown = _collect(data, name, model)
        right = found.pop("right")
        errors = found["pixel_mse"], found.pop("shuffled_pixel_mse")
        metrics[name] = {
            "noise_strength": strength,
            "right_images": int(right.sum()),
            "wrong_images": int((~right).sum()),
        }
        compared = {
            measure_name: compare(values, right)
            for measure_name, values in found.items()
        }
        compared["quality"] = {
            group: study.summary(
                measures.bootstrap_interval(
                    quality,
                    [values[rows] for values in errors],
                    data.random("quality", name, group),
                )
            )
            for group, rows in (("right", right), ("wrong", ~right))
        }
        compared["quality"]["p_value"] = None
        metrics[name].update(compared)
        for measure_name, groups in compared.items():
            rows.append(
                {
                    "model": name,
                    "measure": measure_name,
                    **{
                        f"{group}_{key}": value
                        for group in ("right", "wrong")
                        for key, value in groups[group].items()
                    },
                    "p_value": groups["p_value"],
                }
            )
        if shown:
            figures.append(_figure(name, strength, shown))
        claims += _claims(data, name, strength, found, errors, right)
    return study.Result(metrics, {"measures": rows}, figures, claims)


def _collect(data, name, model):
    """The measures of every image, at the first strength with enough wrong."""
    limit = data.count(IMAGES)
    for strength in STRENGTHS:
        wrong = 0
        for index, (images, labels, _) in enumerate(data.batches(limit)):
            images = degrade(data, images, strength, index)
            predicted = model.logits(images).argmax(-1)
            wrong += np.sum((predicted != labels) & (labels >= 0))
        if wrong >= ENOUGH:
            break
    parts, shown = [], []
    progress = data.progress(
        data.batches(limit), f"misclassified, {name}", None
    )
    for index, (originals, labels, _) in enumerate(progress):
        images = degrade(data, originals, strength, index)
        logits = model.logits(images)
        noise = data.noise(model, len(images), 1, str(index))
        pictures = model.reconstruct(images, noise)[:, 0]
        again = model.logits(pictures)
        part = reconstructions.compare(originals, pictures, logits, again)
        del part["shuffled_ssim"], part["shuffled_psnr"]
        predicted = logits.argmax(-1)
        known = labels >= 0
        part["right"] = predicted == labels
        parts.append({key: values[known] for key, values in part.items()})
        again = again.argmax(-1)
        wrong = np.flatnonzero((predicted != labels) & known)
        for row in wrong[: SHOWN - len(shown)]:
            names = [
                model.class_names[index]
                for index in (labels[row], predicted[row], again[row])
            ]
            shown.append((images[row], pictures[row], names))
    return strength, study.concatenate(parts), shown


def degrade(data, images, strength, index):
    """Adds Gaussian noise to pixels, the same on every call.

    Args:
        data: `study.Study`.
        images: `(batch, height, width, 3)` in [0, 255].
        strength: standard deviation in grey levels.
        index: number of the batch.
    """
    noise = data.random("degrade", str(index)).standard_normal(images.shape)
    return np.clip(images + strength * noise, 0, 255).astype("float32")


def quality(errors, shuffled_errors):
    """1 - MSE / MSE of a shuffled pairing, of all images together.

    Args:
        errors: `(images,)`, squared error of each image's own picture.
        shuffled_errors: `(images,)`, of another image's picture.

    Returns:
        1 for pictures equal to the images, 0 for those of other images; NaN
        without images, as a resampling may lack a group.
    """
    if not len(errors):
        return np.nan
    return 1 - errors.sum() / max(shuffled_errors.sum(), 1e-12)


def compare(values, right):
    """A measure of right and of wrong images, and a test of the difference."""
    groups = {"right": values[right], "wrong": values[~right]}
    result = {
        group: study.summary(_interval(part)) for group, part in groups.items()
    }
    result["p_value"] = None
    if all(map(len, groups.values())):
        test = scipy.stats.mannwhitneyu(*groups.values())
        result["p_value"] = float(test.pvalue)
    return result


def _interval(values):
    if values.dtype != bool:
        return measures.mean_interval(values)
    share = values.mean() if len(values) else np.nan
    return share, *measures.wilson_interval(values.sum(), len(values))


def _figure(name, strength, shown):
    images, pictures, names = zip(*shown, strict=True)
    true, predicted, again = zip(*names, strict=True)
    degraded = (
        f" All images carry Gaussian noise of {strength} grey levels, since "
        "too few are misclassified without."
        if strength
        else ""
    )
    return study.Figure(
        name,
        f"{name}: images that the classifier gets wrong, over their "
        "reconstructions. Below the image: its true class, then the predicted "
        "one; below the reconstruction: the class that the classifier gives "
        f"it, red where it is another than the predicted one.{degraded}",
        grids.captioned_grid(
            [images, pictures],
            [
                [f"{a} → {b}" for a, b in zip(true, predicted, strict=True)],
                again,
            ],
            [
                [False] * len(images),
                [a != b for a, b in zip(predicted, again, strict=True)],
            ],
            row_captions=["image", "reconstruction"],
            cell_size=104,
        ),
    )


def _claims(data, name, strength, found, errors, right):
    note = f"{right.sum()} right, {(~right).sum()} wrong images"
    if strength:
        note += f", all degraded by noise of {strength} grey levels"
    of_right, of_wrong = (
        quality(*(values[rows] for values in errors))
        for rows in (right, ~right)
    )
    difference = _difference(data, name, errors, right)
    as_well = study.Claim(
        "4",
        f"Wrong images are reconstructed as well as right ones ({name}).",
        "quality (1 - MSE / MSE of a shuffled pairing) of wrong images minus "
        f"{1 - MARGIN:g} times that of right ones",
        *difference,
        study.decide(*difference[1:]),
        f"{note}; quality {of_right:.2f} and {of_wrong:.2f}",
    )
    if not strength:
        return [as_well]
    same = found["agreement"]
    difference = measures.newcombe_interval(
        *((int(same[rows].sum()), int(rows.sum())) for rows in (right, ~right))
    )
    return [
        as_well,
        study.Claim(
            "5",
            "Images that are classified right are more stable than others "
            f"({name}, degraded images).",
            "agreement, right minus wrong",
            *difference,
            study.decide(*difference[1:]),
            note,
        ),
    ]


def _difference(data, name, errors, right):
    def difference(own, shuffled, right):
        of_right = quality(own[right], shuffled[right])
        return quality(own[~right], shuffled[~right]) - (1 - MARGIN) * of_right

    return measures.bootstrap_interval(
        difference, (*errors, right), data.random("misclassified", name)
    )
