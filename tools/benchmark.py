"""Measures training and generation, mixed bfloat16 against float32.

Rounds of both alternate within one run, so that whatever else the machine
does meets them alike: read the ratios.

Example:
    tools/benchmark.py --image-size 64 --base-channels 32 --batch-size 16
"""

import argparse
import os
import statistics
import time

from kinv import errors, files

PRECISIONS = ("float32", "mixed_bfloat16")
NUM_CLASSES = 80


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Measure images per second: of training, a step of which "
        "is two discriminator updates and one of the generator, and of the "
        "generator alone, in float32 and in mixed bfloat16.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--image-size",
        type=errors.positive_int,
        default=32,
        metavar="PIXELS",
        help="height and width: 32, 64 or 128",
    )
    add(
        "--base-channels",
        type=errors.positive_int,
        default=16,
        metavar="CHANNELS",
        help="width of both networks",
    )
    add(
        "--batch-size",
        type=errors.positive_int,
        default=64,
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
        default=5,
        metavar="NUMBER",
        help="training steps, or generated batches, per measurement",
    )
    add("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def main(argv=None):
    """Measures, prints a table, writes the figures."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    workloads = {}
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        train, generate = make_workloads(options)
        workloads["training", precision] = train
        workloads["generation", precision] = generate
    keras.config.set_dtype_policy("float32")

    print("compiling")
    for workload in workloads.values():
        workload()
    seconds = {name: [] for name in workloads}
    bar = keras.utils.Progbar(options.rounds * len(workloads))
    for _ in range(options.rounds):
        for name, workload in workloads.items():
            start = time.perf_counter()
            workload()
            seconds[name].append(time.perf_counter() - start)
            bar.add(1)

    images = options.steps * options.batch_size
    rows = [
        {
            "workload": workload,
            "precision": precision,
            "images_per_second": images / statistics.median(times),
            "slowest": images / max(times),
            "fastest": images / min(times),
            "ratio_to_float32": statistics.median(seconds[workload, "float32"])
            / statistics.median(times),
        }
        for (workload, precision), times in seconds.items()
    ]
    print(f"\n{'images per second':<29}  median  slowest  fastest  ratio")
    for row in sorted(rows, key=lambda row: row["workload"], reverse=True):
        print(
            f"{row['workload']:<12} {row['precision']:<16} "
            f"{row['images_per_second']:>7.1f}  {row['slowest']:>7.1f}  "
            f"{row['fastest']:>7.1f}  {row['ratio_to_float32']:>5.2f}"
        )
    if options.json:
        files.write_json(
            options.json,
            {
                "options": vars(options),
                "figures": rows,
                "versions": files.versions(),
                "git_commit": files.git_commit(),
            },
        )
        print(f"written: {options.json}")


def make_workloads(options):
    """Makes functions that train, and generate, `--steps` batches.

    The networks are those of `tools/train.py --preset small`, in the dtype
    policy of the moment; classifier and images are small and arbitrary.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from kinv import classifiers, inversion, networks

    size, batch_size = options.image_size, options.batch_size
    sizes = {
        "image_size": size,
        "num_classes": NUM_CLASSES,
        "base_channels": options.base_channels,
        "logit_normalization": "standardize",
    }
    keras.utils.set_random_seed(0)
    model = inversion.InversionGAN(
        classifiers.build_classifier(size, NUM_CLASSES, width=16),
        networks.Generator(**sizes, gain_offset=1.0),
        networks.Discriminator(**sizes),
        discriminator_steps=2,
        ema_decay=0.999,
        ema_start_step=0,
        seed=0,
    )
    one_gpu = len(tf.config.list_physical_devices("GPU")) == 1
    model.compile(
        keras.optimizers.Adam(4e-4, beta_1=0.0),
        keras.optimizers.Adam(4e-4, beta_1=0.0),
        jit_compile=one_gpu,
    )
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (3 * batch_size, size, size, 3))
    data = tf.data.Dataset.from_tensors(
        (images.astype("float32"), np.zeros(len(images), "int64"))
    ).repeat()
    generator = model.averaged_generator
    inputs = {
        "logits": random.standard_normal((batch_size, NUM_CLASSES), "float32"),
        "noise": random.standard_normal(
            (batch_size, generator.noise_dim), "float32"
        ),
    }
    predict = tf.function(generator, jit_compile=one_gpu)

    def train():
        model.fit(data, steps_per_epoch=options.steps, shuffle=False, verbose=0)

    def generate():
        for _ in range(options.steps):
            predict(inputs).numpy()  # Waits until it is computed.

    return train, generate


if __name__ == "__main__":
    errors.run(main)
