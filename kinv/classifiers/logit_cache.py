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
import math
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


class LogitCache:
    """The cache of one split and classifier, and its place on disk.

    Args:
        source: `source_lib.Source` of one split.
        classifier: Keras model, images in [0, 255] to logits, or to these and
            features, which are then kept instead.
        layer: name of the layer that gives the features, or None.
        image_size: height and width of the targets.
        directory: where caches are kept.

    Attributes:
        description: what the content depends on, as a JSON value.
        path: where the cache lies when it is complete.
    """

    def __init__(self, source, classifier, layer, image_size, directory):
        self._source = source
        self._classifier = classifier
        self._layer = layer
        condition_dim = classifier.outputs[-1].shape[-1]
        self.description = {
            "data": source.identity(),
            "num_examples": source.num_examples,
            "crop": "center",
            "classifier": _digest(classifier),
            "classifier_size": classifier.input_shape[1],
            "layer": layer,
            "condition_dim": condition_dim,
            "image_size": image_size,
            "format": "TFRecord",
        }
        text = json.dumps(self.description, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = pathlib.Path(directory) / name / "logits.tfrecord"
        # A record in the file: what a TFRecord frames its content with, and it.
        self._record = np.dtype(
            [
                ("length", "<u8"),
                ("length_checksum", "<u4"),
                ("image", "u1", (image_size, image_size, 3)),
                ("label", "<i8"),
                ("logits", "<f2", (condition_dim,)),
                ("checksum", "<u4"),
            ]
        )

    def write(self):
        """Computes what is missing; does nothing where all is there.

        One process computes; others that want the same cache wait until it is
        done. Beside the cache a JSON file says what it is of.

        Raises:
            errors.InputError: if the directory cannot be written, if logits do
                not fit into float16, or if what is there is another
                classifier's.
            OSError: if the disk has too little room.
        """
        if self.path.exists():
            return
        with files.lock(self.path.parent, wait=True):
            if self.path.exists():
                return
            description = self.path.with_name("description.json")
            files.write_json(description, self.description)
            partial = self.path.with_suffix(".partial")
            temporary = self.path.with_name(f"{files.WRITING}batch")
            size, total = self._record.itemsize, self._source.num_examples
            with open(partial, "ab") as file:
                # Half a record at the end is what a killed process left.
                done = file.tell() // size
                file.truncate(done * size)
                self._check(partial)
                files.require_space(self.path.parent, (total - done) * size)
                with tqdm.tqdm(
                    desc="logits", initial=done, total=total, unit="image"
                ) as progress:
                    for records in self._records(done):
                        file.write(_framed(records, temporary))
                        file.flush()
                        progress.update(len(records))
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def read(self):
        """Opens a complete cache in place of the data set that it is of.

        Returns:
            `source_lib.Source` with `logits` in its examples, streamed from
            disk.

        Raises:
            errors.InputError: if there is no such cache, if it is damaged, or
                if it is another classifier's, which `description` did not tell
                apart.
        """
        expected = self._source.num_examples * self._record.itemsize
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != expected:
            raise errors.InputError(
                f"Expected a logit cache {self.path} of {expected:,} bytes. "
                f"Received: {size:,} bytes. Remove it if it is damaged; "
                "several workers need one directory that all of them see."
            )
        self._check(self.path)
        image_shape = self._record["image"].shape
        (condition_dim,) = self._record["logits"].shape
        length = math.prod(image_shape)

        def parse(text):
            values = tf.io.decode_raw(text, tf.uint8)
            label = tf.bitcast(values[length : length + 8], tf.int64)
            logits = tf.reshape(values[length + 8 :], (condition_dim, 2))
            return {
                "image": tf.reshape(values[:length], image_shape),
                "label": label,
                "logits": tf.cast(tf.bitcast(logits, tf.float16), tf.float32),
            }

        examples = tf.data.TFRecordDataset(str(self.path))
        return source_lib.Source(
            examples.map(parse, tf.data.AUTOTUNE),
            lambda image: image,
            self._source.class_names,
            self._source.num_examples,
            identity=self._source.identity,
        )

    def _records(self, start):
        """Yields batches of records from an example on."""
        classify = tf.function(self._classifier, reduce_retracing=True)
        for images, labels in self._batches(start=start):
            logits = self._condition(classify, images)
            with np.errstate(over="ignore"):
                logits = logits.astype("float16")
            if not np.isfinite(logits).all():
                received = "larger ones. Train without --cache-logits."
                if np.isnan(logits).any():
                    received = "NaN. Mend the classifier."
                raise errors.InputError(
                    "Expected finite logits below 65,504, which float16 holds. "
                    f"Received: {received}"
                )
            targets = pixels.resize(images, self._record["image"].shape[0])
            records = np.empty(len(labels), self._record)
            records["image"] = pixels.to_uint8(targets)
            records["label"] = labels
            records["logits"] = logits
            yield records

    def _check(self, path):
        """Compares the first records of a file with what the classifier says.

        Descriptions know layers and Keras variables; what else a classifier
        computes, as between its layers, they do not.
        """
        kept = np.fromfile(path, self._record, BATCH_SIZE)["logits"]
        if not len(kept):
            return
        images, _ = next(iter(self._batches(limit=len(kept))))
        logits = self._condition(self._classifier, images)
        error = np.square(kept.astype("float32") - logits).sum()
        if error > TOLERANCE * np.square(logits).sum():
            raise errors.InputError(
                "Expected a logit cache of this classifier. Received: "
                f"{path}, of one with the same layers and variables but other "
                "logits. Give another directory with --cache-logits."
            )

    def _batches(self, **which):
        """Images as the classifier takes them, and labels."""
        return self._source.evaluation_batches(
            self._classifier.input_shape[1], BATCH_SIZE, **which
        )

    def _condition(self, classify, images):
        """Logits, or features where a layer gives them, float32."""
        outputs = classify(images, training=False)
        return np.asarray(outputs[1] if self._layer else outputs, "float32")


def _digest(classifier):
    """Of the layers of a classifier and of its variables."""
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
    return digest.hexdigest()


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
