"""Which images models are compared on, and by which names of classes."""

import os
import pathlib

from kinv import errors, runs
from kinv.data import folders, labels


def open_held_out(open_split, split, metadata, dataset):
    """Opens the split to analyse: the one named, else what is held out.

    That is `test`, or what the model has not been trained on.

    Args:
        open_split: function of the name of a split.
        split: name, or None.
        metadata: `kinv.json` of the model, which names the split that it was
            measured on, of its own data.
        dataset: name of the data set that is analysed.

    Returns:
        What `open_split` does, and the name.
    """
    if split:
        return open_split(split), split
    try:
        return open_split("test"), "test"
    except errors.NoSplitError:
        split = "validation"
        if is_same(metadata.get("dataset"), dataset):
            trained = metadata.get("training", {})
            split = trained.get("validation_split") or split
        return open_split(split), split


def is_same(trained, dataset):
    """Whether a model's data set may be the one that is analysed.

    An export keeps of an absolute path the last part alone, and a relative one
    depends on where the tool runs: of files and folders the last parts count.
    """
    if trained == dataset:
        return True
    parts = [pathlib.PurePath(str(name)).name for name in (trained, dataset)]
    is_path = os.path.isabs(dataset) or os.path.exists(dataset)
    return is_path and parts[0] == parts[1]


def check_data(metadata, open_split, dataset):
    """Raises `InputError` where images are others than a model was made of.

    Of a folder that has no more than its last name in common with the model's,
    which is all that an export keeps of it, this is only printed.

    Args:
        metadata: the model's `kinv.json`.
        open_split: function of the name of a split of the data set that is
            analysed to a `data.source.Source`. The split that the model was
            measured on tells, whichever one is analysed.
        dataset: its name.
    """
    trained = metadata.get("dataset")
    split = metadata.get("training", {}).get("validation_split")
    if split is None or not is_same(trained, dataset):
        return
    try:
        described = {"validation": open_split(split).describe()}
        runs.check_data(metadata, described, dataset)
    except errors.InputError as error:
        if trained == dataset:
            raise
        print(f"taken for another data set than the model's. {error}")


def may_be_trained_on(metadata, open_split, dataset, split):
    """Warns where a model may have been trained on images that are analysed.

    Args:
        metadata: the model's `kinv.json`.
        open_split: as of `check_data`.
        dataset: name of the data set that is analysed.
        split: its split that is analysed.

    Returns:
        A sentence without its subject, the model; empty if it cannot be so.
    """
    trained = metadata.get("training", {}).get("train_split")
    if trained is None or not is_same(metadata.get("dataset"), dataset):
        return ""
    try:
        places = [open_split(name).place for name in (split, trained)]
    # Another data set, as `check_data` says.
    except errors.InputError:
        return ""
    if not folders.may_overlap(*places):
        return ""
    return (
        f"was trained on {trained}, which may share images with {split}: what "
        "is measured of them may be too good"
    )


def common_names(models):
    """Class names of models that know them; None where they differ."""
    num_classes, *others = {model.num_classes for model in models}
    if others:
        return None
    unknown = labels.placeholders(num_classes)
    known = [m.class_names for m in models if m.class_names != unknown]
    if any(names != known[0] for names in known):
        return None
    return known[0] if known else unknown
