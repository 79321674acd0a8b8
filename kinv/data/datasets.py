"""Image data sets: from TensorFlow Datasets by name, or a folder of images."""

import functools
import hashlib
import inspect
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from kinv import errors
from kinv.data import folders
from kinv.data import scenes as _scenes  # noqa: F401 (registers kinv_scenes)
from kinv.data.source import Source


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
        return folders.open_folder(pathlib.Path(name), split, skip_unreadable)
    return _open_tfds(name, split, data_dir)


def imagenet_class_names():
    """ImageNet's 1000 classes as WordNet numbers, as classifiers order them.

    Those that TensorFlow Datasets carries for `imagenet2012`. The classes of
    its `imagenet_resized` are in another order.
    """
    builder = tfds.builder_cls("imagenet2012")
    path = pathlib.Path(inspect.getfile(builder)).parent / "labels.txt"
    return path.read_text().split()


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
        identity=lambda: hashlib.sha256(
            f"{builder.info.full_name} {split} {num_examples}".encode()
        ).hexdigest(),
    )


def _keep(names, example):
    return {name: example[name] for name in names}
