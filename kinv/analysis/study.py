"""What every experiment is given: models, images, noise."""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from kinv import errors, intervals, runs
from kinv.analysis import results

BATCH_SIZE = 50
# Of training images, which nothing is reconstructed from.
TRAINING_BATCH_SIZE = 500
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
# Of the held-out images that are kept in memory: 200 MB.
KEPT_PIXELS = 2**24
# `--quick` takes this share of the images.
QUICK_SHARE = 0.2


class Batch(NamedTuple):
    """Images of a split.

    Attributes:
        images: float32 `(batch, image_size, image_size, 3)` in [0, 255].
        labels: int64 `(batch,)`.
        factors: dict of what is known of the images, each `(batch,)`.
        key: number of the batch as a string, a key of its noise.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: dict
    key: str


@dataclasses.dataclass(eq=False)
class Study:
    """Models beside each other, on the same images.

    Args:
        models: dict of `pipeline.Pipeline` by label. The paper's claims
            compare the one labelled "robust" with the one labelled "standard"
            or "non-robust"; without such labels, the first with the word in it.
        source: `source.Source` of held-out images.
        training_source: function that opens training images: without
            arguments those that probes and controls learn from; of a data set's
            name and a split those. It raises `errors.InputError` or, where
            there are none apart from the held-out ones,
            `results.NotApplicable`.
        image_size: height and width, in pixels, at which images are read that
            are for no model of its own size.
        seed: of noise, pairs and resampling.
        quick: whether to take fewer images.
        features: function of images in [0, 255] to their features `(batch,
            width)` and a name for it, for distances of distributions; or None.
        perceptual: function of images and others in [0, 255] to distances
            `(batch,)`, as of `features.load_perceptual`; or None.
    """

    models: dict
    source: object
    training_source: Callable
    image_size: int
    seed: int = 0
    quick: bool = False
    features: tuple | None = None
    perceptual: Callable | None = None
    # Title of the experiment that runs, for its progress bars.
    title: str = ""
    # Held-out images by size, as of `_elements`.
    _kept: dict = dataclasses.field(default_factory=dict)

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

    def reconstruct(self, model, images, num_samples, *key):
        """Reconstructions, `num_samples` of each image, by a key's noise."""
        noise = self.noise(model, len(images), num_samples, *key)
        return model.reconstruct(images, noise)

    def size(self, name):
        """Height and width at which images are read for a model, in pixels.

        As its classifier takes them: an image that is enlarged for another
        model and reduced again is blurred.

        Args:
            name: label of the model, or None for images of no model's.
        """
        if name is None:
            return self.image_size
        metadata = self.models[name].metadata
        return metadata.get("classifier_size", self.image_size)

    def batches(self, limit, source=None, batch_size=BATCH_SIZE, name=None):
        """Reads the first images, with a progress bar on a terminal.

        Of so many that no last one is alone: measures compare the images of a
        batch with each other.

        Args:
            limit: number of images, at most; None for all.
            source: `source.Source`. Defaults to the held-out images.
            batch_size: images per batch.
            name: label of the model that they are for, as of `size`.

        Yields:
            `Batch`.
        """
        source = source or self.source
        count = min(limit or source.num_examples, source.num_examples)
        while count > batch_size and count % batch_size == 1:
            batch_size += 1
        elements = self._elements(source, self.size(name), batch_size, count)
        total = math.ceil(count / batch_size)
        for index, batch in enumerate(self.progress(elements, total, name)):
            yield Batch(*batch, str(index))

    def _elements(self, source, size, batch_size, count):
        """Batches as `source.Source` has them.

        The first held-out images, which every experiment reads, are kept: to
        make a stream of them takes longer than to read some hundreds.
        """

        def stream(batch_size):
            return source.evaluation_batches(
                size, batch_size, count, with_factors=True
            ).as_numpy_iterator()

        if source is not self.source or count * size**2 > KEPT_PIXELS:
            yield from stream(batch_size)
            return
        if size not in self._kept or len(self._kept[size][0]) < count:
            [self._kept[size]] = stream(count)
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            yield tf.nest.map_structure(lambda x: x[rows], self._kept[size])

    def first(self, count, name=None):
        """The first images, as one `Batch`, for a model or for none."""
        return next(self.batches(count, batch_size=count, name=name))

    def is_labelled(self, count):
        """Whether any of the first images has a label of the classes."""
        return bool(self.source.class_numbers) and any(
            (batch.labels >= 0).any() for batch in self.batches(count)
        )

    def progress(self, iterable, total, name=None):
        """Passes an iterable on with a progress bar, on a terminal."""
        label = ", ".join(filter(None, (self.title, name)))
        yield from tqdm.tqdm(
            iterable, label, total, leave=False, disable=None, unit="batch"
        )

    def per_image(
        self,
        measure,
        name,
        limit,
        source=None,
        batch_size=BATCH_SIZE,
        **options,
    ):
        """What is measured of each image of a model, batch by batch.

        Args:
            measure: function of this study, a model and a `Batch` to a dict of
                arrays `(batch, ...)`.
            name, limit, source, batch_size: as of `batches`.
            **options: passed on to `measure`.

        Returns:
            One dict of arrays `(images, ...)`.
        """
        model = self.models[name]
        batches = self.batches(limit, source, batch_size, name)
        return concatenate(
            [measure(self, model, batch, **options) for batch in batches]
        )

    def measured(self, measure, full, **options):
        """Of each model its label and, as of `per_image`, what is measured."""
        for name in self.models:
            yield (
                name,
                self.per_image(measure, name, self.count(full), **options),
            )

    def bootstrap(self, statistic, *arrays):
        """Summary of a statistic of arrays, of the same examples."""
        random = self.random("bootstrap")
        interval = intervals.bootstrap_interval(statistic, arrays, random)
        return results.summary(*interval)

    def bootstrap_difference(self, statistic, arrays, others):
        """As `bootstrap`, of a statistic of arrays minus that of others."""
        count = len(arrays)
        return self.bootstrap(
            lambda *both: statistic(*both[:count]) - statistic(*both[count:]),
            *arrays,
            *others,
        )

    def contrast(self, section, text, statistic, values):
        """The claim that a statistic is larger for the standard model.

        Args:
            section: of the supplementary.
            text: the claim.
            statistic: what is compared.
            values: dict by label of arrays `(images,)`, of the same images:
                their differences count, not the difference of means.

        Returns:
            List of the `results.Claim`; empty without the two models.
        """
        if not self.pair:
            return []
        robust, standard = (values[name] for name in self.pair)
        statistic += ", standard minus robust"
        found = results.mean(standard - robust)
        return [results.claim(section, text, statistic, found)]

    def require(self, condition, needed):
        """Leaves an experiment out, unless its condition is met.

        Raises:
            results.NotApplicable: saying what is needed.
        """
        if not condition:
            raise results.NotApplicable(f"needs {needed}")

    def require_images(self, fewest):
        """Leaves an experiment out where there are too few images."""
        self.require(
            self.source.num_examples >= fewest,
            f"at least {fewest} images, the split has "
            f"{self.source.num_examples}",
        )

    @property
    def pair(self):
        """Labels of the two models that claims are tested of, or None.

        Of pictures of two sizes errors and spreads cannot be compared.
        """
        sizes = {self.models[label].image_size for label in self.roles or ()}
        return self.roles if len(sizes) == 1 else None

    @property
    def roles(self):
        """Labels of the robust and of the standard model, or None."""
        pair = []
        for names, pattern in ROLES:
            labels = [name for name in names if name in self.models] + [
                label for label in self.models if re.search(pattern, label)
            ]
            if not labels:
                return None
            pair.append(labels[0])
        # A label with both words is none.
        return pair if pair[0] != pair[1] else None

    def training_images(self, model):
        """Opens the images that a model was trained on, else the study's.

        Returns:
            `source.Source`, and whose images these are, in words.
        """
        trained = model.metadata.get("training", {})
        place = trained.get("dataset"), trained.get("train_split")
        if None in place:
            reason = "because the model names none of its own"
        else:
            name = "{}, split {}".format(*place)
            try:
                source = self.training_source(*place)
                # Another folder may have the name.
                if source.identity():
                    own = {"train": source.describe()}
                    runs.check_data(model.metadata, own, place[0])
                return source, name
            except (errors.InputError, results.NotApplicable):
                reason = (
                    f"because the model's own ({name}) are not at hand, or are "
                    "the ones analysed"
                )
        return (
            self.training_source(),
            f"those of the analysed data set, {reason}",
        )

    def same_classifier(self, names):
        """Whether models share a classifier and make images of one size."""
        images = self.first(COMPARED).images
        models = [self.models[name] for name in names]
        if len({(m.num_classes, m.image_size) for m in models}) > 1:
            return False
        first, *others = (model.logits(images) for model in models)
        return all(
            np.allclose(first, other, rtol=1e-3, atol=1e-3) for other in others
        )


def concatenate(parts):
    """Joins dicts of arrays, a batch each, into one dict of arrays."""
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }
