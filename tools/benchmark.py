#!/usr/bin/env python
"""Measures training, generation and everything that feeds them.

Rounds of what is compared alternate within one run, so that whatever else the
machine does meets them alike: read the ratios.

Examples:
    tools/benchmark.py --json figures.json
    tools/benchmark.py --peer BigGAN-PyTorch --peer-python torch/bin/python
    tools/benchmark.py --gradients --base-channels 96 --json gpu.json
"""

import argparse
import collections
import contextlib
import functools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from kinv import cli, errors, runs

# As a script and installed, as `kinv.tools`.
sys.path.append(str(pathlib.Path(__file__).parent))
import benchmark_gradients  # noqa: E402
import benchmark_workloads as workloads_lib  # noqa: E402

# Images per update.
BATCH_SIZE = 16
# Forward passes' worth of arithmetic in a step of two discriminator updates
# and one of the generator: a gradient of inputs or of weights costs as much as
# the pass itself. The generator: 2 passes, then one with both gradients. The
# discriminator: 2 x 2 batches with both, then a pass with that of its inputs.
GENERATOR_PASSES = 5
DISCRIMINATOR_PASSES = 14
# Channels of the peers' discriminators, in units of `--base-channels`; None is
# their own.
PEERS = {
    "BigGAN-PyTorch": [2, 4, 8, 16, 16],
    "BigGAN-PyTorch, its own D": None,
}
# Measurements of each figure, of which the median counts.
ROUNDS = 5


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Measure images per second: of training, a step of which "
        "is two discriminator updates and one of the generator, of the "
        "generator alone and in the exported signature, of the input pipeline "
        "and of rendering scenes.",
        formatter_class=cli.HelpFormatter,
    )
    add_sizes(parser.add_argument)
    add = parser.add_argument
    add(
        "--gradients",
        action="store_true",
        help="measure these alone: a training step without its optimizers, "
        "hinge losses, on Keras's JAX backend, as on a GPU without TensorFlow",
    )
    add(
        "--classifier",
        metavar="NAME",
        help="classifier in the loop, as tools/train.py takes it, with random "
        "weights (default: kinv's own small one)",
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
    options = parser.parse_args(argv)
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
        metavar="IMAGES",
        help=f"images per update (default: {BATCH_SIZE}; with --gradients as "
        "many as leave the peer room on the GPU)",
    )


def main(argv=None):
    """Measures, prints a table, writes the figures."""
    options = parse_arguments(argv)
    cli.check_output(options.json)
    if options.gradients:
        benchmark_gradients.prepare(options)
    else:
        cli.announce_tensorflow()
    options.batch_size = options.batch_size or BATCH_SIZE
    peers = start_peers(options) if options.peer else {}
    try:
        rows = measure(options, peers)
    finally:
        for peer in peers.values():
            peer.kill()
    if options.json:
        runs.write_figures(options.json, rows, vars(options))
        print(f"written: {options.json}")


def measure(options, peers):
    """Measures everything in turn; prints and returns the figures."""
    if options.gradients:
        workloads = benchmark_gradients.make_workloads(options)
        tasks = {name: ", ".join(name) for name in workloads}
    else:
        workloads = workloads_lib.make_workloads(options)
        tasks = {(task, "float32"): task for task in ("training", "generation")}
    for name, process in peers.items():
        for (task, how), asked in tasks.items():
            workloads[task, f"{how}, {name}"] = (
                workloads_lib.STEPS * options.batch_size,
                functools.partial(ask_peer, process, asked),
            )

    chosen = [
        (task, how)
        for task, how in workloads
        if any(text in f"{task} ({how})" for text in options.only or [""])
    ]
    if not chosen:
        raise errors.InputError(
            "Expected --only to match the name of a measurement, such as "
            f"{next(iter(tasks))[0]}. Received: "
            f"{', '.join(options.only)}."
        )
    # The peak in any case: figures are shares of it.
    workloads = {
        name: workload
        for name, workload in workloads.items()
        if name in chosen or name == workloads_lib.PEAK
    }
    about = runs.machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}")
    print("first calls, which trace and compile")
    measured = time_rounds(workloads, ROUNDS)
    generator, discriminator = workloads_lib.multiply_adds(
        options.image_size, options.base_channels
    )
    per_image = {
        "training": GENERATOR_PASSES * generator
        + DISCRIMINATOR_PASSES * discriminator,
        "generation": generator,
    }
    per_image["gradients"] = per_image["training"]
    rows = make_rows(workloads, *measured, per_image, peers)
    print_table(rows, list(peers), generator, discriminator)
    return rows


def time_rounds(workloads, rounds):
    """Runs every workload once, then in rounds.

    Args:
        workloads: of `benchmark_workloads`.
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
        workloads: of `benchmark_workloads`.
        first, memory, seconds: of `time_rounds`.
        per_image: dict by task of multiply-adds.
        peers: names of peers.
    """
    speed = {
        name: amount / statistics.median(seconds[name])
        for name, (amount, _) in workloads.items()
    }
    peak = speed.get(workloads_lib.PEAK)
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
            if peak:
                # A multiply-add is two operations.
                row["share_of_float32_peak"] = (
                    2 * rate * per_image[kind] / (1e9 * peak)
                )
            for peer in peers:
                other = speed.get((kind, f"{how}, {peer}"))
                # The peer trains in float32 alone.
                other = other or speed.get((kind, f"float32, {peer}"))
                if other:
                    row[f"ratio_to_{peer}"] = rate / other
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


def start_peers(options):
    """Starts the peer, with either discriminator, in processes of their own.

    Returns:
        dict by name of `subprocess.Popen` that answers `ask_peer`.

    Raises:
        errors.InputError: if it does not start.
    """
    script = pathlib.Path(__file__).with_name("benchmark_peer.py")
    peers = {}
    for name, channels in PEERS.items():
        sizes = {
            "image_size": options.image_size,
            "base_channels": options.base_channels,
            "batch_size": options.batch_size,
            "num_classes": workloads_lib.NUM_CLASSES,
            "steps": workloads_lib.STEPS,
            "discriminator_channels": channels,
        }
        process = subprocess.Popen(
            [options.peer_python, script, options.peer, json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        about = process.stdout.readline()
        if not about:
            raise errors.InputError(
                "Expected a checkout of BigGAN-PyTorch, and a Python that has "
                f"PyTorch. Received: --peer {options.peer} --peer-python "
                f"{options.peer_python}, which say: {last_words(process)}"
            )
        print(f"{name}: {json.loads(about)}")
        peers[name] = process
    return peers


def ask_peer(process, task):
    """Has a peer work once."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{task}\n")
        process.stdin.flush()
    if not process.stdout.readline():
        raise errors.InputError(
            f"Expected the peer to go on. Received: {last_words(process)}"
        )


def last_words(process):
    """The last line that a peer that has ended wrote to stderr."""
    return (process.communicate()[1].splitlines() or ["nothing"])[-1]


if __name__ == "__main__":
    errors.run(main)
