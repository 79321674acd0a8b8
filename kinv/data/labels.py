"""Which of a classifier's classes the labels of a data set are."""

import collections
import inspect
import pathlib
import re

import tensorflow as tf
import tensorflow_datasets as tfds

from kinv import errors
from kinv.data import source as source_lib

# What a model is given for names where it has none.
_PLACEHOLDER = re.compile(r"class \d+")
_WORDNET = re.compile(r"(n\d{8})(?!\d)")


def placeholders(num_classes):
    """Names of classes that have none."""
    return [f"class {index}" for index in range(num_classes)]


def imagenet_class_names():
    """ImageNet's 1000 classes as WordNet numbers, as classifiers order them.

    Those that TensorFlow Datasets carries for `imagenet2012`. The classes of
    its `imagenet_resized` are in another order.
    """
    builder = tfds.builder_cls("imagenet2012")
    path = pathlib.Path(inspect.getfile(builder)).parent / "labels.txt"
    return path.read_text().split()


def match(source, class_names):
    """Labels the images of a data set with the classes of a classifier.

    * The names of both are known: they are matched, in whatever order, also
      where the data set has a part of the classifier's classes. Capitals,
      hyphens and underscores do not matter; WordNet numbers (`n01440764`) may
      be followed by a name.
    * The data set's are numbers from 0, or the classifier's are not known, and
      there are as many: the order of the data set is taken.
    * Otherwise labels are not used.

    Args:
        source: `source.Source`.
        class_names: the classifier's, by logit; `placeholders` where they are
            not known.

    Returns:
        The `Source`, its labels and `class_names` the classifier's, or without
        any; and one line that says which of the above it was.
    """
    own, unlabelled = source.class_names, source.unlabelled
    num_classes = len(class_names)
    if own:
        keys, numbers = [_key(name) for name in own], _numbers(class_names)
        named = not all(map(_PLACEHOLDER.fullmatch, class_names))
        numbered = own == [str(index) for index in range(len(own))]
        same = own == list(class_names)
        if same or (named and set(keys) <= set(numbers)):
            order = range(num_classes)
            chosen = order if same else [numbers[key] for key in keys]
            line = (
                f"labels: the data set's {len(own)} classes are found by name "
                f"among the classifier's {num_classes}"
            )
            return source.relabelled(class_names, chosen), line
        if len(own) == num_classes and (numbered or not named):
            whose = "data set's" if named else "classifier's"
            line = (
                f"labels: the {whose} {num_classes} classes have no names; the "
                "order is taken to be the same"
            )
            if all(map(str.isdecimal, own)) and own != sorted(own, key=int):
                line += (
                    f": {some(own)}, that of text, as Keras and PyTorch read "
                    "folders. If the classifier's is that of numbers, name a "
                    "file of these by --class-names"
                )
            return source.relabelled(class_names, range(num_classes)), line
        unlabelled = (
            f"the data set's {len(own)} classes ({some(own)}) are not among "
            f"the classifier's {num_classes} ({some(class_names)})"
        )
    without = source.relabelled([], [-1] * len(own), unlabelled)
    return without, f"labels: not used, since {unlabelled}"


def require(batches, name):
    """Batches of a `tf.data.Dataset`, which fail where a label is missing.

    Args:
        batches: of images and labels.
        name: of the data set, for the message.
    """

    def check(labels):
        if (labels < 0).any():
            raise errors.InputError(
                f"Expected a label for each image. Received: {name}, in which "
                f"{(labels < 0).sum()} of {len(labels)} images of a batch have "
                "the label -1. Name a split that is labelled."
            )
        return labels

    def checked(images, labels):
        known = tf.numpy_function(check, [labels], tf.int64)
        return images, tf.ensure_shape(known, labels.shape)

    return source_lib.in_background(batches.map(checked))


def some(names, count=3):
    """The first of some names, in one line."""
    names = list(names)
    more = ", ..." if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _key(name):
    if number := _WORDNET.match(name):
        return number[1]
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def _numbers(class_names):
    """Classes by key; -1 where several have the key, as ImageNet's cranes."""
    keys = [_key(name) for name in class_names]
    counts = collections.Counter(keys)
    numbers = {k: i if counts[k] == 1 else -1 for i, k in enumerate(keys)}
    # The first and the last of ImageNet's, whose WordNet numbers are known.
    if len(keys) == 1000 and (keys[0], keys[-1]) == ("tench", "toilet tissue"):
        numbers |= {k: i for i, k in enumerate(imagenet_class_names())}
    return numbers
