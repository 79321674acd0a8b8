"""Image data sets: of TensorFlow Datasets by name, a folder, or arrays."""

import functools
import hashlib
import io
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from kinv import cli, errors, files, images, runs
from kinv.data import arrays, folders
from kinv.data import scenes as _scenes  # noqa: F401 (registers kinv_scenes)
from kinv.data.source import Source


def open_dataset(name, split, skip_unreadable=False):
    """Opens one split of a data set.

    Args:
        name: a TFDS name such as `kinv_scenes/32` or `cifar10`, prepared on
            first use; a directory of images; or a file of arrays, `.npz` or
            IDX, as of `arrays.open_arrays`, or the folder of the latter. A
            directory may have a sub-folder per split (`train`, `validation`,
            `test`), and there, or at once, a sub-folder per class (the classes
            are those of `train`). Images that lie in no sub-folders have no
            labels. Without sub-folders per split its one split, `train`, is in
            an arbitrary but fixed order; `train[:80%]` and `train[80%:]` part
            it, and `validation` is short for the last tenth where `train` is
            then the rest.
        split: TFDS split syntax, such as `train` or `test[:1000]`; of
            directories and files, a name with or without percent borders.
        skip_unreadable: leave out image files of a directory that cannot be
            read, and count them in `num_skipped`. This decodes each of them
            once; without, a look at its first and last bytes has to do, and a
            file that is damaged between them stops the stream that reaches it,
            with its name.

    Returns:
        `Source`.

    Raises:
        errors.InputError: if there is no such data set or split, if it has no
            images, or if an image cannot be read.
    """
    path = files.named(name, "a data set")
    # MNIST's and its like, as they are downloaded.
    files_of_digits = filter(
        pathlib.Path.is_file, sorted(path.glob("train-images*idx3*"))
    )
    path = next(files_of_digits, path)
    if path.is_dir():
        return folders.open_folder(path, split, skip_unreadable)
    if path.is_file():
        return arrays.open_arrays(path, split)
    return _open_tfds(name, split)


def open_splits(options, recorded):
    """Opens what a run trains and is measured on; prints what is left out.

    Args:
        options: dict of the run's options: `dataset`, `train_split`,
            `validation_split` and `skip_unreadable`.
        recorded: dict of its `config.json`; empty or None of a new run.

    Returns:
        Two `Source`, and what is recorded of them.

    Raises:
        errors.InputError: as `open_dataset`, or because images are not what is
            recorded.
    """
    names = "train_split", "validation_split"
    source, validation = (
        open_dataset(
            options["dataset"],
            options[split],
            options.get("skip_unreadable", False),
        )
        for split in names
    )
    cli.print_left_out(source, validation)
    if folders.may_overlap(source.place, validation.place):
        print(
            "held-out images may be training images, so measurements of them "
            "may be too good: "
            f"{' and '.join(options[name] for name in names)} overlap, or may; "
            "percentages such as train[:80%] and train[80%:] do not"
        )
    data = {"train": source.describe(), "validation": validation.describe()}
    runs.check_data(recorded or {}, data, options["dataset"])
    return source, validation, data


def _open_tfds(name, split):
    builder, decode = _prepared(name)
    features = builder.info.features
    try:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (
        KeyError,
        ValueError,
        AssertionError,
        NotImplementedError,
    ) as error:
        raise errors.NoSplitError(
            f"Expected a split of {name}: {', '.join(builder.info.splits)}, or "
            f"a part such as train[:90%]. Received: {split}."
        ) from error
    num_examples = int(examples.cardinality())
    if not num_examples:
        raise errors.EmptySplitError(
            f"Expected images in split {split} of {name}. Received: none."
        )
    factors = [
        key
        for key, feature in features.items()
        if key not in ("image", "label")
        and feature.shape == ()
        and feature.np_dtype in (np.int64, np.float32)
    ]
    names, unlabelled = _class_names(name, features)
    return Source(
        examples.map(functools.partial(_keep, factors, bool(names))),
        decode,
        names,
        num_examples,
        factors,
        identity=lambda: hashlib.sha256(
            f"{builder.info.full_name} {split} {num_examples}".encode()
        ).hexdigest(),
        unlabelled=unlabelled,
        grey=features["image"].shape[-1] == 1,
        place=(builder.info.full_name, split),
    )


def _prepared(name):
    """The builder of a data set that is on disk, and its images' decoder."""
    try:
        builder = tfds.builder(name)
    # TFDS has an exception of its own for each way a name can be wrong.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            "Expected a folder or a file of images, or a name of TensorFlow "
            f"Datasets such as kinv_scenes/32 or cifar10. Received: {name}, "
            f"which is neither ({reason}). Paths count from the directory in "
            "which the tool runs; a run's, from where it was trained."
        ) from error
    features = builder.info.features
    if "image" not in features:
        raise errors.InputError(
            f"Expected a data set of images. Received: {name}, which has no "
            f"feature 'image' but {', '.join(features)}."
        )
    decode = _decoder(name, features["image"])
    try:
        builder.download_and_prepare()
    except errors.InputError:
        raise
    # Another process has just done it.
    except FileExistsError:
        return tfds.builder(name), decode
    # Downloads fail in as many ways as there are hosts.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected to download or prepare {name}. Received: {reason}. "
            "Check the network and the free disk space, or name another "
            "folder: TFDS_DATA_DIR=/path/to/folder."
        ) from error
    return builder, decode


def _class_names(name, features):
    """Names of a prepared data set's classes, or none and the reason."""
    if "label" not in features:
        return [], f"{name} has no feature 'label' but {', '.join(features)}"
    label = features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        kind = type(label).__name__
        return [], f"the 'label' of {name} is a {kind}, not a ClassLabel"
    return label.names, ""


def _decoder(name, feature):
    """Function of an encoded image to its pixels, of 8 bits."""
    dtype, shape = np.dtype(feature.np_dtype), feature.shape
    is_image = isinstance(feature, tfds.features.Image)
    depths = (np.uint8, np.uint16) if is_image else (np.uint8,)
    if dtype not in depths or len(shape) != 3:
        raise errors.InputError(
            "Expected images (height, width, channels) of 8 or 16 bits in "
            f"{name}. Received: {dtype} of shape {shape}, of which nothing "
            "says what is black and white. Prepare them as uint8."
        )
    if not is_image:
        return feature.decode_example

    def decode(encoded):
        image = feature.decode_example(encoded)
        if dtype == np.uint16:
            image = tf.round(tf.cast(image, tf.float32) / 257.0)
        return tf.cast(image, tf.uint8)

    def decode_upright(encoded):
        # Where cameras write EXIF: first, or behind JFIF's header.
        exif = [tf.strings.substr(encoded, at, 4) == b"Exif" for at in (6, 24)]
        image = tf.cond(
            tf.reduce_any(exif),
            lambda: tf.numpy_function(_decode_bytes, [encoded], tf.uint8),
            lambda: decode(encoded),
        )
        return tf.ensure_shape(image, (None, None, None))

    # PNG has no EXIF there.
    upright = dtype == np.uint16 or feature.encoding_format == "png"
    return decode if upright else decode_upright


def _decode_bytes(encoded):
    return images.decode(io.BytesIO(encoded))


def _keep(factors, has_labels, example):
    label = example["label"] if has_labels else tf.constant(-1, tf.int64)
    kept = {name: example[name] for name in factors}
    return {"image": example["image"], "label": label, **kept}
