"""Exported models by name: their versions, and calls merged into batches."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import pathlib
import queue
import threading

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from kinv import errors
from kinv.serving import limits as limits_lib
from kinv.serving import monitoring, pipeline
from kinv.serving.limits import ServingError

LOGGER = logging.getLogger("kinv.serving")
# Calls that may wait; more are sent away, as TensorFlow Serving does.
WAITING_CALLS = 1000


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
    def load(cls, path):
        """Loads the version at `path`, and calls it once: it is warm then."""
        path = pathlib.Path(path)
        model = pipeline.Pipeline.load(path)
        saved = saved_model_pb2.SavedModel()
        saved.ParseFromString((path / "saved_model.pb").read_bytes())
        size = model.image_size
        model.reconstruct(np.zeros((1, size, size, 3), "float32"), seed=0)
        signatures = dict(saved.meta_graphs[0].signature_def)
        return cls(int(path.name), model, signatures)


class Server:
    """Answers calls of several models, each from its highest intact version.

    A thread per model merges the calls that wait into one batch: what one
    call costs alone, several cost little more together. Another thread looks
    for new versions; calls that wait are answered by the version that was
    the highest when they came.

    Args:
        directories: dict by name of `exported/NAME`, or of the name of a
            pipeline that is installed with kinv.
        poll_seconds: between looks for new versions.
        limits: `Limits`.

    Raises:
        errors.InputError: if a directory holds no model of `tools/export.py`.
    """

    def __init__(
        self, directories, poll_seconds=1.0, limits=limits_lib.Limits()
    ):
        self.limits = limits
        self._served = {
            name: _Served(name, pipeline.model_directory(directory))
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
        version = served and served.version
        if version and number in (None, version.number):
            return version
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

    def submit(self, name, version, inputs):
        """Asks for a call of the signature.

        Args:
            name: of the model.
            version: `Version` of it, the one that the call was read for.
            inputs: dict of float32 arrays, as the signature takes them.

        Returns:
            `concurrent.futures.Future` of a dict of arrays. Cancelled before
            its turn, it is left out.

        Raises:
            ServingError: if the call is refused.
        """
        limits_lib.check_inputs(inputs, version.model, self.limits)
        return self._served[name].submit(version, inputs)

    def close(self, timeout=None):
        """Answers the calls that wait, then stops.

        Args:
            timeout: seconds of each model's calls; None is any number.
        """
        self._stopping.set()
        for served in self._served.values():
            served.close(timeout)

    def _poll(self):
        while not self._stopping.wait(self._poll_seconds):
            for served in self._served.values():
                served.refresh()


class _Served:
    """One model: its loaded version, its waiting calls, and their thread."""

    def __init__(self, name, directory):
        pipeline.check_is_no_version(directory)
        if not (directory.is_dir() and pipeline.versions(directory)):
            raise errors.InputError(
                "Expected a directory with versions, exported/NAME. "
                f"Received: {directory}, which holds none. Write one with "
                "tools/export.py --out exported/NAME."
            )
        self.name = name
        self.directory = directory
        self.version = None
        self.states = {}
        # Of versions that could not be loaded: what lay there, and the reason.
        self._damaged = {}
        self.refresh()
        if self.version is None:
            _, reason = self._damaged[max(self._damaged)]
            raise errors.InputError(reason)
        self._waiting = queue.Queue(WAITING_CALLS)
        self._left_over = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def refresh(self):
        """Takes the highest version that can be loaded, if it is another one.

        If none can be loaded, there is no version. If the directory itself
        cannot be read, the present version stays.
        """
        try:
            found = pipeline.versions(self.directory)
        except OSError:
            return
        present, version = self.version, None
        for number in reversed(found):
            if present and number == present.number:
                return
            if version := self._load(number, found[number]):
                break
        if present:
            self.states[present.number] = "END"
        if version:
            self.states[version.number] = "AVAILABLE"
            LOGGER.info("%s: version %d", self.name, version.number)
        elif present:
            LOGGER.warning("%s: no version is left", self.name)
        self.version = version

    def _load(self, number, path):
        """The version, or None of one that cannot be loaded (yet)."""
        before, stamp = self._damaged.get(number), None
        try:
            stamp = _stamp(path)
            if before and before[0] == stamp:
                return None
            return Version.load(path)
        # Whatever is wrong with what lies there, calls go on.
        except Exception as error:
            reason = str(error)
            if not isinstance(error, errors.InputError):
                reason = (
                    f"Expected a complete SavedModel in {path}. Received: "
                    f"{errors.reason(error)}. Export it again."
                )
            if before != (stamp, reason):
                LOGGER.warning("%s: skipped: %s", self.name, reason)
            self._damaged[number] = stamp, reason
        return None

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

    def close(self, timeout):
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
            self._thread.join(timeout)

    def _work(self):
        while (calls := self._next_batch()) is not None:
            self._resolve(calls)
            # Or they, and their version, would stay until the next one comes.
            del calls

    def _resolve(self, calls):
        """Answers those of some calls that still wait."""
        calls = [
            call for call in calls if call[2].set_running_or_notify_cancel()
        ]
        if not calls:
            return
        try:
            with monitoring.runtime(self.name):
                answers = _answer(calls)
        # A defect must not end the thread that all other calls need.
        except Exception as error:
            LOGGER.exception("%s: call failed", self.name)
            answers = [
                ServingError(grpc.StatusCode.INTERNAL, errors.reason(error))
            ] * len(calls)
        for (_, _, future), answer in zip(calls, answers, strict=True):
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


def _stamp(path):
    """Tells whether the files of a directory have changed."""
    stats = [(str(file), file.stat()) for file in sorted(path.rglob("*"))]
    # The time of a change of rights, too.
    return [(name, stat.st_size, stat.st_ctime_ns) for name, stat in stats]


def _key(call):
    """What calls must share to be merged: version and shapes per image."""
    version, inputs, _ = call
    return id(version), *(inputs[name].shape[1:] for name in sorted(inputs))


def _cost(call):
    """Share of the largest batch that a call takes."""
    version, inputs, _ = call
    batch, samples = inputs["noise"].shape[:2]
    height, width = inputs["images"].shape[1:3]
    # Without noise, images are resized and classified all the same.
    reconstructed = batch * max(1, samples) * version.model.image_size**2
    pixels = max(height * width, limits_lib.classified_pixels(version.model))
    return max(
        reconstructed / pipeline.RECONSTRUCTED_PIXELS,
        batch * pixels / pipeline.IMAGE_PIXELS,
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
            answer = limits_lib.invalid(
                "Outputs are not finite: logit_scale, logit_shift or noise are "
                "too large"
            )
        answers.append(answer)
        start = end
    return answers
