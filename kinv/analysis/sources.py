"""Which images models are compared on, and by which names of classes."""

import os
import pathlib

from kinv import errors, runs
from kinv.data import labels


def open_held_out(open_split, split, own):
    """Opens the split to analyse: the one named, else what is held out.

    That is `test`, or what the model has not been trained on.

    Args:
        open_split: function of the name of a split.
        split: name, or None.
        own: the split that the model was measured on, of its own data, or None.

    Returns:
        What `open_split` does, and the name.
    """
    if split:
        return open_split(split), split
    try:
        return open_split("test"), "test"
    except errors.NoSplitError:
        split = own or "validation"
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


def check_data(metadata, source, dataset, split):
    """Raises `InputError` where images are others than a model was made of.

    Of a folder that has no more than its last name in common with the model's,
    which is all that an export keeps of it, this is only printed.

    Args:
        metadata: the model's `kinv.json`.
        source: `data.source.Source` to analyse.
        dataset: its name. Of the data set that the model was trained on the
            same split has the same images.
        split: its split.
    """
    trained = metadata.get("dataset")
    of_validation = metadata.get("training", {}).get("validation_split")
    if not is_same(trained, dataset) or split != of_validation:
        return
    try:
        runs.check_data(metadata, {"validation": source.describe()}, dataset)
    except errors.InputError as error:
        if trained == dataset:
            raise
        print(f"taken for another data set than the model's. {error}")


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
