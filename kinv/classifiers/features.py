"""What a classifier computes before its logits, and distances in it."""

import difflib
import pathlib

import keras
import numpy as np
from keras import layers

from kinv import errors, pixels
from kinv.classifiers import applications, inputs, loading, outputs

# Whitening takes the square of it, in both networks and the average.
MOST_FEATURES = 4096


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
    # Each once: inputs of nested networks have the same name.
    names = list(dict.fromkeys(x.name for x in _layers(classifier)))
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
        shown = names if len(names) <= 12 else [*names[:5], "...", *names[-6:]]
        raise errors.InputError(
            f"Expected a layer of the classifier: {', '.join(shown)}. "
            f"Received: {layer}."
            + (f" Closest: {', '.join(near)}." if near else "")
        )
    images, both = outputs.called(_with_outputs_of(classifier, [layer]))
    logits, features = both
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) not in (2, 4) or None in shape[1:]:
        raise errors.InputError(
            "Expected a layer of vectors (batch, channels) or maps (batch, "
            f"height, width, channels). Received: {layer}, whose output is "
            f"{shape or 'not one tensor'}."
        )
    if len(shape) == 4:
        pool = layers.GlobalAveragePooling2D if maps == "pool" else None
        # As at export, whatever precision the generator trains in.
        features = inputs.own_layer(pool or layers.Flatten)(features)
    if features.shape[1] > MOST_FEATURES:
        raise errors.InputError(
            f"Expected at most {MOST_FEATURES} features. Received: "
            f"{features.shape[1]} of {layer}. Take the mean over its maps with "
            "--layer-maps pool, or another layer."
        )
    features = inputs.own_layer(layers.Activation, "linear")(features)
    model = keras.Model(images, [logits, features])
    model.trainable = False
    return model


def _layers(model):
    """All layers, those of networks inside the model in their place."""
    found = []
    for layer in model.layers:
        # Subclassed ones have none.
        inner = isinstance(layer, keras.Model) and getattr(layer, "outputs", ())
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
                output, *features = operation(*arguments, **options)
                found.update(zip(inside, features, strict=True))
                return output
        output = operation(*arguments, **options)
        found.setdefault(operation.name, output)
        return output

    model = keras.models.clone_model(
        keras.Model(model.inputs[0], model.outputs[0]),
        clone_function=lambda operation: operation,
        call_function=call,
    )
    # What is not an operation is the input itself.
    features = [found.get(name, model.inputs[0]) for name in names]
    return keras.Model(model.inputs[0], [model.outputs[0], *features])


def _load(name, **options):
    """A network of square RGB images of one size: an application or a file."""
    if str(name).startswith(applications.PREFIX):
        return applications.load(str(name), "imagenet", **options)
    model = loading.load_file(pathlib.Path(name))
    shape = getattr(model, "input_shape", None)
    sides = shape[1:3] if shape and shape[3:] == (3,) else (None,)
    if None in sides or len(set(sides)) > 1:
        raise errors.InputError(
            "Expected a network of images (size, size, 3). Received: "
            f"{name}, of inputs {shape}. Call it on a keras.Input of that "
            "shape and save the keras.Model of both."
        )
    return model


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
    model = _load(name, include_top=False, pooling="avg")
    # An application has no last layer after its pooling.
    features = model.layers[-1].input
    if str(name).startswith(applications.PREFIX):
        features = model.outputs[0]
    if len(getattr(features, "shape", ())) != 2:
        raise errors.InputError(
            "Expected a network whose last layer takes vectors. Received: "
            f"{name}. Save a keras.Model that ends in Dense."
        )
    size = model.input_shape[1]
    model = keras.Model(model.inputs[0], features)

    def features_of(images):
        return np.asarray(model(pixels.resize(images, size)), "float32")

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
    model = _load(name)
    size = model.input_shape[1]
    convolutions = [
        layer.name
        for layer in _layers(model)
        if isinstance(layer, layers.Conv2D)
    ]
    if not convolutions:
        raise errors.InputError(
            f"Expected a network with convolutions. Received: {name}, which "
            "has none."
        )
    # Layers of a network inside another one do not know their sizes themselves.
    model = _with_outputs_of(model, convolutions)
    last = {features.shape[1:3]: features for features in model.outputs[1:]}
    model = keras.Model(model.inputs[0], {str(k): x for k, x in last.items()})

    def maps_of(images):
        maps = model(pixels.resize(images, size), training=False)
        for features in maps.values():
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
