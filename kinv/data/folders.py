"""Folders of images as data sets."""

import collections
import concurrent.futures
import functools
import hashlib
import os
import pathlib
import re

import numpy as np
import tensorflow as tf

from kinv import errors, files, images
from kinv.data.source import Source

_SPLITS = {"train", "validation", "test"}
# What others call them. Of these, classes may have the names as well.
_DOUBTFUL = {"training", "val", "valid", "dev", "testing", "eval", "holdout"}
# With what a whole file of a format ends.
_ENDINGS = {
    b"\x89PNG": b"IEND\xaeB`\x82",
    b"\xff\xd8": b"\xff\xd9",
    b"GIF8": b";",
}
# Files of all directories opened, for `find_unreadable`.
_opened = []
# Files that are looked at side by side.
_THREADS = 16
_SPLIT = re.compile(r"(\w[\w-]*)(?:\[(\d+%)?:(\d+%)?\])?")


def open_folder(directory, split, skip_unreadable):
    """Opens a split of a folder, as `datasets.open_dataset` describes."""
    name, borders = parse_split(split, directory)
    root, borders, beside = _find_root(directory, name, borders)
    paths, left_out = images.find_images(root)
    left_out.update(beside)
    class_names, labels, unlabelled = _find_classes(directory, root, paths)
    order = part(len(paths), borders)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        looks = pool.map(
            lambda index: _look(paths[index], decode=skip_unreadable), order
        )
        readable, plain = [], []
        for index, (is_plain, error) in zip(order, looks, strict=True):
            if error is None:
                readable.append(index)
                plain.append(is_plain)
            elif not skip_unreadable:
                pool.shutdown(cancel_futures=True)
                raise images.or_skip(error)
    if not readable:
        kind = errors.InputError if len(order) else errors.EmptySplitError
        raise kind(
            f"Expected images ({', '.join(images.SUFFIXES)}) in {root}. "
            f"Received: none that can be read in split {split}"
            f"{images.describe_left_out(left_out, ', but ')}."
        )
    _opened.extend((paths[i], p) for i, p in zip(readable, plain, strict=True))
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "image": {
                # Bytes: names need not be text.
                "path": [os.fsencode(paths[i]) for i in readable],
                "plain": plain,
            },
            "label": np.array([labels[i] for i in readable], "int64"),
        }
    )
    return Source(
        examples,
        _decode_plain if all(plain) else _decode_file,
        class_names,
        len(readable),
        num_skipped=len(order) - len(readable),
        identity=functools.cache(
            lambda: _digest(root, [paths[i] for i in readable])
        ),
        unlabelled=unlabelled,
        left_out=images.describe_left_out(left_out, f"left out of {root}: "),
        place=(os.path.realpath(root), borders),
        name_of=lambda number: files.printable(
            paths[readable[number]].relative_to(root)
        ),
    )


def parse_split(split, name):
    """Parts the split of a folder or file into its name and percentages.

    Returns:
        The name, and (first, last) in percent, None where it has none.
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise errors.InputError(
            f"Expected the split of {name} to be a name or a part such as "
            f"train[:80%]. Received: {split}."
        )
    name, *borders = match.groups()
    if "[" not in split:
        return name, None
    first, last = (int(border[:-1]) if border else None for border in borders)
    return name, (first or 0, 100 if last is None else last)


def may_overlap(place, other_place):
    """Whether two `Source.place` may have images in common.

    Splits of other names never have, but for TFDS's `all`. Where the numbers of
    images in them are not known, parts of one are told apart by percentages
    alone.
    """
    if None in (place, other_place) or place[0] != other_place[0]:
        return False
    split, other = place[1], other_place[1]
    if isinstance(split, tuple):
        return max(split[0], other[0]) < min(split[1], other[1])
    names, other_names = (
        {part.strip().partition("[")[0] for part in text.split("+")}
        for text in (split, other)
    )
    if not names & other_names:
        return "all" in names | other_names
    try:
        (first, last), (other_first, other_last) = (
            parse_split(text, text)[1] or (0, 100) for text in (split, other)
        )
    except errors.InputError:
        # Numbers of images, or sums of splits.
        return True
    return max(first, other_first) < min(last, other_last)


def part(count, borders):
    """Numbers of the examples of a part, in an arbitrary but fixed order."""
    first, last = borders
    order = np.random.default_rng(0).permutation(count)
    return order[count * first // 100 : count * last // 100]


def without_splits(name, borders):
    """Percentages of a split where one place holds all; None if it has none."""
    if name == "train":
        return borders or (0, 90)
    if name == "validation" and borders is None:
        return (90, 100)
    return None


def _find_root(directory, name, borders):
    """The folder of a split, its percentages, and what lies beside it."""
    folders = _sub_folders(directory)
    beside = collections.Counter()
    # A class may be called train.
    has_splits = _has_splits(directory, folders)
    like_splits = [
        folder for folder in folders if folder.lower() in _SPLITS | _DOUBTFUL
    ]
    if has_splits:
        for folder in sorted(set(folders).difference(like_splits)):
            found, _ = images.find_images(directory / folder)
            beside[f"in {files.printable(folder)}/, no split"] += len(found)
    elif name == "train" or (name == "validation" and name not in folders):
        _refuse_doubtful(directory, like_splits)
        if (whole := without_splits(name, borders)) is not None:
            return directory, whole, beside
    if name not in folders:
        received = ", ".join(folders) or "none"
        raise errors.NoSplitError(
            f"Expected {directory} to have a sub-folder {name} for that split. "
            f"Received: {received}. Name one of them with --train-split, "
            "--validation-split or --split; without sub-folders per split, the "
            "splits are train, validation and parts such as train[:80%]."
        )
    return directory / name, borders or (0, 100), beside


def _has_splits(directory, folders):
    only_splits = (_SPLITS | _DOUBTFUL).issuperset(folders)
    return "train" in folders and (
        only_splits or bool(_sub_folders(directory / "train"))
    )


def _refuse_doubtful(directory, like_splits):
    deep = any(_sub_folders(directory / folder) for folder in like_splits)
    # Beside images or classes, those would be trained on, too.
    held_out = {folder.lower() for folder in like_splits} & (
        _SPLITS - {"train"}
    )
    beside_images = like_splits and any(
        path.name.lower().endswith(images.SUFFIXES)
        for path in directory.iterdir()
    )
    if len(like_splits) > 1 or deep or held_out or beside_images:
        names = " and ".join(f"{folder}/" for folder in like_splits)
        way_out = "Rename or move"
        for folder in like_splits:
            # `train` is what is asked for where nothing is named.
            if folder.lower().startswith("tr") and folder != "train":
                way_out = f"Name the split, --train-split {folder}, or rename"
        raise errors.InputError(
            f"Expected classes in {directory}, or its splits in train/, "
            f"validation/ and test/. Received: {names}, which may be either. "
            f"{way_out} the folders."
        )


def _find_classes(directory, root, paths):
    """Class names, the label of each path, and why there are none, if so."""
    no_labels = [-1] * len(paths)
    folders = _sub_folders(root)
    depth = len(root.parts)
    tops = [path.parts[depth:] for path in paths]
    direct = [parts[0] for parts in tops if len(parts) == 1]
    if not folders:
        return [], no_labels, f"{root} has no sub-folder per class"
    if direct:
        return (
            [],
            no_labels,
            f"{len(direct):,} images, such as {files.printable(direct[0])}, "
            f"lie beside the sub-folders of {root}",
        )
    # A class that another split lacks keeps its number.
    classes = folders
    if root != directory and _has_splits(directory, _sub_folders(directory)):
        classes = _sub_folders(directory / "train")
    if unknown := sorted(set(folders).difference(classes)):
        raise errors.InputError(
            f"Expected the classes of {directory / 'train'} in {root}. "
            f"Received: {', '.join(unknown)} as well."
        )
    if empty := sorted(set(folders).difference(parts[0] for parts in tops)):
        raise errors.InputError(
            f"Expected images in each sub-folder of {root}. Received: "
            f"{', '.join(empty)} without any. Remove folders that are no "
            "classes."
        )
    numbers = {folder: number for number, folder in enumerate(classes)}
    names = [files.printable(folder) for folder in classes]
    return names, [numbers[parts[0]] for parts in tops], ""


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


def read_licence(directory):
    """What a folder of images, or of a classifier, says of its licence.

    Args:
        directory: the folder; or anything else that a data set or classifier
            may be called.

    Returns:
        The text of its file `LICENSE` or `LICENCE`, `.md`, `.txt` or plain;
        None if it has none.

    Raises:
        errors.InputError: if the file is no text.
    """
    for path in sorted(pathlib.Path(directory).glob("LICEN[CS]E*")):
        if path.suffix not in ("", ".md", ".txt") or not path.is_file():
            continue
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.InputError(
                "Expected a licence as UTF-8 text. Received: "
                f"{path} ({errors.reason(error)})."
            ) from None
    return None


def find_unreadable():
    """Looks for what made a stream of a directory fail, which does not say.

    Returns:
        `errors.InputError` that names the first image file that cannot be
        decoded, of the directories opened by this process; None if all can.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        looks = pool.map(lambda item: _decode_error(*item), _opened)
        for error in looks:
            if error is not None:
                pool.shutdown(cancel_futures=True)
                return images.or_skip(error)
    return None


def _look(path, decode):
    """Whether a file is plain, and the error of one that cannot be read.

    Args:
        path: of the file.
        decode: whether to decode it. Otherwise only files without the usual
            ending are decoded, such as those that were cut off.
    """
    try:
        plain = images.is_plain(path)
        whole = not decode and _is_whole(path)
    except errors.InputError as error:
        return False, error
    error = None if whole else _decode_error(path, plain)
    if error and plain:
        # Pillow puts up with more.
        plain, error = False, _decode_error(path, False)
    return plain, error


def _is_whole(path):
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(b"RIFF"):
            return int.from_bytes(start[4:], "little") + 8 <= size
        if start.startswith(b"BM"):
            return int.from_bytes(start[2:6], "little") <= size
        for beginning, ending in _ENDINGS.items():
            if start.startswith(beginning):
                file.seek(-min(len(ending), size), os.SEEK_END)
                return file.read() == ending
    return False


def _decode_error(path, plain):
    """Decodes a file as streams do; the error if that fails, else None."""
    try:
        if plain:
            _decode_plain({"path": os.fsencode(path)})
        else:
            images.decode(path)
    except errors.InputError as error:
        return error
    except tf.errors.OpError:
        reason = "which is missing. Put it back."
        if os.path.exists(path):
            reason = "which is damaged. Replace it."
        return errors.InputError(
            f"Expected an image file. Received: {path}, {reason}"
        )
    return None


def _decode_file(file):
    return tf.cond(
        file["plain"],
        lambda: _decode_plain(file),
        lambda: _decode_other(file["path"]),
    )


def _decode_plain(file):
    # Of PNG as well. Pillow's decoder of JPEG is the accurate one, too.
    return tf.io.decode_jpeg(
        tf.io.read_file(file["path"]), 3, dct_method="INTEGER_ACCURATE"
    )


def _decode_other(path):
    image = tf.numpy_function(_decode_with_pillow, [path], tf.uint8)
    return tf.ensure_shape(image, (None, None, 3))


def _decode_with_pillow(path):
    try:
        return images.decode(os.fsdecode(path))
    except errors.InputError as error:
        # TensorFlow passes on what is text.
        message = files.printable(str(images.or_skip(error)))
        raise errors.InputError(message) from None
