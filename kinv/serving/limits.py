"""What one call may ask for; calls that ask for something else are refused."""

import dataclasses
import math

import grpc

from kinv.pixels import HIGHEST, LOWEST
from kinv.serving import signature

# What TensorFlow Serving calls the other two methods in its messages.
OTHER_METHODS = {"classify": "classification", "regress": "regression"}


class ServingError(Exception):
    """A call that is refused.

    Attributes:
        code: `grpc.StatusCode`.
        message: one line for the caller.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message):
    """A call that is wrong in itself, whatever the state of the server."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def wrong_method(method):
    """A call of `classify` or `regress`, which no exported model has."""
    return invalid(
        f"Expected {OTHER_METHODS[method]} signature method_name to be "
        f"tensorflow/serving/{method}. Was: tensorflow/serving/predict"
    )


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one call may ask for.

    Attributes:
        body_bytes: size of a request, decompressed.
        image_pixels: pixels of an image, before it is resized; and of all
            images of a call together, as large as the classifier takes them.
        samples: reconstructions of 32 x 32 pixels, all images together; of
            larger ones as many fewer as they have more pixels.
    """

    body_bytes: int = 64 * 2**20
    image_pixels: int = 2**22
    samples: int = 1024


def check_inputs(inputs, model, limits):
    """Refuses what the signature would refuse, and what is too much.

    Args:
        inputs: dict of float32 arrays.
        model: `pipeline.Pipeline`.
        limits: `Limits`.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    # A gRPC call may name a signature that has none.
    check_names(inputs, signature.INPUTS)
    _check_shapes(inputs, model)
    _check_amount(inputs, model, limits)
    _check_values(inputs)


def check_names(received, expected):
    """Refuses inputs of other names, in TensorFlow Serving's words.

    Args:
        received: names.
        expected: names, of the signature.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    received, expected = set(received), set(expected)
    missing, extra = expected - received, received - expected
    if missing or extra:
        raise invalid(
            f"input size does not match signature: {len(received)}!="
            f"{len(expected)}."
            f" Sent extra: {{{','.join(sorted(extra))}}}. Missing but "
            f"required: {{{','.join(sorted(missing))}}}."
        )


def _check_shapes(inputs, model):
    batch = len(inputs["images"]) if inputs["images"].ndim else 0
    samples = inputs["noise"].shape[1] if inputs["noise"].ndim > 1 else 0
    # Allowed sizes of each axis; None is any.
    shapes = {
        "images": ({batch}, None, None, {3}),
        "noise": ({batch}, None, {model.noise_dim}),
        "logit_scale": ({batch}, {samples, 1}),
        "logit_shift": ({batch}, {samples, 1}, {model.condition_dim, 1}),
    }
    for name, allowed in shapes.items():
        array = inputs[name]
        fits = array.ndim == len(allowed) and all(
            sizes is None or size in sizes
            for size, sizes in zip(array.shape, allowed, strict=True)
        )
        if not fits:
            raise invalid(
                f"{name}: expected shape {_written(allowed)}, "
                f"received {list(array.shape)}"
            )
    if not batch or 0 in inputs["images"].shape:
        raise invalid("images: expected at least one, of at least one pixel")


def _check_amount(inputs, model, limits):
    height, width = inputs["images"].shape[1:3]
    if height * width > limits.image_pixels:
        raise invalid(
            f"images: expected at most {limits.image_pixels} pixels each, "
            f"received {height} x {width}"
        )
    batch, samples = inputs["noise"].shape[:2]
    most = max(1, limits.samples * 32**2 // model.image_size**2)
    # Without noise, images are resized all the same.
    if batch * max(1, samples) > most:
        raise invalid(
            f"noise: expected at most {most} samples in all, received "
            f"{batch} x {samples}"
        )
    most = max(1, limits.image_pixels // classified_pixels(model))
    if batch > most:
        raise invalid(
            f"images: expected at most {most} of the classifier's size, "
            f"received {batch}"
        )


def classified_pixels(model):
    """Pixels of an image as a model's classifier takes it."""
    return model.metadata.get("classifier_size", model.image_size) ** 2


def _check_values(inputs):
    for name, array in inputs.items():
        if not math.isfinite(array.sum(dtype="float64")):
            raise invalid(f"{name}: expected finite values")
    images = inputs["images"]
    if images.min() < LOWEST or images.max() > HIGHEST:
        raise invalid(
            "images: expected values in [0, 255], received "
            f"{images.min():g} to {images.max():g}"
        )


def _written(allowed):
    words = []
    for sizes in allowed:
        # No image at all leaves their number open.
        if sizes is None or sizes == {0}:
            words.append("any")
        else:
            words.append(" or ".join(str(size) for size in sorted(sizes)))
    return f"[{', '.join(words)}]"
