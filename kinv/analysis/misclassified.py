"""Images that the classifier gets wrong: section 4."""

import numpy as np
import scipy.stats

from kinv import measures
from kinv.analysis import grids, reconstructions, results

TITLE = "Misclassified images"
SHOWN = 8
IMAGES = 500
# Fewer wrong images than this tell nothing; then all are degraded alike.
ENOUGH = 20
# Standard deviations of Gaussian pixel noise, in grey levels.
STRENGTHS = (0, 10, 20, 40, 60, 80, 120)
# "As well as": the share of right images' quality that may be lost.
MARGIN = 0.1
MEASURES = (
    *("agreement", "logit_cosine", "logit_distance"),
    *("psnr", "pixel_mse", "ssim"),
)


def run(study):
    """Compares reconstructions of images classified right and wrong.

    Where the classifier is wrong about too few images, Gaussian noise is added
    to all of them, the weakest of a few strengths that makes enough wrong;
    right and wrong are then compared at that strength. Reconstructions are
    always compared with the image without noise, which no generator could draw.

    Returns:
        `results.Result`. Metrics by model: the strength, and each measure for
        right and for wrong images with the p-value of a two-sided
        Mann-Whitney test; and each group's `quality`, 1 - MSE / MSE of a
        shuffled pairing, without a test.
    """
    # Chance is another image.
    study.require_images(2)
    labelled = study.is_labelled(study.count(IMAGES))
    study.require(labelled, "labels of the classifier's classes")
    metrics, rows, figures, claims = {}, [], [], []
    for name, model in study.models.items():
        strength, shown = _strength(study, name), []
        per_image = study.per_image(
            _measure, name, study.count(IMAGES), strength=strength, shown=shown
        )
        right = per_image["right"]
        errors = per_image["pixel_mse"], per_image["shuffled_pixel_mse"]
        compared = {
            measure: compare(per_image[measure], right) for measure in MEASURES
        }
        compared["quality"] = {
            group: study.bootstrap(
                measures.explained_variance, *(x[chosen] for x in errors)
            )
            for group, chosen in (("right", right), ("wrong", ~right))
        } | {"p_value": None}
        metrics[name] = {
            "noise_strength": strength,
            "right_images": int(right.sum()),
            "wrong_images": int((~right).sum()),
            **compared,
        }
        rows += _rows(name, compared)
        if shown:
            figures.append(_figure(name, strength, shown))
        same = per_image["agreement"]
        if name in (study.pair or ()):
            claims += _claims(study, name, strength, same, errors, right)
    return results.Result(metrics, {"measures": rows}, figures, claims)


def _rows(name, compared):
    return [
        {
            "model": name,
            "measure": measure,
            **results.ends({of: groups[of] for of in ("right", "wrong")}),
            "p_value": groups["p_value"],
        }
        for measure, groups in compared.items()
    ]


def _strength(study, name):
    """The first strength of noise that makes enough images wrong."""
    for strength in STRENGTHS:
        wrong = 0
        for batch in study.batches(study.count(IMAGES), name=name):
            images = degrade(study, batch, strength)
            predicted = study.models[name].logits(images).argmax(-1)
            wrong += np.sum((predicted != batch.labels) & (batch.labels >= 0))
        if wrong >= ENOUGH:
            break
    return strength


def degrade(study, batch, strength):
    """Adds Gaussian noise to pixels, the same on every call.

    Args:
        batch: `study.Batch`.
        strength: standard deviation in grey levels.
    """
    random = study.random("degrade", batch.key)
    noise = strength * random.standard_normal(batch.images.shape)
    return np.clip(batch.images + noise, 0, 255).astype("float32")


def _measure(study, model, batch, strength, shown):
    images = degrade(study, batch, strength)
    made = study.reconstruct(model, images, 1, batch.key)[:, 0]
    logits, read = model.logits(images), model.logits(made)
    right, known = logits.argmax(-1) == batch.labels, batch.labels >= 0
    classes = batch.labels, logits.argmax(-1), read.argmax(-1)
    for row in np.flatnonzero(~right & known)[: SHOWN - len(shown)]:
        names = [model.class_names[of[row]] for of in classes]
        shown.append((images[row], made[row], *names))
    targets = model.target(batch.images)
    per_image = {
        "right": right,
        **reconstructions.compare(targets, made, logits, read),
    }
    return {measure: values[known] for measure, values in per_image.items()}


def compare(values, right):
    """A measure of right and of wrong images, and a test of the difference."""
    groups = {"right": values[right], "wrong": values[~right]}
    p_value = None
    if all(map(len, groups.values())):
        test = scipy.stats.mannwhitneyu(*groups.values())
        p_value = float(test.pvalue)
    return {**results.summaries(groups), "p_value": p_value}


def _figure(name, strength, shown):
    images, made, true, predicted, read = zip(*shown, strict=True)
    degraded = ""
    if strength:
        degraded = (
            f" All images carry Gaussian noise of {strength} grey levels, "
            "since too few are misclassified without."
        )
    return results.Figure(
        name,
        f"{name}: images that the classifier gets wrong, over their "
        "reconstructions. Below the image: its true class, then the predicted "
        "one; below the reconstruction: the class that the classifier gives "
        f"it, red where it differs from the predicted one.{degraded}",
        grids.captioned_grid(
            [images, made],
            [[f"{a} → {b}" for a, b in zip(true, predicted)], read],
            [[], [a != b for a, b in zip(predicted, read)]],
            row_captions=["image", "reconstruction"],
            cell_size=104,
        ),
    )


def _claims(study, name, strength, same, errors, right):
    note = f"{right.sum()} right, {(~right).sum()} wrong images"
    if strength:
        note += f", all degraded by noise of {strength} grey levels"

    explained = measures.explained_variance

    def lost(own, shuffled, right):
        of_right = explained(own[right], shuffled[right])
        of_wrong = explained(own[~right], shuffled[~right])
        return of_wrong - (1 - MARGIN) * of_right

    of_right, of_wrong = (
        explained(*(values[chosen] for values in errors))
        for chosen in (right, ~right)
    )
    claims = [
        results.claim(
            "4",
            f"Wrong images are reconstructed as well as right ones ({name}).",
            "quality (1 - MSE / MSE of a shuffled pairing) of wrong images "
            f"minus {1 - MARGIN:g} times that of right ones",
            study.bootstrap(lost, *errors, right),
            note=f"{note}; quality {of_right:.2f} and {of_wrong:.2f}",
        )
    ]
    if strength:
        claims.append(
            results.claim(
                "5",
                "Images that are classified right are more stable than others "
                f"({name}, degraded images).",
                "agreement, right minus wrong",
                results.difference(same[right], same[~right]),
                note=note,
            )
        )
    return claims
