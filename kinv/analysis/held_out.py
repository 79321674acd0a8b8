"""What an export says of itself: `metrics` of `kinv.json`, and its card."""

import numpy as np

from kinv import intervals, measures
from kinv.analysis import calibration, reconstructions, results, study


def measure(model, batches, bar, seed):
    """Compares held-out images with their reconstructions.

    Errors of eight noises, thirds of the images by the spread over eight others
    and ranks among all sixteen tell whether the noise is calibrated; all else
    is measured on the first of them.

    Args:
        model: `pipeline.Pipeline`.
        batches: iterable of (images, labels).
        bar: progress bar, in images.
        seed: of noises and of the images of an interval.

    Returns:
        dict of `images` (their number), `accuracy` of the classifier on those
        whose label is known (None without any), `agreement` (share of
        reconstructions that get their image's class) with its Wilson 95 %
        interval, `within_class_r2` (`measures.within_class_errors`),
        `error_ratio` (`measures.error_ratio` of eight noises) with its
        bootstrap interval, `spread_skill`, the means of the measures of
        `reconstructions.compare`, and, of enough images,
        `error_ratio_thirds`, and `rank_distance` with what chance leaves of
        it, `flat_rank_distance`, as of `calibration.run`, these of its number
        of images. None for what is not finite.
    """
    random, random_of_others = map(np.random.default_rng, (seed, [seed, 1]))
    samples = measures.ERROR_RATIO_NOISES
    per_image, pairs, of_noise, pictures, right = [], [], [], [], []
    for images, labels in batches:
        images = np.asarray(images)
        first = len(images), samples, model.noise_dim
        others = len(images), calibration.SAMPLES - samples, model.noise_dim
        noise = [
            random.standard_normal(first, "float32"),
            random_of_others.standard_normal(others, "float32"),
        ]
        logits = model.logits(images)
        made = model.reconstruct(images, np.concatenate(noise, axis=1))
        read = model.logits(made[:, 0])
        images = model.target(images)
        pairs.append({"logits": logits, "reconstruction_logits": read})
        per_image.append(
            reconstructions.compare(images, made[:, 0], logits, read)
        )
        of_noise.append(calibration.compare(images, made))
        ranked = {key: of_noise[-1].pop(key) for key in ("images", "samples")}
        # They are large.
        if sum(len(x["images"]) for x in pictures) < calibration.IMAGES:
            pictures.append(ranked)
        labels = np.asarray(labels)
        right.extend((logits.argmax(-1) == labels)[labels >= 0])
        bar.add(len(images))
    per_image, pairs = map(study.concatenate, (per_image, pairs))
    same = per_image["agreement"]
    own, other = measures.within_class_errors(**pairs)
    return {
        "images": len(same),
        "accuracy": float(np.mean(right)) if right else None,
        **{key: results.mean(x)["value"] for key, x in per_image.items()},
        "agreement_interval": intervals.wilson_interval(same.sum(), len(same)),
        # None where no two images share a class.
        "within_class_r2": _finite(measures.explained_variance(own, other)),
        **_calibration(
            study.concatenate(of_noise), study.concatenate(pictures), random
        ),
    }


def _calibration(of_noise, pictures, random):
    errors = of_noise["of_mean"], of_noise["of_single"]
    ratio, low, high = intervals.bootstrap_interval(
        measures.error_ratio, errors, random
    )
    # Where all pictures equal their images there is no ratio.
    found = {
        "error_ratio": _finite(ratio),
        "error_ratio_interval": None if np.isnan(low) else (low, high),
        "spread_skill": _finite(measures.spread_skill(ratio)),
    }
    if len(errors[0]) >= calibration.FEWEST:
        ranks, _ = calibration.component_ranks(**pictures)
        found |= {
            "error_ratio_thirds": {
                third: _finite(measures.error_ratio(*(x[rows] for x in errors)))
                for third, rows in calibration.thirds(of_noise["spread"])
            },
            **calibration.rank_distances(ranks),
        }
    return found


def _finite(value):
    return results.summary(value)["value"]
