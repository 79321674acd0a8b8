"""A split of a data set as streams of batches."""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Images that shuffling holds, encoded, in memory.
SHUFFLE_BUFFER = 10_000


@dataclasses.dataclass(eq=False)
class Source:
    """Images and labels of one split, read as a stream in constant memory.

    Args:
        examples: `tf.data.Dataset` of dicts of encoded `image`, `label` and
            factors, in a fixed order.
        decode: maps the encoded image to uint8 `(height, width, channels)`.
        class_names: list of str, by label; empty where no labels are known,
            which are -1 then, as is that of a single image.
        num_examples: number of examples.
        factor_names: names of the scalars that are known of each image.
        num_skipped: number of unreadable files that were left out.
        identity: function without arguments to the digest of what the examples
            are: of files their names below the data set and their sizes, not
            their times, so that a copy is the same data set.
        unlabelled: why no labels are known.
        left_out: one line about files that were not taken, or empty.
        grey: whether every image is known to have one channel.
        place: what `folders.may_overlap` compares: where the images are, and
            which of these they are: (first, last) in percent of the order of
            `folders.part`, or the name of a split. None where nothing is known.
        name_of: function of an example's number to the name of its file.

    Attributes:
        class_numbers: labels that the examples may have.
    """

    examples: tf.data.Dataset
    decode: Callable
    class_names: list
    num_examples: int
    factor_names: list = ()
    num_skipped: int = 0
    identity: Callable = lambda: None
    unlabelled: str = ""
    left_out: str = ""
    grey: bool = False
    place: tuple | None = None
    name_of: Callable = "image {}".format

    def __post_init__(self):
        self.class_names = list(self.class_names)
        self.class_numbers = list(range(len(self.class_names)))
        self._own_class_names = self.class_names

    def describe(self):
        """What tells this split from others, as a dict that JSON can express.

        Returns:
            `class_names` (list of str, as the data set has them),
            `num_examples` and `digest`, a str that is the same for a copy of
            the data set.
        """
        return {
            "class_names": self._own_class_names,
            "num_examples": self.num_examples,
            "digest": self.identity(),
        }

    def relabelled(self, class_names, numbers, unlabelled=""):
        """The same images with the labels of other classes.

        Args:
            class_names: list of str, the other classes; empty for no labels.
            numbers: for each label its new one, or -1.
            unlabelled: why there are no labels.

        Returns:
            `Source`; it still describes itself as this one.
        """
        # A label of -1 finds the last.
        table = tf.constant([*numbers, -1], tf.int64)

        def relabel(example):
            label = tf.cast(example["label"], tf.int64)
            place = tf.where(label < 0, tf.size(table, tf.int64) - 1, label)
            return {**example, "label": tf.gather(table, place)}

        other = copy.copy(self)
        other.examples = self.examples.map(relabel)
        other.class_names = list(class_names)
        other.class_numbers = sorted({n for n in numbers if n >= 0})
        other.unlabelled = unlabelled
        return other

    def training_batches(
        self, image_size, batch_size, seed, start=0, crop="center"
    ):
        """Endless shuffled batches, a function of seed and position alone.

        Args:
            image_size: height and width in pixels.
            batch_size: images per batch; every batch is full.
            seed: of the order and the crops.
            start: number of examples to pass over, so that a resumed run
                reads what an uninterrupted one would have read.
            crop: `center`, or `random`: a square of 50 to 100 % of the
                image's area.

        Returns:
            `tf.data.Dataset` of float32 images `(batch_size, image_size,
            image_size, 3)` in [0, 255] and int64 labels `(batch_size,)`; where
            the examples have logits a dict of `images` and these, float32
            `(batch_size, num_classes)`, instead of images.
        """
        first_pass, offset = divmod(start, self.num_examples)

        def one_pass(index):
            # The seed of this function's graph. The order must not depend on
            # the global seed, and TensorFlow fails where that is 0.
            tf.random.set_seed(1)
            return self.examples.shuffle(
                min(SHUFFLE_BUFFER, self.num_examples), seed=seed + index
            )

        def prepare(index, example):
            image = self.decode(example["image"])
            if crop == "random":
                image = _random_square(image, tf.stack([seed, index]))
            image = _to_square(image, image_size)
            if "logits" in example:
                image = {"images": image, "logits": example["logits"]}
            return image, example["label"]

        passes = tf.data.Dataset.range(first_pass, np.iinfo("int64").max)
        examples = passes.flat_map(one_pass).skip(offset).enumerate(start)
        batches = examples.map(prepare, tf.data.AUTOTUNE).batch(
            batch_size, drop_remainder=True
        )
        return in_background(batches)

    def evaluation_batches(
        self, image_size, batch_size, limit=None, with_factors=False, start=0
    ):
        """Every example once, in a fixed order.

        Args:
            image_size: height and width in pixels.
            batch_size: images per batch; the last may have fewer.
            limit: number of examples to stop after. Defaults to all.
            with_factors: whether a dict of the factors follows the labels.
            start: number of examples to pass over.

        Returns:
            `tf.data.Dataset` of float32 images `(batch, image_size,
            image_size, 3)` in [0, 255] and int64 labels `(batch,)`.
        """

        def prepare(example):
            image = self.decode(example["image"])
            element = (_to_square(image, image_size), example["label"])
            if not with_factors:
                return element
            return *element, {name: example[name] for name in self.factor_names}

        examples = self.examples if limit is None else self.examples.take(limit)
        batches = (
            examples.skip(start)
            .map(prepare, tf.data.AUTOTUNE)
            .batch(batch_size)
        )
        return in_background(batches)


def in_memory(images, labels, class_names, **about):
    """A `Source` of decoded images, uint8 `(number, height, width, channels)`.

    Args:
        images, labels: arrays of as many.
        class_names, **about: as of `Source`.
    """
    examples = {"image": images, "label": labels}
    return Source(
        tf.data.Dataset.from_tensor_slices(examples),
        lambda image: image,
        class_names,
        len(images),
        **about,
    )


def in_background(batches):
    """Has the next batches of a `tf.data.Dataset` made while one is used."""
    options = tf.data.Options()
    # Its thread sleeps for 10 ms, then twice as long each time, up to a minute,
    # and an iterator that is in use for long ends only when it wakes.
    options.autotune.enabled = False
    # Several workers share out each batch. TensorFlow's default gives them
    # different files, in another order.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _to_square(image, image_size):
    """The centre square, antialiased to `image_size`, 3 channels, float32."""
    size = image_size, image_size
    # Where all images are known to fit, none is asked.
    if image.shape[:2] == size:
        image = tf.cast(_to_rgb(image), tf.float32)
    else:
        shape = tf.shape(image)
        side = tf.minimum(shape[0], shape[1])
        top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
        image = _to_rgb(image[top : top + side, left : left + side])
        # A bilinear resize to the size an image has already changes nothing.
        # It reads bytes: as float32 a large photograph takes gigabytes.
        image = tf.cond(
            side == image_size,
            lambda: tf.cast(image, tf.float32),
            lambda: tf.image.resize(image, size, antialias=True),
        )
    return tf.ensure_shape(tf.clip_by_value(image, 0.0, 255.0), (*size, 3))


def _to_rgb(image):
    """Grey as three channels, and a last channel of opacity over white."""
    if image.shape[2] == 3:
        return image
    image = tf.cast(image, tf.float32)
    channels = tf.shape(image)[2]

    def over_white():
        opacity = image[..., -1:] / 255.0
        return tf.round(image[..., :-1] * opacity + 255.0 * (1.0 - opacity))

    image = tf.cond(channels % 2 == 0, over_white, lambda: image)
    return tf.cond(channels < 3, lambda: tf.repeat(image, 3, 2), lambda: image)


def _random_square(image, seed):
    """A square of 50 to 100 % of the area, at most the shorter side.

    Reference:
        compare_gan, `imagenet_64`, crop method "distorted".
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    fraction, vertical, horizontal = tf.unstack(
        tf.random.stateless_uniform((3,), seed)
    )
    area = tf.cast(height * width, tf.float32) * (0.5 + 0.5 * fraction)
    side = tf.cast(tf.round(tf.sqrt(area)), tf.int32)
    side = tf.minimum(side, tf.minimum(height, width))

    def place(position, length):
        free = tf.cast(length - side + 1, tf.float32)
        return tf.minimum(tf.cast(position * free, tf.int32), length - side)

    top, left = place(vertical, height), place(horizontal, width)
    return image[top : top + side, left : left + side]
