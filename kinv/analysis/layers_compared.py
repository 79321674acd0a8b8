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
        agreement, the within-class share and the measures of
        `reconstructions`, of one noise; and, of scenes, R² of each factor as it
        is read from 8 reconstructions.

    Raises:
        results.NotApplicable: of models of one layer, or of several
            classifiers.
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
    per_image = study.per_image(_measure, name, study.count(IMAGES))
    codes = per_image.pop("codes", None)
    readings = per_image.pop("readings", None)
    within_class = reconstructions.within_class_r2(
        study, per_image, "within class"
    )
    measured = {"within_class_r2": within_class, **results.summaries(per_image)}
    if codes is not None:
        for factor, part in scene_factors.PARTS.items():
            measured[factor] = scene_factors.explained(
                study, readings[..., part], codes[:, part], "layers", factor
            )
    return measured


def _measure(study, model, batch):
    # Without known factors one reconstruction of each image is enough.
    known = scene_factors.are_known(study)
    samples = SAMPLES if known else 1
    noise = study.noise(model, len(batch.images), SAMPLES, batch.key)
    made = model.reconstruct(batch.images, noise[:, :samples])
    logits, read = model.logits(batch.images), model.logits(made[:, 0])
    images = model.target(batch.images)
    per_image = {
        "logits": logits,
        "reconstruction_logits": read,
        **reconstructions.compare(images, made[:, 0], logits, read),
    }
    if known:
        per_image |= {
            "codes": scene_factors.encode(batch.factors),
            "readings": scene_factors.read(made),
        }
    return per_image


def _figure(group, metrics):
    keys, label, caption = GROUPS[group]
    return results.Figure(
        group,
        f"{caption} With 95 % intervals.",
        plots.curves(
            range(len(metrics)),
            {
                key.replace("_", " "): results.curve(
                    measured[key] for measured in metrics.values()
                )
                for key in keys
            },
            "inverted, from the first layer to the last",
            label,
            ticks=list(metrics),
        ),
    )
