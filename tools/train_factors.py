"""Trains the network that reads the factors of rendered scenes.

`tools/analyze.py` reads reconstructions with it. The trained network is part of
the package; run this only to make another.

Example:
    tools/train_factors.py --out runs/factors
"""

import argparse
import os
import pathlib

from kinv import errors, files

BATCH_SIZE = 128
LEARNING_RATE = 2e-3


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Train a network that reads size, hues, azimuth and "
        "brightness of kinv_scenes from an image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="directory to write")
    add(
        "--epochs",
        type=errors.positive_int,
        default=12,
        help="passes over the training images",
    )
    add(
        "--width",
        type=errors.positive_int,
        default=24,
        metavar="CHANNELS",
        help="channels of the first block",
    )
    add(
        "--seed",
        type=errors.non_negative_int,
        default=0,
        help="of weights and order",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="where TFDS keeps data sets; None is TFDS's own folder",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Trains, and leaves `factors.keras` and its figures."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np

    from kinv import devices
    from kinv.analysis import factors
    from kinv.classifiers import small
    from kinv.data import datasets

    size = factors.NETWORK_IMAGE_SIZE
    out = files.new_directory(pathlib.Path(options.out))

    def open_split(split):
        return datasets.open_dataset(
            f"kinv_scenes/{size}", split, options.data_dir
        )

    def read_all(split):
        rows = [
            (np.uint8(images), factors.encode(values))
            for images, _, values in open_split(split)
            .evaluation_batches(size, 1000, with_factors=True)
            .as_numpy_iterator()
        ]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    images, targets = read_all("train")
    keras.utils.set_random_seed(options.seed)
    devices.set_precision("auto")
    network = small.build_classifier(size, targets.shape[-1], options.width)
    steps = options.epochs * -(-len(images) // BATCH_SIZE)
    network.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        ),
        "mse",
    )
    network.fit(
        images,
        targets,
        BATCH_SIZE,
        options.epochs,
        validation_data=read_all("validation"),
    )
    # Read in float32, on every machine alike.
    devices.set_precision("float32")
    weights = network.get_weights()
    network = small.build_classifier(size, targets.shape[-1], options.width)
    network.set_weights(weights)
    images, targets = read_all("test")
    readings = network.predict(images, verbose=0)
    r_squared = {
        name: float(factors.r_squared(targets[:, part], readings[:, part]))
        for name, part in factors.PARTS.items()
    }
    with files.atomic_path(out / "factors.keras") as temporary:
        network.save(temporary)
    files.write_json(out / "metrics.json", r_squared)
    for name, value in r_squared.items():
        print(f"{name:12} R2 {value:.3f} on {len(images)} test images")
    print(f"written: {out / 'factors.keras'}")


if __name__ == "__main__":
    errors.run(main)
