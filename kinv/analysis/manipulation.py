"""Shifted, scaled and perturbed logits: section 6 and the main paper."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, plots, results

TITLE = "Logit manipulation"
SHOWN = 3
IMAGES = 100
# Shifts in units of what the images' mean logits vary by, so that they mean
# the same for every classifier; perturbations in units of all logits' standard
# deviation.
VALUES = {
    "shift": (-4.0, -2.0, 0.0, 2.0, 4.0),
    "scale": (0.5, 0.75, 1.0, 1.25, 1.5),
    "perturb": (0.0, 0.25, 0.5, 1.0, 2.0),
    "control": (-4.0, -2.0, 0.0, 2.0, 4.0),
}
IDENTITY = {"shift": 0.0, "scale": 1.0, "perturb": 0.0, "control": 0.0}
COLUMNS = ("model", "kind", "strength", "effect")
EFFECTS = {
    "brightness": measures.brightness,
    "contrast": measures.contrast,
    "sharpness": measures.sharpness,
}


def run(study):
    """Manipulates logits and measures what becomes of the reconstructions.

    Shift adds a constant to every logit, scale multiplies them, perturb adds
    Gaussian noise. Two controls part the classifier from the generator, whose
    norms are linear in the logits: `control` displaces the logits as far as
    the shift does, in a random direction for each image; and `read_back`
    tells how much of a shift or scale the classifier finds in the
    reconstruction, 1 for all of it, 0 for none.

    Returns:
        `results.Result`. Effects are differences from the reconstruction of the
        same noise and unchanged logits.
    """
    study.require_images(2)
    for name, model in study.models.items():
        study.require(
            not model.layer,
            f"models that invert logits, {name} inverts the "
            f"{model.inverted}: to shift or scale them all alike "
            "means nothing",
        )
    count = study.count(IMAGES)
    metrics, rows, figures = {}, [], []
    for name, model in study.models.items():
        units = units_of(model.logits(study.first(count, name).images))
        # Of a classifier of one output, say, logits are z / 2 and -z / 2.
        study.require(
            units["shift"] > 1e-6 * units["perturb"],
            f"logits whose mean is not the same for all images, as {name}'s is",
        )
        per_image = study.per_image(_measure, name, count, units=units)
        effects = {}
        for key, found in results.summaries(per_image).items():
            kind, value, effect = key
            of_kind = effects.setdefault(kind, {})
            of_kind.setdefault(value, {})[effect] = found
        rows += results.rows({name: effects}, *COLUMNS)
        metrics[name] = {"units": units} | {
            kind: [{"value": value, **of} for value, of in by_value.items()]
            for kind, by_value in effects.items()
        }
        figures.append(_grid(study, name, units))
    figures += [_plot(effect, metrics) for effect in EFFECTS]
    return results.Result(metrics, {"effects": rows}, figures)


def manipulation(logits, kind, value, units, random):
    """Scale and shift, as the signature takes them, of a manipulation.

    Args:
        logits: `(batch, num_classes)`.
        kind: `shift`, `scale`, `perturb` or `control`.
        value: factor of a scale; otherwise the size in units.
        units: dict as of `units_of`.
        random: `np.random.Generator`.

    Returns:
        `(logit_scale, logit_shift)`: a number, and a number or an array
        `(batch, 1, num_classes)`.
    """
    if kind == "scale":
        return value, 0.0
    if kind == "shift":
        return 1.0, value * units[kind]
    directions = random.standard_normal(logits.shape, "float32")
    if kind == "control":
        # As long as the shift by the same value.
        lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
        directions *= np.sqrt(logits.shape[-1]) / lengths
    return 1.0, value * units[kind] * directions[:, None]


def units_of(logits):
    """Sizes of a shift, a control and a perturbation by 1.

    Args:
        logits: `(images, num_classes)`, of many images.
    """
    mean = float(logits.mean(axis=-1).std())
    return {"shift": mean, "control": mean, "perturb": float(logits.std())}


def _measure(study, model, batch, units):
    """Effects `(batch,)` by kind, value and name."""
    logits = model.logits(batch.images)
    noise = study.noise(model, len(logits), 1, batch.key)

    def reconstruct(kind, value):
        random = study.random("directions", kind, batch.key)
        change = manipulation(logits, kind, value, units, random)
        return model.reconstruct(batch.images, noise, *change)[:, 0]

    unchanged = reconstruct("scale", 1.0)
    unchanged_logits = model.logits(unchanged)
    per_image = {}
    for kind, value in [(kind, v) for kind in VALUES for v in VALUES[kind]]:
        made = reconstruct(kind, value)
        read = model.logits(made)
        effects = {
            effect: measure(made) - measure(unchanged)
            for effect, measure in EFFECTS.items()
        }
        effects["pixel_change"] = np.sqrt(measures.pixel_mse(made, unchanged))
        effects["agreement"] = read.argmax(-1) == logits.argmax(-1)
        if kind in ("shift", "scale") and value != IDENTITY[kind]:
            effects["read_back"] = _read_back(
                read, unchanged_logits, kind, value, units
            )
        per_image |= {
            (kind, value, effect): values for effect, values in effects.items()
        }
    return per_image


def _read_back(logits, unchanged, kind, value, units):
    if kind == "shift":
        return (logits - unchanged).mean(axis=-1) / (value * units[kind])
    # Least squares of logits = factor * unchanged.
    factor = np.sum(logits * unchanged, axis=-1) / np.sum(unchanged**2, axis=-1)
    return (factor - 1) / (value - 1)


def _grid(study, name, units):
    model, images = study.models[name], study.first(SHOWN, name).images
    logits = model.logits(images)
    noise = study.noise(model, len(images), 1, "shown")
    rows, names, captions = [], [], []
    for kind in ("shift", "scale", "perturb"):
        columns = [model.target(images)]
        for value in VALUES[kind]:
            # The same direction at every strength.
            random = study.random("directions", "shown")
            change = manipulation(logits, kind, value, units, random)
            columns.append(model.reconstruct(images, noise, *change)[:, 0])
        rows += list(zip(*columns, strict=True))
        names += [kind] * len(images)
        sign = "× {:g}" if kind == "scale" else "{:+g} σ"
        captions += [[]] * (len(images) - 1)
        captions.append(["image", *map(sign.format, VALUES[kind])])
    return results.Figure(
        name,
        f"{name}: reconstructions of manipulated logits, one noise per row. "
        "Shift adds a constant to every logit, in standard deviations σ of the "
        "images' mean logits; scale multiplies; perturb adds Gaussian noise, "
        "in standard deviations σ of all logits.",
        grids.captioned_grid(rows, captions, row_captions=names, cell_size=96),
    )


def _plot(effect, metrics):
    panels = {
        f"{kind}, {'factor' if kind == 'scale' else 'standard deviations'}": (
            values,
            {
                name: [row[effect] for row in measured[kind]]
                for name, measured in metrics.items()
            },
            IDENTITY[kind],
        )
        for kind, values in VALUES.items()
    }
    return results.Figure(
        effect,
        f"Change of {effect} of reconstructions when the logits are "
        "manipulated, mean over images with its 95 % interval. The control "
        "moves the logits as far as the shift does, in random directions: its "
        "effect is how the generator responds to any displacement.",
        plots.panels(panels, f"change of {effect} (grey levels)"),
    )
