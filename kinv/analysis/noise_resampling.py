"""What changes with the noise: section 1 of the supplementary."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, study

TITLE = "Noise resampling"
BLOCKS = 4
IMAGES = 200
SAMPLES = 16
# Continuous factors are cut into as many groups of equal size.
FACTOR_GROUPS = 3


def run(data):
    """Shows blocks of an image and eight noises; measures their spread.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. The spread is the standard deviation over 16 noises,
        mean over pixels, in grey levels; `relative_spread` divides it by the
        same over the images themselves, batch by batch.
    """
    metrics, rows, grid, spreads = {}, [], [], {}
    shown, _, _ = data.first(BLOCKS)
    for name, model, batches in data.by_model(
        data.count(IMAGES), "noise resampling"
    ):
        noise = data.noise(model, BLOCKS, 8, "shown")
        pictures = model.reconstruct(shown, noise)
        originals = study.target(shown, model)[:, None]
        grid.append(
            [
                grids.mosaic(block, columns=3, gap=1)
                for block in np.concatenate([originals, pictures], axis=1)
            ]
        )
        found = []
        for index, (images, labels, factors) in enumerate(batches):
            noise = data.noise(model, len(images), SAMPLES, str(index))
            pictures = model.reconstruct(images, noise)
            found.append(
                {
                    "spread": measures.noise_spread(pictures),
                    "between": _spread_between(study.target(images, model)),
                    **factors,
                }
            )
        found = study.concatenate(found)
        spread = spreads[name] = found.pop("spread")
        between = found.pop("between").mean()
        metrics[name] = {
            "images": len(spread),
            "samples": SAMPLES,
            "spread": study.summary(measures.mean_interval(spread)),
            "relative_spread": study.summary(
                measures.mean_interval(spread / between)
            ),
        }
        for factor, values in found.items():
            rows += [
                {"model": name, "factor": factor, **row}
                for row in by_group(spread, values)
            ]
    figure = study.Figure(
        "blocks",
        "Noise resampling, as Figures 1 and 2 of the supplementary. The upper "
        "left of each block is the image, the other eight are made of its "
        "logits with different noise. What changes within a block, the "
        "generator did not find in the logits.",
        grids.captioned_grid(
            grid, row_captions=list(data.models), cell_size=208
        ),
    )
    tables = {"spread_by_factor": rows} if rows else {}
    claims = []
    if data.pair:
        robust, standard = data.pair
        # The same images: their differences, not the difference of means.
        interval = measures.mean_interval(spreads[standard] - spreads[robust])
        claims.append(
            study.Claim(
                "1",
                "Noise changes less about the robust model's pictures.",
                "noise spread, standard minus robust (grey levels)",
                *map(float, interval),
                study.decide(*interval[1:]),
            )
        )
    return study.Result(metrics, tables, [figure], claims)


def _spread_between(images):
    spread = images.std(axis=0, ddof=1) if len(images) > 1 else images * np.nan
    return np.full(len(images), spread.mean())


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
            (f"{edges[i]:.3g} to {edges[i + 1]:.3g}", index == i)
            for i in range(FACTOR_GROUPS)
        ]
    return [
        {
            "group": name,
            "images": int(rows.sum()),
            **study.summary(measures.mean_interval(spread[rows])),
        }
        for name, rows in groups
    ]
