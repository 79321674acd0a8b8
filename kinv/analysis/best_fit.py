"""Which shift or scale undoes a change of the image: section 6."""

import numpy as np

from kinv import pixels
from kinv.analysis import plots, results

TITLE = "Best-fit shift and scale"
IMAGES = 300
# They include the identity, and its neighbours on both sides for the slope.
BRIGHTNESS_FACTORS = (
    *(0.25, 0.4, 0.55, 0.7, 0.8, 0.9),
    1,
    *(1.1, 1.2, 1.35, 1.5, 1.75, 2),
)
SHARPNESS_FACTORS = (0, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2)
CHANGES = {
    "brightness": (pixels.adjust_brightness, BRIGHTNESS_FACTORS),
    "sharpness": (pixels.adjust_sharpness, SHARPNESS_FACTORS),
}
# What "much larger" is.
MUCH = 2
IDENTITY = {"shift": 0.0, "scale": 1.0}
# The figures of the supplementary: robust and standard.
FIGURES = {
    ("brightness", "shift"): "Figures 9 and 10",
    ("brightness", "scale"): "Figures 11 and 12",
    ("sharpness", "shift"): "Figures 13 and 14",
    ("sharpness", "scale"): "Figures 15 and 16",
}


def best_fit_shift(original, adjusted):
    """Least squares of `original = adjusted + shift`, one per image.

    Args:
        original: `(images, num_classes)`, logits of the images.
        adjusted: the same of the adjusted images.
    """
    return np.mean(np.subtract(original, adjusted, dtype="float64"), axis=-1)


def best_fit_scale(original, adjusted):
    """Least squares of `original = adjusted * scale`, one per image."""
    adjusted = np.asarray(adjusted, "float64")
    squares = np.sum(adjusted**2, axis=-1)
    return np.sum(original * adjusted, axis=-1) / np.maximum(squares, 1e-12)


FITS = {"shift": best_fit_shift, "scale": best_fit_scale}


def run(study):
    """Fits shift and scale per image, over factors of brightness and sharpness.

    Returns:
        `results.Result`. By model, change and fit, of the curve of the mean
        that a table and a figure have: its `slope` at the identity (difference
        quotient of the neighbouring factors) and the factor of its `peak`,
        with 95 % intervals over images, and the number of `images`.
    """
    fits = dict(study.measured(_measure, IMAGES))
    metrics, rows, figures = {name: {} for name in fits}, [], []
    for change, fit in FIGURES:
        factors, curves = CHANGES[change][1], {}
        for name, per_image in fits.items():
            values = per_image[change, fit]
            metrics[name][f"{fit}_{change}"] = {
                "images": len(values),
                "slope": results.mean(_slope(values, factors)),
                "peak": study.bootstrap(
                    lambda values: factors[values.mean(axis=0).argmax()], values
                ),
            }
            curves[name] = [results.mean(column) for column in values.T]
            about = {"model": name, "change": change, "fit": fit}
            rows += [
                {**about, "factor": factor, **found}
                for factor, found in zip(factors, curves[name], strict=True)
            ]
        figures.append(_figure(change, fit, curves))
    claims = _claims(study, fits, metrics) if study.pair else []
    return results.Result(metrics, {"curves": rows}, figures, claims)


def _measure(study, model, batch):
    original = model.logits(batch.images)
    per_image = {}
    for change, (adjust, factors) in CHANGES.items():
        adjusted = [model.logits(adjust(batch.images, f)) for f in factors]
        for fit, function in FITS.items():
            per_image[change, fit] = np.stack(
                [function(original, logits) for logits in adjusted], axis=-1
            )
    return per_image


def _slope(values, factors):
    index = factors.index(1)
    rise = values[:, index + 1] - values[:, index - 1]
    return rise / (factors[index + 1] - factors[index - 1])


def _figure(change, fit, curves):
    return results.Figure(
        f"{fit}_{change}",
        f"Best-fit {fit} of the logits that undoes a change of {change}, mean "
        "over images with its 95 % interval; the dotted lines mark the "
        f"identity. {FIGURES[change, fit]} of the supplementary.",
        plots.curves(
            CHANGES[change][1],
            curves,
            f"{change} factor",
            f"best-fit {fit}",
            identity=(1, IDENTITY[fit]),
        ),
    )


def _claims(study, fits, metrics):
    robust, standard = study.pair
    one = BRIGHTNESS_FACTORS.index(1)
    before, _, after = BRIGHTNESS_FACTORS[one - 1 : one + 2]
    _, second, *_, last, highest = BRIGHTNESS_FACTORS
    # Logits of one mean, as of a classifier of one output, fit no shift.
    varying = [
        fit
        for fit in FITS
        if all(fits[name]["sharpness", fit].std() > 1e-6 for name in study.pair)
    ]

    def rises(name, change, fit, around=""):
        text = f"The best-fit {fit} rises with {change}{around} ({name})."
        statistic = f"slope of the best-fit {fit} at the identity, {name}"
        slope = metrics[name][f"{fit}_{change}"]["slope"]
        return results.claim("6", text, statistic, slope)

    def peaks(name, fit, where, first, last):
        text = f"The best-fit {fit} peaks {where} ({name})."
        peak = metrics[name][f"{fit}_brightness"]["peak"]
        return _peaks(text, name, peak, first, last)

    def larger(fit):
        sizes = [
            fits[name]["sharpness", fit] - IDENTITY[fit] for name in study.pair
        ]
        return results.claim(
            "6",
            f"The robust model's best-fit {fit}s over sharpness are much "
            "larger.",
            f"root mean square of the mean curve of the best-fit {fit} less "
            f"the identity's, robust over standard; holds above {MUCH}",
            study.bootstrap(_ratio, *sizes),
            threshold=MUCH,
        )

    claims = [
        ("shift", rises(robust, "brightness", "shift")),
        # Anywhere but at the ends of what was tried.
        ("shift", peaks(standard, "shift", "and then falls", second, last)),
        ("scale", rises(robust, "brightness", "scale", " around the identity")),
        ("scale", peaks(robust, "scale", "above the identity", after, highest)),
        # The identity, or a neighbour of it.
        ("scale", peaks(standard, "scale", "at the identity", before, after)),
        *(
            (x, rises(name, "sharpness", x))
            for x in FITS
            for name in study.pair
        ),
        *((fit, larger(fit)) for fit in FITS),
    ]
    return [claim for fit, claim in claims if fit in varying]


def _peaks(text, name, peak, first, last):
    # None, of a single image, becomes NaN, of which neither is true.
    low, high = np.array([peak["low"], peak["high"]], "float64")
    verdict = "undecided"
    if first <= low and high <= last:
        verdict = "holds"
    elif high < first or low > last:
        verdict = "does not hold"
    statistic = (
        f"brightness factor of the peak, {name}; holds from {first} to {last}"
    )
    return results.Claim("6", text, statistic, *peak.values(), verdict)


def _ratio(robust, standard):
    size = np.sqrt(np.mean(standard.mean(axis=0) ** 2))
    return np.sqrt(np.mean(robust.mean(axis=0) ** 2)) / max(size, 1e-12)
