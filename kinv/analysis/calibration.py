"""Does the noise say what the logits leave open, neither less nor more?"""

import numpy as np

from kinv import errors, measures
from kinv import images as images_lib
from kinv.analysis import plots, study

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
# Ticks on the right of the figure.
SPREAD_SKILLS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 4)


def run(data):
    """Compares reconstructions with samples of what the logits leave open.

    By the error ratio (`measures.error_ratio`) of 8 noises. Also in thirds of
    the images by the spread over 8 other noises, so that images with too little
    and images with too much do not make up for each other. (Of the same noises,
    a third would be of images whose 8 vary much by chance.) Also of images that
    the model was trained on: a ratio that is lower there, of pictures that are
    nearer, was learned by heart.

    And by the ranks of the image among 16 reconstructions
    (`component_ranks`), which see what errors of all pixels together hide.

    Args:
        data: `study.Study`. Training images are compared where its
            `training_source` can open some.

    Returns:
        `study.Result`. By model: `error_ratio` and `spread_skill`, with
        bootstrap intervals over images, `verdict` in words, the same figures by
        group of images in `groups`, `training_set`, `rank_distance` from a flat
        histogram of all components' ranks, and `flat_rank_distance`, which
        chance leaves.

    Raises:
        study.NotApplicable: of fewer than six images.
    """
    if data.source.num_examples < FEWEST:
        raise study.NotApplicable(f"needs at least {FEWEST} images")
    metrics, ranks = {}, {}
    for name, model, batches in data.by_model(
        data.count(IMAGES), "calibration"
    ):
        found = _measure(data, model, batches, SAMPLES)
        groups = {"all": found, **_thirds(found)}
        training, training_set = _training_images(data, name, model)
        if training:
            groups["training images"] = training
        groups = {
            group: _ratios(data, values, name, group)
            for group, values in groups.items()
        }
        ranks[name] = component_ranks(found["images"], found["samples"])
        metrics[name] = {
            **groups["all"],
            "verdict": _verdict(groups["all"], model),
            "groups": groups,
            "training_set": training_set,
            "rank_distance": _rank_distance(ranks[name][0]),
            "flat_rank_distance": measures.flat_rank_distance(
                ranks[name][0].size, SAMPLES
            ),
        }
    return study.Result(
        metrics, _tables(metrics, ranks), _figures(metrics, ranks)
    )


def component_ranks(images, samples, components=COMPONENTS):
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
        components: number of them, at most.

    Returns:
        int ranks `(images, components)`, and the share of the squared residuals
        along each, `(components,)`.
    """
    components = min(components, len(images) // 2, images.shape[1])
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
    # Of the images' products, which are far fewer than those of pixels.
    _, vectors = np.linalg.eigh(residuals @ residuals.T)
    axes = residuals.T @ vectors[:, : -components - 1 : -1]
    lengths = np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    # Towards brighter pictures in both halves.
    return axes * np.where(axes.sum(axis=0) < 0, -1, 1) / lengths


def _measure(data, model, batches, num_samples):
    """What is measured of each image; samples beyond 8 tell its spread."""
    parts = []
    for index, (images, _, _) in enumerate(batches):
        noise = data.noise(
            model, len(images), num_samples, "calibration", str(index)
        )
        pictures = model.reconstruct(images, noise)
        images = study.target(images, model)
        first, others = np.split(
            pictures, [measures.ERROR_RATIO_NOISES], axis=1
        )
        of_mean, of_single = measures.reconstruction_errors(images, first)
        part = {"of_mean": of_mean, "of_single": of_single}
        if others.shape[1]:
            part["spread"] = others.var(axis=1, dtype="float64").mean((1, 2, 3))
            part["images"] = _flat(images)
            part["samples"] = _flat(
                pictures.reshape(-1, *pictures.shape[2:])
            ).reshape(*pictures.shape[:2], -1)
        parts.append(part)
    return study.concatenate(parts)


def _flat(images):
    size = min(COMPONENT_SIZE, images.shape[1])
    return images_lib.resize(images, size).reshape(len(images), -1)


def _training_images(data, name, model):
    """The same of training images, or None; and whose they are."""
    try:
        source, training_set = study.training_images(data, model)
    except errors.InputError:
        return None, None
    limit = min(data.count(IMAGES), source.num_examples)
    batches = data.progress(
        data.batches(limit, source),
        f"calibration on training images, {name}",
        -(-limit // study.BATCH_SIZE),
    )
    found = _measure(data, model, batches, measures.ERROR_RATIO_NOISES)
    return found, training_set


def _ratios(data, found, *key):
    value, low, high = measures.bootstrap_interval(
        measures.error_ratio,
        (found["of_mean"], found["of_single"]),
        data.random("calibration", *key),
    )
    return {
        "images": len(found["of_mean"]),
        "squared_error": float(found["of_single"].mean()),
        "error_ratio": study.summary((value, low, high)),
        # The lower the one, the higher the other.
        "spread_skill": study.summary(
            measures.spread_skill(ratio, measures.ERROR_RATIO_NOISES)
            for ratio in (value, high, low)
        ),
    }


def _thirds(found):
    """The errors of the images in each third of the predicted spread."""
    order = found["spread"].argsort(kind="stable")
    return {
        third: {key: found[key][rows] for key in ("of_mean", "of_single")}
        for third, rows in zip(
            THIRDS, np.array_split(order, len(THIRDS)), strict=True
        )
    }


def _verdict(found, model):
    ratio = found["error_ratio"]["value"]
    return measures.calibration_verdict(
        measures.spread_skill(
            np.nan if ratio is None else ratio, measures.ERROR_RATIO_NOISES
        ),
        study.inverted(model),
    )


def _rank_distance(ranks):
    return measures.rank_distance(measures.rank_histogram(ranks, SAMPLES))


def _tables(metrics, ranks):
    ratio_rows = [
        {
            "model": name,
            "group": group,
            "images": values["images"],
            "squared_error": values["squared_error"],
            **{
                f"{measure}_{end}": value
                for measure in ("error_ratio", "spread_skill")
                for end, value in values[measure].items()
            },
        }
        for name, found in metrics.items()
        for group, values in found["groups"].items()
    ]
    rank_rows = [
        {
            "model": name,
            "component": component,
            "share_of_error": share,
            "rank_distance": _rank_distance(along),
            "flat_rank_distance": measures.flat_rank_distance(
                len(along), SAMPLES
            ),
        }
        for name, (found, shares) in ranks.items()
        for component, (along, share) in enumerate(
            zip(found.T, shares, strict=True), start=1
        )
    ]
    histogram_rows = [
        {"model": name, "rank": rank, "share": share}
        for name, (found, _) in ranks.items()
        for rank, share in enumerate(measures.rank_histogram(found, SAMPLES))
    ]
    return {
        "error_ratios": ratio_rows,
        "rank_distances": rank_rows,
        "rank_histograms": histogram_rows,
    }


def _error_ratio(spread_skill):
    """The error ratio that has this spread-skill ratio."""
    variance = spread_skill**2
    return (1 + variance / measures.ERROR_RATIO_NOISES) / (1 + variance)


def _figures(metrics, ranks):
    groups = ["all", *THIRDS]
    if any("training images" in found["groups"] for found in metrics.values()):
        groups.append("training images")
    unknown = dict.fromkeys(("value", "low", "high"))
    series = {
        name: np.array(
            [
                list(
                    found["groups"]
                    .get(group, {"error_ratio": unknown})["error_ratio"]
                    .values()
                )
                for group in groups
            ],
            "float64",
        )
        for name, found in metrics.items()
    }
    low, high = measures.CALIBRATED
    return [
        study.Figure(
            "error_ratio",
            "Squared error of the mean of 8 reconstructions over that of "
            "single ones, with 95 % intervals: of held-out images, of their "
            "thirds by spread over the noise, and of training images. Dotted: "
            "0.5625, that of samples of what the logits leave open; above, the "
            f"noise varies too little. In the band it says {low} to {high} of "
            "what is open (scale on the right).",
            plots.intervals(
                [group.replace(" ", "\n") for group in groups],
                series,
                "squared error, mean of 8 / one",
                line=_error_ratio(1),
                band=(_error_ratio(high), _error_ratio(low)),
                right_label="spread of noise / what is left open",
                right_ticks={
                    f"{value:g}": _error_ratio(value) for value in SPREAD_SKILLS
                },
            ),
        ),
        study.Figure(
            "ranks",
            "Ranks of held-out images among 16 reconstructions along the "
            f"first {COMPONENTS} principal components of the residuals, all "
            "together. Flat (dotted; band: two standard deviations of chance): "
            "the image cannot be told from reconstructions. High ends: the "
            "noise varies too little; a hill: too much; a slope: the mean is "
            "wrong.",
            plots.rank_histograms(
                [
                    {
                        name: np.bincount(found.ravel(), minlength=SAMPLES + 1)
                        for name, (found, _) in ranks.items()
                    }
                ]
            ),
        ),
    ]
