"""Export: classifier and generator as one SavedModel with one signature."""

import contextlib
import errno
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kinv import errors, files, pixels
from kinv.inversion import batches, networks, presets
from kinv.serving.signature import SIGNATURE

# Pictures that the exported model makes at a time, however many a call asks
# for: self-attention at 64 pixels takes 17 MB for each.
PART = 64


def load_generator(path):
    """Loads the averaged generator of a run, computing in float32.

    A run in mixed precision leaves a file whose layers compute in 16 bits;
    their weights are float32 all the same.

    Args:
        path: `generator.keras` of a run of `tools/train.py`.

    Returns:
        `networks.Generator`.

    Raises:
        errors.InputError: if the file is missing or holds something else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.InputError(
            f"Expected a trained generator. Received: {path}, which does not "
            "exist. Name a run of tools/train.py that has finished an epoch."
        )
    files.verify(path)
    try:
        with _float32():
            saved = keras.models.load_model(path, compile=False)
        if isinstance(saved, networks.Generator):
            saved.dtype_policy = "float32"
            return saved
        reason = f"a {type(saved).__name__}"
    # Keras lets through whatever a damaged file makes zipfile, h5py, json or
    # a layer's constructor raise.
    except Exception as error:
        reason = errors.reason(error)
    raise errors.InputError(
        f"Expected {path} to hold a generator saved by this version of "
        f"tools/train.py. Received: {reason}. Put it back from a copy, or "
        "train it anew."
    )


@contextlib.contextmanager
def _float32():
    """Has layers that are made compute in float32."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def condition_of(classifier, images):
    """What a generator is given of images: logits, or features.

    Args:
        classifier: keras model, images to logits, or to these and features.
        images: as the classifier takes them.

    Returns:
        float32 array `(batch, condition_dim)`.
    """
    # `predict` would have XLA compile it on GPUs, which not all can.
    outputs = tf.nest.flatten(classifier(images, training=False))
    return np.asarray(outputs[-1], "float32")


def generator_inputs(classifier, image_batches, noise_dim, seed):
    """Pairs logits of real images with fresh noise.

    Args:
        classifier: keras model, images to logits.
        image_batches: iterable of `(images, labels)`, images as the
            classifier takes them.
        noise_dim: length of the noise.
        seed: of the noise.

    Yields:
        dicts of `condition`, float32 `(batch, num_classes)` logits or, of a
        classifier with features, those in their place; and `noise`, float32
        `(batch, noise_dim)`, as `networks.Generator` takes them.
    """
    random = np.random.default_rng(seed)
    for images, _ in image_batches:
        condition = condition_of(classifier, images)
        noise = random.standard_normal((len(condition), noise_dim), "float32")
        yield {"condition": tf.constant(condition), "noise": tf.constant(noise)}


def describe(classifier, generator, class_names):
    """What `kinv.json` says of the networks.

    Args:
        classifier: as of `save`.
        generator: as of `save`.
        class_names: list of str, by logit.
    """
    return {
        "class_names": class_names,
        "num_classes": classifier.outputs[0].shape[-1],
        "noise_dim": generator.noise_dim,
        "image_size": generator.image_size,
        "channels": generator.channels,
        "classifier_size": classifier.input_shape[1],
    }


def save_trained(model, path, images, class_names):
    """Writes the SavedModel of a model that was trained in Python.

    `tools/export.py` also scales the noise, measures on held-out images and
    writes a model card; it takes a run of `tools/train.py`.

    Args:
        model: `gan.InversionGAN` of a classifier of logits. It stays as it is.
        path: directory to write, such as `exported/digits/1`; it must not
            exist, and its parents are made.
        images: array or `tf.data.Dataset` of batches, as of `fit`; the first
            10,000 fill the standing statistics.
        class_names: what to call the logits, in their order.

    Raises:
        errors.InputError: if there are other numbers of classes, or the
            directory exists or cannot be written.
    """
    classifier, trained = model.classifier, model.averaged_generator
    class_names = [str(name) for name in class_names]
    num_classes = classifier.outputs[0].shape[-1]
    if len(class_names) != num_classes or len(classifier.outputs) > 1:
        raise errors.InputError(
            f"Expected names of {num_classes} classes, and a classifier of "
            f"logits alone. Received: {len(class_names)} names, "
            f"{len(classifier.outputs)} outputs."
        )
    path = pathlib.Path(path)
    if path.exists():
        raise errors.InputError(
            f"Expected a new directory. Received: {path}, which exists. Take "
            "the next version's number."
        )
    files.make_directory(path.parent)
    with _float32():
        config = {**trained.get_config(), "dtype": "float32"}
        generator = networks.Generator.from_config(config)
    generator.set_weights(trained.get_weights())
    size = 1 if isinstance(images, tf.data.Dataset) else len(images)
    parts = batches.full(images, max(1, min(PART, size)), model.seed)
    size = len(batches.unpack(next(iter(parts)))[0])

    def seen(*batch):
        images, _ = batches.unpack(batch)
        pixels.check_range(tf.reduce_min(images), tf.reduce_max(images))
        return batches.resize(images, classifier.input_shape[1]), None

    parts = parts.take(-(-presets.STATISTICS_EXAMPLES // size))
    inputs = generator_inputs(
        classifier, map(seen, parts), generator.noise_dim, model.seed
    )
    generator.fold_spectral_norms()
    generator.fill_standing_statistics(inputs)
    metadata = describe(classifier, generator, class_names)
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        save(temporary, classifier, generator, metadata)


def save(path, classifier, generator, metadata):
    """Writes the SavedModel, its metadata and its warm-up requests.

    The generator must be ready for inference: spectral norms folded, standing
    statistics filled.

    Args:
        path: an empty directory.
        classifier: keras model, images `(batch, size, size, 3)` in [0, 255]
            to logits `(batch, num_classes)`, or to these and the features of a
            layer, as of `features.add_features`.
        generator: `networks.Generator` for as many logits, or features.
        metadata: dict that JSON can express, for `assets.extra/kinv.json`.

    Raises:
        OSError: if the directory cannot be written, as on a full disk.
    """
    path = pathlib.Path(path)
    function = signature(classifier, generator).get_concrete_function()
    # Only the variables that the function reads: not the networks, whose
    # power iterations and class names would travel along.
    module = tf.Module()
    module.weights = list(function.graph.variables)
    # For `keras.layers.TFSMLayer(path, call_endpoint="serve")`, which calls it
    # with one dict. Not a signature: there is one.
    specs = function.structured_input_signature[0]
    module.serve = tf.function(
        lambda inputs: function(**inputs),
        input_signature=[{spec.name: spec for spec in specs}],
    )
    try:
        tf.saved_model.save(module, path, signatures={SIGNATURE: function})
        extra = path / "assets.extra"
        extra.mkdir()
        _write_warmup_requests(
            extra / "tf_serving_warmup_requests",
            classifier.input_shape[1],
            generator,
        )
    except tf.errors.OpError as error:
        # TensorFlow's own message names its temporary files at length.
        full = "No space left on device" in error.message
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code), str(path.parent)) from error
    write_metadata(path, metadata)


def write_metadata(path, metadata):
    """Writes `kinv.json` of the SavedModel at `path`, and all digests."""
    files.write_json(pathlib.Path(path) / "assets.extra/kinv.json", metadata)
    files.write_manifest(path)


def signature(classifier, generator):
    """Builds the function that is exported.

    Returns:
        `tf.function` of `images` `(B, H, W, 3)`, `noise` `(B, K, noise_dim)`,
        `logit_scale` `(B, K or 1)` and `logit_shift` `(B, K or 1, num_classes
        or 1)`, all float32, to a dict of `logits` `(B, num_classes)` and
        `reconstructions` `(B, K, image_size, image_size, 3)` in [0, 255].
        Of images that are not square the centre is taken. The classifier runs
        once per image, the generator once per noise, on
        `PART` at a time; K may be 0. Of a classifier with features the dict
        has `features` `(B, condition_dim)`, too, which scale and shift act on
        instead of the logits.
    """
    classifier_size = classifier.input_shape[1]
    num_classes = classifier.outputs[0].shape[-1]
    condition_dim, size = generator.condition_dim, generator.image_size

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, None, 3), name="images"),
            tf.TensorSpec((None, None, generator.noise_dim), name="noise"),
            tf.TensorSpec((None, None), name="logit_scale"),
            tf.TensorSpec((None, None, None), name="logit_shift"),
        ]
    )
    def invert(images, noise, logit_scale, logit_shift):
        images = batches.center_square(images, classifier_size)
        logits, *features = (
            tf.cast(x, "float32")
            for x in tf.nest.flatten(classifier(images, training=False))
        )
        outputs = {"logits": tf.ensure_shape(logits, (None, num_classes))}
        if features:
            outputs["features"] = tf.ensure_shape(
                features[0], (None, condition_dim)
            )
        condition = outputs.get("features", outputs["logits"])
        conditions = condition[:, None] * logit_scale[..., None] + logit_shift
        batch, samples = tf.unstack(tf.shape(noise)[:2])
        conditions = tf.broadcast_to(
            conditions, (batch, samples, condition_dim)
        )
        inputs = {
            "condition": tf.reshape(conditions, (-1, condition_dim)),
            "noise": tf.reshape(noise, (-1, generator.noise_dim)),
        }
        # TensorFlow's CPU kernels fail on some empty batches.
        reconstructions = tf.cond(
            batch * samples > 0,
            lambda: _in_parts(generator, inputs),
            lambda: tf.zeros((0, size, size, 3)),
        )
        reconstructions = tf.reshape(
            reconstructions, (batch, samples, size, size, 3)
        )
        return {**outputs, "reconstructions": reconstructions}

    return invert


def lite_model(classifier, generator):
    """The same for LiteRT: one image of the classifier's size, one noise.

    LiteRT has no antialiased resize, which images of any size need.

    Args:
        classifier: keras model, as of `save`.
        generator: `networks.Generator`, as of `save`.

    Returns:
        bytes of a `.tflite` file, whose one signature takes `images` `(1, size,
        size, 3)` in [0, 255] and `noise` `(1, noise_dim)`, and gives `logits`
        `(1, num_classes)` and `reconstructions` `(1, image_size, image_size,
        3)` in [0, 255], all float32.

    Raises:
        errors.InputError: if LiteRT lacks an operator of the networks.
    """
    size = classifier.input_shape[1]

    @tf.function(
        input_signature=[
            tf.TensorSpec((1, size, size, 3), name="images"),
            tf.TensorSpec((1, generator.noise_dim), name="noise"),
        ]
    )
    def invert(images, noise):
        outputs = tf.nest.flatten(classifier(images, training=False))
        logits, *_ = outputs
        *_, condition = (tf.cast(output, "float32") for output in outputs)
        inputs = {"condition": condition, "noise": noise}
        return {
            "logits": tf.cast(logits, "float32"),
            "reconstructions": generator(inputs, training=False),
        }

    function = invert.get_concrete_function()
    module = tf.Module()
    module.weights = list(function.graph.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function], module
    )
    try:
        return converter.convert()
    # Its own class is not public.
    except Exception as error:
        raise errors.InputError(
            "Expected a classifier and a generator of operators that LiteRT "
            f"has. Received: {errors.reason(error)}."
        ) from error


def _in_parts(generator, inputs):
    """Generates `PART` pictures at a time."""
    count = tf.shape(inputs["noise"])[0]
    parts = (count + PART - 1) // PART

    def generate(part, pictures):
        rows = slice(part * PART, (part + 1) * PART)
        some = {name: value[rows] for name, value in inputs.items()}
        made = generator(some, training=False)
        return part + 1, pictures.write(part, made)

    pictures = tf.TensorArray(
        tf.float32,
        parts,
        infer_shape=False,
        element_shape=(None, generator.image_size, generator.image_size, 3),
    )
    _, pictures = tf.while_loop(
        lambda part, _: part < parts,
        generate,
        (0, pictures),
        parallel_iterations=1,
    )
    return pictures.concat()


def _write_warmup_requests(path, classifier_size, generator):
    """Requests that TensorFlow Serving answers before it takes any."""
    image = np.zeros((1, classifier_size, classifier_size, 3), "float32")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for samples in (1, 4):
            noise = np.zeros((1, samples, generator.noise_dim), "float32")
            inputs = {
                "images": image,
                "noise": noise,
                "logit_scale": np.ones((1, 1), "float32"),
                "logit_shift": np.zeros((1, 1, 1), "float32"),
            }
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = "kinv"
            request.model_spec.signature_name = SIGNATURE
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())
