"""Pipeline: an exported inversion model, as three functions of arrays."""

import importlib.util
import logging
import pathlib

import numpy as np
import tensorflow as tf

from kinv import errors, files, pixels
from kinv.serving import arguments
from kinv.serving.signature import (
    FEATURES,
    INPUTS,
    METADATA,
    OUTPUTS,
    SIGNATURE,
)

LOGGER = logging.getLogger("kinv.serving")
# Bounds of one call, so that memory does not grow with the batch: reconstructed
# pixels (256 images of 32 pixels) and pixels of images.
RECONSTRUCTED_PIXELS = 256 * 32 * 32
IMAGE_PIXELS = 2**24
# The same of a model behind a network, whose messages are bounded, too: 3 MB
# of images, 8 as JSON. A larger image travels alone.
REMOTE_IMAGE_PIXELS = 2**18
# Height of an image that is sent at most, where the server does not say what
# its classifier takes: 13 MB, 40 as JSON.
REMOTE_IMAGE_SIZE = 1024


class Pipeline:
    """Classifier and generator behind one signature.

    Args:
        predict: function of a dict of the signature's inputs, float32 arrays,
            to a dict of its outputs.
        metadata: dict, the pipeline's `kinv.json`.
        signature: the same as a function of tensors, through which gradients
            flow; None of a model that runs elsewhere, whose calls are smaller,
            and which gets images no larger than its classifier takes.

    Attributes:
        metadata: dict: class names, sizes, dataset, options, metrics, versions.
        num_classes: number of logits.
        layer: name of the layer that the model inverts instead of the logits,
            or None.
        condition_dim: length of what the generator is given: `num_classes`,
            or the layer's number of features.
        noise_dim: length of the noise.
        image_size: height and width of reconstructions in pixels.
        class_names: list of strings, in the order of the logits.

    Example:
        pipeline = Pipeline.load("exported/scenes32-robust")
        reconstructions = pipeline.reconstruct(images, samples=4, seed=0)
    """

    def __init__(self, predict, metadata, signature=None):
        self._predict = predict
        self.signature = signature
        self.metadata = metadata
        self.num_classes = metadata["num_classes"]
        self.layer = metadata.get("layer")
        self.condition_dim = metadata.get("condition_dim", self.num_classes)
        self.noise_dim = metadata["noise_dim"]
        self.image_size = metadata["image_size"]
        self.class_names = metadata["class_names"]
        self._classifier_size = metadata.get("classifier_size")
        self._samples_per_call = max(
            1, RECONSTRUCTED_PIXELS // self.image_size**2
        )

    @classmethod
    def load(cls, target):
        """Loads a model written by `tools/export.py`, or connects to one.

        Args:
            target: directory of one version, or of all of them, of which the
                highest is taken; or `scenes32-robust`, which is installed with
                kinv; or the address of a served model,
                `grpc://HOST:PORT/NAME` or `http://HOST:PORT/v1/models/NAME`.

        Raises:
            errors.InputError: if there is no such directory or server, or it
                holds something else. Later calls raise it, too, if the server
                fails.
        """
        if "://" in str(target):
            # Local models need neither gRPC nor HTTP.
            from kinv.serving import client

            predict, metadata = client.connect(str(target))
            _check_metadata(metadata, target)
            return cls(predict, metadata)
        path = _version_directory(target)
        metadata = _read_metadata(path)
        try:
            model = tf.saved_model.load(path)
        # TensorFlow lets through whatever a damaged file makes its parsers
        # raise.
        except Exception as error:
            raise errors.InputError(
                f"Expected a complete SavedModel in {path}. Received: "
                f"{errors.reason(error)}. Export it again."
            ) from error
        function = model.signatures.get(SIGNATURE)
        _check_signature(function, path, "layer" in metadata)

        def signature(**tensors):
            # Through the model, which keeps its variables alive.
            return model.signatures[SIGNATURE](**tensors)

        def predict(inputs):
            outputs = signature(
                **{name: tf.constant(value) for name, value in inputs.items()}
            )
            return {name: value.numpy() for name, value in outputs.items()}

        return cls(predict, metadata, signature)

    @property
    def inverted(self):
        """What it inverts, in words."""
        return f"features of {self.layer}" if self.layer else "logits"

    def target(self, images):
        """Images as the model would reconstruct them ideally.

        At its size and, where its pictures are grey, of the images' luminance.
        """
        images = pixels.resize(images, self.image_size)
        if self.metadata.get("channels", 3) == 3:
            return images
        grey = images @ np.float64(pixels.LUMINANCE)
        return grey[..., None].repeat(3, axis=-1).astype("float32")

    def logits(self, images):
        """Classifies images.

        Args:
            images: `(batch, height, width, 3)` in [0, 255], of any size; of
                those that are not square the centre is taken.

        Returns:
            float32 `(batch, num_classes)`.
        """
        return self.classify(images)[0]

    def classify(self, images):
        """Logits of images, and what the generator is given of them.

        Args:
            images: `(batch, height, width, 3)` in [0, 255], of any size; of
                those that are not square the centre is taken.

        Returns:
            float32 `(batch, num_classes)`, and the layer's features `(batch,
            condition_dim)`; of a model without a layer, the logits again.
        """
        images = arguments.center_squares(images)
        logits = np.empty((len(images), self.num_classes), "float32")
        given = logits
        if self.layer:
            given = np.empty((len(images), self.condition_dim), "float32")
        step = self._images_per_call(images, 1)
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            # No noise, no reconstructions: the generator does not run.
            noise = np.empty((len(images[rows]), 0, self.noise_dim), "float32")
            outputs = self._call(images[rows], noise)
            logits[rows] = outputs["logits"]
            if self.layer:
                given[rows] = outputs[FEATURES]
        return logits, given

    def reconstruct(
        self,
        images,
        noise=None,
        logit_scale=1.0,
        logit_shift=0.0,
        *,
        samples=1,
        seed=None,
    ):
        """Reconstructs images from `logit_scale * logits + logit_shift`.

        Of a model that inverts a layer, scale and shift act on its features.

        Args:
            images: `(batch, height, width, 3)` in [0, 255], of any size; of
                those that are not square the centre is taken.
            noise: `(batch, samples, noise_dim)`, N(0, 1): as many
                reconstructions of each image. Or None, and a seed.
            logit_scale: a number, or `(batch or 1, samples or 1)`.
            logit_shift: a number, or `(batch or 1, samples or 1,
                condition_dim or 1)`.
            samples: reconstructions of each image, where a seed is given.
            seed: integer, of which the noise is drawn: the same gives the
                same again.

        Returns:
            float32 `(batch, samples, image_size, image_size, 3)` in [0, 255].
        """
        images = arguments.center_squares(images)
        shape = (len(images), samples, self.noise_dim)
        noise = arguments.given_or_drawn(noise, shape, seed)
        batch, samples = noise.shape[:2]
        scale = arguments.broadcast(
            logit_scale, (batch, samples), "logit_scale"
        )
        shift = arguments.broadcast(
            logit_shift, (batch, samples, self.condition_dim), "logit_shift"
        )

        size = self.image_size
        outputs = np.empty((batch, samples, size, size, 3), "float32")
        step = self._images_per_call(images, samples)
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            for first in range(0, samples, self._samples_per_call):
                columns = slice(first, first + self._samples_per_call)
                outputs[rows, columns] = self._call(
                    images[rows],
                    noise[rows, columns],
                    scale[rows, columns],
                    shift[rows, columns],
                )["reconstructions"]
        return outputs

    def generate(self, logits, noise):
        """Makes images of any logits, or features of the layer.

        Args:
            logits: `(batch, condition_dim)`.
            noise: `(batch, noise_dim)`, N(0, 1).

        Returns:
            float32 `(batch, image_size, image_size, 3)` in [0, 255].
        """
        logits = arguments.check_array(
            logits, (None, self.condition_dim), "logits"
        )
        noise = arguments.check_array(
            noise, (len(logits), self.noise_dim), "noise"
        )
        # Samples of one image, whose own logits count for nothing.
        image = np.zeros((1, 1, 1, 3), "float32")
        return self.reconstruct(image, noise[None], 0.0, logits[None])[0]

    def _images_per_call(self, images, samples):
        size, pixels_per_call = images.shape[1], IMAGE_PIXELS
        if self.signature is None:
            # A server counts them as large as the classifier takes them.
            size = self._classifier_size or min(size, REMOTE_IMAGE_SIZE)
            pixels_per_call = REMOTE_IMAGE_PIXELS
        return max(
            1,
            min(
                self._samples_per_call // max(1, samples),
                pixels_per_call // size**2,
            ),
        )

    def _call(self, images, noise, logit_scale=None, logit_shift=None):
        batch = len(images)
        size = self._classifier_size or REMOTE_IMAGE_SIZE
        if self.signature is None and images.shape[1] > size:
            # As the signature does itself.
            images = pixels.resize(images, size)
        if logit_scale is None:
            logit_scale = np.ones((batch, 1), "float32")
            logit_shift = np.zeros((batch, 1, 1), "float32")
        return self._predict(
            {
                "images": np.asarray(images, "float32"),
                "noise": noise,
                "logit_scale": logit_scale,
                "logit_shift": logit_shift,
            }
        )


def model_directory(path):
    """The directory at `path`, or the installed pipeline of that name."""
    path = pathlib.Path(path)
    installed = importlib.util.find_spec("kinv.exported")
    if installed and not path.exists():
        for place in installed.submodule_search_locations:
            if pathlib.Path(place, path).is_dir():
                path = pathlib.Path(place, path)
    return path


def _version_directory(path):
    path = model_directory(path)
    if not path.is_dir():
        raise errors.InputError(
            "Expected a directory written by tools/export.py. Received: "
            f"{path}, "
            + ("a file." if path.exists() else "which does not exist.")
        )
    if (path / "saved_model.pb").is_file():
        return path
    found = versions(path)
    if not found:
        raise errors.InputError(
            "Expected a directory written by tools/export.py, exported/NAME or "
            f"exported/NAME/VERSION. Received: {path}, in which there is no "
            "SavedModel."
        )
    return found[max(found)]


def _read_metadata(path):
    """The `kinv.json` of a SavedModel that is as it was written."""
    metadata_path = path / "assets.extra" / "kinv.json"
    if not metadata_path.is_file():
        raise errors.InputError(
            "Expected a model written by tools/export.py. Received: "
            f"{path}, a SavedModel without assets.extra/kinv.json."
        )
    if not files.verify(path):
        LOGGER.warning(
            "%s: without digests, so not verified; export it again to have "
            "them",
            path,
        )
    metadata = files.read_json(metadata_path)
    _check_metadata(metadata, path)
    return metadata


def versions(directory):
    """SavedModels `directory/NUMBER` by number, ascending."""
    return {
        number: path
        for number, path in files.versions(directory).items()
        if (path / "saved_model.pb").is_file()
    }


def check_is_no_version(directory):
    """Raises `InputError` for `exported/NAME/NUMBER` instead of its parent."""
    if (pathlib.Path(directory) / "saved_model.pb").exists():
        raise errors.InputError(
            "Expected a directory of versions, exported/NAME. Received: "
            f"{directory}, which is a version itself. Name its directory."
        )


def _check_metadata(metadata, place):
    of_kinv = metadata if isinstance(metadata, dict) else {}
    sizes = {name: of_kinv.get(name) for name in METADATA}
    names = sizes.pop("class_names")
    if (
        not all(type(size) is int and size > 0 for size in sizes.values())
        or not isinstance(names, list)
        or len(names) != sizes["num_classes"]
    ):
        raise errors.InputError(
            f"Expected {', '.join(sorted(METADATA))} in the kinv.json of "
            f"{place}, as tools/export.py writes them. Received: other "
            "contents. Export the model again."
        )


def _check_signature(function, path, has_features):
    inputs = set(function.structured_input_signature[1]) if function else set()
    outputs = set(function.structured_outputs) if function else set()
    expected = OUTPUTS | ({FEATURES} if has_features else set())
    if inputs != INPUTS or outputs != expected:
        raise errors.InputError(
            f"Expected a signature {SIGNATURE} from "
            f"{', '.join(sorted(INPUTS))} to {', '.join(sorted(expected))}. "
            f"Received: {path} with {', '.join(sorted(inputs)) or 'nothing'} "
            f"to {', '.join(sorted(outputs)) or 'nothing'}. Export it again."
        )
