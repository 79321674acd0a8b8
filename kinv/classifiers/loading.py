"""Loading and checking the classifier that is inverted."""

import difflib
import inspect
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kinv import errors, files
from kinv.classifiers import robust_resnet, saved_models

APPLICATION = "keras.applications:"
# Pixels, of networks that name no size of their own.
IMAGENET_SIZE = 224
# What pixel values are, outside of every network.
PIXELS = (0.0, 255.0)
# What a classifier may end in: of all of these logits come before.
ACTIVATIONS = (
    "softmax",
    "sigmoid",
    "log_softmax",
    "hard_sigmoid",
    "logsoftmax",
)


def load_classifier(
    name,
    weights="imagenet",
    output=None,
    size=None,
    input_range=None,
    log_probabilities=False,
):
    """Loads a classifier to be inverted.

    A final softmax or sigmoid is taken off: the logits are what comes before.

    Args:
        name: a file written by `keras.Model.save`, of any classifier that
            takes square RGB images in [0, 255]; a SavedModel, see
            `saved_models.load`; `keras.applications:NAME`, such as
            `keras.applications:ResNet50`, whose preprocessing is put in front;
            or an `.npz` file of `robust_resnet.load`.
        weights: of an application: `imagenet`, `none` for random ones, or a
            file of weights.
        output: name of the output that holds the logits, of several.
        size: side in pixels of the images that a classifier gets which takes
            any. Defaults to its own; of applications and `.npz` files, to
            that which they were trained at.
        input_range: pair of numbers, what a file or SavedModel takes the pixel
            values 0 and 255 as. Defaults to 0 and 255.
        log_probabilities: whether the outputs are probabilities, whose
            logarithms are the logits but for a constant per image. Those below
            the smallest normal float32 number count as that.

    Returns:
        A frozen `keras.Model`; its input size is `model.input_shape[1]`. Its
        logits are float32 whatever precision it was saved with.

    Raises:
        errors.InputError: if there is no such file or application, it is not a
            Keras model or SavedModel, has other inputs or outputs, or ends in
            a softmax that cannot be taken off.
    """
    path = pathlib.Path(name)
    files.verify(path)
    if input_range and is_of_imagenet(name):
        raise errors.InputError(
            "Expected --input-range for a classifier without preprocessing. "
            f"Received: {name}, which gets its own. Leave the option out."
        )
    if str(name).startswith(APPLICATION):
        model = application(str(name).removeprefix(APPLICATION), weights, size)
    elif path.suffix == ".npz":
        model = robust_resnet.load(path, size or IMAGENET_SIZE)
    elif path.is_dir():
        model = saved_models.load(path, output, size, input_range or PIXELS)
        # Both are inside now.
        output = input_range = None
    else:
        model = load_file(path)
    model = _with_one_output(model, name, output)
    model = with_images(model, name, size, input_range or PIXELS)
    if log_probabilities:
        model = _logarithm(model, name)
    else:
        model = _without_activation(model)
        _check_logits(model, name)
    if model.outputs[0].dtype != "float32":
        cast = layers.Activation("linear", dtype="float32")
        model = keras.Model(model.inputs[0], cast(model.outputs[0]))
    model.trainable = False
    return model


def is_of_imagenet(name):
    """Whether a classifier, as `load_classifier` takes it, is ImageNet's.

    Its preprocessing and the order of its classes are known then.
    """
    return str(name).startswith(APPLICATION) or str(name).endswith(".npz")


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
            f"readback_weight. Received: {name}, {reason}. Give "
            "readback_weight=0."
        )


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
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
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
    """Loads a Keras model of any kind from a `.keras` or `.h5` file."""
    if not path.is_file():
        raise errors.InputError(
            f"Expected a Keras model file. Received: {path}, "
            + ("a directory." if path.is_dir() else "which does not exist.")
            + " Save the classifier with model.save('classifier.keras')."
        )
    try:
        return keras.models.load_model(path, compile=False)
    # Keras lets through whatever a damaged file makes zipfile, h5py, json or
    # a layer's constructor raise.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected {path} to be a file that keras.models.load_model can "
            f"read. Received: {reason} Save the classifier again with "
            "model.save, from stock Keras layers."
        ) from error


def application(name, weights, size=None, **options):
    """A model of `keras.applications` behind its own preprocessing."""
    known = [x for x in dir(keras.applications) if x[:1].isupper()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise errors.InputError(
            f"Expected an application of Keras. Received: {name}. Near: "
            f"{', '.join(near)}."
        )
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise errors.InputError(
            "Expected weights imagenet, none or a file. Received: "
            f"{weights}, which does not exist."
        )
    build = getattr(keras.applications, name)
    try:
        model = build(weights=None if weights == "none" else weights, **options)
    # A failed download, or whatever another model's file makes h5py raise.
    except Exception as error:
        reason = errors.reason(error).rstrip(".")
        home = os.environ.get("KERAS_HOME", "~/.keras")
        raise errors.InputError(
            f"Expected weights for {name}. Received: {reason}. Put the file "
            f"that the message names into {home}/models, name a file with "
            "--classifier-weights, or take random weights with "
            "--classifier-weights none."
        ) from error
    # Without its top a network takes any size: its whole one has it.
    size = size or model.input_shape[1]
    if size is None:
        size = build(weights=None).input_shape[1] or IMAGENET_SIZE
    if model.input_shape[1] not in (None, size):
        model = _resized_application(build, model, size, options)
    # Families that scale their input outside the model.
    module = next(
        (
            module
            for _, module in inspect.getmembers(
                keras.applications, inspect.ismodule
            )
            if hasattr(module, name) and hasattr(module, "preprocess_input")
        ),
        None,
    )
    images = keras.Input((size, size, 3), name="images")
    inputs = module.preprocess_input(images) if module else images
    return keras.Model(images, model(inputs), name=name.lower())


def _resized_application(build, model, size, options):
    """The same network for images of another size."""
    try:
        resized = build(weights=None, input_shape=(size, size, 3), **options)
        resized.set_weights(model.get_weights())
    # A size below the least, or dense layers that count on a size.
    except ValueError as error:
        raise errors.InputError(
            f"Expected a size of images that {model.name} takes. Received: "
            f"--classifier-size {size}: {errors.reason(error)}"
        ) from error
    return resized


def _without_activation(model):
    """The model up to what its final softmax or sigmoid is applied to."""
    before = _before_activation(model.outputs[0])
    if before is model.outputs[0]:
        return model
    return keras.Model(model.inputs[0], before, name=model.name)


def _before_activation(output):
    """What a tensor was before a softmax or sigmoid at its end, or itself."""
    operation, node_index, _ = output._keras_history
    node = operation._inbound_nodes[node_index]
    if isinstance(operation, keras.Model):
        if not operation.outputs:
            return output
        inner = _without_activation(operation)
        return output if inner is operation else inner(node.input_tensors[0])
    name = _activation_name(operation)
    if name in ACTIVATIONS:
        if isinstance(operation, layers.Activation | layers.Softmax):
            return node.input_tensors[0]
        if isinstance(operation, layers.Dense | layers.Conv2D):
            linear = type(operation).from_config(
                {**operation.get_config(), "activation": None}
            )
            before = linear(node.input_tensors[0])
            linear.set_weights(operation.get_weights())
            return before
        if not isinstance(operation, layers.Layer):
            # keras.ops.softmax and its like.
            return node.input_tensors[0]
    # Casts and linear activations pass on what came before them.
    if isinstance(operation, layers.Activation) and name == "linear":
        inputs = node.input_tensors[0]
        before = _before_activation(inputs)
        return output if before is inputs else before
    return output


def _activation_name(operation):
    if isinstance(operation, layers.Softmax):
        return "softmax"
    activation = getattr(operation, "activation", None)
    name = getattr(activation, "__name__", type(operation).__name__)
    return name.lower()


def _with_one_output(model, name, output):
    """The model up to the output of a name, if it has several."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) < 2 and output is None:
        return model
    if len(outputs) > 1 and isinstance(model.output, dict):
        named = model.output
    else:
        names = [x._keras_history.operation.name for x in outputs]
        if len(set(names)) < len(names):
            names = [f"output_{index}" for index in range(len(names))]
        named = dict(zip(names, outputs, strict=True))
    chosen = saved_models.choose_output(output, list(named), name)
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, named[chosen], name=model.name)


def with_images(model, name, size, input_range):
    """The model from square images of one size to one vector each."""
    shapes = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    received = f"Received: {name} with inputs {shapes}."
    batch, height, width, channels = (
        shapes[0] if [len(shape) for shape in shapes] == [4] else (0, 0, 0, 0)
    )
    if batch is not None:
        raise errors.InputError(
            "Expected a classifier that takes images, one input of shape "
            f"(batch, size, size, 3). {received} Wrap it in a keras.Model with "
            "keras.Input((size, size, 3)) and save that."
        )
    if channels != 3:
        raise errors.InputError(
            "Expected a classifier of red, green and blue, an input of shape "
            f"(batch, size, size, 3). {received} Wrap it in a keras.Model that "
            "makes its channels of three, and save that."
        )
    outputs = [tuple(x.shape) for x in model.outputs]
    if [len(shape) for shape in outputs] != [2] or (outputs[0][1] or 0) < 2:
        raise errors.InputError(
            "Expected a classifier whose output is of shape (batch, "
            f"num_classes), at least 2 classes. Received: {name} with outputs "
            f"{outputs}. Save a keras.Model that returns only the logits."
        )
    resizable = height is None and width is None and size
    if not resizable and (height is None or height != width):
        raise errors.InputError(
            "Expected a classifier of square images of one size. "
            f"{received} Where it takes any, choose with --classifier-size."
        )
    if not resizable and size not in (None, height):
        raise errors.InputError(
            f"Expected --classifier-size {height}, or none. {received}"
        )
    rescales = tuple(input_range) != PIXELS
    if not (resizable or rescales):
        return model
    size = size or height
    inputs = keras.Input((size, size, 3), name="images")
    x = inputs
    if rescales:
        low, high = input_range
        rescaling = layers.Rescaling((high - low) / 255, low, dtype="float32")
        x = rescaling(inputs)
    return keras.Model(inputs, model(x), name=model.name)


def _outputs_of_noise(model):
    size = model.input_shape[1]
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    outputs = model(images.astype("float32"), training=False)
    return np.asarray(outputs, "float64")


def _are_probabilities(outputs):
    return outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-2)


def _check_logits(model, name):
    outputs = _outputs_of_noise(model)
    # A softmax hidden where the graph does not show it.
    if _are_probabilities(outputs):
        raise errors.InputError(
            f"Expected a classifier that returns logits. Received: {name}, "
            f"whose {outputs.shape[1]} outputs are probabilities, of a softmax "
            "that cannot be taken off. Take their logarithms for logits with "
            "--log-probabilities: they equal the logits but for a constant per "
            "image. Or save it without the softmax."
        )


def _logarithm(model, name):
    """The model with the logarithms of its probabilities for logits."""
    outputs = _outputs_of_noise(model)
    if not _are_probabilities(outputs):
        low, high = outputs.min(), outputs.max()
        raise errors.InputError(
            "Expected a classifier that returns probabilities, of sum 1, for "
            f"--log-probabilities. Received: {name}, whose outputs for noise "
            f"lie in [{low:.3g}, {high:.3g}] and add up to "
            f"{outputs[0].sum():.3g}. Leave the option out."
        )
    probabilities = keras.ops.cast(model.outputs[0], "float32")
    logits = keras.ops.log(
        keras.ops.maximum(probabilities, float(np.finfo("float32").tiny))
    )
    return keras.Model(model.inputs[0], logits, name=model.name)
