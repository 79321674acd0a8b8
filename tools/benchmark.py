#!/usr/bin/env python
"""Measures training, generation and everything that feeds them.

Rounds of what is compared alternate within one run, so that whatever else the
machine does meets them alike: read the ratios.

Examples:
    tools/benchmark.py --json figures.json
    tools/benchmark.py --peer BigGAN-PyTorch --peer-python torch/bin/python
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from kinv import errors, files
from kinv.inversion import presets

SIZES = ("image_size", "base_channels")
PRECISIONS = ("float32", "mixed_bfloat16")
NUM_CLASSES = 80
# Of the networks, besides their sizes.
PRESET = presets.PRESETS["paper-small"]
# Forward passes' worth of arithmetic in a step of two discriminator updates
# and one of the generator: a gradient of inputs or of weights costs as much as
# the pass itself. The generator: 2 passes, then one with both gradients. The
# discriminator: 2 x 2 batches with both, then a pass with that of its inputs.
GENERATOR_PASSES = 5
DISCRIMINATOR_PASSES = 14
PEAK = "matrix product, GFLOP", "float32"
PEERS = {
    "BigGAN-PyTorch": ["--discriminator-channels", "2", "4", "8", "16", "16"],
    "BigGAN-PyTorch, its own D": [],
}


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Measure images per second: of training, a step of which "
        "is two discriminator updates and one of the generator, of the "
        "generator alone and in the exported signature, of the input pipeline "
        "and of rendering scenes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_sizes(parser.add_argument)
    add = parser.add_argument
    add(
        "--classifier",
        metavar="NAME",
        help="classifier in the loop, as tools/train.py takes it, with random "
        "weights; None is kinv's own small one",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="measure only what has this in its name, such as generation; may "
        "be given several times",
    )
    add(
        "--dataset",
        default="kinv_scenes/32",
        metavar="NAME",
        help="what the input pipeline reads",
    )
    add_peer(parser)
    return check_peer(parser, parser.parse_args(argv))


def add_peer(parser):
    """Flags of what is measured beside kinv, and of where figures go."""
    add = parser.add_argument
    add(
        "--peer",
        metavar="DIR",
        help="checkout of BigGAN-PyTorch, to be measured alike: with its "
        "discriminator widened to the paper's channels at 64 pixels, and as "
        "it is",
    )
    add(
        "--peer-python",
        metavar="FILE",
        default=sys.executable,
        help="Python that has PyTorch",
    )
    add("--json", metavar="FILE", help="write the figures there too")


def check_peer(parser, options):
    """Ends the tool where the peer would not have kinv's channels."""
    if options.peer and options.image_size != 64:
        parser.error(
            "argument --peer: expected --image-size 64, where both have the "
            f"same channels, received {options.image_size}"
        )
    return options


def add_sizes(add):
    """Flags of how large the networks are, and how much is measured."""
    add(
        "--image-size",
        type=errors.positive_int,
        default=64,
        metavar="PIXELS",
        help="height and width: 8, 32, 64 or 128",
    )
    add(
        "--base-channels",
        type=errors.positive_int,
        default=32,
        metavar="CHANNELS",
        help="width of both networks",
    )
    add(
        "--batch-size",
        type=errors.positive_int,
        default=16,
        metavar="IMAGES",
        help="images per update",
    )
    add(
        "--rounds",
        type=errors.positive_int,
        default=5,
        metavar="NUMBER",
        help="measurements of each figure, of which the median counts",
    )
    add(
        "--steps",
        type=errors.positive_int,
        default=2,
        metavar="NUMBER",
        help="training steps, or batches, per measurement",
    )


def main(argv=None):
    """Measures, prints a table, writes the figures."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    peers = start_peers(options) if options.peer else {}
    try:
        rows = measure(options, peers)
    finally:
        for peer in peers.values():
            peer.kill()
    if options.json:
        files.write_figures(options.json, rows, vars(options))
        print(f"written: {options.json}")


def measure(options, peers):
    """Measures everything in turn; prints and returns the figures."""
    workloads = make_workloads(options)
    for name, process in peers.items():
        for task in ("training", "generation"):
            workloads[task, f"float32, {name}"] = (
                options.steps * options.batch_size,
                lambda process=process, task=task: ask_peer(process, task),
            )

    workloads = {
        (task, how): workload
        for (task, how), workload in workloads.items()
        if (task, how) == PEAK
        or not options.only
        or any(text in f"{task} ({how})" for text in options.only)
    }
    about = files.machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}")
    print("first calls, which trace and compile")
    measured = time_rounds(workloads, options.rounds)
    generator, discriminator = multiply_adds(
        options.image_size, options.base_channels
    )
    per_image = {
        "training": GENERATOR_PASSES * generator
        + DISCRIMINATOR_PASSES * discriminator,
        "generation": generator,
    }
    rows = make_rows(workloads, *measured, per_image, peers)
    print_table(rows, list(peers), generator, discriminator)
    return rows


def time_rounds(workloads, rounds):
    """Runs every workload once, then in rounds.

    Args:
        workloads: of `make_workloads`.
        rounds: number of them.

    Returns:
        dicts by name: seconds of the first call, MB of the process's peak of
        memory after it, list of seconds of the rounds.
    """
    import keras

    first, memory = {}, {}
    for name, (_, workload) in workloads.items():
        start = time.perf_counter()
        workload()
        first[name] = time.perf_counter() - start
        memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    seconds = collections.defaultdict(list)
    bar = keras.utils.Progbar(rounds * len(workloads))
    for _ in range(rounds):
        for name, (_, workload) in workloads.items():
            start = time.perf_counter()
            workload()
            seconds[name].append(time.perf_counter() - start)
            bar.add(1)
    return first, memory, seconds


def make_rows(workloads, first, memory, seconds, per_image, peers):
    """The figures, a dict for each workload.

    Args:
        workloads: of `make_workloads`.
        first, memory, seconds: of `time_rounds`.
        per_image: dict by task of multiply-adds.
        peers: names of peers.
    """
    speed = {
        name: amount / statistics.median(seconds[name])
        for name, (amount, _) in workloads.items()
    }
    peak = speed[PEAK]
    rows = []
    for (task, how), rate in speed.items():
        row = {
            "workload": task,
            "how": how,
            "per_second": rate,
            "slowest": workloads[task, how][0] / max(seconds[task, how]),
            "fastest": workloads[task, how][0] / min(seconds[task, how]),
            "first_call_seconds": first[task, how],
            "peak_memory_so_far_mb": memory[task, how],
        }
        kind = task.split(",")[0]
        if kind in per_image:
            row["multiply_adds_per_image"] = per_image[kind]
            # A multiply-add is two operations.
            row["share_of_float32_peak"] = (
                2 * rate * per_image[kind] / (1e9 * peak)
            )
            for peer in peers:
                row[f"ratio_to_{peer}"] = rate / speed[kind, f"float32, {peer}"]
        rows.append(row)
    return rows


def print_table(rows, peers, generator, discriminator):
    """Prints the figures, one row each."""
    ratios = [f"ratio_to_{peer}" for peer in peers]
    titles = ["per second", "slowest", "fastest", "first s", "of peak"]
    print(f"\n{'':<56}" + "".join(f"{title:>11}" for title in titles))
    for row in rows:
        name = f"{row['workload']} ({row['how']})"
        line = f"{name:<56}"
        for key in ("per_second", "slowest", "fastest", "first_call_seconds"):
            line += f"{row[key]:>11.1f}"
        if "share_of_float32_peak" in row:
            line += f"{row['share_of_float32_peak']:>11.2f}"
        for peer, ratio in zip(peers, ratios, strict=True):
            if ratio in row:
                line += f"  {row[ratio]:.2f} x {peer}"
        print(line)
    print(
        f"multiply-adds per image, inserted zeros left out: generator "
        f"{generator:,}, discriminator {discriminator:,}; per image trained "
        f"on, {GENERATOR_PASSES} and {DISCRIMINATOR_PASSES} times as many"
    )
    peak = rows[-1]["peak_memory_so_far_mb"]
    print(f"peak memory of this process: {peak:.0f} MB")


def multiply_adds(image_size, base_channels):
    """Multiply-adds of one image through each network.

    Those of Tables 1 and 2 but for the products with inserted zeros. What kinv
    saves in the discriminator, where pools come before or into convolutions, is
    counted as done.

    Returns:
        Those of the generator and those of the discriminator.
    """
    from kinv.inversion import networks

    def convolution(size, inputs, outputs, height):
        return size * size * inputs * outputs * height * height

    def attention(channels, height):
        positions = height * height
        maps = 2 * (channels // 8 + channels // 2) * channels * positions
        both = channels // 8 + channels // 2
        return maps + positions * positions // 4 * both

    widths = [
        c * base_channels for c in networks.GENERATOR_CHANNELS[image_size]
    ]
    chunk = PRESET["noise_dim"] // len(widths)
    generator = NUM_CLASSES * PRESET["embedding_dim"] + chunk * 16 * widths[0]
    height = 4
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        generator += 2 * (chunk + PRESET["embedding_dim"]) * (inputs + outputs)
        generator += convolution(3, inputs, outputs, height)
        generator += convolution(1, inputs, outputs, height)
        height *= 2
        generator += convolution(3, outputs, outputs, height)
        if height == networks.GENERATOR_ATTENTION[image_size]:
            generator += attention(outputs, height)
    generator += convolution(3, widths[-1], 3, height)

    widths = [
        c * base_channels for c in networks.DISCRIMINATOR_CHANNELS[image_size]
    ]
    discriminator = (NUM_CLASSES + 1) * widths[-1]
    for inputs, outputs in zip([3, *widths], widths, strict=False):
        discriminator += convolution(3, inputs, outputs, height)
        discriminator += convolution(3, outputs, outputs, height)
        if inputs != outputs:
            discriminator += convolution(1, inputs, outputs, height)
            height //= 2
            if height == networks.DISCRIMINATOR_ATTENTION[image_size]:
                discriminator += attention(outputs, height)
    return generator, discriminator


def make_workloads(options):
    """Makes what is measured.

    The networks are those of `tools/train.py --preset paper-small`; classifier
    and images are small and arbitrary.

    Returns:
        dict by `(task, how)` of `(amount, function)`: images, or GFLOP, that a
        call of the function works through.
    """
    return {
        **matrix_products(),
        **network_workloads(options),
        **data_workloads(options),
    }


def matrix_products():
    """Products of square matrices: what the machine can do at best."""
    import numpy as np
    import tensorflow as tf

    side = 2048
    values = np.random.default_rng(0).standard_normal((side, side))
    product = tf.function(tf.matmul)

    def multiply(matrix):
        for _ in range(5):
            product(matrix, matrix)[0, 0].numpy()

    return {
        ("matrix product, GFLOP", precision): (
            5 * 2 * side**3 / 1e9,
            functools.partial(multiply, tf.cast(values, dtype)),
        )
        for precision, dtype in zip(
            PRECISIONS, ("float32", "bfloat16"), strict=True
        )
    }


def network_workloads(options):
    """Training, generation, and the exported signature."""
    import keras

    from kinv.classifiers import loading
    from kinv.classifiers import small as small_lib

    size, workloads = options.image_size, {}
    amount = options.steps * options.batch_size
    # What cached logits cost: next to nothing.
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.AveragePooling2D(size // 4)(inputs)
    outputs = keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(pooled))
    trivial = keras.Model(inputs, outputs)
    small = small_lib.build_classifier(size, NUM_CLASSES, width=16)
    classifier, called = small, "kinv's classifier"
    if options.classifier:
        called = options.classifier
        classifier = loading.load_classifier(called, weights="none")
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        train = make_training(options, trivial)
        workloads["training", precision] = amount, train
    train = make_training(options, classifier)
    workloads[f"training, {called}", precision] = amount, train
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        generate = make_generation(options, trivial)
        workloads["generation", precision] = amount, generate
    keras.config.set_dtype_policy("float32")
    exported = make_exported(options, small)
    for images, samples in ((1, 1), (1, 16), (64, 1), (64, 16)):
        workloads[
            f"exported signature, {images} x {samples} pictures", "float32"
        ] = (
            images * samples,
            functools.partial(exported, images, samples),
        )
    return workloads


def data_workloads(options):
    """The input pipeline, and rendering."""
    from kinv.data import datasets, rendering, scenes

    size, batch_size = options.image_size, options.batch_size
    source = datasets.open_dataset(options.dataset, "train")
    batches = iter(source.training_batches(size, 3 * batch_size, seed=0))
    factors = scenes.scene_factors("test", range(64))
    return {
        (f"input pipeline, {options.dataset}", "uint8 to float32"): (
            20 * 3 * batch_size,
            lambda: [next(batches)[0][0, 0, 0].numpy() for _ in range(20)],
        ),
        ("rendering scenes, one process", "float32"): (
            64,
            lambda: rendering.render(factors, size),
        ),
    }


def make_networks(options, classifier):
    """Both networks, in the dtype policy of the moment."""
    sizes = {name: getattr(options, name) for name in SIZES}
    settings = {**PRESET, **sizes}
    return presets.make_networks(classifier, settings)


def make_training(options, classifier):
    """A function that trains `--steps` steps by `model.fit`."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kinv.data import source as source_lib
    from kinv.inversion import gan

    keras.utils.set_random_seed(0)
    model = gan.InversionGAN(
        classifier,
        *make_networks(options, classifier),
        **{name: PRESET[name] for name in gan.InversionGAN.SETTINGS[1:]},
        seed=0,
    )
    model.compile(
        keras.optimizers.Adam(4e-4, beta_1=0.0),
        keras.optimizers.Adam(4e-4, beta_1=0.0),
        jit_compile=on_one_gpu(),
    )
    size = classifier.input_shape[1]
    images = np.random.default_rng(0).uniform(
        0, 255, (3 * options.batch_size, size, size, 3)
    )
    data = source_lib.in_background(
        tf.data.Dataset.from_tensors(
            (images.astype("float32"), np.zeros(len(images), "int64"))
        ).repeat()
    )
    return lambda: model.fit(
        data, steps_per_epoch=options.steps, shuffle=False, verbose=0
    )


def make_generation(options, classifier):
    """A function that generates `--steps` batches, as after an export."""
    import numpy as np
    import tensorflow as tf

    generator, _ = make_networks(options, classifier)
    generator.fold_spectral_norms(1)
    random = np.random.default_rng(0)
    inputs = {
        "condition": random.standard_normal((options.batch_size, NUM_CLASSES)),
        "noise": random.standard_normal(
            (options.batch_size, PRESET["noise_dim"])
        ),
    }
    inputs = {k: tf.cast(value, "float32") for k, value in inputs.items()}
    predict = tf.function(generator, jit_compile=on_one_gpu())

    def generate():
        for _ in range(options.steps):
            predict(inputs).numpy()  # Waits until it is computed.

    return generate


def make_exported(options, classifier):
    """A function that calls the exported signature once."""
    import numpy as np
    import tensorflow as tf

    from kinv.inversion import export

    generator, _ = make_networks(options, classifier)
    generator.fold_spectral_norms(1)
    invert = export.signature(classifier, generator).get_concrete_function()
    size = options.image_size

    def call(images, samples):
        random = np.random.default_rng(0)
        pixels = random.uniform(0, 255, (images, size, size, 3))
        noise = random.standard_normal((images, samples, PRESET["noise_dim"]))
        invert(
            images=tf.cast(pixels, "float32"),
            noise=tf.cast(noise, "float32"),
            logit_scale=tf.ones((1, 1)),
            logit_shift=tf.zeros((1, 1, 1)),
        )["reconstructions"].numpy()

    return call


def on_one_gpu():
    """Whether XLA compiles, as in tools/train.py."""
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU")) == 1


def start_peers(options):
    """Starts the peer, with either discriminator, in processes of their own.

    Returns:
        dict by name of `subprocess.Popen` that answers `ask_peer`.

    Raises:
        errors.InputError: if it does not start.
    """
    script = pathlib.Path(__file__).with_name("benchmark_peer.py")
    peers = {}
    for name, flags in PEERS.items():
        command = [options.peer_python, script, options.peer, *flags]
        for flag in ("image_size", "base_channels", "batch_size", "steps"):
            words = f"--{flag.replace('_', '-')}", getattr(options, flag)
            command += words
        command += ["--num-classes", NUM_CLASSES]
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        about = process.stdout.readline()
        if not about:
            reason = (process.communicate()[1].splitlines() or ["nothing"])[-1]
            raise errors.InputError(
                "Expected a checkout of BigGAN-PyTorch, and a Python that has "
                f"PyTorch. Received: --peer {options.peer} --peer-python "
                f"{options.peer_python}, which say: {reason}"
            )
        print(f"{name}: {json.loads(about)}")
        peers[name] = process
    return peers


def ask_peer(process, task):
    """Has a peer work once."""
    process.stdin.write(f"{task}\n")
    process.stdin.flush()
    if not process.stdout.readline():
        raise errors.InputError(
            "Expected the peer to go on. Received: "
            f"{process.communicate()[1].splitlines()[-1]}"
        )


if __name__ == "__main__":
    errors.run(main)
