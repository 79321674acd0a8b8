"""Classifiers: kinv's own small one, and any other that Keras can load."""

import difflib
import inspect
import os
import pathlib

import keras
import numpy as np
from keras import layers

from kinv import errors
from kinv import images as images_lib

APPLICATION = "keras.applications:"
# Whitening takes the square of it, in both networks and the average.
MOST_FEATURES = 4096
# What a classifier may end in: of all of these logits come before.
ACTIVATIONS = (
    "softmax",
    "sigmoid",
    "log_softmax",
    "hard_sigmoid",
    "logsoftmax",
)


def build_classifier(image_size, num_classes, width):
    """Builds a pre-activation residual network from stock Keras layers.

    One residual block per halving of the resolution, down to about 4 pixels;
    the width doubles with each, at most to eight times. The file it is saved
    to loads without kinv.

    Args:
        image_size: side of the images in pixels, at least 8.
        num_classes: number of logits, at least 2.
        width: channels of the first block, at least 1.

    Returns:
        A functional `keras.Model`: images `(batch, image_size, image_size, 3)`
        in [0, 255] to logits `(batch, num_classes)`, float32 under every dtype
        policy.

    Raises:
        errors.InputError: if `image_size` or `num_classes` is too small.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks" (2016),
        figure 1b.
    """
    if image_size < 8:
        raise errors.InputError(
            "Expected an image size of at least 8 pixels. "
            f"Received: image_size={image_size}."
        )
    if num_classes < 2:
        raise errors.InputError(
            "Expected at least 2 classes to tell apart. "
            f"Received: num_classes={num_classes}."
        )
    inputs = keras.Input((image_size, image_size, 3), name="images")
    # In float32: bfloat16 holds pixel values above 128 to whole numbers only,
    # coarser than the steps of an attack.
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(inputs)
    x = _convolution(x, width, 3)
    num_blocks = max(1, round(np.log2(image_size / 4)))
    for block in range(num_blocks):
        x = _downsampling_block(x, width * min(2**block, 8))
    x = _normalize_and_activate(x)
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="classifier")


def _downsampling_block(x, channels):
    x = _normalize_and_activate(x)
    shortcut = layers.AveragePooling2D(2, padding="same")(x)
    shortcut = _convolution(shortcut, channels, 1)
    x = _convolution(x, channels, 3, strides=2)
    x = _convolution(_normalize_and_activate(x), channels, 3)
    return layers.Add()([shortcut, x])


def _normalize_and_activate(x):
    # Synchronised, so that a step on several replicas equals the step on one.
    # Group normalisation has no state to synchronise but takes 1.6 times as
    # long on CPU. At momentum 0.99 the averages that the attack and the
    # evaluation see would lag by a large part of a short run.
    x = layers.BatchNormalization(momentum=0.9, synchronized=True)(x)
    return layers.ReLU()(x)


def _convolution(x, channels, kernel_size, strides=1):
    return layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)


def load_classifier(name, weights="imagenet", size=None):
    """Loads a classifier to be inverted.

    A final softmax or sigmoid is taken off: the logits are what comes before.

    Args:
        name: a file written by `keras.Model.save`, of any classifier that
            takes square RGB images in [0, 255]; or `keras.applications:NAME`,
            such as `keras.applications:ResNet50`, whose preprocessing is put
            in front.
        weights: of an application: `imagenet`, `none` for random ones, or a
            file of weights.
        size: height and width of an application's images in pixels, if not its
            own. Its weights serve another size where it averages its last maps,
            as a ResNet does.

    Returns:
        A frozen `keras.Model`; its input size is `model.input_shape[1]`. Its
        logits are float32 whatever precision it was saved with.

    Raises:
        errors.InputError: if there is no such file or application, it is not a
            Keras model, has other inputs or outputs, or ends in a softmax that
            cannot be taken off.
    """
    if str(name).startswith(APPLICATION):
        model = _application(str(name).removeprefix(APPLICATION), weights, size)
    elif size:
        raise errors.InputError(
            "Expected a size only with keras.applications:NAME. Received: "
            f"{name}, which has its own. Leave out --classifier-size."
        )
    else:
        model = _load_file(pathlib.Path(name))
    _check_interface(model, name)
    model = _without_activation(model)
    _check_logits(model, name)
    if model.outputs[0].dtype != "float32":
        cast = layers.Activation("linear", dtype="float32")
        model = keras.Model(model.inputs[0], cast(model.outputs[0]))
    model.trainable = False
    return model


def add_features(classifier, layer, maps):
    """Gives the output of a layer beside a classifier's logits.

    Args:
        classifier: as of `load_classifier`.
        layer: name of a layer, of the classifier or of a network inside it,
            whose output is vectors or maps.
        maps: what becomes of maps `(height, width, channels)`: `pool` takes
            the mean of each channel, `flatten` all numbers.

    Returns:
        A frozen `keras.Model` with two outputs, float32: logits `(batch,
        num_classes)` and features `(batch, condition_dim)`.

    Raises:
        errors.InputError: if there is no such layer, its output is something
            else, or has more than `MOST_FEATURES` numbers.
    """
    names = [layer.name for layer in _layers(classifier)]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
        shown = names if len(names) <= 12 else [*names[:5], "...", *names[-6:]]
        raise errors.InputError(
            f"Expected a layer of the classifier: {', '.join(shown)}. "
            f"Received: {layer}."
            + (f" Near: {', '.join(near)}." if near else "")
        )
    model = _with_outputs_of(classifier, [layer])
    logits, features = model.outputs
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) not in (2, 4) or None in shape[1:]:
        raise errors.InputError(
            "Expected a layer of vectors (batch, channels) or maps (batch, "
            f"height, width, channels). Received: {layer}, whose output is "
            f"{shape or 'not one tensor'}."
        )
    if len(shape) == 4:
        pool = layers.GlobalAveragePooling2D if maps == "pool" else None
        features = (pool or layers.Flatten)()(features)
    if features.shape[1] > MOST_FEATURES:
        raise errors.InputError(
            f"Expected at most {MOST_FEATURES} features. Received: "
            f"{features.shape[1]} of {layer}. Take the mean over its maps with "
            "--layer-maps pool, or another layer."
        )
    features = layers.Activation("linear", dtype="float32")(features)
    model = keras.Model(model.inputs[0], [logits, features])
    model.trainable = False
    return model


def _layers(model):
    """All layers, those of networks inside the model in their place."""
    found = []
    for layer in model.layers:
        inner = isinstance(layer, keras.Model) and layer.outputs
        found += _layers(layer) if inner else [layer]
    return found


def _with_outputs_of(model, names):
    """The model with more outputs, of layers in it; weights are shared."""
    found = {}

    def call(operation, *arguments, **options):
        if isinstance(operation, keras.Model):
            inside = {layer.name for layer in _layers(operation)}
            inside = [name for name in names if name in inside]
            if inside:
                operation = _with_outputs_of(operation, inside)
                outputs, *features = operation(*arguments, **options)
                found.update(zip(inside, features, strict=True))
                return outputs
        outputs = operation(*arguments, **options)
        found.setdefault(operation.name, outputs)
        return outputs

    model = keras.models.clone_model(
        keras.Model(model.inputs[0], model.outputs[0]),
        clone_function=lambda operation: operation,
        call_function=call,
    )
    # What is not an operation is the input itself.
    features = [found.get(name, model.inputs[0]) for name in names]
    return keras.Model(model.inputs[0], [model.outputs[0], *features])


def load_features(name):
    """Loads a network that describes images, to compare many of them.

    Args:
        name: `keras.applications:NAME`, whose last pooling is taken, with
            ImageNet's weights; or a `.keras` file, of which the input of the
            last layer is taken.

    Returns:
        Function of float images `(batch, height, width, 3)` in [0, 255], of
        any size, to float32 `(batch, width)`.

    Raises:
        errors.InputError: if there is no such network, or no such vectors.
    """
    if str(name).startswith(APPLICATION):
        model = _application(
            str(name).removeprefix(APPLICATION),
            "imagenet",
            include_top=False,
            pooling="avg",
        )
        features = model.outputs[0]
    else:
        model = _load_file(pathlib.Path(name))
        features = model.layers[-1].input
    if len(getattr(features, "shape", ())) != 2:
        raise errors.InputError(
            "Expected a network whose last layer takes vectors. Received: "
            f"{name}. Save a keras.Model that ends in Dense."
        )
    size = model.input_shape[1]
    model = keras.Model(model.inputs[0], features)

    def features_of(images):
        return np.asarray(model(images_lib.resize(images, size)), "float32")

    return features_of


def load_perceptual(name):
    """Loads a network whose maps tell how alike two images look.

    Of the last convolution at each resolution: features of length 1 over the
    channels, squared differences summed over channels and averaged over places,
    then over layers. With VGG16, these are the layers of LPIPS, but not its
    learned weights of channels.

    Args:
        name: `keras.applications:NAME`, such as
            `keras.applications:VGG16`, with ImageNet's weights; or a `.keras`
            file.

    Returns:
        Function of two batches of float images `(batch, height, width, 3)` in
        [0, 255], of any size, to float64 distances `(batch,)`: 0 for equal
        images, at most 4, at most 2 where features are not negative.

    Raises:
        errors.InputError: if there is no such network, or it has no
            convolution.

    Reference:
        Zhang et al., The Unreasonable Effectiveness of Deep Features as a
        Perceptual Metric, CVPR 2018, equation 1.
    """
    if str(name).startswith(APPLICATION):
        model = _application(str(name).removeprefix(APPLICATION), "imagenet")
    else:
        model = _load_file(pathlib.Path(name))
    size = model.input_shape[1]
    last = {
        layer.output.shape[1:3]: layer.name
        for layer in _layers(model)
        if isinstance(layer, layers.Conv2D)
    }
    if not last:
        raise errors.InputError(
            f"Expected a network with convolutions. Received: {name}, which "
            "has none."
        )
    model = _with_outputs_of(model, list(last.values()))

    def maps_of(images):
        _, *maps = model(images_lib.resize(images, size), training=False)
        for features in maps:
            features = np.asarray(features, "float64")
            lengths = np.linalg.norm(features, axis=-1, keepdims=True)
            yield features / np.maximum(lengths, 1e-10)

    def distance(images, others):
        by_layer = [
            np.sum((one - other) ** 2, axis=-1).mean(axis=(1, 2))
            for one, other in zip(maps_of(images), maps_of(others), strict=True)
        ]
        return np.mean(by_layer, axis=0)

    return distance


def _load_file(path):
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


def _application(name, weights, size=None, **options):
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
        pretrained = None if weights == "none" else weights
        if size:
            model = _of_size(build, pretrained, size)
        else:
            model = build(weights=pretrained, **options)
    except errors.InputError:
        raise
    # A failed download, or whatever another model's file makes h5py raise.
    except Exception as error:
        reason = errors.reason(error)
        home = os.environ.get("KERAS_HOME", "~/.keras")
        raise errors.InputError(
            f"Expected weights for {name}. Received: {reason} Put the file "
            f"that the message names into {home}/models, name a file with "
            "--classifier-weights, or take random weights with "
            "--classifier-weights none."
        ) from error
    # Of the families that scale their input outside the model.
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
    # Without a size of their own they take the one of ImageNet models.
    size = model.input_shape[1] or 224
    images = keras.Input((size, size, 3), name="images")
    inputs = module.preprocess_input(images) if module else images
    return keras.Model(images, model(inputs), name=name.lower())


def _of_size(build, weights, size):
    """An application for images of another size than its weights are of."""
    try:
        model = build(weights=None, input_shape=(size, size, 3))
    except ValueError as error:
        raise errors.InputError(
            f"Expected a size that {build.__name__} can have. Received: "
            f"--classifier-size {size}. {errors.reason(error)}"
        ) from error
    if weights:
        others = build(weights=weights).get_weights()
        if [x.shape for x in others] != [x.shape for x in model.get_weights()]:
            raise errors.InputError(
                "Expected an application whose weights serve any size. "
                f"Received: {build.__name__}, whose last layers depend on the "
                f"size, with --classifier-size {size}. Leave it out."
            )
        model.set_weights(others)
    return model


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


def _check_interface(model, path):
    inputs = getattr(model, "inputs", None) or []
    outputs = getattr(model, "outputs", None) or []
    shapes = [tuple(x.shape) for x in inputs]
    height, width = (*shapes[0], 0, 0, 0)[1:3] if shapes else (0, 0)
    if shapes != [(None, height, width, 3)] or not height or height != width:
        raise errors.InputError(
            "Expected a classifier with one input of shape (batch, size, size, "
            f"3), of a fixed size. Received: {path} with inputs {shapes}. Wrap "
            "it in a keras.Model with keras.Input((size, size, 3)) and save "
            "that."
        )
    shapes = [tuple(x.shape) for x in outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or (shapes[0][1] or 0) < 2:
        raise errors.InputError(
            "Expected a classifier with one output of shape (batch, "
            f"num_classes), at least 2 classes. Received: {path} with outputs "
            f"{shapes}. Save a keras.Model that returns only the logits."
        )


def _check_logits(model, name):
    size = model.input_shape[1]
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    outputs = np.asarray(model(images.astype("float32"), training=False))
    sums = outputs.astype("float64").sum(axis=1)
    # A softmax hidden where the graph does not show it.
    if outputs.min() >= 0 and np.allclose(sums, 1, atol=1e-2):
        raise errors.InputError(
            f"Expected a classifier that returns logits. Received: {name}, "
            "whose outputs are probabilities, of a softmax that cannot be "
            "taken off. Save it without (Dense(num_classes) and "
            "from_logits=True in the loss)."
        )
