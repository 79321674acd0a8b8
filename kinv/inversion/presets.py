"""The settings of a training: what each one is, and the presets' values."""

import argparse
import logging
import textwrap

from kinv import errors

LOGGER = logging.getLogger("kinv")
# Settings that have a flag of their own in `tools/train.py`.
FLAGS = ("image_size", "batch_size", "steps", "steps_per_epoch")
IMAGE_SIZES = (8, 32, 64, 128)
# By the name of a setting: the values it takes, as an argument type or a tuple
# of choices; the preset `small`'s; what it is. First the settings of both
# networks, of the generator and of the discriminator.
SHARED_SETTINGS = {
    "image_size": (
        IMAGE_SIZES,
        32,
        "height and width of reconstructions: 8, 32, 64 or 128",
    ),
    "base_channels": (
        errors.positive_int,
        16,
        "width of both networks: their widest maps have 16 times as many "
        "channels, up to 32 pixels 8 times",
    ),
    "attention": (errors.boolean, True, "self-attention blocks"),
    "logit_normalization": (
        ("none", "standardize", "whiten", "class-centered", "one-hot"),
        "class-centered",
        "fixed map of the logits before both networks: none; standardize; "
        "whiten (principal components); class-centered, also what they are "
        "beyond their class; one-hot, the class alone (a control)",
    ),
}
GENERATOR_SETTINGS = {
    "noise_dim": (errors.positive_int, 120, "length of the noise vector"),
    "embedding_dim": (
        errors.positive_int,
        128,
        "length of the embedded logits",
    ),
    "embedding_layers": (
        errors.non_negative_int,
        2,
        "gated hidden layers before the embedding of the logits, which see "
        "noise, too, and are fitted to small pictures before the training",
    ),
    "gain_offset": (
        errors.non_negative_float,
        1.0,
        "added to the conditional norms' gains: 0 as in the paper; 1 as in "
        "BigGAN, with which small networks train faster",
    ),
    "norms_per_block": (
        (2, 3),
        2,
        "conditional norms of a generator block: 2 as in the paper's code, 3 "
        "as in its text",
    ),
    "upsampling": (
        ("zeros", "nearest"),
        "nearest",
        "zeros: zeros between the values; nearest: every value four times, "
        "without a checkerboard pattern",
    ),
    "padding": (
        ("zeros", "edge"),
        "edge",
        "what the generator's convolutions meet beyond the border: zeros, or "
        "the values on it, with which flat areas stay flat",
    ),
    "bounded_noise": (
        errors.boolean,
        True,
        "batch norm and tanh on the generator's first map; without them it is "
        "linear in the noise, and goes on growing where noise is rare",
    ),
}
DISCRIMINATOR_SETTINGS = {
    "patch_scores": (
        errors.boolean,
        True,
        "a score of the discriminator for every place of its last map, which "
        "leaves fewer blemishes, instead of one for the picture",
    ),
    "sees_detail": (
        errors.boolean,
        True,
        "the picture's two finest bands, enlarged, beside it in what the "
        "discriminator sees: sharper, and hardly any blemishes",
    ),
}
NETWORK_SETTINGS = SHARED_SETTINGS | GENERATOR_SETTINGS | DISCRIMINATOR_SETTINGS
# What the networks learn, and how their updates are computed.
OBJECTIVE_SETTINGS = {
    "adversary": (
        ("hinge", "relativistic"),
        "relativistic",
        "loss of the adversary; hinge: of images and reconstructions apart; "
        "relativistic: of image and reconstruction of the same logits",
    ),
    "adversary_weight": (
        errors.non_negative_float,
        0.5,
        "weight of the adversary in the generator's loss",
    ),
    "score_weight": (
        errors.non_negative_float,
        20.0,
        "weight of the energy score of two reconstructions per image, which "
        "asks for what the logits know and that noise varies what they leave "
        "open",
    ),
    "readback_weight": (
        errors.non_negative_float,
        2.0,
        "weight of the distance between the logits that a reconstruction was "
        "made of and those that the classifier reads from it; where it sees "
        "more pixels than image_size, between what it reads from the image and "
        "from reconstructions at that size",
    ),
    "class_readback_weight": (
        errors.non_negative_float,
        0.0,
        "weight of the divergence between the probabilities of classes that "
        "the classifier reads from a reconstruction and those that it reads "
        "from the image: for classifiers of many classes, few of them likely, "
        "or of few between which they are often undecided",
    ),
    "pixel_weight": (
        errors.non_negative_float,
        0.0,
        "weight of the squared distance between image and reconstruction, "
        "pixels in [-1, 1]: a decoder, which passes over the noise",
    ),
    "renormalization": (
        errors.boolean,
        True,
        "whether the generator's norms use running averages instead of the "
        "batch's moments, as an export does; from the 1,000th to the 2,000th "
        "update, more and more. Gradients are those of the batch's moments",
    ),
    "discriminator_steps": (
        errors.non_negative_int,
        1,
        "discriminator updates per generator update; 0 for no adversary",
    ),
    "micro_batches": (
        errors.positive_int,
        1,
        "parts of every batch that are computed one after the other and make "
        "one update, to save memory. Exact but for the generator's batch norm, "
        "which takes the moments of each part: keep them large",
    ),
    "ema_decay": (
        errors.share,
        0.995,
        "decay of the averaged generator, in [0, 1)",
    ),
    "ema_start_step": (
        errors.non_negative_int,
        200,
        "generator update at which averaging starts",
    ),
}
# How long they learn, of how many images, and how fast.
RUN_SETTINGS = {
    "batch_size": (
        errors.positive_int,
        32,
        "images per update, over all devices; a step takes this times "
        "(discriminator_steps + 1)",
    ),
    "steps": (errors.positive_int, 7500, "generator updates, in whole epochs"),
    "steps_per_epoch": (
        errors.positive_int,
        500,
        "updates between checkpoints and measurements",
    ),
    "validation_images": (
        errors.positive_int,
        1000,
        "held-out images measured after every epoch",
    ),
    "generator_learning_rate": (
        errors.positive_float,
        1e-3,
        "Adam's initial one",
    ),
    "discriminator_learning_rate": (errors.positive_float, 4e-4, "the same"),
    "learning_rate_decay": (
        ("none", "cosine"),
        "cosine",
        "schedule of both learning rates over the steps",
    ),
}
SETTINGS = NETWORK_SETTINGS | OBJECTIVE_SETTINGS | RUN_SETTINGS
# `paper` is section 7.2 of the supplementary to the letter, `paper-small` its
# objective and networks at 32 px, a control. `small` is kinv's own objective
# (docs/measurements.md; docs/departures.md).
PRESETS = {"small": {name: value for name, (_, value, _) in SETTINGS.items()}}
PRESETS["paper"] = {
    **PRESETS["small"],
    "image_size": 64,
    "base_channels": 96,
    "embedding_layers": 0,
    "gain_offset": 0.0,
    "upsampling": "zeros",
    "padding": "zeros",
    "bounded_noise": False,
    "patch_scores": False,
    "sees_detail": False,
    "logit_normalization": "none",
    "adversary": "hinge",
    "adversary_weight": 1.0,
    "score_weight": 0.0,
    "readback_weight": 0.0,
    "renormalization": False,
    "discriminator_steps": 2,
    "batch_size": 2048,
    "steps": 250000,
    "steps_per_epoch": 2500,
    "generator_learning_rate": 1e-4,
    "discriminator_learning_rate": 5e-4,
    "learning_rate_decay": "none",
    "ema_decay": 0.9999,
    "ema_start_step": 40000,
}
PRESETS["paper-small"] = {
    **PRESETS["paper"],
    "image_size": 32,
    "base_channels": 16,
    "gain_offset": 1.0,
    "logit_normalization": "standardize",
    "batch_size": 64,
    "steps": 6000,
    "steps_per_epoch": 200,
    "generator_learning_rate": 4e-4,
    "discriminator_learning_rate": 4e-4,
    "ema_decay": 0.999,
    "ema_start_step": 200,
}
# Of weights, noise and the order of images.
SEED = 8
# Images whose logits fill a generator's standing statistics at export.
STATISTICS_EXAMPLES = 10_000
# Normalisations that take what they normalise for logits, and that of features
# by default; learned from sooner than `standardize` (docs/measurements.md).
OF_LOGITS = ("class-centered", "one-hot")
OF_FEATURES = "whiten"
# From here on the means of classes are those of few images.
MANY_CLASSES = 300
# Of a cosine, its end over its start.
FINAL_RATE_RATIO = 0.02


def assignment(text):
    """Argument type: `NAME=VALUE` with the name of a setting.

    Returns:
        The name and the value, of the setting's type.
    """
    name, _, value = text.partition("=")
    if name in FLAGS:
        flag = f"--{name.replace('_', '-')}"
        raise argparse.ArgumentTypeError(
            f"expected {flag} for {name}; received {text!r}"
        )
    if name not in SETTINGS:
        names = [name for name in SETTINGS if name not in FLAGS]
        raise argparse.ArgumentTypeError(
            f"expected NAME=VALUE with one of {', '.join(names)}; received "
            f"{text!r}"
        )
    values = SETTINGS[name][0]
    if not isinstance(values, tuple):
        try:
            return name, values(value)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{name}: {error}") from None
    for choice in values:
        if str(choice) == value:
            return name, choice
    raise argparse.ArgumentTypeError(
        f"expected {name} to be one of {', '.join(map(str, values))}; received "
        f"{value!r}"
    )


def check_choice(name, value):
    """Raises `errors.InputError` unless the setting takes the value."""
    choices = SETTINGS[name][0]
    if value not in choices:
        raise errors.InputError(
            f"Expected one of {', '.join(map(str, choices))}. Received: "
            f"{name}={value!r}."
        )


def check(settings, classifier_size, num_classes, has_features):
    """Checks settings of networks against a classifier.

    Warnings are logged of pictures that are larger than what the classifier
    sees needs, and of settings that are known not to suit it.

    Args:
        settings: dict that has `image_size` and `logit_normalization`.
        classifier_size: height and width of the images that it sees.
        num_classes: number of its logits.
        has_features: whether the networks are given features instead.

    Raises:
        errors.InputError: if there is no such image size, or features are to
            be normalised as logits.
    """
    size = settings["image_size"]
    check_choice("image_size", size)
    normalization = settings["logit_normalization"]
    if any(classifier_size <= other < size for other in IMAGE_SIZES):
        LOGGER.warning(
            "Pictures of %s pixels will be made of images enlarged from the %s "
            "that the classifier sees. Take a smaller image size, or a "
            "classifier of larger images.",
            size,
            classifier_size,
        )
    if has_features and normalization in OF_LOGITS:
        raise errors.InputError(
            "Expected a logit_normalization of none, standardize or whiten for "
            f"features, which tell no class. Received: {normalization}."
        )
    if num_classes > MANY_CLASSES and normalization == "class-centered":
        LOGGER.warning(
            "The preset small was chosen on 80 classes. docs/classifiers.md "
            "(Many classes) has settings that hold with the %s of this "
            "classifier.",
            f"{num_classes:,}",
        )


def describe():
    """The table of settings and presets as text, for `--help`."""
    lines = ["settings, their values in the presets " + ", ".join(PRESETS)]
    for name, (*_, meaning) in SETTINGS.items():
        values = (str(preset[name]) for preset in PRESETS.values())
        lines += [f"  {name}: {', '.join(values)}"]
        lines += textwrap.wrap(
            meaning, 78, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)
