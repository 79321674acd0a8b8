"""Folders of images as data sets."""

import concurrent.futures
import hashlib
import os
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from kinv import errors
from kinv.data.source import Source

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
_FOLDER_SPLIT = re.compile(r"(\w+)(?:\[(\d+%)?:(\d+%)?\])?")


def open_folder(directory, split, skip_unreadable):
    """Opens a split of a folder, as `datasets.open_dataset` describes."""
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
        digest.update(os.fsencode(path.relative_to(root)))
        digest.update(b" %d\n" % path.stat().st_size)
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
