"""What `benchmark.py --gradients` measures: gradients of both networks on JAX.

The networks, layers and losses run on any backend of Keras; `train_step`, and
with it what else is measured, needs TensorFlow. Needs JAX.
"""

import argparse
import os

from benchmark_workloads import NUM_CLASSES, PRECISIONS, SIZES, STEPS

from kinv import errors
from kinv.inversion import presets

PAPER = presets.PRESETS["paper"]
# What kinv's float32 step may take of the card's memory: the peer, which keeps
# more, has the rest.
MEMORY_SHARE = 1 / 3
# Batch at which the memory per image is taken.
PROBE_BATCH = 8


def prepare(options):
    """Sets Keras's backend, and what of the options hangs on the device.

    Args:
        options: of `benchmark.py`; `device` becomes its name, and `batch_size`,
            where it is None, the largest that leaves room for the peer.

    Raises:
        errors.InputError: without JAX.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    # The peer's process is on the same card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ImportError:
        raise errors.InputError(
            "Expected JAX. Received: no such package. Install it: pip install "
            "jax, or jax[cuda12] for a GPU."
        ) from None
    device = jax.devices()[0]
    options.device = device.device_kind
    if options.batch_size is None:
        options.batch_size = largest_batch(options, device)
    print(f"{options.device}, batches of {options.batch_size}", flush=True)


def make_workloads(options):
    """Makes what is measured.

    Returns:
        dict by `("gradients", precision)` of images that a call works through,
        and the function, which waits until all is computed.
    """
    amount = STEPS * options.batch_size
    return {
        ("gradients", how): (amount, make_gradients(options, how))
        for how in PRECISIONS
    }


def make_gradients(options, precision):
    """A function that computes the gradients of `STEPS` steps."""
    import jax

    calls = calls_of_step(options, precision)

    def compute():
        for _ in range(STEPS):
            results = [function(*arguments) for function, arguments in calls]
        jax.block_until_ready(results)

    return compute


def largest_batch(options, device):
    """The largest power of two whose float32 step has room on a device.

    Raises:
        errors.InputError: if the device does not say how much memory it has.
    """
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        raise errors.InputError(
            f"Expected a GPU. Received: {device.device_kind}, which does not "
            "say how much memory it has. Give --batch-size."
        )
    sizes = argparse.Namespace(**{**vars(options), "batch_size": PROBE_BATCH})
    needed = max(
        function.lower(*arguments)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for function, arguments in calls_of_step(sizes, "float32")[1:]
    )
    needed /= PROBE_BATCH
    batch = PROBE_BATCH
    while 2 * batch * needed <= MEMORY_SHARE * memory:
        batch *= 2
    return batch


def calls_of_step(options, precision):
    """What one step computes.

    Returns:
        Pairs of a compiled function without state and its arguments: twice the
        gradients of the discriminator's variables, once those of the
        generator's.
    """
    import jax
    import keras
    import numpy as np
    from keras import ops

    from kinv.inversion import losses, networks

    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    size, batch = options.image_size, options.batch_size
    inputs = keras.Input((size, size, 3))
    outputs = keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(inputs))
    sizes = {name: getattr(options, name) for name in SIZES}
    generator, discriminator = networks.make(
        keras.Model(inputs, outputs), {**PAPER, **sizes}
    )
    keras.config.set_dtype_policy("float32")

    def call(network, weights, **inputs):
        # Spectral vectors and moments move, too: they are thrown away.
        return network.stateless_call(*weights, inputs, training=True)[0]

    def discriminator_loss(trained, state, maker, images, condition, noise):
        fakes = call(generator, maker, condition=condition, noise=noise)
        scores = call(
            discriminator,
            (trained, state),
            images=ops.concatenate([images, fakes]),
            condition=ops.concatenate([condition, condition]),
        )
        return ops.mean(losses.hinge_discriminator_loss(*ops.split(scores, 2)))

    def generator_loss(trained, state, judge, condition, noise):
        fakes = call(
            generator, (trained, state), condition=condition, noise=noise
        )
        scores = call(discriminator, judge, images=fakes, condition=condition)
        return ops.mean(losses.hinge_generator_loss(scores))

    maker, judge = (
        tuple(
            [variable.value for variable in variables]
            for variables in (
                network.trainable_variables,
                network.non_trainable_variables,
            )
        )
        for network in (generator, discriminator)
    )
    random = np.random.default_rng(0)

    def draw():
        """Logits and noise."""
        lengths = NUM_CLASSES, PAPER["noise_dim"]
        return [
            jax.numpy.asarray(random.standard_normal((batch, n)), "float32")
            for n in lengths
        ]

    def images():
        pixels = random.uniform(0, 255, (batch, size, size, 3))
        return jax.numpy.asarray(pixels, "float32")

    update_discriminator, update_generator = (
        jax.jit(jax.grad(loss)) for loss in (discriminator_loss, generator_loss)
    )
    return [
        (update_discriminator, (*judge, maker, images(), *draw())),
        (update_discriminator, (*judge, maker, images(), *draw())),
        (update_generator, (*maker, judge, *draw())),
    ]
