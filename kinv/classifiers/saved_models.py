"""SavedModels as classifiers: one as a Keras layer, inside a `.keras` file."""

import concurrent.futures
import logging
import pathlib
import tempfile

import keras
import tensorflow as tf

from kinv import errors

SIGNATURE = "serving_default"


@keras.saving.register_keras_serializable("kinv")
class SavedModelLayer(keras.layers.Layer):
    """A function of a SavedModel, images to one vector per image.

    Its graph and variables are assets of the `.keras` file that the layer is
    saved to, so that the original directory is not needed again.

    Args:
        num_outputs: length of the vectors.

    Attributes:
        function: float32 images `(batch, size, size, 3)` to float32 `(batch,
            num_outputs)`, once `load_assets` has read it.
    """

    def __init__(self, num_outputs, **kwargs):
        super().__init__(**kwargs)
        self.num_outputs = num_outputs
        self.function = None

    @property
    def inner_variables(self):
        """The function's `tf.Variable`s, which Keras does not know of."""
        return list(self._loaded.weights)

    def call(self, images):
        return self.function(images=images)["outputs"]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_outputs)

    def get_config(self):
        return {**super().get_config(), "num_outputs": self.num_outputs}

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


def load(directory, output=None, size=None, input_range=(0.0, 255.0)):
    """Makes a Keras model of a SavedModel.

    The signature `serving_default` is taken, or the only one there is; without
    signatures, the object's own call, as of TF Hub's models.

    Args:
        directory: holds `saved_model.pb`, such as `keras.Model.export`,
            `tf.saved_model.save` or TF Hub leave it.
        output: name of the output, where there are several.
        size: side of the images in pixels, where the SavedModel takes any.
        input_range: what the values 0 and 255 are for the SavedModel.

    Returns:
        A functional `keras.Model`: images `(batch, size, size, 3)` in [0, 255]
        to float32 `(batch, num_outputs)`.

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
        size, num_outputs = _outside_of_scopes(
            _convert, directory, output, size, input_range, temporary
        )
        layer = SavedModelLayer(
            num_outputs, dtype="float32", trainable=False, name="saved_model"
        )
        layer.load_assets(temporary)
    inputs = keras.Input((size, size, 3), name="images")
    return keras.Model(inputs, layer(inputs), name="classifier")


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


def _convert(directory, output, size, input_range, target):
    """Writes what `SavedModelLayer` reads.

    Returns:
        `(size, num_outputs)`.
    """
    try:
        loaded = _load(directory)
    # TensorFlow lets through whatever a damaged or incomplete one makes it
    # raise.
    except Exception as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected {directory} to be a SavedModel that TensorFlow can "
            f"load. Received: {reason} Export the classifier again."
        ) from error
    function, spec = _function_of_images(loaded, directory)
    size = _image_size(spec, size, directory)
    low, high = input_range

    @tf.function(
        input_signature=[tf.TensorSpec((None, size, size, 3), name="images")],
        # It would put its own words before a message of ours.
        autograph=False,
    )
    def classify(images):
        # Exactly the images where there is nothing to rescale.
        if (low, high) != (0, 255):
            images = low + images * ((high - low) / 255)
        if spec.dtype.is_integer:
            images = tf.round(images)
        outputs = _by_name(function(tf.cast(images, spec.dtype)))
        chosen = choose_output(output, sorted(outputs), directory)
        return {"outputs": tf.cast(outputs[chosen], "float32")}

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
            f"Expected {directory} to classify images of shape (batch, {size}, "
            f"{size}, 3). Received: {reason}"
        ) from error
    return size, _num_outputs(concrete, size, directory)


def _num_outputs(concrete, size, directory):
    """Length of the vectors, from one image where the graph leaves it open."""
    shape = concrete.structured_outputs["outputs"].shape
    if shape.rank is None or None in shape[1:]:
        images = tf.zeros((1, size, size, 3))
        shape = concrete(images=images)["outputs"].shape
    if shape.rank != 2:
        raise errors.InputError(
            "Expected a SavedModel whose output is of shape (batch, "
            f"num_classes). Received: {directory} with outputs {shape}. Choose "
            "another with --output."
        )
    return shape[1]


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
        inputs = signature.structured_input_signature[1]

        def function(images):
            return signature(**{next(iter(inputs)): images})

        candidates = [(function, inputs)]
    else:
        candidates = [
            _function_of_tensors(concrete)
            for concrete in getattr(
                getattr(loaded, "__call__", None), "concrete_functions", ()
            )
            # As for `training=True`.
            if True not in tf.nest.flatten(concrete.structured_input_signature)
        ]
    for function, inputs in candidates:
        specs = list(inputs.values())
        if len(specs) == 1 and _takes_images(specs[0]):
            return function, specs[0]
    found = "; ".join(
        ", ".join(f"{x.dtype.name} {x.shape}" for x in inputs.values())
        for _, inputs in candidates
    )
    raise errors.InputError(
        "Expected a SavedModel that takes images, one input of shape (batch, "
        f"height, width, 3) for any batch. Received: {directory}, which takes "
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
    dimensions = spec.shape.as_list() if spec.shape.rank == 4 else []
    return (
        len(dimensions) == 4
        and dimensions[0] is None
        and dimensions[3] in (3, None)
        and (spec.dtype.is_floating or spec.dtype == tf.uint8)
    )


def _image_size(spec, size, directory):
    _, height, width, _ = spec.shape
    if height is None and width is None:
        if size:
            return size
        raise errors.InputError(
            f"Expected --classifier-size for {directory}, which takes images "
            "of any size. Received: none. Give the size it was trained at."
        )
    if height != width:
        raise errors.InputError(
            "Expected a SavedModel that takes square images. Received: "
            f"{directory}, which takes {spec.shape}."
        )
    if size not in (None, height):
        raise errors.InputError(
            f"Expected --classifier-size {height}, or none, for {directory}. "
            f"Received: --classifier-size {size}."
        )
    return height


def _by_name(outputs):
    """A function's outputs as a dict."""
    if isinstance(outputs, dict):
        return outputs
    return {
        f"output_{index}": tensor
        for index, tensor in enumerate(tf.nest.flatten(outputs))
    }
