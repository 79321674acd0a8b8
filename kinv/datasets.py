"""Image data sets: from TensorFlow Datasets by name, or a folder of images."""

import concurrent.futures
import functools
import hashlib
import inspect
import os
import pathlib
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from kinv import errors
from kinv import scenes as _scenes  # noqa: F401 (registers kinv_scenes)

# What `tf.io.decode_image` reads, whatever a file is called.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP")
_SPLITS = {"train", "validation", "test"}
# With what a whole file of a format ends.
_ENDINGS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}
# Files of all directories opened, for `find_unreadable`.
_opened = []
# Files that are looked at side by side.
_THREADS = 16
# Images that shuffling holds, encoded, in memory.
SHUFFLE_BUFFER = 10_000
_FOLDER_SPLIT = re.compile(r"(\w+)(?:\[(\d+%)?:(\d+%)?\])?")


def open_dataset(name, split, data_dir=None, skip_unreadable=False):
    """Opens one split of a data set.

    Args:
        name: a TFDS name such as `kinv_scenes/32` or `cifar10`, prepared on
            first use; or a directory. A directory holds one sub-folder of
            images per class, either in a sub-folder per split (`train`,
            `validation`, `test`; the classes are those of `train`) or at once.
            In the latter case its one
            split, `train`, is in an arbitrary but fixed order; `train[:80%]`
            and `train[80%:]` part it, and `validation` is short for the last
            tenth where `train` is then the rest.
        split: TFDS split syntax, such as `train` or `test[:1000]`; of
            directories, a name with or without percent borders.
        data_dir: where TFDS keeps its data. Defaults to TFDS's own place.
        skip_unreadable: leave out image files of a directory that cannot be
            read, and count them in `num_skipped`. This decodes each of them
            once; without, a look at its first and last bytes has to do, and a
            file that is damaged between them stops the stream that reaches it,
            with its name.

    Returns:
        `Source`.

    Raises:
        errors.InputError: if there is no such data set or split, if it has no
            images or labels, or if an image cannot be read.
    """
    if pathlib.Path(name).is_dir():
        return _open_directory(pathlib.Path(name), split, skip_unreadable)
    return _open_tfds(name, split, data_dir)


def imagenet_class_names():
    """ImageNet's 1000 classes as WordNet numbers, as classifiers order them.

    Those that TensorFlow Datasets carries for `imagenet2012`. The classes of
    its `imagenet_resized` are in another order.
    """
    builder = tfds.builder_cls("imagenet2012")
    path = pathlib.Path(inspect.getfile(builder)).parent / "labels.txt"
    return path.read_text().split()


class Source:
    """Images and labels of one split, read as a stream in constant memory.

    Args:
        examples: `tf.data.Dataset` of dicts of encoded `image`, `label` and
            factors, in a fixed order.
        decode: maps the encoded image to uint8 `(height, width, channels)`.
        class_names: list of str, by label.
        num_examples: number of examples.
        factor_names: names of the scalars that are known of each image.
        num_skipped: number of unreadable files that were left out.
        identity: function without arguments to a str that changes when the
            examples do.
    """

    def __init__(
        self,
        examples,
        decode,
        class_names,
        num_examples,
        factor_names=(),
        num_skipped=0,
        identity=None,
    ):
        self.examples = examples
        self.decode = decode
        self.class_names = list(class_names)
        self.num_examples = num_examples
        self.factor_names = list(factor_names)
        self.num_skipped = num_skipped
        self.identity = identity

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
            image_size, 3)` in [0, 255] and int64 labels `(batch_size,)`;
            float32 logits `(batch_size, num_classes)` as well where the
            examples have them.
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
            elements = (image, example["label"])
            if "logits" in example:
                return *elements, example["logits"]
            return elements

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
    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    image = tf.cast(image, tf.float32)
    # A bilinear resize to the size an image has already changes nothing.
    image = tf.cond(
        side == image_size,
        lambda: image,
        lambda: tf.image.resize(image, (image_size,) * 2, antialias=True),
    )
    image = tf.cond(
        shape[2] == 1, lambda: tf.repeat(image, 3, 2), lambda: image[..., :3]
    )
    return tf.ensure_shape(
        tf.clip_by_value(image, 0.0, 255.0), (image_size, image_size, 3)
    )


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


def _open_tfds(name, split, data_dir):
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # TFDS has an exception of its own for each way a name can be wrong.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            "Expected a directory, or a name of TensorFlow Datasets such as "
            f"kinv_scenes/32 or cifar10. Received: {name} ({reason})."
        ) from error
    for feature in ("image", "label"):
        if feature not in builder.info.features:
            raise errors.InputError(
                f"Expected a data set of labelled images. Received: {name}, "
                f"which has no feature {feature!r} but "
                f"{', '.join(builder.info.features)}."
            )
    try:
        builder.download_and_prepare()
    except errors.InputError:
        raise
    # Downloads fail in as many ways as there are hosts.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected to download or prepare {name}. Received: {reason} "
            "Check the network and the free disk space, or name --data-dir."
        ) from error
    try:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (KeyError, ValueError, AssertionError) as error:
        raise errors.InputError(
            f"Expected a split of {name}: {', '.join(builder.info.splits)}, or "
            f"a part such as train[:90%]. Received: {split}."
        ) from error
    num_examples = int(examples.cardinality())
    if not num_examples:
        raise errors.InputError(
            f"Expected images in split {split} of {name}. Received: none."
        )
    features = builder.info.features
    factors = [
        key
        for key, feature in features.items()
        if key not in ("image", "label")
        and feature.shape == ()
        and feature.np_dtype in (np.int64, np.float32)
    ]
    names = features["label"].names
    return Source(
        examples.map(functools.partial(_keep, ("image", "label", *factors))),
        features["image"].decode_example,
        names,
        num_examples,
        factors,
        identity=lambda: f"{builder.info.full_name} {split}",
    )


def _keep(names, example):
    return {name: example[name] for name in names}


def _open_directory(directory, split, skip_unreadable):
    match = _FOLDER_SPLIT.fullmatch(split)
    if match is None:
        raise errors.InputError(
            "Expected the split of a directory to be a name or a part such as "
            f"train[:80%]. Received: {split}."
        )
    name, *borders = match.groups()
    first, last = (
        int(border[:-1]) if border else default
        for border, default in zip(borders, (0, 100), strict=True)
    )
    root = directory
    splits = _sub_folders(directory)
    # A class may be called train.
    has_splits = "train" in splits and (
        _SPLITS.issuperset(splits) or _sub_folders(directory / "train")
    )
    if has_splits:
        root = directory / name
    elif name == "validation" and borders == [None, None]:
        first = 90
    elif name == "train" and borders == [None, None]:
        last = 90
    elif name != "train":
        root = directory / name
    if not root.is_dir():
        raise errors.InputError(
            f"Expected {directory} to have a sub-folder {name} for that split. "
            "Received: none. Without sub-folders per split, the splits are "
            "train, validation and parts such as train[:80%]."
        )
    found = _sub_folders(root)
    if not found:
        raise errors.InputError(
            f"Expected one sub-folder of images per class in {root}. "
            "Received: no sub-folder."
        )
    # A class that another split lacks keeps its number.
    class_names = _sub_folders(directory / "train") if has_splits else found
    if unknown := sorted(set(found).difference(class_names)):
        raise errors.InputError(
            f"Expected the classes of {directory / 'train'} in {root}. "
            f"Received: {', '.join(unknown)} as well."
        )
    paths, labels = [], []
    for label, class_name in enumerate(class_names):
        for path in sorted((root / class_name).rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                paths.append(path)
                labels.append(label)
    order = np.random.default_rng(0).permutation(len(paths))
    order = order[len(order) * first // 100 : len(order) * last // 100]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(
            lambda index: _damage(paths[index], decode=skip_unreadable), order
        )
        readable = []
        for index, reason in zip(order, reasons, strict=True):
            if reason is None:
                readable.append(index)
            elif not skip_unreadable:
                pool.shutdown(cancel_futures=True)
                raise _unreadable(paths[index], reason)
    if not readable:
        raise errors.InputError(
            f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in the sub-folders "
            f"of {root}. Received: none that can be read in split {split}."
        )
    _opened.extend(paths[i] for i in readable)
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "image": [str(paths[i]) for i in readable],
            "label": np.array([labels[i] for i in readable], "int64"),
        }
    )
    return Source(
        examples,
        _decode_file,
        class_names,
        len(readable),
        num_skipped=len(order) - len(readable),
        identity=lambda: _digest(root, [paths[i] for i in readable]),
    )


def _sub_folders(directory):
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _digest(root, paths):
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        place = path.relative_to(root)
        digest.update(
            f"{place} {status.st_size} {status.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def find_unreadable():
    """Looks for what made a stream of a directory fail, which does not say.

    Returns:
        `errors.InputError` that names the first image file that cannot be
        decoded, of the directories opened by this process; None if all can.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda path: _damage(path, decode=True), _opened)
        for path, reason in zip(_opened, reasons, strict=True):
            if reason is not None:
                pool.shutdown(cancel_futures=True)
                return _unreadable(path, reason)
    return None


def _damage(path, decode):
    """Why an image file cannot be read, or None.

    Args:
        path: of the file.
        decode: whether to decode it. Otherwise only files without the usual
            ending are decoded, such as those that were cut off.
    """
    try:
        with Image.open(path) as image:
            if image.format not in _FORMATS:
                return f"its format is {image.format}"
            ending = _ENDINGS.get(image.format)
            if decode or not ending or not _ends_with(path, ending):
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)
    return None


def _ends_with(path, ending):
    with open(path, "rb") as file:
        file.seek(-min(len(ending), path.stat().st_size), os.SEEK_END)
        return file.read() == ending


def _unreadable(path, reason):
    return errors.InputError(
        f"Expected an image that can be read. Received: {path}: {reason}. "
        "Remove it, or use --skip-unreadable."
    )


def _decode_file(path):
    image = tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
    return tf.ensure_shape(image, (None, None, None))
