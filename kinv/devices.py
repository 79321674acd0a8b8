"""Where training runs, and in which precision."""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re

import keras
import numpy as np
import tensorflow as tf

from kinv import errors


def configure_keras():
    """Has Keras compute as kinv's networks do, whatever keras.json says.

    Nothing of Keras's may have been built before.
    """
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def make_strategy(name):
    """Configures Keras and makes the `tf.distribute` strategy to train under.

    Args:
        name: `auto`, `single`, `mirrored`, `multiworker` or `tpu`. `auto`
            mirrors over the GPUs of this host when there are several and takes
            a single device otherwise; `multiworker` reads the environment
            variable `TF_CONFIG`.

    Raises:
        errors.InputError: if the devices that `name` needs are not there.
    """
    configure_keras()
    if name == "multiworker":
        return _multi_worker_strategy()
    accelerators = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(accelerators) > 1 else "single"
    if name == "single":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = accelerators or tf.config.list_logical_devices("CPU")
        return _mirrored_strategy(tuple(device.name for device in devices))
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.NotFoundError):
        raise errors.InputError(
            "Expected a TPU for --strategy tpu. Received: none. Run on a TPU "
            "host, or choose --strategy auto."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _multi_worker_strategy():
    # Before anything else of TensorFlow: listing devices would already be
    # too late.
    if "TF_CONFIG" not in os.environ:
        raise errors.InputError(
            "Expected the environment variable TF_CONFIG to describe the "
            "workers of --strategy multiworker. Received: none. Set it on "
            "every worker, or use --strategy mirrored on one host."
        )
    try:
        return _MultiWorkerStrategy()
    # Of what TF_CONFIG holds; a port that is taken is TensorFlow's to tell.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            "Expected the environment variable TF_CONFIG to describe the "
            "workers of --strategy multiworker, as JSON. Received: "
            f"{os.environ['TF_CONFIG']} ({errors.reason(error)})."
        ) from error


class _MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """Reduces what Keras asks it to: nested values, scalars along an axis."""

    def reduce(self, reduce_op, value, axis=None):
        reduce = super().reduce

        def reduce_one(value):
            local = self.experimental_local_results(value)[0]
            along = axis if local.shape.rank else None
            return reduce(reduce_op, value, along)

        return tf.nest.map_structure(reduce_one, value)


@functools.cache
def _mirrored_strategy(devices):
    # One in a process: TensorFlow numbers the collective operations of every
    # strategy from the same start, and takes those of two for each other.
    return tf.distribute.MirroredStrategy(devices)


def is_chief(strategy):
    """Whether this process is the one worker that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, "chief"):
        return True
    cluster = resolver.cluster_spec().as_dict()
    first_worker = resolver.task_type == "worker" and resolver.task_id == 0
    return first_worker and "chief" not in cluster


def wait_for_workers(strategy):
    """Waits until all workers have come here; of one alone, not at all."""
    if isinstance(strategy, _MultiWorkerStrategy):
        strategy.reduce("SUM", strategy.run(lambda: tf.ones(())))


def broadcast_from_first_worker(strategy, arrays):
    """What the first worker gives, on every worker.

    Args:
        strategy: the `tf.distribute` strategy of the run.
        arrays: list of float32 arrays that each worker has computed, of the
            same shapes but for rounding of the same values.

    Returns:
        List of arrays; those given, where there is one worker.
    """
    if not isinstance(strategy, _MultiWorkerStrategy):
        return arrays
    first = float(is_chief(strategy))

    def contribution():
        return [first * tf.constant(x) for x in [*arrays, 1.0]]

    # Of several devices of a worker each gives them.
    *sums, count = strategy.reduce("SUM", strategy.run(contribution))
    return [(x / count).numpy() for x in sums]


def check_workers_agree(strategy, settings):
    """Checks that all workers were started alike.

    Each applies its own learning rates to its own copy of the weights.

    Args:
        strategy: the `tf.distribute` strategy of the run.
        settings: what the workers have to have in common, as JSON can express
            it.

    Raises:
        errors.InputError: on all workers, if those of two differ.
    """
    if not isinstance(strategy, _MultiWorkerStrategy):
        return
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()
    numbers = np.frombuffer(digest, "uint8").astype("float32")
    mean = strategy.reduce("MEAN", strategy.run(lambda: tf.constant(numbers)))
    if not np.allclose(mean, numbers):
        raise errors.InputError(
            "Expected the same options and data on all workers. Received: "
            "different ones on another worker. Start all with the same "
            "command, on the same data."
        )


@contextlib.contextmanager
def explain_lost_workers(strategy):
    """Context in which the loss of another worker is an error of one line.

    Raises:
        errors.LostWorkerError: where TensorFlow tells of a lost connection.
    """
    try:
        yield
    except _LOST as error:
        if not isinstance(strategy, _MultiWorkerStrategy):
            raise
        # Without the names of operations.
        reason = re.sub(r"{{.*?}} ?", "", errors.reason(error))
        raise errors.LostWorkerError(
            f"lost another worker ({reason}). Start all workers again with "
            "--resume; finished epochs are kept."
        ) from error


# What TensorFlow raises in the workers that are left.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


def can_use_xla(strategy, classifier=None):
    """Whether XLA compiles a training under a `tf.distribute` strategy.

    It is slower on CPUs, and fails on several replicas, with layers that say so
    (SavedModels), and where images are stretched for a classifier that is not
    square.
    """
    one_gpu = len(tf.config.list_physical_devices("GPU")) == 1
    layers = classifier._flatten_layers() if classifier else ()
    can = all(
        layer.supports_jit and not isinstance(layer, keras.layers.Resizing)
        for layer in layers
    )
    return one_gpu and strategy.num_replicas_in_sync == 1 and can


def evaluation_batches(source, image_size, batch_size, limit, strategy):
    """Held-out batches of which all replicas of a strategy get equal shares.

    At most as many images as there are replicas, less one, are left out.
    TensorFlow would leave the last replicas without any, and on CPUs its
    convolutions return a wrong shape for an empty batch.

    Args:
        source: `data.source.Source`.
        image_size, limit: of its `evaluation_batches`.
        batch_size: images of a batch at most, but at least one a replica.
        strategy: `tf.distribute` strategy.

    Raises:
        errors.InputError: of fewer images than replicas.
    """
    replicas = strategy.num_replicas_in_sync
    count = min(limit, source.num_examples)
    if count < replicas:
        raise errors.InputError(
            f"Expected at least {replicas} held-out images, one for each "
            f"device. Received: {count}. Add some, or use --strategy single."
        )
    batch_size = max(batch_size // replicas, 1) * replicas
    count -= count % replicas
    return source.evaluation_batches(image_size, batch_size, count)


def set_precision(name):
    """Sets the Keras dtype policy for the networks built from now on.

    Args:
        name: a Keras dtype policy, or `auto`: `mixed_bfloat16` on TPUs, on
            GPUs of compute capability 8.0 or later and on processors with
            bfloat16 instructions, `float32` elsewhere.

    Returns:
        The name of the policy that was set.

    Raises:
        errors.InputError: of `mixed_float16` on several replicas, of which
            Keras asks the first alone whether its gradients are finite.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if name == "mixed_float16" and replicas > 1:
        raise errors.InputError(
            "Expected mixed_bfloat16 or float32 on several devices. Received: "
            f"mixed_float16 on {replicas}, whose loss scaling looks at the "
            "first alone."
        )
    if name == "auto":
        name = "mixed_bfloat16" if _has_bfloat16_units() else "float32"
    keras.mixed_precision.set_dtype_policy(name)
    return name


def _has_bfloat16_units():
    if tf.config.list_physical_devices("TPU"):
        return True
    accelerators = tf.config.list_physical_devices("GPU")
    if accelerators:
        details = tf.config.experimental.get_device_details(accelerators[0])
        return details.get("compute_capability", (0, 0)) >= (8, 0)
    if platform.system() != "Linux":
        return False
    with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as cpuinfo:
        flags = cpuinfo.read().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
