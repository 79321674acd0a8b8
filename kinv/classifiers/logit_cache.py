"""Logits and target images of a data set, computed once and kept on disk.

A cache is one file of TFRecords of equal length: the target image (uint8), the
label (int64) and the logits, or features, (float16) of every example, in the
data set's own order. It only ever grows at its end. So whatever a killed
process has left is a prefix, and all of its whole records count. Reading
compares the checksum that each record carries.

`tf.data.Dataset.save` would not do: it goes on after a kill only where the
pipeline reads no variables ("ReadVariableOp is stateful"), and a classifier
does; and of ten bits flipped in its metadata three changed the data unnoticed.
"""

import hashlib
import json
import os
import pathlib

import numpy as np
import tensorflow as tf
import tqdm

from kinv import errors, files, pixels
from kinv.classifiers import saved_models
from kinv.data import source as source_lib

# Examples that are classified at a time.
BATCH_SIZE = 100
# Squared error of kept logits over their squares. Other machines and
# precisions stay far below it, other classifiers far above.
TOLERANCE = 0.01


def describe(source, classifier, layer, image_size):
    """What the content of a cache depends on, as a JSON value.

    Args:
        source: `source_lib.Source` of one split.
        classifier: Keras model, images in [0, 255] to logits, or to these and
            features, which are then kept instead.
        layer: name of the layer that gives the features, or None.
        image_size: height and width of the targets.
    """
    digest = hashlib.sha256()
    for part in classifier._flatten_layers(include_self=False):
        # Names are numbered within a process; models repeat their layers.
        if not list(part._flatten_layers(include_self=False)):
            config = {**part.get_config(), "name": None}
            text = json.dumps(config, sort_keys=True, default=str)
            digest.update(f"{type(part).__name__} {text}".encode())
        if isinstance(part, saved_models.SavedModelLayer):
            for variable in part.inner_variables:
                digest.update(variable.numpy().tobytes())
    for weights in classifier.get_weights():
        digest.update(np.ascontiguousarray(weights).tobytes())
    return {
        "data": source.identity(),
        "num_examples": source.num_examples,
        "crop": "center",
        "classifier": digest.hexdigest(),
        "classifier_size": classifier.input_shape[1],
        "layer": layer,
        "condition_dim": classifier.outputs[-1].shape[-1],
        "image_size": image_size,
        "format": "TFRecord",
    }


def cache_path(directory, description):
    """Where a cache of this description lies when it is complete."""
    text = json.dumps(description, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return pathlib.Path(directory) / name / "logits.tfrecord"


def check_place(directory, dataset):
    """Makes the directory of a cache, which is not to lie among the images.

    Args:
        directory: of all caches.
        dataset: folder of the images, or another name of theirs.

    Raises:
        errors.InputError: if it does, where it would be taken for a class, or
            as `files.make_directory`.
    """
    place = pathlib.Path(directory).resolve()
    if pathlib.Path(dataset).resolve() in (place, *place.parents) and (
        pathlib.Path(dataset).is_dir()
    ):
        raise errors.InputError(
            "Expected a folder for --cache-logits outside that of the images. "
            f"Received: {directory} in {dataset}. Choose another."
        )
    files.make_directory(directory)


def write(source, classifier, layer, image_size, directory):
    """Computes what is missing of a cache; does nothing where it is complete.

    One process computes; others that want the same cache wait until it is done.

    Args:
        source: `source_lib.Source` of one split.
        classifier: as of `describe`.
        layer: as of `describe`.
        image_size: height and width of the targets.
        directory: where caches are kept; made if need be. Beside the cache a
            JSON file says what it is of.

    Raises:
        errors.InputError: if the directory cannot be written, if logits do not
            fit into float16, or if what is there is another classifier's.
        OSError: if the disk has too little room.
    """
    description = describe(source, classifier, layer, image_size)
    path = cache_path(directory, description)
    if path.exists():
        return
    with files.lock(path.parent, wait=True):
        if path.exists():
            return
        files.write_json(path.with_name("description.json"), description)
        partial = path.with_suffix(".partial")
        temporary = path.with_name(f"{files.WRITING}batch")
        record = _record(image_size, description["condition_dim"])
        with open(partial, "ab") as file:
            # Half a record at the end is what a killed process left.
            done = file.tell() // record.itemsize
            file.truncate(done * record.itemsize)
            _check(partial, record, source, classifier, layer)
            todo = source.num_examples - done
            files.require_space(path.parent, todo * record.itemsize)
            with tqdm.tqdm(
                desc="logits",
                initial=done,
                total=source.num_examples,
                unit="image",
            ) as progress:
                for records in _records(
                    source, classifier, layer, record, done
                ):
                    file.write(_framed(records, temporary))
                    file.flush()
                    progress.update(len(records))
            os.fsync(file.fileno())
        os.replace(partial, path)


def _records(source, classifier, layer, record, start):
    """Yields batches of records, as of `_record`, from an example on."""
    classify = tf.function(classifier, reduce_retracing=True)
    batches = source.evaluation_batches(
        classifier.input_shape[1], BATCH_SIZE, start=start
    )
    for images, labels in batches:
        logits = _condition(classify, images, layer)
        with np.errstate(over="ignore"):
            logits = logits.astype("float16")
        if not np.isfinite(logits).all():
            received, way_out = "larger ones", "Train without --cache-logits."
            if np.isnan(logits).any():
                received, way_out = "NaN", "Mend the classifier."
            raise errors.InputError(
                "Expected finite logits below 65,504, which float16 holds. "
                f"Received: {received}. {way_out}"
            )
        targets = pixels.resize(images, record["image"].shape[0])
        records = np.empty(len(labels), record)
        records["image"] = pixels.to_uint8(targets)
        records["label"] = labels
        records["logits"] = logits
        yield records


def _framed(records, temporary):
    """Bytes of records as TensorFlow frames them, by way of a file."""
    fields = records.dtype.fields
    content = slice(fields["image"][1], fields["checksum"][1])
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in records:
            writer.write(record.tobytes()[content])
    framed = temporary.read_bytes()
    temporary.unlink()
    return framed


def read(source, classifier, layer, image_size, directory):
    """Opens a complete cache in place of the data set that it is of.

    Args:
        source: `source_lib.Source` of one split.
        classifier: as of `describe`.
        layer: as of `describe`.
        image_size: height and width of the targets.
        directory: where caches are kept.

    Returns:
        `source_lib.Source` with `logits` in its examples, streamed from disk.

    Raises:
        errors.InputError: if there is no such cache, if it is damaged, or if
            it is another classifier's, which `describe` did not tell apart.
    """
    description = describe(source, classifier, layer, image_size)
    path = cache_path(directory, description)
    condition_dim = description["condition_dim"]
    record = _record(image_size, condition_dim)
    expected = source.num_examples * record.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise errors.InputError(
            f"Expected a logit cache {path} of {expected:,} bytes. Received: "
            f"{size:,} bytes. Remove it if it is damaged; several workers need "
            "one directory that all of them see."
        )
    _check(path, record, source, classifier, layer)
    length = image_size * image_size * 3

    def parse(text):
        values = tf.io.decode_raw(text, tf.uint8)
        label = tf.bitcast(values[length : length + 8], tf.int64)
        logits = tf.reshape(values[length + 8 :], (condition_dim, 2))
        image = tf.reshape(values[:length], (image_size, image_size, 3))
        return {
            "image": image,
            "label": label,
            "logits": tf.cast(tf.bitcast(logits, tf.float16), tf.float32),
        }

    examples = tf.data.TFRecordDataset(str(path))
    return source_lib.Source(
        examples.map(parse, tf.data.AUTOTUNE),
        lambda image: image,
        source.class_names,
        source.num_examples,
        identity=source.identity,
    )


def _record(image_size, condition_dim):
    """A record in the file: what a TFRecord frames its content with, and it."""
    return np.dtype(
        [
            ("length", "<u8"),
            ("length_checksum", "<u4"),
            ("image", "u1", (image_size, image_size, 3)),
            ("label", "<i8"),
            ("logits", "<f2", (condition_dim,)),
            ("checksum", "<u4"),
        ]
    )


def _condition(classify, images, layer):
    """Logits, or features where a layer gives them, float32."""
    outputs = classify(images, training=False)
    return np.asarray(outputs[1] if layer else outputs, "float32")


def _check(path, record, source, classifier, layer):
    """Compares the first records of a file with what the classifier says.

    Descriptions know layers and Keras variables; what else a classifier
    computes, as between its layers, they do not.
    """
    kept = np.fromfile(path, record, BATCH_SIZE)["logits"].astype("float32")
    if not len(kept):
        return
    batches = source.evaluation_batches(
        classifier.input_shape[1], BATCH_SIZE, len(kept)
    )
    images, _ = next(iter(batches))
    logits = _condition(classifier, images, layer)
    error = np.square(kept - logits).sum()
    if error > TOLERANCE * np.square(logits).sum():
        raise errors.InputError(
            "Expected a logit cache of this classifier. Received: "
            f"{path}, of one with the same layers and variables but other "
            "logits. Give another directory with --cache-logits."
        )
