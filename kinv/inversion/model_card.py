"""The model card of an export: what it is, how good it is, what it is not."""

from kinv import measures
from kinv.inversion import presets

# Of data sets that carry no file about it, by the first part of their names.
LICENCES = {
    "kinv_scenes": "Apache-2.0 (kinv renders them)",
    "fashion_mnist": "MIT (Zalando SE)",
}
LIMITS = """\
A reconstruction shows what the generator reads of the classifier's {condition},
no more: what it does not show, the classifier may still know. Compare the share
of the within-class information above with 1, and pictures of several noises.
It knows images like those that it was trained on and makes of others something
of their kind. It is no compression, and no evidence of what a photograph shows
beyond what the classifier takes it for."""


def text(metadata):
    """A page of Markdown.

    Args:
        metadata: dict, the export's `kinv.json`.
    """
    training = metadata["training"]
    names = metadata["class_names"]
    shown = ", ".join(names[:3] + ["..."] * (len(names) > 3))
    condition = "logits"
    if layer := metadata.get("layer"):
        condition = f"features of the layer {layer}"
    licence = metadata.get("dataset_licence")
    known = LICENCES.get(metadata["dataset"].split("/")[0].split(":")[0])
    terms = "below" if licence else known or "their owner's"
    rows = "\n".join(
        f"| {name} | {value} |" for name, value in measured(metadata)
    )
    return f"""\
# Inversion of an image classifier

A classifier and a generator that makes pictures of its {condition} and noise,
trained by kinv after Teterwak et al., *Understanding
Invariance via Feedforward Inversion of Discriminatively Trained Classifiers*
(ICML 2021).

* Classifier: `{training.get("classifier")}`, {metadata["num_classes"]} classes
  ({shown}), images of {metadata["classifier_size"]} pixels.
* Trained on: `{metadata["dataset"]}`, split `{training["train_split"]}`. The
  licence of these images is {terms}.
* Training: {_recipe(training)}.
* Pictures: {metadata["image_size"]} pixels, float32 in [0, 255].

| Measured on held-out images | |
|---|---|
{rows}

## Limits

{LIMITS.format(condition=condition)}
{_licence_section("images", licence)}\
{_licence_section("classifier", metadata.get("classifier_licence"))}"""


def _licence_section(owned, licence):
    """What images or a classifier say of their licence, if they do."""
    return f"\n## Licence of the {owned}\n\n{licence}" if licence else ""


def _recipe(training):
    """The settings that matter most, and those that are not the preset's."""
    taken = "updates" if "updates" in training else "steps"
    names = ("preset", taken, "batch_size", "seed")
    preset = presets.PRESETS.get(training.get("preset"), {})
    names += tuple(
        name
        for name in preset
        if name not in (*presets.FLAGS, "validation_images")
        and training.get(name, preset[name]) != preset[name]
    )
    known = [f"{name} {training[name]}" for name in names if name in training]
    recipe = ", ".join(known).replace("_", " ")
    if before := training.get("generator"):
        recipe += f", begun with the generator `{before}`"
    return recipe


def measured(metadata):
    """What was measured on held-out images, but for what could not be.

    Args:
        metadata: dict, the export's `kinv.json`.

    Yields:
        Name and value, two str.
    """
    metrics = metadata["metrics"]
    if not metrics:
        return
    yield "images", f"{metrics['images']:,}"
    if (accuracy := metrics.get("accuracy")) is not None:
        yield "accuracy of the classifier", f"{accuracy:.1%}"
    low, high = metrics["agreement_interval"]
    yield (
        "agreement: the reconstruction gets the image's class",
        f"{metrics['agreement']:.1%} ({low:.1%} to {high:.1%})",
    )
    yield "logit cosine", f"{metrics['logit_cosine']:.3f}"
    if (shown := metrics.get("within_class_r2")) is not None:
        advice = ""
        if shown < measures.LOW_WITHIN_CLASS_R2:
            advice = f". That is little. {measures.WITHIN_CLASS_ADVICE}"
        yield (
            "share of the within-class information shown",
            f"{shown:.2f}{advice}",
        )
    if (ratio := metrics.get("error_ratio")) is not None:
        interval = ""
        # None of a few images.
        if ends := metrics["error_ratio_interval"]:
            interval = " ({:.3f} to {:.3f})".format(*ends)
        spread_skill = measures.spread_skill(ratio)
        scaled_by = metadata.get("export", {}).get("noise_scaled_by", {})
        fitted = ""
        if scaled_by.get("among_measured"):
            fitted = "; of images that the noise was scaled by, too"
        yield (
            "error ratio E8/E1 (.5625 is calibrated)",
            f"{ratio:.3f}{interval}: "
            + measures.calibration_verdict(spread_skill)
            + fitted,
        )
    # Not of a few images, nor in exports from before there were these.
    if thirds := metrics.get("error_ratio_thirds"):
        yield (
            "the same in thirds of the images, those that vary least first",
            ", ".join(
                "none" if x is None else f"{x:.3f}" for x in thirds.values()
            ),
        )
        yield (
            "ranks of at most 500 images among 16 pictures, distance from flat",
            f"{metrics['rank_distance']:.3f} (chance leaves "
            f"{metrics['flat_rank_distance']:.3f})",
        )
    against = ""
    # None of a single image.
    if (shuffled := metrics["shuffled_pixel_mse"]) is not None:
        against = f" against {shuffled:.0f} shuffled"
    yield (
        "squared error of pixels in [0, 255]",
        f"{metrics['pixel_mse']:.0f}{against}",
    )
