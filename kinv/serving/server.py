"""Exported models by name: their versions, and calls merged into batches."""

import concurrent.futures
import dataclasses
import itertools
import logging
import math
import pathlib
import queue
import threading

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from kinv import errors
from kinv.serving import pipeline, signature

LOGGER = logging.getLogger("kinv.serving")
# Calls that may wait; more are sent away, as TensorFlow Serving does.
WAITING_CALLS = 1000


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


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one call may ask for.

    Attributes:
        body_bytes: size of a request.
        image_pixels: pixels of an image, before it is resized.
        samples: reconstructions of 32 x 32 pixels, all images together; of
            larger ones as many fewer as they have more pixels.
    """

    body_bytes: int = 64 * 2**20
    image_pixels: int = 2**22
    samples: int = 1024


@dataclasses.dataclass(frozen=True)
class Version:
    """A loaded version of a model.

    Attributes:
        number: its directory's name.
        model: `pipeline.Pipeline`.
        signatures: `meta_graph_pb2.SignatureDef` by name, as in the file.
    """

    number: int
    model: pipeline.Pipeline
    signatures: dict[str, meta_graph_pb2.SignatureDef]

    @classmethod
    def load(cls, directory, number):
        """Loads `directory/number` and calls it once, so that it is warm."""
        path = pathlib.Path(directory, str(number))
        model = pipeline.Pipeline.load(path)
        saved = saved_model_pb2.SavedModel()
        saved.ParseFromString((path / "saved_model.pb").read_bytes())
        size = model.image_size
        model.reconstruct(
            np.zeros((1, size, size, 3), "float32"),
            np.zeros((1, 1, model.noise_dim), "float32"),
        )
        return cls(number, model, dict(saved.meta_graphs[0].signature_def))


class Server:
    """Answers calls of several models, each from its highest version.

    A thread per model merges the calls that wait into one batch: what one
    call costs alone, several cost little more together. Another thread looks
    for new versions; calls that wait are answered by the version that was
    the highest when they came.

    Args:
        directories: dict of `exported/NAME` by name.
        poll_seconds: between looks for new versions.
        limits: `Limits`.

    Raises:
        errors.InputError: if a directory holds no model of `tools/export.py`.
    """

    def __init__(self, directories, poll_seconds=1.0, limits=Limits()):
        self.limits = limits
        self._served = {
            name: _Served(name, pathlib.Path(directory))
            for name, directory in directories.items()
        }
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    @property
    def names(self):
        """Names of the models."""
        return list(self._served)

    def version(self, name, number=None):
        """The loaded `Version` of a model: the one named, or the highest.

        Raises:
            ServingError: NOT_FOUND if there is none.
        """
        served = self._served.get(name)
        if served and number in (None, served.version.number):
            return served.version
        wanted = f"Latest({name})" if number is None else f"{name}:{number}"
        raise ServingError(
            grpc.StatusCode.NOT_FOUND,
            f"Servable not found for request: {wanted}",
        )

    def states(self, name, number=None):
        """Numbers of a model's versions since the start, with their state.

        Returns:
            list of `(number, state)`, `AVAILABLE` or `END`, highest first.

        Raises:
            ServingError: NOT_FOUND if there is none.
        """
        states = self._served[name].states if name in self._served else {}
        found = [
            (version, states[version])
            for version in sorted(states, reverse=True)
            if number in (None, version)
        ]
        if not found:
            which = "any versions" if number is None else f"version {number}"
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find {which} of model {name}",
            )
        return found

    def submit(self, name, inputs, number=None):
        """Asks for a call of the signature.

        Args:
            name: of the model.
            inputs: dict of float32 arrays, as the signature takes them.
            number: of the version, or None.

        Returns:
            `concurrent.futures.Future` of a dict of arrays.

        Raises:
            ServingError: if the call is refused.
        """
        version = self.version(name, number)
        check_inputs(inputs, version.model, self.limits)
        return self._served[name].submit(version, inputs)

    def close(self):
        """Answers the calls that wait, then stops."""
        self._stopping.set()
        self._poller.join()
        for served in self._served.values():
            served.close()

    def _poll(self):
        while not self._stopping.wait(self._poll_seconds):
            for served in self._served.values():
                served.refresh()


class _Served:
    """One model: its loaded version, its waiting calls, and their thread."""

    def __init__(self, name, directory):
        numbers = pipeline.versions(directory) if directory.is_dir() else []
        if not numbers:
            raise errors.InputError(
                "Expected a directory with versions, exported/NAME. "
                f"Received: {directory}, which holds none. Write one with "
                "tools/export.py --out exported/NAME."
            )
        self.name = name
        self.directory = directory
        self.version = Version.load(directory, numbers[-1])
        self.states = {numbers[-1]: "AVAILABLE"}
        self._complained_of = None
        self._waiting = queue.Queue(WAITING_CALLS)
        self._left_over = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def refresh(self):
        """Loads the highest version if it is another one.

        One that cannot be loaded (yet) leaves the present one in place.
        """
        try:
            number = pipeline.versions(self.directory)[-1]
            if number == self.version.number:
                return
            version = Version.load(self.directory, number)
        # Whatever is wrong with what lies there, calls go on.
        except Exception as error:
            complaint = errors.reason(error)
            if complaint != self._complained_of:
                LOGGER.warning("%s: not loaded: %s", self.name, complaint)
            self._complained_of = complaint
            return
        self.states[self.version.number] = "END"
        self.states[number] = "AVAILABLE"
        self.version = version
        LOGGER.info("%s: version %d", self.name, number)

    def submit(self, version, inputs):
        future = concurrent.futures.Future()
        try:
            self._waiting.put_nowait((version, inputs, future))
        except queue.Full:
            raise ServingError(
                grpc.StatusCode.UNAVAILABLE,
                f"{WAITING_CALLS} calls of {self.name} wait already",
            ) from None
        return future

    def close(self):
        self._waiting.put(None)
        self._thread.join()

    def _work(self):
        while (calls := self._next_batch()) is not None:
            calls = [
                call for call in calls if call[2].set_running_or_notify_cancel()
            ]
            if not calls:
                continue
            futures = [future for _, _, future in calls]
            try:
                answers = _answer(calls)
            # A defect must not end the thread that all other calls need.
            except Exception as error:
                LOGGER.exception("%s: call failed", self.name)
                answers = [
                    ServingError(grpc.StatusCode.INTERNAL, errors.reason(error))
                ] * len(calls)
            for future, answer in zip(futures, answers, strict=True):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next_batch(self):
        """The next call, and those that wait and can be merged with it."""
        if self._closed and not self._left_over:
            return None
        first = self._left_over or self._waiting.get()
        self._left_over = None
        if first is None:
            return None
        calls, key, cost = [first], _key(first), _cost(first)
        while True:
            try:
                call = self._waiting.get_nowait()
            except queue.Empty:
                return calls
            if call is None:
                self._closed = True
                return calls
            cost += _cost(call)
            if _key(call) != key or cost > 1:
                self._left_over = call
                return calls
            calls.append(call)


def _key(call):
    """What calls must share to be merged: version and shapes per image."""
    version, inputs, _ = call
    return id(version), *(inputs[name].shape[1:] for name in sorted(inputs))


def _cost(call):
    """Share of the largest batch that a call takes."""
    version, inputs, _ = call
    batch, samples = inputs["noise"].shape[:2]
    height, width = inputs["images"].shape[1:3]
    reconstructed = batch * samples * version.model.image_size**2
    return max(
        reconstructed / pipeline.RECONSTRUCTED_PIXELS,
        batch * height * width / pipeline.IMAGE_PIXELS,
    )


def _answer(calls):
    """Calls the signature once for several calls of one key.

    Returns:
        list of dicts of arrays, or of errors, one per call.
    """
    version = calls[0][0]
    merged = {
        name: np.concatenate([inputs[name] for _, inputs, _ in calls])
        for name in calls[0][1]
    }
    outputs = {
        name: value.numpy()
        for name, value in version.model.signature(**merged).items()
    }
    ends = itertools.accumulate(len(inputs["images"]) for _, inputs, _ in calls)
    answers, start = [], 0
    for end in ends:
        answer = {name: value[start:end] for name, value in outputs.items()}
        if not all(np.isfinite(value).all() for value in answer.values()):
            answer = invalid(
                "Outputs are not finite: logit_scale, logit_shift or noise are "
                "too large"
            )
        answers.append(answer)
        start = end
    return answers


def check_inputs(inputs, model, limits):
    """Refuses what the signature would refuse, and what is too much.

    Args:
        inputs: dict of arrays.
        model: `pipeline.Pipeline`.
        limits: `Limits`.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    missing, extra = (
        signature.INPUTS - set(inputs),
        set(inputs) - signature.INPUTS,
    )
    if missing or extra:
        raise invalid(
            f"input size does not match signature: {len(inputs)}!="
            f"{len(signature.INPUTS)}."
            f" Sent extra: {{{','.join(sorted(extra))}}}. Missing but "
            f"required: {{{','.join(sorted(missing))}}}."
        )
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
        if array.dtype != np.float32:
            raise invalid(f"{name}: expected float, received {array.dtype}")
        fits = array.ndim == len(allowed) and all(
            sizes is None or size in sizes
            for size, sizes in zip(array.shape, allowed, strict=True)
        )
        if not fits:
            raise invalid(
                f"{name}: expected shape {_written(allowed, batch)}, "
                f"received {list(array.shape)}"
            )
    if not batch or 0 in inputs["images"].shape:
        raise invalid("images: expected at least one, of at least one pixel")
    height, width = inputs["images"].shape[1:3]
    if height * width > limits.image_pixels:
        raise invalid(
            f"images: expected at most {limits.image_pixels} pixels each, "
            f"received {height} x {width}"
        )
    most = max(1, limits.samples * 32**2 // model.image_size**2)
    if batch * samples > most:
        raise invalid(
            f"noise: expected at most {most} samples in all, received "
            f"{batch} x {samples}"
        )
    for name, array in inputs.items():
        if not math.isfinite(array.sum(dtype="float64")):
            raise invalid(f"{name}: expected finite values")
    images = inputs["images"]
    # As in `pipeline`: reconstructions may overshoot by a rounding.
    if images.min() < -0.01 or images.max() > 255.01:
        raise invalid(
            "images: expected values in [0, 255], received "
            f"{images.min():g} to {images.max():g}"
        )


def _written(allowed, batch):
    words = []
    for sizes in allowed:
        if sizes is None or not batch:
            words.append("any")
        else:
            words.append(" or ".join(str(size) for size in sorted(sizes)))
    return f"[{', '.join(words)}]"
