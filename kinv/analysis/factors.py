"""Which factors of a scene survive: information efficiency."""

import numpy as np

from kinv import measures
from kinv.analysis import cache, plots, probes, results, scene_factors

TITLE = "Which factors survive"
IMAGES = 1000
SAMPLES = 16
# Share of a factor's variance below which efficiency says nothing.
KNOWN = 0.1
# That the class does not tell, and logits leave open in part.
OPEN = tuple(
    name for name in scene_factors.PARTS if name not in ("shape", "object_hue")
)
# Halves that calibrate each other by linear fits of up to 11 coefficients.
FEWEST = 100


def run(study):
    """Measures the information efficiency of each factor.

    What the logits know of a factor is the R² of the best of three probes
    (`probes.predict`); of a model that inverts another layer, what its features
    know. What the reconstructions show is the R² of a factor network's
    readings, averaged over 16 noises and calibrated by a linear fit on the
    other half of the images. Their ratio is the efficiency: 1 when the
    reconstructions show all that the logits know, 0 when the generator leaves
    the factor to the noise. The control makes reconstructions of the mean
    logits of the image's predicted class, 16 for each class.

    Whether the noise says what the logits leave open is told against the
    network's reading of the image itself, so that its own error is on both
    sides, of the factors that the class does not tell: by spread, ranks and
    coverage. Hues are ranked by their angle from the mean direction of all
    readings, the image's among them: exactly flat for a calibrated sampler,
    wherever on the circle the hues lie, with ends half a turn away.

    Returns:
        `results.Result`. By model and factor: `knows`, `shows`, `efficiency`,
        `control` (its efficiency), with bootstrap intervals over images;
        `noise_share`, the share of the readings' variance that noise explains;
        and `ceiling`, what real images show of the factor by the same
        calibrated readings. Of the factors in `OPEN`: `noise_spread`, the
        readings' standard deviation over noises, over what the logits leave
        open, the lesser of the error of the best probe and that of the mean of
        any number of readings: 1 where reconstructions vary as images of the
        same logits do; `rank_distance` of the ranks of the
        image's reading among the reconstructions' from flat
        (`measures.rank_distance`), of which chance leaves
        `measures.flat_rank_distance`; and `coverage_50` and `coverage_90`,
        the share of images whose reading lies in the central interval of the
        reconstructions' (0.5 and, of 16, whose range ends before, 15/17 =
        0.88). Efficiencies of factors of which the logits know less than
        `KNOWN` are left out: a ratio of two small numbers says nothing.
    """
    study.require(
        scene_factors.are_known(study), "known factors, those of kinv_scenes"
    )
    study.require_images(FEWEST)
    metrics, ranks = {}, {}
    for name, model in study.models.items():
        features = probes.training_features(study, name, probes.IMAGES)
        per_image = study.per_image(_measure, name, study.count(IMAGES))
        condition = per_image.pop("condition")
        per_image["probed"] = _probed(
            study, name, features, condition, per_image["classes"]
        )
        means = probes.class_means(model, features)
        per_image["control"] = _control(
            study, model, means, per_image["classes"]
        )
        metrics[name] = {
            factor: _efficiency(study, per_image, factor)
            | _calibration(study, per_image, factor)
            for factor in scene_factors.PARTS
        }
        ranks[name] = {
            factor: np.bincount(
                measures.ranks(*_ranked(per_image, factor)),
                minlength=per_image["readings"].shape[1] + 1,
            )
            for factor in OPEN
        }
    inverted = dict.fromkeys(model.inverted for model in study.models.values())
    return results.Result(
        metrics,
        _tables(metrics, ranks),
        _figures(metrics, ranks, " or ".join(inverted)),
    )


def _measure(study, model, batch):
    logits, condition = model.classify(batch.images)
    made = study.reconstruct(model, batch.images, SAMPLES, batch.key)
    image = model.target(batch.images)[:, None]
    return {
        "condition": condition,
        "classes": logits.argmax(-1),
        "codes": scene_factors.encode(batch.factors),
        "image": scene_factors.read(image)[:, 0],
        "readings": scene_factors.read(made),
    }


def _probed(study, name, features, condition, classes):
    """What the best probes tell, kept for the next report."""
    of_probes = probes.identity(study, name, study.training_source())
    of_images = study.source.identity()
    counts = len(features["classes"]), len(classes)

    def probe():
        return {
            "codes": probes.predict(study, name, features, condition, classes)
        }

    key = ["probes", of_probes, of_images, *counts, study.seed]
    return cache.kept(of_probes and of_images and key, probe)["codes"]


def _control(study, model, means, classes):
    """Readings of reconstructions of the class's mean logits."""
    chosen, rows = np.unique(classes, return_inverse=True)
    noise = study.noise(model, len(chosen), SAMPLES, "control")
    made = model.generate(
        means[chosen].repeat(SAMPLES, axis=0),
        noise.reshape(-1, noise.shape[-1]),
    )
    made = made.reshape(*noise.shape[:2], *made.shape[1:])
    return scene_factors.read(made)[rows]


def _efficiency(study, per_image, factor):
    part = scene_factors.PARTS[factor]
    codes = per_image["codes"][:, part]
    readings = per_image["readings"][:, :, part]
    total = scene_factors.deviations(codes)
    unknown = scene_factors.deviations(codes, per_image["probed"][:, part])
    unshown, uncontrolled, unseen = (
        scene_factors.residuals(per_image[of][..., part], codes)
        for of in ("readings", "control", "image")
    )

    def efficiency(residual):
        if knows["value"] < KNOWN:
            return None
        return study.bootstrap(_explained_ratio, residual, unknown, total)

    # Within an image only noise varies; the total over all readings.
    within = readings.var(axis=1, ddof=1).sum(axis=-1)
    across = readings.reshape(-1, readings.shape[-1]).var(axis=0).sum()
    knows, shows, ceiling = (
        study.bootstrap(measures.explained_variance, residual, total)
        for residual in (unknown, unshown, unseen)
    )
    return {
        "knows": knows,
        "shows": shows,
        "efficiency": efficiency(unshown),
        "control": efficiency(uncontrolled),
        "noise_share": results.mean(within / across),
        "ceiling": ceiling,
    }


def _explained_ratio(residual, unknown, total):
    explained = measures.explained_variance
    return explained(residual, total) / explained(unknown, total)


def _noise_spread(within, *left_open):
    """Standard deviation over noises over the least that is left open."""
    left_open = min(residuals.mean() for residuals in left_open)
    return np.sqrt(within.mean() / max(left_open, 1e-12))


def _calibration(study, per_image, factor):
    """How the readings vary, against the reading of the image itself."""
    names = (
        *("noise_spread", "rank_distance", "flat_rank_distance"),
        *("coverage_50", "coverage_90"),
    )
    if factor not in OPEN:
        return dict.fromkeys(names)
    part = scene_factors.PARTS[factor]
    image = per_image["image"][:, part]
    readings = per_image["readings"][:, :, part]
    # By the best probe, or the readings if they tell more.
    probed = scene_factors.deviations(image, per_image["probed"][:, part])
    shown = scene_factors.residuals(readings, image)
    within = readings.var(axis=1, ddof=1).sum(axis=-1)
    values, samples = _ranked(per_image, factor)
    histogram = measures.rank_histogram(
        measures.ranks(values, samples), samples.shape[1]
    )
    return {
        "noise_spread": study.bootstrap(_noise_spread, within, probed, shown),
        "rank_distance": results.summary(measures.rank_distance(histogram)),
        "flat_rank_distance": results.summary(
            measures.flat_rank_distance(len(values), samples.shape[1])
        ),
        "coverage_50": _coverage(values, samples, 0.5),
        "coverage_90": _coverage(values, samples, 0.9),
    }


def _ranked(per_image, factor):
    """Numbers that can be ranked: the image's reading, and the others.

    Returns:
        `(images,)` and `(images, samples)`; of hues, angles from the mean
        direction of all of them, in [-pi, pi].
    """
    part = scene_factors.PARTS[factor]
    values = np.concatenate(
        [per_image["image"][:, None, part], per_image["readings"][:, :, part]],
        axis=1,
    )
    if factor in scene_factors.HUES:
        points = values[..., 0] + 1j * values[..., 1]
        center = points.mean(axis=1, keepdims=True)
        values = np.angle(points * center.conj())[..., None]
    return values[:, 0, 0], values[:, 1:, 0]


def _coverage(values, samples, level):
    """Share of values in the central interval of samples.

    The interval's ends are quantiles by Weibull's positions, `k / (n + 1)`:
    between calibrated samples, a value lies below the k-th that often.
    """
    low, high = np.quantile(
        samples, [(1 - level) / 2, (1 + level) / 2], axis=1, method="weibull"
    )
    return results.share((low <= values) & (values <= high))


def _tables(metrics, ranks):
    return {
        "factors": [
            {"model": name, "factor": factor, **results.ends(measured)}
            for name, by_factor in metrics.items()
            for factor, measured in by_factor.items()
        ],
        "ranks": [
            {"model": name, "factor": factor, "rank": rank, "images": int(n)}
            for name, by_factor in ranks.items()
            for factor, counts in by_factor.items()
            for rank, n in enumerate(counts)
        ],
    }


def _figures(metrics, ranks, inverted):
    bars = {
        name: {
            factor: (measured["knows"], measured["shows"])
            for factor, measured in by_factor.items()
        }
        for name, by_factor in metrics.items()
    }
    histograms = [
        {
            f"{name}\n{factor}".replace("_", " "): counts
            for factor, counts in by_factor.items()
        }
        for name, by_factor in ranks.items()
    ]
    return [
        results.Figure(
            "efficiency",
            f"What {inverted} know of each factor (R² of the best probe, "
            "outlined) and what reconstructions show of it (R² of a factor "
            "network's readings of 16 of them, filled), with 95 % intervals. "
            "A bar that is filled to its outline means that they show all that "
            f"{inverted} know.",
            plots.filled_bars(bars, "R²"),
        ),
        results.Figure(
            "ranks",
            "Ranks of what a factor network reads of an image among what it "
            f"reads of its {SAMPLES} reconstructions. Flat (dotted; band: two "
            "standard deviations of chance): the image cannot be told from "
            "reconstructions. High ends: the noise varies the factor too "
            "little; a hill: too much; a slope: reconstructions are off on "
            "average.",
            plots.rank_histograms(histograms),
        ),
    ]
