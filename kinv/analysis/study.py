"""What every experiment is given, and what it returns."""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable

import matplotlib.figure
import numpy as np
import tensorflow as tf
import tqdm

from kinv import errors
from kinv import images as images_lib

BATCH_SIZE = 50
# Images whose logits tell one classifier from another.
COMPARED = 8
# Whose models the paper's claims compare: a label that is one of the names,
# else the first that the pattern finds something in. "non-robust" is the
# paper's word for the standard model.
ROLES = (
    (("robust",), r"(?<!no[nt])(?<!no[nt][-_ ])robust"),
    (
        ("standard", "non-robust"),
        r"(?<!no[nt])(?<!no[nt][-_ ])standard|no[nt][-_ ]?robust",
    ),
)
# `--quick` takes this share of the images.
QUICK_SHARE = 0.2


class NotApplicable(Exception):
    """These data or models cannot have the experiment; says what it needs."""


@dataclasses.dataclass
class Figure:
    """A picture or a plot, with a caption that stands alone."""

    name: str
    caption: str
    drawing: matplotlib.figure.Figure


@dataclasses.dataclass
class Claim:
    """A claim of the paper, the statistic that tests it, and the verdict.

    Attributes:
        section: of the supplementary.
        text: the claim.
        statistic: what `value` is, with its unit.
        value: our figure.
        low: lower end of its 95 % interval.
        high: upper end.
        verdict: `holds`, `does not hold` or `undecided`.
        note: what to bear in mind when reading it.
    """

    section: str
    text: str
    statistic: str
    value: float
    low: float
    high: float
    verdict: str
    note: str = ""


@dataclasses.dataclass
class Result:
    """What an experiment found.

    Attributes:
        metrics: dict that JSON can express, by model where it is of one.
        tables: rows (dicts with the same keys) by name; each becomes a CSV.
        figures: list of `Figure`.
        claims: list of `Claim`.
    """

    metrics: dict
    tables: dict[str, list[dict]]
    figures: list[Figure]
    claims: list[Claim] = dataclasses.field(default_factory=list)


class Study:
    """Models beside each other, on the same images.

    Args:
        models: dict of `pipeline.Pipeline` by label. The paper's claims
            compare the one labelled "robust" with the one labelled "standard"
            or "non-robust"; without such labels, the first with the word in it.
        source: `source.Source` of held-out images.
        training_source: function that opens training images: without
            arguments those that probes and controls learn from; of a data set's
            name and a split those, or it raises `errors.InputError`.
        image_size: height and width, in pixels, at which images are read.
        seed: of noise, pairs and resampling.
        quick: whether to take fewer images.
        features: function of images in [0, 255] to their features `(batch,
            width)` and a name for it, for distances of distributions; or None.
        perceptual: function of images and others in [0, 255] to distances
            `(batch,)`, as of `features.load_perceptual`; or None.
    """

    def __init__(
        self,
        models,
        source,
        training_source: Callable,
        image_size,
        seed=0,
        quick=False,
        features=None,
        perceptual=None,
    ):
        self.models = models
        self.source = source
        self.training_source = training_source
        self.image_size = image_size
        self.seed = seed
        self.quick = quick
        self.features = features
        self.perceptual = perceptual

    def count(self, full):
        """Number of images to take where `full` is the default."""
        return math.ceil(full * QUICK_SHARE) if self.quick else full

    def random(self, *key):
        """`np.random.Generator` of the seed and a key of strings."""
        return np.random.default_rng(
            (self.seed, zlib.crc32("/".join(key).encode()))
        )

    def noise(self, model, num_images, num_samples, *key):
        """N(0, 1), float32 `(num_images, num_samples, noise_dim)`."""
        shape = (num_images, num_samples, model.noise_dim)
        return self.random("noise", *key).standard_normal(shape, "float32")

    def batches(self, limit, source=None, batch_size=BATCH_SIZE):
        """Reads the first images, a batch at a time.

        A last image that would be alone joins the batch before it: measures
        compare the images of a batch with each other.

        Yields:
            float32 images `(batch, image_size, image_size, 3)` in [0, 255],
            int64 labels `(batch,)` and a dict of factors, each `(batch,)`.
        """
        source = source or self.source
        waiting = None
        for batch in source.evaluation_batches(
            self.image_size, batch_size, limit, with_factors=True
        ).as_numpy_iterator():
            if waiting and len(batch[0]) == 1 < batch_size:
                batch = tf.nest.map_structure(
                    lambda *parts: np.concatenate(parts), waiting, batch
                )
            elif waiting:
                yield waiting
            waiting = batch
        if waiting:
            yield waiting

    def first(self, count):
        """The first images, as one batch of `batches`."""
        return next(self.batches(count, batch_size=count))

    def progress(self, iterable, label, total):
        """Passes an iterable on with a progress bar, on a terminal."""
        yield from tqdm.tqdm(
            iterable, label, total, leave=False, disable=None, unit="batch"
        )

    def by_model(self, limit, label):
        """Every model, and the images for it with progress.

        Yields:
            label of the model, the model, and an iterator of `batches`.
        """
        limit = min(limit, self.source.num_examples)
        for name, model in self.models.items():
            # A lone last image makes no batch of its own.
            total = max(1, -(-(limit - 1) // BATCH_SIZE))
            batches = self.batches(limit)
            yield (
                name,
                model,
                self.progress(batches, f"{label}, {name}", total),
            )

    @property
    def pair(self):
        """Labels of the robust and of the standard model, or None."""
        found = []
        for names, pattern in ROLES:
            labels = [name for name in names if name in self.models] + [
                label for label in self.models if re.search(pattern, label)
            ]
            if not labels:
                return None
            found.append(labels[0])
        return found


def inverted(model):
    """What a model inverts, in words."""
    return f"features of {model.layer}" if model.layer else "logits"


def training_images(data, model):
    """Opens the images that a model was trained on, else the study's.

    Returns:
        `source.Source`, and whose images these are, in words.
    """
    trained = model.metadata.get("training", {})
    place = trained.get("dataset"), trained.get("train_split")
    if None in place:
        reason = "as the model names none of its own"
    else:
        name = "{}, split {}".format(*place)
        try:
            return data.training_source(*place), name
        except errors.InputError:
            reason = f"as the model's own ({name}) cannot be opened"
    return data.training_source(), f"those of the analysed data set, {reason}"


def same_classifier(data, names):
    """Whether models have the same classifier and make images of one size."""
    images, _, _ = data.first(COMPARED)
    models = [data.models[name] for name in names]
    if len({(m.num_classes, m.image_size) for m in models}) > 1:
        return False
    first, *others = (model.logits(images) for model in models)
    return all(
        np.allclose(first, other, rtol=1e-3, atol=1e-3) for other in others
    )


def target(images, model):
    """Images as the model would reconstruct them ideally: at its size."""
    return images_lib.resize(images, model.image_size)


def nearest(batches, queries, embed):
    """The nearest image to each query, in one pass that keeps the best so far.

    Args:
        batches: iterable of (images, labels, factors), as `Study.batches`.
        queries: `(queries, width)`.
        embed: function of images to their `(images, width)`.

    Returns:
        The images, `(queries, height, width, 3)`, and their squared distances,
        `(queries,)`.
    """
    found = None
    best = np.full(len(queries), np.inf)
    for images, _, _ in batches:
        distances = squared_distances(queries, embed(images))
        index = distances.argmin(axis=1)
        nearer = distances.min(axis=1) < best
        best[nearer] = distances.min(axis=1)[nearer]
        if found is None:
            found = np.zeros((len(queries), *images.shape[1:]), "float32")
        found[nearer] = images[index[nearer]]
    return found, best


def squared_distances(vectors, others):
    """Between each two, `(vectors, others)`."""
    distances = (
        np.sum(vectors**2, axis=-1)[:, None]
        - 2 * vectors @ others.T
        + np.sum(others**2, axis=-1)
    )
    # Rounding may leave something between equal vectors.
    return np.maximum(distances, 0.0)


def concatenate(rows):
    """Joins dicts of arrays, a batch each, into one dict of arrays."""
    return {
        name: np.concatenate([row[name] for row in rows]) for name in rows[0]
    }


def summary(interval):
    """`(value, low, high)` as JSON, None for what is not finite."""
    return {
        name: float(value) if math.isfinite(value) else None
        for name, value in zip(("value", "low", "high"), interval, strict=True)
    }


def decide(low, high, threshold=0.0):
    """Verdict on "the statistic exceeds the threshold" from its interval."""
    if low > threshold:
        return "holds"
    if high < threshold:
        return "does not hold"
    return "undecided"
