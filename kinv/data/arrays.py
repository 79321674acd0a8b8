"""Arrays of images in a file as data sets: .npz and IDX (MNIST's format)."""

import functools
import gzip
import hashlib
import pathlib
import re
import struct
import zipfile

import numpy as np

from kinv import errors, files
from kinv.data import folders
from kinv.data.source import in_memory

# Larger labels are no classes' numbers.
MOST_CLASSES = 100_000
# Bytes of values (code 8) in three dimensions, and in one.
_IDX_IMAGES, _IDX_LABELS = b"\0\0\x08\x03", b"\0\0\x08\x01"


def open_arrays(path, split):
    """Opens a split of the images of a file, which are kept in memory.

    Args:
        path: a `.npz` with images `x` and labels `y`, or, of several splits,
            `x_train`, `y_train`, `x_test` and so on, as Keras keeps its data
            sets; or an IDX file of images such as `train-images-idx3-ubyte.gz`,
            beside which that of the labels is looked for, and for other splits
            that whose name begins with `t10k` or the split's name. Labels may
            be missing. Images are `(number, height, width)` or `(number,
            height, width, channels)`, uint8 or uint16; labels are integers.
        split: as of `datasets.open_dataset`.

    Returns:
        `source.Source`; the names of its classes are their numbers.

    Raises:
        errors.InputError: if the file is another, is damaged, or lacks the
            split.
    """
    name, borders = folders.parse_split(split, path)
    images, labels, whole, highest = _read(path, name)
    images = _check_images(path, images)
    class_names, labels, unlabelled = _check_labels(
        path, labels, len(images), highest
    )
    if whole:
        borders = folders.without_splits(name, borders)
        if borders is None:
            known = "train, validation or a part such as train[:80%]"
            raise _no_split(path, known, split)
    borders = borders or (0, 100)
    order = folders.part(len(images), borders)
    if not len(order):
        raise errors.EmptySplitError(
            f"Expected images in split {split} of {path}. Received: none."
        )
    images, labels = images[order], labels[order]
    return in_memory(
        images,
        labels,
        class_names,
        identity=functools.cache(lambda: _digest(images, labels)),
        unlabelled=unlabelled,
        grey=images.shape[3] == 1,
        place=(f"{path.resolve()}, {'all' if whole else name}", borders),
        name_of=lambda number: f"image {order[number]}",
    )


def _read(path, name):
    """As `_read_npz` or `_read_idx`, whichever the file is."""
    try:
        read = _read_npz if zipfile.is_zipfile(path) else _read_idx
        return read(path, name)
    except errors.NoSplitError:
        raise
    except files.DAMAGED as e:
        raise errors.InputError(
            "Expected a TFDS name, a folder of images, a .npz with images x "
            "and labels y, or an IDX file of images. Received: "
            f"{path} ({errors.reason(e)})."
        ) from None


def _digest(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _no_split(path, known, split):
    return errors.NoSplitError(
        f"Expected a split of {path}: {known}. Received: {split}. Name one of "
        "them with --train-split, --validation-split or --split."
    )


def _read_npz(path, split):
    """Images, labels or None, whether the file has no splits, highest label."""
    with np.load(path, allow_pickle=False) as arrays:
        whole = "x" in arrays
        suffix = "" if whole else f"_{split}"
        if f"x{suffix}" not in arrays:
            splits = [key[2:] for key in arrays if key.startswith("x_")]
            if splits:
                raise _no_split(path, ", ".join(splits), split)
            raise ValueError(f"no array x but {', '.join(arrays) or 'none'}")
        # A split may lack the last class. Other arrays are not labels.
        names = ("y" + key[1:] for key in arrays if re.match("x(_|$)", key))
        of_all = [arrays[name] for name in names if name in arrays]
        highest = max(
            (y.max() for y in of_all if y.size and y.dtype.kind in "iu"),
            default=-1,
        )
        labels = arrays.get(f"y{suffix}")
        return arrays[f"x{suffix}"], labels, whole, int(highest)


def _read_idx(path, split):
    labels = training_labels = _idx_labels(path)
    whole = split in ("train", "validation")
    if not whole:
        starts = ("t10k", split) if split == "test" else (split,)
        others = [
            _existing(path.with_name(start + path.name[len("train") :]))
            for start in starts
            if path.name.startswith("train")
        ]
        found = next(filter(None, others), None)
        if found is None:
            raise _no_split(path, "train, validation", split)
        path = found
        labels = _idx_labels(path)
    highest = -1
    # A split may lack the last class, which the training images have.
    if training_labels is not None and training_labels.size:
        highest = int(training_labels.max())
    return _idx(path, _IDX_IMAGES), labels, whole, highest


def _idx_labels(path):
    """The labels of a file of images; None without those beside it."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    beside = name != path.name and _existing(path.with_name(name))
    return _idx(beside, _IDX_LABELS) if beside else None


def _existing(path):
    """The file at a path, or its packed or unpacked form; None without."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    packed = path.with_name(f"{plain.name}.gz")
    return next((x for x in (path, plain, packed) if x.is_file()), None)


def _idx(path, magic):
    content = pathlib.Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if content[:4] != magic:
        npy = content.startswith(np.lib.format.MAGIC_PREFIX)
        way = "; numpy.savez('images.npz', x=images) saves an array" * npy
        raise ValueError(f"{path.name} does not begin as one{way}")
    dimensions = magic[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    return np.frombuffer(content, "uint8", offset=start).reshape(shape)


def _check_images(path, images):
    """The images as uint8 `(number, height, width, channels)`."""
    if images.ndim == 3 and images.shape[2] in (1, 3, 4):
        raise errors.InputError(
            f"Expected images (number, height, width, channels) in {path}. "
            f"Received: one of {images.shape}. Save several."
        )
    if images.ndim == 3:
        images = images[..., None]
    wrong_type = images.dtype not in (np.uint8, np.uint16)
    if (
        wrong_type
        or images.ndim != 4
        or images.shape[3] not in (1, 2, 3, 4)
        or not images.size
    ):
        raise errors.InputError(
            "Expected images (number, height, width, channels) of 8 or 16 bits "
            f"in {path}. Received: {images.dtype} {images.shape}. "
            + (
                "Save them as uint8, 0 black and 255 white."
                if wrong_type
                else "Save some of that shape, channels last."
            )
        )
    if images.dtype == np.uint16:
        if images.max() <= 255:
            raise errors.InputError(
                f"Expected images of 16 bits in {path}, 0 black and 65,535 "
                f"white. Received: values up to {images.max()}. Save them as "
                "uint8."
            )
        images = ((images.astype("uint32") + 128) // 257).astype("uint8")
    return images


def _check_labels(path, labels, count, highest):
    """Class names, int64 labels, and why there are none, if so."""
    none = np.full(count, -1)
    if labels is None:
        return [], none, f"{path} comes without any"
    labels = np.squeeze(labels, -1) if labels.shape == (count, 1) else labels
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        return (
            [],
            none,
            f"those of {path} are {labels.dtype} {labels.shape}, not one "
            "integer for each image",
        )
    labels = np.maximum(labels.astype("int64"), -1)
    if labels.max() < 0:
        return [], none, f"those of {path} are negative"
    num_classes = max(int(labels.max()), highest) + 1
    if num_classes > MOST_CLASSES:
        return [], none, f"those of {path} go up to {num_classes - 1:,}"
    return [str(number) for number in range(num_classes)], labels, ""
