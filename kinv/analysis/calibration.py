"""Does the noise say what is left open, neither less nor more?"""

import numpy as np

from kinv import errors, measures, pixels
from kinv.analysis import plots, results

TITLE = "Calibration"
IMAGES = 500
SAMPLES = 16
# Of the residuals, along which images are ranked. The first ones are coarse:
# larger pictures are ranked at this size.
COMPONENTS = 8
COMPONENT_SIZE = 32
# Two images in each third.
FEWEST = 6
THIRDS = ("least spread", "middle", "most spread")


def run(study):
    """Compares reconstructions with samples of what the logits leave open.

    By the error ratio (`measures.error_ratio`) of 8 noises. Also in thirds of
    the images by the spread over 8 other noises, so that images with too little
    and images with too much do not make up for each other. (Of the same noises,
    a third would be of images whose 8 vary much by chance.) Also of images that
    the model was trained on: a ratio that is lower there, of reconstructions
    that are nearer, was learned by heart.

    And by the ranks of the image among 16 reconstructions
    (`component_ranks`), which see what errors of all pixels together hide.

    Returns:
        `results.Result`. By model: `error_ratio` and `spread_skill`, with
        bootstrap intervals over images, the same figures by group of images in
        `groups`, `training_set`, `rank_distance` from a flat histogram of all
        components' ranks, and `flat_rank_distance`, which chance leaves.
    """
    study.require_images(FEWEST)
    metrics, ranks = {}, {}
    for name, per_image in study.measured(_measure, IMAGES):
        groups = {
            group: _ratios(study, per_image, rows)
            for group, rows in (
                ("all", slice(None)),
                *thirds(per_image["spread"]),
            )
        }
        training, training_set = _measure_training_images(study, name)
        if training:
            groups["training images"] = _ratios(study, training, slice(None))
        ranks[name] = component_ranks(per_image["images"], per_image["samples"])
        metrics[name] = {
            **groups["all"],
            "groups": groups,
            "training_set": training_set,
            **rank_distances(ranks[name][0]),
        }
    return results.Result(
        metrics, _tables(metrics, ranks), _figures(metrics, ranks)
    )


def thirds(spread):
    """Names of the thirds by spread, and the rows of the images of each."""
    order = spread.argsort(kind="stable")
    return zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True)


def component_ranks(images, samples):
    """Ranks of images among samples, along components of the residuals.

    The components are the principal axes, about zero, of reconstruction minus
    image, one reconstruction of each image. Both have their part in them, so
    that directions count in which the image alone varies as well as those in
    which the noise alone does; image minus mean reconstruction would pass over
    the latter. Those of one half of the images are used for the other half:
    directions chosen to make the same images' residuals large would find them
    outlying among samples of the true distribution, too.

    Args:
        images: `(images, width)`.
        samples: `(images, samples, width)`.

    Returns:
        int ranks `(images, components)`, and the share of the squared residuals
        along each, `(components,)`.
    """
    components = min(COMPONENTS, len(images) // 2, images.shape[1])
    ranks = np.empty((len(images), components), int)
    along, total = np.zeros(components), 0
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        directions = _directions(samples[other, 0] - images[other], components)
        ranks[half] = measures.ranks(
            images[half] @ directions, samples[half] @ directions
        )
        residuals = samples[half, 0] - images[half]
        along += np.sum((residuals @ directions) ** 2, axis=0)
        total += np.sum(residuals**2)
    return ranks, along / max(total, 1e-12)


def _directions(residuals, components):
    """The first principal axes about zero, `(width, components)`."""
    _, _, axes = np.linalg.svd(residuals, full_matrices=False)
    axes = axes[:components].T
    # Towards brighter pictures in both halves.
    return axes * np.where(axes.sum(axis=0) < 0, -1, 1)


def _measure(study, model, batch, num_samples=SAMPLES):
    key = "calibration", batch.key
    made = study.reconstruct(model, batch.images, num_samples, *key)
    return compare(model.target(batch.images), made)


def compare(images, made):
    """What is measured of each image and its reconstructions.

    Args:
        images: `(batch, image_size, image_size, 3)` in [0, 255].
        made: `(batch, samples, image_size, image_size, 3)`, eight samples, or
            more: those beyond tell the spread of an image.

    Returns:
        dict of arrays `(batch, ...)`: squared errors `of_mean` and `of_single`
        of the first eight; with more, their `spread`, and `images` and
        `samples`, small, as `component_ranks` takes them.
    """
    first, others = np.split(made, [measures.ERROR_RATIO_NOISES], axis=1)
    of_mean, of_single = measures.reconstruction_errors(images, first)
    per_image = {"of_mean": of_mean, "of_single": of_single}
    if others.shape[1]:
        size = min(COMPONENT_SIZE, images.shape[1])
        small = pixels.resize(made.reshape(-1, *made.shape[2:]), size)
        per_image |= {
            "spread": others.var(axis=1, dtype="float64").mean((1, 2, 3)),
            "images": pixels.resize(images, size).reshape(len(images), -1),
            "samples": small.reshape(*made.shape[:2], -1),
        }
    return per_image


def _measure_training_images(study, name):
    """The same of training images, or None; and whose they are."""
    try:
        source, training_set = study.training_images(study.models[name])
    except (errors.InputError, results.NotApplicable):
        return None, None
    per_image = study.per_image(
        _measure,
        name,
        study.count(IMAGES),
        source,
        num_samples=measures.ERROR_RATIO_NOISES,
    )
    return per_image, training_set


def _ratios(study, per_image, rows):
    of_mean, of_single = (
        per_image[error][rows] for error in ("of_mean", "of_single")
    )
    ratio = study.bootstrap(measures.error_ratio, of_mean, of_single)
    value, low, high = results.curve([ratio])[0]
    return {
        "images": len(of_mean),
        "squared_error": float(of_single.mean()),
        "error_ratio": ratio,
        # The lower the one, the higher the other.
        "spread_skill": results.summary(
            *map(measures.spread_skill, (value, high, low))
        ),
    }


def rank_distances(ranks):
    """Of ranks `(images, components)`: from flat, and what chance leaves."""
    return {
        "rank_distance": measures.rank_distance(
            measures.rank_histogram(ranks, SAMPLES)
        ),
        "flat_rank_distance": measures.flat_rank_distance(ranks.size, SAMPLES),
    }


def _tables(metrics, ranks):
    return {
        "error_ratios": [
            {"model": name, "group": group, **results.ends(ratios)}
            for name, measured in metrics.items()
            for group, ratios in measured["groups"].items()
        ],
        "rank_distances": [
            {
                "model": name,
                "component": component,
                "share_of_error": share,
                **rank_distances(along),
            }
            for name, (by_image, shares) in ranks.items()
            for component, (along, share) in enumerate(
                zip(by_image.T, shares, strict=True), start=1
            )
        ],
        "rank_histograms": [
            {"model": name, "rank": rank, "share": share}
            for name, (by_image, _) in ranks.items()
            for rank, share in enumerate(
                measures.rank_histogram(by_image, SAMPLES)
            )
        ],
    }


def _figures(metrics, ranks):
    groups = ["all", *THIRDS]
    if any("training images" in of["groups"] for of in metrics.values()):
        groups.append("training images")
    unknown = {"error_ratio": results.summary(np.nan)}
    series = {
        name: [
            of["groups"].get(group, unknown)["error_ratio"] for group in groups
        ]
        for name, of in metrics.items()
    }
    low, high = measures.CALIBRATED
    trained_on = {of["training_set"] for of in metrics.values()} - {None}
    whose = f" ({'; '.join(sorted(trained_on))})" if trained_on else ""
    histograms = {
        name: np.bincount(by_image.ravel(), minlength=SAMPLES + 1)
        for name, (by_image, _) in ranks.items()
    }
    return [
        results.Figure(
            "error_ratio",
            "Squared error of the mean of 8 reconstructions over that of "
            "single ones, with 95 % intervals: of held-out images, of their "
            "thirds by spread over the noise, and of training images"
            f"{whose}. Dotted: "
            "0.5625, that of samples of what the generator leaves open; above, "
            f"the noise varies too little. In the band it says {low} to {high} "
            "of what is open (scale on the right).",
            plots.error_ratios(
                [group.replace(" ", "\n") for group in groups], series
            ),
        ),
        results.Figure(
            "ranks",
            "Ranks of held-out images among 16 reconstructions along the "
            f"first {COMPONENTS} principal components of the residuals, all "
            "together. Flat (dotted; band: two standard deviations of chance): "
            "the image cannot be told from reconstructions. High ends: the "
            "noise varies too little; a hill: too much; a slope: the mean is "
            "wrong.",
            plots.rank_histograms([histograms]),
        ),
    ]
