"""Loading and checking the classifier that is inverted."""

import pathlib
import zipfile

import keras
import numpy as np
import tensorflow as tf

from kinv import errors, files, intervals
from kinv.classifiers import (
    applications,
    inputs,
    outputs,
    robust_resnet,
    saved_models,
)
from kinv.data import labels

# Held-out images that tell whether a classifier is used rightly; how many are
# needed to tell it from chance.
ACCURACY_IMAGES, FEWEST_IMAGES = 200, 30
# Between the two largest: a classifier of values in [0, 1] that is given those
# in [0, 255] has hundreds.
FARTHEST_LOGITS = 100
# Names of files that hold another library's networks.
_FOREIGN = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".tflite")


def load_classifier(
    name,
    weights="imagenet",
    output=None,
    size=None,
    input_range=None,
    input_mean=None,
    input_std=None,
    log_probabilities=False,
):
    """Loads a classifier to be inverted.

    A final softmax or sigmoid is taken off: the logits are what comes before.

    Args:
        name: a `keras.Model` of images, see `inputs.take_images`, which stays
            as it is; a file written by `keras.Model.save` of one; a SavedModel,
            see `saved_models.load`; `keras.applications:NAME`, such as
            `keras.applications:ResNet50`, whose preprocessing is put in front;
            or an `.npz` file of `robust_resnet.load`.
        weights: of an application: `imagenet`, `none` for random ones, or a
            file of weights.
        output: name of the output that holds the logits, of several.
        size: side in pixels of the images that a classifier gets which takes
            any. Defaults to its own; of applications and `.npz` files, to
            that which they were trained at.
        input_range: what pixel values 0 and 255 become, such as `(0, 1)`, where
            the classifier takes other ones than [0, 255].
        input_mean: what is subtracted then, one number or one for each channel;
            with it the range is (0, 1) if none is given, as in PyTorch.
        input_std: what they are divided by in the end.
        log_probabilities: whether the outputs are probabilities. Of those that
            sum to 1 the logarithms are the logits but for a constant per
            image, of others the log-odds. Those below the smallest normal
            float32 number count as that.

    Returns:
        A frozen `keras.Model` of images `(batch, size, size, 3)` in [0, 255]
        to logits `(batch, num_classes)`, float32 whatever precision it was
        saved with.

    Raises:
        errors.InputError: if there is no such file or application, it is not a
            Keras model or SavedModel, has other inputs or outputs, or ends in
            a softmax that cannot be taken off.
    """
    scaling = inputs.Scaling(input_range, input_mean, input_std)
    if isinstance(name, keras.Model):
        model = outputs.choose(_copy(name), name.name, output)
        return _finished(model, name.name, size, scaling, log_probabilities)
    path = pathlib.Path(name)
    files.verify(path)
    given = any(value is not None for value in scaling)
    if given and is_of_imagenet(name):
        raise errors.InputError(
            "Expected an input range, mean or std for a classifier without "
            f"preprocessing. Received: {name}, which gets its own. Leave them "
            "out."
        )
    if path.is_dir():
        model = saved_models.load(path, output, size)
        if not log_probabilities:
            saved_models.check_no_sigmoid(model, path)
    else:
        model = outputs.choose(_load(path, weights, size), name, output)
    return _finished(model, name, size, scaling, log_probabilities)


def _copy(model):
    """The model of layers of its own, which are to be frozen."""
    if not getattr(model, "inputs", None):
        raise errors.InputError(
            "Expected a functional or sequential Keras model, built. Received: "
            f"{model.name}, which is subclassed or was never called. Name the "
            "directory that its export('classifier') writes."
        )
    try:
        copy = keras.models.clone_model(
            model, clone_function=_copy_layer, recursive=True
        )
        copy.set_weights(model.get_weights())
    # Layers that cannot be made anew.
    except Exception as error:
        raise errors.InputError(
            "Expected a Keras model whose layers their get_config makes anew. "
            f"Received: {model.name}: {errors.reason(error)}. Name the "
            "directory that its export('classifier') writes."
        ) from error
    return copy


def _copy_layer(layer):
    # Frozen, with files that no configuration tells of.
    if isinstance(layer, saved_models.SavedModelLayer):
        return layer
    return type(layer).from_config(layer.get_config())


def _finished(model, name, size, scaling, log_probabilities):
    model = inputs.take_images(model, name, size, scaling)
    model = outputs.give_logits(model, name, log_probabilities)
    model.trainable = False
    return model


def load_kept(path):
    """The classifier that a run kept, as it is.

    `load_classifier` would look once more for an activation to take off.

    Raises:
        errors.InputError: as of `files.verify` and `load_file`.
    """
    path = pathlib.Path(path)
    files.verify(path)
    model = load_file(path)
    model.trainable = False
    return model


def _load(path, weights, size):
    """A model of any format but a SavedModel's, as it is."""
    if str(path).startswith(applications.PREFIX):
        return applications.load(str(path), weights, size)
    if path.suffix == ".npz":
        size = size or applications.IMAGENET_SIZE
        return robust_resnet.load(path, size)
    return load_file(path)


def is_of_imagenet(name):
    """Whether a classifier, as `load_classifier` takes it, is ImageNet's.

    Its preprocessing and the order of its classes are known then.
    """
    return str(name).startswith(applications.PREFIX) or str(name).endswith(
        ".npz"
    )


def describe_accuracy(classifier, source, class_names):
    """A line about how many of the first held-out images it gets right.

    A classifier that is given other pixel values than it takes, or classes in
    another order, gets hardly any, or has logits far apart.

    Args:
        classifier: keras model, images to logits.
        source: `data.source.Source` of held-out images.
        class_names: of the classifier.

    Returns:
        The line.
    """
    labelled, _ = labels.match(source, class_names)
    size, logits, numbers = classifier.input_shape[1], [], []
    for images, of_images in labelled.evaluation_batches(
        size, 50, ACCURACY_IMAGES
    ):
        logits.append(np.asarray(classifier(images, training=False)))
        numbers.append(np.asarray(of_images))
    logits, numbers = np.concatenate(logits), np.concatenate(numbers)
    right = (logits.argmax(axis=-1) == numbers)[numbers >= 0]
    hits, count = right.sum(), len(right)
    line = "accuracy of the classifier: "
    if count:
        line += f"{hits / count:.1%} of {count} held-out images"
    else:
        line += "not measured, for lack of labels"
    low, _ = intervals.wilson_interval(hits, count)
    if count >= FEWEST_IMAGES and low <= 1 / len(class_names):
        line += (
            ", no better than chance: check the input range, mean and std, "
            "and the order of the classes"
        )
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    if (gap := np.median(first - second)) > FARTHEST_LOGITS:
        line += (
            f"; its two largest logits are {gap:,.0f} apart (median), more "
            "than classifiers' are: check the input range, mean and std"
        )
    return line


def check_gradient(classifier, name):
    """Checks that a loss of the logits can be followed back to the images.

    Args:
        classifier: keras model, images to logits.
        name: of the classifier, for the message.

    Raises:
        errors.InputError: if it has no gradient, as where it rounds images.
    """
    images = tf.zeros((1, *classifier.input_shape[1:]))
    try:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = classifier(images, training=False)
        gradient = tape.gradient(logits, images)
        reason = "which has none"
    # An operation without one, in as many ways as TensorFlow has.
    except Exception as error:
        gradient, reason = None, f"where {errors.reason(error)}"
    if gradient is None:
        raise errors.InputError(
            "Expected a classifier whose gradient reaches its input, for "
            "readback_weight and class_readback_weight. Received: "
            f"{name}, {reason}. Give readback_weight=0 "
            "class_readback_weight=0."
        )


def name_classes(source, classifier, weights, path, num_classes):
    """What to call the logits: as asked, as ImageNet, or as the data set does.

    Args:
        source: `data.source.Source` of training images.
        classifier: as `load_classifier` was given it.
        weights: the same.
        path: of a file of names, or None.
        num_classes: of the classifier.

    Returns:
        List of names, and a line that says which of the classes the labels of
        the data set are.
    """
    known = is_of_imagenet(classifier) and num_classes == 1000
    if path:
        names = read_class_names(path, num_classes)
    elif known and weights == "imagenet":
        names = labels.imagenet_class_names()
    else:
        known, names = False, labels.placeholders(num_classes)
    labelled, line = labels.match(source, names)
    if labelled.class_names and not (known or path):
        return source.class_names, line
    return names, line


def read_class_names(path, num_classes):
    """Reads what to call the classes.

    Args:
        path: a text file of one name per line, in the order of the logits; or
            Keras's `imagenet_class_index.json`, `{"0": ["n01440764",
            "tench"], ...}`.
        num_classes: how many there must be.

    Returns:
        List of str.

    Raises:
        errors.InputError: if the file cannot be read, or has another length.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        index = files.read_json(path)
        try:
            entries = [index[str(i)] for i in range(len(index))]
            names = [name for _, name in entries]
        except (KeyError, TypeError, ValueError):
            raise errors.InputError(
                "Expected class names as in Keras's imagenet_class_index.json, "
                'such as {"0": ["n01440764", "tench"], ...}. Received: '
                f"{path}, of another form."
            ) from None
    else:
        try:
            # Windows puts a byte-order mark first.
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise errors.InputError(
                "Expected a text file of class names, one per line. Received: "
                f"{path} ({reason})."
            ) from None
        names = [line.strip() for line in names if line.strip()]
    if len(names) != num_classes:
        raise errors.InputError(
            f"Expected {num_classes} class names, one for each logit. "
            f"Received: {path} with {len(names)}."
        )
    return names


def load_file(path):
    """Loads a Keras model of any kind from a `.keras` or `.h5` file.

    Raises:
        errors.InputError: if there is no such file, or Keras cannot read it.
    """
    if not path.is_file():
        raise errors.InputError(
            f"Expected a Keras model file. Received: {path}, "
            + ("a directory." if path.is_dir() else "which does not exist.")
            + " Save the classifier with model.save('classifier.keras')."
        )
    with path.open("rb") as file:
        start = file.read(40)
    if not start:
        reason = "which is empty. Copy it again."
    elif start.startswith(b"version https://git-lfs"):
        reason = "which only points to it. Run git lfs pull."
    elif path.suffix in _FOREIGN:
        reason = (
            "which is another library's. Make a SavedModel of it as "
            "docs/classifiers.md does of a PyTorch network, and name that "
            "directory."
        )
    elif path.suffix == ".keras" and not zipfile.is_zipfile(path):
        reason = (
            "which is damaged, or of another format. Copy it again, or, if "
            "HDF5 is what it holds, call it .h5."
        )
    elif path.name == "saved_model.pb":
        reason = "a part of a SavedModel. Name its directory."
    else:
        try:
            return keras.models.load_model(path, compile=False)
        # Keras lets through whatever a damaged file makes zipfile, h5py, json
        # or a layer's constructor raise.
        except Exception as error:
            reason = (
                f"about which Keras says: {errors.reason(error)}. If "
                "the file is whole, load it with the code that made it and "
                "name the directory that model.export('classifier') writes: "
                "this needs none of that code."
            )
    raise errors.InputError(
        "Expected a file that keras.models.load_model can read. Received: "
        f"{path}, {reason}"
    )
