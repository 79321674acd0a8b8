"""What changes with the noise: section 1 of the supplementary."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, results

TITLE = "Noise resampling"
BLOCKS = 4
IMAGES = 200
SAMPLES = 16
# Continuous factors are cut into as many groups of equal size.
FACTOR_GROUPS = 3


def run(study):
    """Shows blocks of an image and eight noises; measures their spread.

    Returns:
        `results.Result`. The spread is the standard deviation over 16 noises,
        mean over pixels, in grey levels; `relative_spread` divides it by the
        same over the images themselves, batch by batch.
    """
    metrics, rows, spreads = {}, [], {}
    for name, per_image in study.measured(_measure, IMAGES):
        spread = spreads[name] = per_image.pop("spread")
        between = per_image.pop("between")
        metrics[name] = {
            "images": len(spread),
            "samples": SAMPLES,
            "spread": results.mean(spread),
            "relative_spread": study.bootstrap(
                measures.ratio_of_means, spread, between
            ),
        }
        rows += [
            {"model": name, "factor": factor, **row}
            for factor, values in per_image.items()
            for row in by_group(spread, values)
        ]
    claims = study.contrast(
        "1",
        "Noise changes less about the robust model's reconstructions.",
        "noise spread in grey levels",
        spreads,
    )
    tables = {"spread_by_factor": rows} if rows else {}
    return results.Result(metrics, tables, [_figure(study)], claims)


def _measure(study, model, batch):
    made = study.reconstruct(model, batch.images, SAMPLES, batch.key)
    images = model.target(batch.images)
    between, count = np.full(len(images), np.nan), len(images)
    if count > 1:
        # The mean is the standard deviation over the batch; what each image
        # adds to it, for intervals.
        deviation = np.maximum(images.std(axis=0, ddof=1), 1e-6)
        squares = (images - images.mean(axis=0)) ** 2 * count / (count - 1)
        between = (deviation + squares / deviation).mean(axis=(1, 2, 3)) / 2
    return {
        "spread": measures.noise_spread(made),
        "between": between,
        **batch.factors,
    }


def _figure(study):
    grid = []
    for name, model in study.models.items():
        images = study.first(BLOCKS, name).images
        made = study.reconstruct(model, images, 8, "shown")
        blocks = np.concatenate([model.target(images)[:, None], made], axis=1)
        grid.append([grids.mosaic(block, columns=3) for block in blocks])
    return results.Figure(
        "blocks",
        "Noise resampling, as Figures 1 and 2 of the supplementary. The upper "
        "left of each block is the image, the other eight are made of its "
        "logits with different noise. What changes within a block, the "
        "generator did not find in the logits.",
        grids.captioned_grid(
            grid, row_captions=list(study.models), cell_size=208
        ),
    )


def by_group(spread, values):
    """Mean spread of images alike in a factor.

    Args:
        spread: `(images,)`.
        values: the factor, `(images,)`. Integers are kinds; other numbers are
            cut into groups of equal size.

    Returns:
        List of dicts: `group`, `images`, `value`, `low` and `high`.
    """
    if np.issubdtype(values.dtype, np.integer):
        groups = [(str(kind), values == kind) for kind in np.unique(values)]
    else:
        edges = np.quantile(values, np.linspace(0, 1, FACTOR_GROUPS + 1))
        index = np.searchsorted(edges[1:-1], values, side="right")
        groups = [
            (f"{edges[i]:.4g} to {edges[i + 1]:.4g}", index == i)
            for i in range(FACTOR_GROUPS)
        ]
    return [
        {"group": name, "images": int(rows.sum()), **results.mean(spread[rows])}
        for name, rows in groups
    ]
