"""Shifted, scaled and perturbed logits: section 6 and the main paper."""

import numpy as np

from kinv import measures
from kinv.analysis import grids, plots, study

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
EFFECTS = {
    "brightness": measures.brightness,
    "contrast": measures.contrast,
    "sharpness": measures.sharpness,
}


def run(data):
    """Manipulates logits and measures what becomes of the pictures.

    Shift adds a constant to every logit, scale multiplies them, perturb adds
    Gaussian noise. Two controls part the classifier from the generator, whose
    norms are linear in the logits: `control` displaces the logits as far as
    the shift does, in a random direction for each image; and `read_back`
    tells how much of a shift or scale the classifier finds in the picture, 1
    for all of it, 0 for none.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. Effects are differences from the picture of the same
        noise and unchanged logits.

    Raises:
        study.NotApplicable: of models that invert another layer.
    """
    for name, model in data.models.items():
        if model.layer:
            raise study.NotApplicable(
                f"needs models that invert logits, {name} inverts the "
                f"{study.inverted(model)}: to shift or scale them all alike "
                "means nothing"
            )
    metrics, rows, figures = {}, [], []
    for name, model, batches in data.by_model(
        data.count(IMAGES), "manipulation"
    ):
        parts, shown = {}, None
        units = units_of(model.logits(data.first(data.count(IMAGES))[0]))
        for index, (images, _, _) in enumerate(batches):
            found = _measure(data, model, images, units, str(index))
            for key, values in found.items():
                parts.setdefault(key, []).append(values)
            if shown is None:
                shown = images[:SHOWN]
        metrics[name] = {"units": units}
        for kind, values in VALUES.items():
            metrics[name][kind] = []
            for value in values:
                found = study.concatenate(parts[kind, value])
                same = found.pop("agreement")
                row = {
                    "value": value,
                    "agreement": study.summary(
                        (
                            same.mean(),
                            *measures.wilson_interval(same.sum(), len(same)),
                        )
                    ),
                    **{
                        key: study.summary(measures.mean_interval(effect))
                        for key, effect in found.items()
                    },
                }
                metrics[name][kind].append(row)
                rows += [
                    {
                        "model": name,
                        "kind": kind,
                        "value": value,
                        "effect": key,
                        **row[key],
                    }
                    for key in row
                    if key != "value"
                ]
        figures.append(_grid(data, name, model, shown, units))
    for effect in EFFECTS:
        figures.append(_plot(effect, metrics))
    return study.Result(metrics, {"effects": rows}, figures)


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


def _measure(data, model, images, units, key):
    logits = model.logits(images)
    noise = data.noise(model, len(images), 1, key)

    def pictures_of(kind, value):
        scale, shift = manipulation(
            logits, kind, value, units, data.random("directions", kind, key)
        )
        return model.reconstruct(images, noise, scale, shift)[:, 0]

    unchanged = pictures_of("scale", 1.0)
    logits_of_unchanged = model.logits(unchanged)
    before = {key: effect(unchanged) for key, effect in EFFECTS.items()}
    found = {}
    for kind, values in VALUES.items():
        for value in values:
            pictures = pictures_of(kind, value)
            again = model.logits(pictures)
            result = {
                key: effect(pictures) - before[key]
                for key, effect in EFFECTS.items()
            }
            result["pixel_change"] = np.sqrt(
                measures.pixel_mse(pictures, unchanged)
            )
            result["agreement"] = again.argmax(-1) == logits.argmax(-1)
            if kind == "shift" and value:
                difference = (again - logits_of_unchanged).mean(axis=-1)
                result["read_back"] = difference / (value * units[kind])
            if kind == "scale" and value != 1:
                # Least squares of again = factor * logits_of_unchanged.
                factor = np.sum(again * logits_of_unchanged, axis=-1)
                factor /= np.sum(logits_of_unchanged**2, axis=-1)
                result["read_back"] = (factor - 1) / (value - 1)
            found[kind, value] = result
    return found


def _grid(data, name, model, images, units):
    logits = model.logits(images)
    noise = data.noise(model, len(images), 1, "shown")
    rows, names, captions = [], [], []
    for kind in ("shift", "scale", "perturb"):
        for index, image in enumerate(study.target(images, model)):
            row = [image]
            for value in VALUES[kind]:
                # The same direction at every strength.
                random = data.random("directions", "shown")
                scale, shift = manipulation(logits, kind, value, units, random)
                pictures = model.reconstruct(images, noise, scale, shift)
                row.append(pictures[index, 0])
            rows.append(row)
            names.append(kind)
            last = index == len(images) - 1
            captions.append(
                ["image", *map(_sign(kind), VALUES[kind])] if last else [""] * 6
            )
    return study.Figure(
        name,
        f"{name}: pictures of manipulated logits, one noise per row. Shift "
        "adds a constant to every logit, in standard deviations σ of the "
        "images' mean logits; scale multiplies; perturb adds Gaussian noise, "
        "in standard deviations σ of all logits.",
        grids.captioned_grid(rows, captions, row_captions=names, cell_size=96),
    )


def _sign(kind):
    return (
        (lambda v: f"× {v:g}") if kind == "scale" else (lambda v: f"{v:+g} σ")
    )


def _plot(effect, metrics):
    panels = {
        f"{kind}, {'factor' if kind == 'scale' else 'standard deviations'}": (
            VALUES[kind],
            {
                name: np.array(
                    [list(row[effect].values()) for row in found[kind]], float
                )
                for name, found in metrics.items()
            },
            IDENTITY[kind],
        )
        for kind in VALUES
    }
    return study.Figure(
        effect,
        f"Change of {effect} of the pictures when the logits are manipulated, "
        "mean over images with its 95 % interval. The control moves the logits "
        "as far as the shift does, in random directions: what it brings about "
        "is the generator's answer to any displacement.",
        plots.panels(panels, f"change of {effect} (grey levels)"),
    )
