"""Which shift or scale undoes a change of the image: section 6."""

import functools

import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import plots, study

TITLE = "Best-fit shift and scale"
IMAGES = 300
# Includes the identity, and its neighbours on both sides for the slope there.
BRIGHTNESS_FACTORS = (
    0.25,
    0.4,
    0.55,
    0.7,
    0.8,
    0.9,
    1,
    1.1,
    1.2,
    1.35,
    1.5,
    1.75,
    2,
)
SHARPNESS_FACTORS = (0, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2)
CHANGES = {
    "brightness": (images_lib.adjust_brightness, BRIGHTNESS_FACTORS),
    "sharpness": (images_lib.adjust_sharpness, SHARPNESS_FACTORS),
}
FITS = ("shift", "scale")
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


def run(data):
    """Fits shift and scale per image, over factors of brightness and sharpness.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model, change and fit: the `curve` of the mean, its
        `slope` at the identity (difference quotient of the neighbouring
        factors) and the factor of its `peak`, with 95 % intervals over images.
    """
    fits, peaks = {}, {}
    for name, model, batches in data.by_model(
        data.count(IMAGES), "best-fit shift and scale"
    ):
        parts = [_fit(model, images) for images, _, _ in batches]
        fits[name] = study.concatenate(parts)
    metrics = {name: {} for name in fits}
    rows, figures = [], []
    for (change, fit), source in FIGURES.items():
        factors = CHANGES[change][1]
        curves = {}
        for name, found in fits.items():
            values = found[change, fit]
            curves[name] = np.stack(measures.mean_interval(values), axis=-1)
            rows += [
                {
                    "model": name,
                    "change": change,
                    "fit": fit,
                    "factor": factor,
                    **study.summary(interval),
                }
                for factor, interval in zip(factors, curves[name], strict=True)
            ]
            peaks[name, change, fit] = measures.bootstrap_interval(
                functools.partial(_peak, factors=factors),
                (values,),
                data.random("peak", name, change, fit),
            )
            metrics[name][f"{fit}_{change}"] = {
                "images": len(values),
                "slope": study.summary(
                    measures.mean_interval(_slope(values, factors))
                ),
                "peak": study.summary(peaks[name, change, fit]),
            }
        figures.append(
            study.Figure(
                f"{fit}_{change}",
                f"Best-fit {fit} of the logits that undoes a change of "
                f"{change}, mean over images with its 95 % interval; the "
                f"dotted lines mark the identity. {source} of the "
                "supplementary.",
                plots.curves(
                    factors,
                    curves,
                    f"{change} factor",
                    f"best-fit {fit}",
                    identity=(1, IDENTITY[fit]),
                ),
            )
        )
    claims = _claims(data, fits, peaks) if data.pair else []
    return study.Result(metrics, {"curves": rows}, figures, claims)


def _fit(model, images):
    original = model.logits(images)
    found = {}
    for change, (adjust, factors) in CHANGES.items():
        adjusted = [model.logits(adjust(images, factor)) for factor in factors]
        for fit, function in zip(
            FITS, (best_fit_shift, best_fit_scale), strict=True
        ):
            found[change, fit] = np.stack(
                [function(original, logits) for logits in adjusted], axis=-1
            )
    return found


def _slope(values, factors):
    index = factors.index(1)
    rise = values[:, index + 1] - values[:, index - 1]
    return rise / (factors[index + 1] - factors[index - 1])


def _peak(values, factors):
    return factors[values.mean(axis=0).argmax()]


def _claims(data, fits, peaks):
    robust, standard = data.pair

    def slope(name, change, fit):
        return _slope(fits[name][change, fit], CHANGES[change][1])

    def claim(text, statistic, interval, verdict):
        return study.Claim("6", text, statistic, *map(float, interval), verdict)

    def rises(text, name, change, fit):
        interval = measures.mean_interval(slope(name, change, fit))
        statistic = f"slope of the best-fit {fit} at the identity, {name}"
        return claim(text, statistic, interval, study.decide(*interval[1:]))

    def peaks_between(text, fit, first, last):
        interval = peaks[standard, "brightness", fit]
        return claim(
            text,
            f"brightness factor of the peak, {standard}; holds from {first} to "
            f"{last}",
            interval,
            _decide_between(interval, first, last),
        )

    return [
        rises(
            "The robust model's best-fit shift rises with brightness.",
            robust,
            "brightness",
            "shift",
        ),
        # Anywhere but at the ends of what was tried.
        peaks_between(
            "The standard model's best-fit shift peaks and then falls.",
            "shift",
            BRIGHTNESS_FACTORS[1],
            BRIGHTNESS_FACTORS[-2],
        ),
        rises(
            "The robust model's best-fit scale rises with brightness around "
            "the identity.",
            robust,
            "brightness",
            "scale",
        ),
        # The identity, or a neighbour of it.
        peaks_between(
            "The standard model's best-fit scale peaks at the identity.",
            "scale",
            BRIGHTNESS_FACTORS[BRIGHTNESS_FACTORS.index(1) - 1],
            BRIGHTNESS_FACTORS[BRIGHTNESS_FACTORS.index(1) + 1],
        ),
        *(
            rises(
                f"Best-fit {fit} rises with sharpness ({name}).",
                name,
                "sharpness",
                fit,
            )
            for fit in FITS
            for name in data.pair
        ),
        *(
            claim(
                f"The robust model's best-fit {fit}s over sharpness are much "
                "larger.",
                f"root mean square of the best-fit {fit} less the identity's, "
                "robust over standard; holds above 1",
                (ratio := _ratio(data, fits, fit)),
                study.decide(*ratio[1:], threshold=1),
            )
            for fit in FITS
        ),
    ]


def _decide_between(interval, first, last):
    _, low, high = interval
    if first <= low and high <= last:
        return "holds"
    return "does not hold" if high < first or low > last else "undecided"


def _ratio(data, fits, fit):
    robust, standard = (
        fits[name]["sharpness", fit] - IDENTITY[fit] for name in data.pair
    )

    def ratio(robust, standard):
        size = np.sqrt(np.mean(standard.mean(axis=0) ** 2))
        return np.sqrt(np.mean(robust.mean(axis=0) ** 2)) / max(size, 1e-12)

    return measures.bootstrap_interval(
        ratio, (robust, standard), data.random("ratio", fit)
    )
