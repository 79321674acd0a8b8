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


def check_data(label, metadata, open_split, dataset, split):
    """Compares what is analysed with the data that a model was made of.

    Of the data set that it was trained on, other images than it was measured on
    are an error; of a folder that has no more than its last name in common,
    which is all that an export keeps of it, they are printed. So is a split
    that may share images with those that it was trained on.

    Args:
        label: of the model.
        metadata: its `kinv.json`.
        open_split: function of the name of a split of the data set that is
            analysed to a `data.source.Source`.
        dataset: its name.
        split: the split that is analysed.

    Raises:
        errors.InputError: if the images of the data set have changed.
    """
    name, training = metadata.get("dataset"), metadata.get("training", {})
    held_out, trained = (
        training.get(key) for key in ("validation_split", "train_split")
    )
    if held_out is None or not is_same(name, dataset):
        return
    try:
        # It tells, whichever split is analysed.
        described = {"validation": open_split(held_out).describe()}
        runs.check_data(metadata, described, dataset)
    except errors.InputError as error:
        if name == dataset:
            raise
        print(f"analysed as another data set than the model's: {error}")
        return
    if trained is None:
        return
    try:
        places = [open_split(part).place for part in (split, trained)]
    # They need not be there any more.
    except errors.InputError:
        return
    if folders.may_overlap(*places):
        print(
            f"{label} was trained on {trained}, which may share images with "
            f"{split}, so measurements may be too good"
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


def classifier_size(models, paths, told):
    """Height of the images that the classifiers take, at most.

    Args:
        models: dict of `pipeline.Pipeline` by label.
        paths: where they are, by label.
        told: what models on a server that does not tell theirs are given;
            None for nothing.

    Raises:
        errors.InputError: if such a model needs it.
    """
    for label, model in models.items():
        size = model.metadata.get("classifier_size", told)
        if size is None:
            raise errors.InputError(
                "Expected --classifier-size, the height of the images that "
                f"the classifier takes. Received: {paths[label]}, a model on "
                "a server that does not tell it. Look for classifier_size in "
                "the model's assets.extra/kinv.json."
            )
        model.metadata["classifier_size"] = size
    return max(model.metadata["classifier_size"] for model in models.values())
