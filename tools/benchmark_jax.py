#!/usr/bin/env python
"""Measures gradients of both networks on Keras's JAX backend, as on a GPU.

The networks, layers and losses run on any backend of Keras; `train_step`, and
with it `tools/benchmark.py`, needs TensorFlow. Needs JAX and, for the peer,
PyTorch. Rounds of what is compared alternate: read the ratios.

Examples:
    tools/benchmark_jax.py --peer BigGAN-PyTorch --json figures.json
    tools/benchmark_jax.py --image-size 8 --base-channels 2 --batch-size 4
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys

from kinv import cli, errors, runs
from kinv.inversion import presets

# As a script and installed, as `kinv.tools`.
sys.path.append(str(pathlib.Path(__file__).parent))
import benchmark  # noqa: E402
from benchmark_workloads import NUM_CLASSES, PRECISIONS, SIZES  # noqa: E402

PAPER = presets.PRESETS["paper"]
# What kinv's float32 step may take of the card's memory: the peer, which keeps
# more, has the rest.
MEMORY_SHARE = 1 / 3
# Batch at which the memory per image is taken.
PROBE_BATCH = 8


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Measure images per second of a step without its "
        "optimizers: forward passes and gradients of two updates of the "
        "discriminator and one of the generator, hinge losses, on Keras's JAX "
        "backend. Without --batch-size, of the largest batches that leave room "
        "for the peer on a GPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    benchmark.add_sizes(parser.add_argument)
    benchmark.add_peer(parser)
    # None: `largest_batch`.
    parser.set_defaults(base_channels=PAPER["base_channels"], batch_size=None)
    return benchmark.check_peer(parser, parser.parse_args(argv))


def main(argv=None):
    """Measures, prints a table, writes the figures."""
    options = parse_arguments(argv)
    cli.check_parent(options.json)
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
    if options.batch_size is None:
        options.batch_size = largest_batch(options, device)
    print(f"{device.device_kind}, batches of {options.batch_size}", flush=True)
    amount = options.steps * options.batch_size
    peers = benchmark.start_peers(options) if options.peer else {}
    try:
        workloads = {how: make_gradients(options, how) for how in PRECISIONS}
        for name, process in peers.items():
            for how in PRECISIONS:
                workloads[f"{how}, {name}"] = functools.partial(
                    benchmark.ask_peer, process, f"gradients, {how}"
                )
        rows = measure(workloads, amount, options.rounds)
    finally:
        for peer in peers.values():
            peer.kill()
    if options.json:
        about = {**vars(options), "device": device.device_kind}
        runs.write_figures(options.json, rows, about)
        print(f"written: {options.json}")


def measure(workloads, amount, rounds):
    """Times functions in turns.

    Args:
        workloads: dict by name, such as `float32` and `float32, PEER`.
        amount: images that a call works through.
        rounds: calls of each, of which the median counts.

    Returns:
        The figures, a dict for each workload; printed too.
    """
    print("first calls, which compile", flush=True)
    first, _, seconds = benchmark.time_rounds(
        {name: (amount, function) for name, function in workloads.items()},
        rounds,
    )
    speed = {
        name: amount / statistics.median(seconds[name]) for name in workloads
    }
    rows = []
    for name, rate in speed.items():
        row = {
            "how": name,
            "images_per_second": rate,
            "slowest": amount / max(seconds[name]),
            "fastest": amount / min(seconds[name]),
            "first_call_seconds": first[name],
        }
        line = f"{name:<44}{rate:>10.1f} images/s"
        for peer in speed:
            if peer.startswith(f"{name}, "):
                row[f"ratio_to_{peer}"] = rate / speed[peer]
                line += f"  {rate / speed[peer]:.2f} x {peer}"
        print(line)
        rows.append(row)
    return rows


def make_gradients(options, precision):
    """A function that computes the gradients of `--steps` steps.

    It waits until they are computed.
    """
    import jax

    calls = calls_of_step(options, precision)

    def compute():
        for _ in range(options.steps):
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

    from kinv.inversion import losses

    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    size, batch = options.image_size, options.batch_size
    inputs = keras.Input((size, size, 3))
    outputs = keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(inputs))
    sizes = {name: getattr(options, name) for name in SIZES}
    generator, discriminator = presets.make_networks(
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


if __name__ == "__main__":
    errors.run(main)
