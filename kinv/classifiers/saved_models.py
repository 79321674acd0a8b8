"""SavedModels as classifiers: one as a Keras layer, inside a `.keras` file."""

import concurrent.futures
import logging
import pathlib
import tempfile

import keras
import tensorflow as tf

from kinv import errors
from kinv.classifiers import inputs

SIGNATURE = "serving_default"


@keras.saving.register_keras_serializable("kinv")
class SavedModelLayer(keras.layers.Layer):
    """A function of a SavedModel, images to one vector per image.

    Its graph and variables are assets of the `.keras` file that the layer is
    saved to, so that the original directory is not needed again.

    Args:
        num_outputs: length of the vectors.

    Attributes:
        function: float32 images, in the shape that the SavedModel takes, to
            float32 `(batch, num_outputs)`, once `load_assets` has read it.
    """

    def __init__(self, num_outputs, **kwargs):
        super().__init__(**kwargs)
        self.num_outputs = num_outputs
        self.function = None
        # XLA lacks what some have, as a resize or a loop over images.
        self.supports_jit = False

    @property
    def inner_variables(self):
        """The function's `tf.Variable`s, which Keras does not know of."""
        return list(self._loaded.weights)

    def call(self, images):
        return self.function(images=images)["outputs"]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_outputs)

    def save_assets(self, directory):
        """Writes the SavedModel; called by `keras.Model.save`."""
        for name, content in self._files.items():
            path = pathlib.Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def load_assets(self, directory):
        """Reads the SavedModel; called by `keras.models.load_model`."""
        # As it was written, to be written again.
        self._files = {
            str(path.relative_to(directory)): path.read_bytes()
            for path in pathlib.Path(directory).rglob("*")
            if path.is_file()
        }
        # Its variables live as long as what was loaded.
        self._loaded = _outside_of_scopes(_load, directory)
        self.function = self._loaded.signatures[SIGNATURE]


def load(directory, output=None, size=None):
    """Makes a Keras model of a SavedModel.

    The signature `serving_default` is taken, or the only one there is; without
    signatures, the object's own call, as of TF Hub's models.

    Args:
        directory: holds `saved_model.pb`, such as `keras.Model.export`,
            `tf.saved_model.save` or TF Hub leave it.
        output: name of the output, where there are several.
        size: side of the images in pixels, where the SavedModel takes any.

    Returns:
        A functional `keras.Model`: float32 images, of the shape and values that
        the SavedModel takes, for any batch, to float32 `(batch, num_outputs)`.

    Raises:
        errors.InputError: if it cannot be read, does not take such images or
            gives no such vectors.
    """
    directory = pathlib.Path(directory)
    if not (directory / "saved_model.pb").is_file():
        raise errors.InputError(
            f"Expected a classifier. Received: {directory}, a directory "
            "without a saved_model.pb. Name a .keras file, or a directory "
            "that keras.Model.export or tf.saved_model.save has written."
        )
    with tempfile.TemporaryDirectory() as temporary:
        shape, num_outputs = _outside_of_scopes(
            _convert, directory, output, size, temporary
        )
        layer = SavedModelLayer(
            num_outputs, dtype="float32", trainable=False, name="saved_model"
        )
        layer.load_assets(temporary)
    images = keras.Input(shape, name="images")
    return keras.Model(images, layer(images), name="classifier")


def check_no_sigmoid(model, name):
    """Checks that the outputs are not those of sigmoids.

    A softmax tells itself by its sum; that of sigmoids can be any.

    Args:
        model: as `load` gives it.
        name: of the classifier, for the message.

    Raises:
        errors.InputError: if the last operation is a sigmoid.
    """
    if _last_operation(model.layers[-1].function) == "Sigmoid":
        raise errors.InputError(
            f"Expected a classifier that returns logits. Received: {name}, "
            "whose outputs are probabilities, each of a sigmoid. Take their "
            "log-odds, which are the logits, with --log-probabilities."
        )


def _last_operation(function):
    """Name of the operation that a concrete function's output comes from."""
    graph = function.graph.as_graph_def()
    functions = {each.signature.name: each for each in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    source = function.outputs[0].name
    while True:
        # NODE, NODE:INDEX or, inside a function, NODE:OUTPUT:INDEX.
        name, *place = source.split(":")
        if name not in nodes:
            # An argument.
            return None
        node, index = nodes[name], int(place[-1]) if place else 0
        if node.op in ("Identity", "Cast", "Reshape", "Squeeze"):
            source = node.input[0]
        elif node.op == "IdentityN":
            source = node.input[index]
        elif node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            called = functions[node.attr["f"].func.name]
            nodes = {node.name: node for node in called.node_def}
            source = called.ret[called.signature.output_arg[index].name]
        else:
            return node.op


def choose_output(output, names, classifier):
    """Name of the output to take, which is free where there is but one.

    Raises:
        errors.InputError: if there are several and `output` is None, or there
            is none of that name.
    """
    if output in names:
        return output
    if output is None and len(names) == 1:
        return names[0]
    received = f"--output {output}" if output else "no --output"
    raise errors.InputError(
        f"Expected --output to name an output of {classifier}: "
        f"{', '.join(names)}. Received: {received}."
    )


def _convert(directory, output, size, target):
    """Writes what `SavedModelLayer` reads.

    Returns:
        `(shape of an image, num_outputs)`.
    """
    try:
        loaded = _load(directory)
    # TensorFlow lets through whatever a damaged or incomplete one makes it
    # raise.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected {directory} to be a SavedModel that TensorFlow can "
            f"load. Received: {reason}. Export the classifier again."
        ) from error
    function, spec = _function_of_images(loaded, directory)
    shape = _image_shape(spec, size, directory)

    def outputs_of(images):
        results = _by_name(function(images))
        chosen = choose_output(output, sorted(results), directory)
        return tf.cast(results[chosen], "float32")

    @tf.function(
        input_signature=[tf.TensorSpec((None, *shape), name="images")],
        # It would put its own words before a message of ours.
        autograph=False,
    )
    def classify(images):
        images = tf.round(images) if spec.dtype.is_integer else images
        images = tf.cast(images, spec.dtype)
        if spec.shape[0] == 1:
            return {
                "outputs": tf.map_fn(
                    lambda image: outputs_of(image[None])[0],
                    images,
                    fn_output_signature="float32",
                )
            }
        return {"outputs": outputs_of(images)}

    try:
        concrete = classify.get_concrete_function()
        # Only the variables that it reads.
        module = tf.Module()
        module.weights = list(concrete.graph.variables)
        tf.saved_model.save(module, target, signatures=concrete)
    except errors.InputError:
        raise
    # An input that the function itself refuses, or state that TensorFlow
    # cannot save a second time.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected {directory} to classify images of shape (batch, "
            f"{', '.join(map(str, shape))}). Received: {reason}."
        ) from error
    return shape, _num_outputs(concrete, shape, directory)


def _num_outputs(concrete, shape, directory):
    """Length of the vectors, from one image where the graph leaves it open."""
    outputs = concrete.structured_outputs["outputs"].shape
    if outputs.rank is None or None in outputs[1:]:
        images = tf.zeros((1, *shape))
        outputs = concrete(images=images)["outputs"].shape
    if outputs.rank != 2:
        raise errors.InputError(
            "Expected a SavedModel whose output is of shape (batch, "
            f"num_classes). Received: {directory} with outputs {outputs}. "
            "Choose another with --output."
        )
    return outputs[1]


def _outside_of_scopes(function, *arguments):
    """Calls a function outside of every strategy's scope.

    TensorFlow can neither write a loaded function whose variables belong to
    several replicas nor call it on one of them. Scopes end at the thread. The
    variables then lie on the first device.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def _load(directory):
    # TensorFlow warns of gradients of gradients, which nobody asks for, in a
    # line for each function.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return tf.saved_model.load(str(directory))
    finally:
        logger.setLevel(level)


def _function_of_images(loaded, directory):
    """The function that takes images, and the `tf.TensorSpec` of these."""
    signatures = getattr(loaded, "signatures", {})
    if SIGNATURE in signatures or len(signatures) == 1:
        name = SIGNATURE if SIGNATURE in signatures else next(iter(signatures))
        signature = signatures[name]
        tensors = signature.structured_input_signature[1]

        def function(images):
            return signature(**{next(iter(tensors)): images})

        candidates = [(function, tensors)]
    else:
        candidates = [
            _function_of_tensors(concrete)
            for concrete in getattr(
                getattr(loaded, "__call__", None), "concrete_functions", ()
            )
            # As for `training=True`.
            if True not in tf.nest.flatten(concrete.structured_input_signature)
        ]
    for function, tensors in candidates:
        specs = list(tensors.values())
        if len(specs) == 1 and _takes_images(specs[0]):
            return function, specs[0]
    if signatures and not candidates:
        raise errors.InputError(
            f"Expected a SavedModel with one signature, or {SIGNATURE} among "
            f"them. Received: {directory} with {', '.join(signatures)}. Export "
            f"the function that classifies images as {SIGNATURE}."
        )
    found = "; ".join(
        ", ".join(f"{x.dtype.name} {x.shape}" for x in tensors.values())
        for _, tensors in candidates
    )
    raise errors.InputError(
        "Expected a SavedModel that takes images, one input of shape (batch, "
        "height, width, channels), with 3 channels or 1, last or first, for a "
        f"batch of any size or one image. Received: {directory}, which takes "
        f"{found or 'nothing: it has no signature and cannot be called'}. "
        "Export a function of such images."
    )


def _function_of_tensors(concrete):
    """One trace of a call: its function, and its tensors by position."""
    structure = concrete.structured_input_signature

    def function(images):
        args, kwargs = tf.nest.map_structure(
            lambda x: images if isinstance(x, tf.TensorSpec) else x, structure
        )
        return concrete(*args, **kwargs)

    tensors = {
        index: spec
        for index, spec in enumerate(tf.nest.flatten(structure))
        if isinstance(spec, tf.TensorSpec)
    }
    return function, tensors


def _takes_images(spec):
    return (
        spec.shape.rank is not None
        and inputs.layout(spec.shape) is not None
        and spec.shape[0] in (None, 1)
        and (spec.dtype.is_floating or spec.dtype.is_integer)
    )


def _image_shape(spec, size, directory):
    """Shape of one image, without open dimensions."""
    shape = list(spec.shape[1:])
    layout = inputs.layout(spec.shape)
    if None in (layout.height, layout.width) and not size:
        raise errors.InputError(
            f"Expected --classifier-size for {directory}, which takes images "
            "of any height or width. Received: none. Give the size it was "
            "trained at."
        )
    if layout.axis == -1:
        shape[-1] = layout.channels
    return tuple(side or size for side in shape)


def _by_name(outputs):
    """A function's outputs as a dict."""
    if isinstance(outputs, dict):
        return outputs
    return {
        f"output_{index}": tensor
        for index, tensor in enumerate(tf.nest.flatten(outputs))
    }
