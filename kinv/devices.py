"""Where training runs, and in which precision."""

import functools
import os
import platform

import keras
import tensorflow as tf

from kinv import errors


def make_strategy(name):
    """Makes the `tf.distribute` strategy to train under.

    Args:
        name: `auto`, `single`, `mirrored`, `multiworker` or `tpu`. `auto`
            mirrors over the GPUs of this host when there are several and takes
            a single device otherwise; `multiworker` reads the environment
            variable `TF_CONFIG`.

    Raises:
        errors.InputError: if the devices that `name` needs are not there.
    """
    accelerators = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(accelerators) > 1 else "single"
    if name == "single":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = accelerators or tf.config.list_logical_devices("CPU")
        return _mirrored_strategy(tuple(device.name for device in devices))
    if name == "multiworker":
        if "TF_CONFIG" not in os.environ:
            raise errors.InputError(
                "Expected the environment variable TF_CONFIG to describe the "
                "workers of --strategy multiworker. Received: none. Set it on "
                "every worker, or use --strategy mirrored on one host."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.NotFoundError):
        raise errors.InputError(
            "Expected a TPU for --strategy tpu. Received: none. Run on a TPU "
            "host, or choose --strategy auto."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


@functools.cache
def _mirrored_strategy(devices):
    # One in a process: TensorFlow numbers the collective operations of every
    # strategy from the same start, and takes those of two for each other.
    return tf.distribute.MirroredStrategy(devices)


def set_precision(name):
    """Sets the Keras dtype policy for the networks built from now on.

    Args:
        name: a Keras dtype policy, or `auto`: `mixed_bfloat16` on TPUs, on
            GPUs of compute capability 8.0 or later and on processors with
            bfloat16 instructions, `float32` elsewhere.

    Returns:
        The name of the policy that was set.
    """
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
