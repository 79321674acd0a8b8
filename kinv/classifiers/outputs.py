"""What a classifier returns, made into logits."""

import keras
import numpy as np
from keras import layers

from kinv import errors
from kinv.classifiers import inputs, saved_models

# What a classifier may end in: of all of these logits come before.
ACTIVATIONS = (
    "softmax",
    "sigmoid",
    "log_softmax",
    "hard_sigmoid",
    "logsoftmax",
)


def give_logits(model, name, log_probabilities):
    """The model up to its logits.

    Args:
        model: `keras.Model` of images `(batch, size, size, 3)` in [0, 255].
        name: of the classifier, for messages.
        log_probabilities: as of `loading.load_classifier`.

    Returns:
        `keras.Model` of the same images to float32 `(batch, num_classes)`. A
        single output z, of two classes, becomes the logits -z/2 and z/2.

    Raises:
        errors.InputError: if the outputs are no vectors, NaN, the same for
            every image, or probabilities whose logits cannot be had.
    """
    shapes = [tuple(x.shape) for x in model.outputs]
    if [len(shape) for shape in shapes] != [2] or not shapes[0][1]:
        raise errors.InputError(
            "Expected a classifier whose output is of shape (batch, "
            f"num_classes). Received: {name} with outputs {shapes}. Save a "
            "keras.Model that returns only the logits."
        )
    if not log_probabilities:
        before = _before_activation(model.outputs[0])
        if before is not model.outputs[0]:
            model = keras.Model(model.inputs[0], before, name=model.name)
    noise = _outputs_of_noise(model, name)
    if log_probabilities:
        _check_probabilities(noise, name)
        model = _logarithm(model, of_softmax=_sum_to_one(noise))
    elif _sum_to_one(noise):
        # A softmax hidden where the graph does not show it.
        raise errors.InputError(
            f"Expected a classifier that returns logits. Received: {name}, "
            f"whose {shapes[0][1]} outputs are probabilities, of a softmax "
            "that cannot be taken off. Take their logarithms for logits, by "
            "--log-probabilities or log_probabilities=True: they equal the "
            "logits but for a constant per image. Or save it without the "
            "softmax."
        )
    if not np.ptp(noise, axis=0).any():
        raise errors.InputError(
            "Expected a classifier that tells images apart. Received: "
            f"{name}, which gives the same outputs for six images of noise. "
            "Check that its weights were loaded, or say, by the input range, "
            "which pixel values it takes."
        )
    is_single = shapes[0][1] == 1
    if not is_single and model.outputs[0].dtype == "float32":
        return model
    images, logits = called(model)
    if is_single:
        halves = [
            inputs.own_layer(layers.Rescaling, scale, name=name)(logits)
            for scale, name in ((-0.5, "kinv_first"), (0.5, "kinv_second"))
        ]
        logits = inputs.own_layer(layers.Concatenate)(halves)
    else:
        logits = inputs.own_layer(layers.Activation, "linear")(logits)
    return keras.Model(images, logits, name=model.name)


def called(model):
    """New images and what a model makes of them.

    What is added to these may have names that layers inside the model have,
    as Keras gives the same ones in every process; only not the model's own.

    Returns:
        Symbolic tensors: its input, and its output, or list of outputs.
    """
    images = keras.Input(model.input_shape[1:], name="kinv_images")
    # As of `inputs.take_images`: a `Resizing` inside would have it train.
    return images, model(images, training=False)


def choose(model, name, output):
    """The model up to one tensor: its only output, or that of a name.

    Args:
        model: `keras.Model`, whose output may be a tensor, list or dict.
        name: of the classifier, for messages.
        output: name of the output, or None where there is but one.

    Raises:
        errors.InputError: if there are several and `output` is None, or there
            is none of that name.
    """
    outputs = getattr(model, "outputs", None) or []
    # Sequential models have none.
    structure = getattr(model, "output", None)
    single = len(outputs) == 1 and not isinstance(structure, dict | list)
    if not outputs or single and output is None:
        return model
    if isinstance(structure, dict):
        named = structure
    else:
        names = [x._keras_history.operation.name for x in outputs]
        if len(set(names)) < len(names):
            names = [f"output_{index}" for index in range(len(names))]
        named = dict(zip(names, outputs, strict=True))
    chosen = saved_models.choose_output(output, list(named), name)
    images = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(images, named[chosen], name=model.name)


def _before_activation(output):
    """What a tensor was before a softmax or sigmoid at its end, or itself."""
    operation, node_index, tensor_index = output._keras_history
    node = operation._inbound_nodes[node_index]
    if isinstance(operation, keras.Model):
        # Subclassed ones have none.
        if len(getattr(operation, "inputs", None) or ()) != 1:
            return output
        inner = operation.outputs[tensor_index]
        before = _before_activation(inner)
        if before is inner:
            return output
        name = f"{operation.name}_logits"
        inner = keras.Model(operation.inputs[0], before, name=name)
        return inner(node.input_tensors[0])
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
    casts = isinstance(operation, layers.Activation) and name == "linear"
    if casts or isinstance(operation, layers.Flatten | layers.Reshape):
        passed_on = node.input_tensors[0]
        before = _before_activation(passed_on)
        if before is not passed_on:
            return before if casts else operation(before)
    return output


def _activation_name(operation):
    if isinstance(operation, layers.Softmax):
        return "softmax"
    activation = getattr(operation, "activation", None)
    name = getattr(activation, "__name__", type(operation).__name__)
    return name.lower()


def _outputs_of_noise(model, name):
    """Outputs for six images, none of one colour, `(6, num_classes)`."""
    size = model.input_shape[1]
    random = np.random.default_rng(0)
    blocks = random.uniform(0, 255, (4, 4, 4, 3))
    blocks = blocks.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)
    images = np.concatenate(
        [
            random.uniform(0, 255, (2, size, size, 3)),
            blocks[:, :size, :size],
        ]
    )
    try:
        outputs = model(images.astype("float32"), training=False)
    # Whatever an operation raises that this machine has not.
    except Exception as error:
        raise errors.InputError(
            "Expected a classifier that TensorFlow can run on this machine. "
            f"Received: {name}: {errors.reason(error)}. Channels-first layers "
            "need a GPU."
        ) from error
    outputs = np.asarray(outputs, "float64")
    if not np.isfinite(outputs).all():
        raise errors.InputError(
            f"Expected a classifier whose outputs are numbers. Received: {name}"
            ", which gives NaN or infinity for noise in [0, 255]. Mend what it "
            "does to pixel values, or say, by the input range, which it takes."
        )
    return outputs


def _sum_to_one(outputs):
    return (
        outputs.shape[1] > 1
        and outputs.min() >= 0
        and np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    )


def _check_probabilities(outputs, name):
    low, high = outputs.min(), outputs.max()
    if low < 0 or high > 1 + 1e-2:
        raise errors.InputError(
            "Expected a classifier that returns probabilities for "
            f"--log-probabilities. Received: {name}, whose outputs for noise "
            f"lie in [{low:.3g}, {high:.3g}]. Leave the option out."
        )


def _logarithm(model, of_softmax):
    """The model with its probabilities' logarithms, of sigmoids log-odds."""
    images, probabilities = called(model)
    probabilities = keras.ops.cast(probabilities, "float32")
    tiny = float(np.finfo("float32").tiny)
    logits = keras.ops.log(keras.ops.maximum(probabilities, tiny))
    if not of_softmax:
        # No float32 number lies nearer to 1 than this.
        others = keras.ops.maximum(1 - probabilities, 2.0**-24)
        logits -= keras.ops.log(others)
    return keras.Model(images, logits, name=model.name)
