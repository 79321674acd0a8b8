"""What is lost from layer to layer of one classifier."""

from kinv.analysis import (
    grids,
    plots,
    reconstructions,
    results,
    scene_factors,
)

TITLE = "Layer by layer"
IMAGES = 500
SAMPLES = 8
# In the picture: images, and reconstructions of each.
SHOWN = 8
SHOWN_SAMPLES = 2
GROUPS = {
    "pixels": (
        ("pixel_mse", "shuffled_pixel_mse"),
        "squared error of pixels, (grey levels)²",
        "Squared error by layer, from the first to the last, of an image's own "
        "reconstruction, and of another image's, which is chance.",
    ),
    "similarity": (
        ("ssim", "within_class_r2", "agreement"),
        "share, or similarity",
        "By layer: structural similarity to the image, share of what the "
        "logits know beyond the class, and agreement of the class.",
    ),
    "factors": (
        tuple(scene_factors.PARTS),
        "R² of what the reconstructions show",
        "What the reconstructions of each layer show of each factor: R² of a "
        f"factor network's readings of {SAMPLES} reconstructions.",
    ),
}


def run(study):
    """Measures inversions of several layers of one classifier side by side.

    In the order in which the models were given, which should be that of the
    layers. Trained alike, what a deeper one shows less of an image, the layers
    between have thrown away; or the generator has found it harder to read.

    Returns:
        `results.Result`. By model: `numbers`, how many the generator is given;
        the metrics of `reconstructions`, of one noise; and, of scenes, R² of
        each factor as it is read from 8 reconstructions.
    """
    study.require(
        len({model.layer for model in study.models.values()}) > 1
        and study.same_classifier(study.models),
        "models that invert several layers of one classifier, trained with "
        "--layer, and make pictures of one size",
    )
    metrics, rows = {}, []
    for name, model in study.models.items():
        about = {"layer": model.inverted, "numbers": model.condition_dim}
        measured = _measures(study, name)
        metrics[name] = {**about, **measured}
        rows += results.rows({name: measured}, "model", "measure", **about)
    figures = [_pictures(study)] + [
        _figure(group, metrics)
        for group in GROUPS
        if group != "factors" or scene_factors.are_known(study)
    ]
    return results.Result(metrics, {"layers": rows}, figures)


def _pictures(study):
    rows, names = [study.first(SHOWN).images], ["image"]
    for name, model in study.models.items():
        images = study.first(SHOWN, name).images
        made = study.reconstruct(model, images, SHOWN_SAMPLES, "shown")
        rows += list(made.swapaxes(0, 1))
        names += [f"{name}, noise {i + 1}" for i in range(SHOWN_SAMPLES)]
    return results.Figure(
        "pictures",
        "Held-out images, and what a generator makes of each layer of the "
        f"classifier, with {SHOWN_SAMPLES} noises: from the first layer to the "
        "last.",
        grids.captioned_grid(rows, row_captions=names, cell_size=72),
    )


def _measures(study, name):
    measured = reconstructions.metrics_of(study, name)
    if scene_factors.are_known(study):
        per_image = study.per_image(_read, name, study.count(IMAGES))
        for factor, part in scene_factors.PARTS.items():
            measured[factor] = scene_factors.explained(
                study,
                per_image["readings"][..., part],
                per_image["codes"][:, part],
            )
    return measured


def _read(study, model, batch):
    made = study.reconstruct(model, batch.images, SAMPLES, batch.key)
    return {
        "codes": scene_factors.encode(batch.factors),
        "readings": scene_factors.read(made),
    }


def _figure(group, metrics):
    keys, label, caption = GROUPS[group]
    return results.Figure(
        group,
        f"{caption} With 95 % intervals.",
        plots.curves(
            range(len(metrics)),
            {
                key.replace("_", " "): [of[key] for of in metrics.values()]
                for key in keys
            },
            "inverted, from the first layer to the last",
            label,
            ticks=list(metrics),
        ),
    )
