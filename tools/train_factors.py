#!/usr/bin/env python
"""Trains the network that reads the factors of rendered scenes.

`tools/analyze.py` reads reconstructions with it. The trained network is part of
the package; run this only to make another.

Example:
    tools/train_factors.py --out runs/factors
"""

import argparse

from kinv import cli, errors, files

EPOCHS = 12
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
# Channels of the first block.
WIDTH = 24
# Of weights and order.
SEED = 0


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Train a network that reads shape, hues, size, azimuth and "
        "brightness of kinv_scenes from an image.",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="directory to write")
    return parser.parse_args(argv)


def main(argv=None):
    """Trains, and leaves `factors.keras` and its figures."""
    options = parse_arguments(argv)
    cli.announce_tensorflow()
    with files.lock(options.out):
        train(files.new_directory(options.out))


def train(out):
    """Trains, measures on the test split and writes to the directory `out`."""
    import keras

    from kinv import devices
    from kinv.analysis import scene_factors
    from kinv.classifiers import small
    from kinv.inversion import checkpoints

    size = scene_factors.NETWORK_IMAGE_SIZE
    images, targets = read_all("train")
    keras.utils.set_random_seed(SEED)
    devices.configure_keras()
    devices.set_precision("auto")
    network = small.build_classifier(size, targets.shape[-1], WIDTH)
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
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
        EPOCHS,
        validation_data=read_all("validation"),
    )
    # Read in float32, on every machine alike.
    devices.set_precision("float32")
    weights = network.get_weights()
    network = small.build_classifier(size, targets.shape[-1], WIDTH)
    network.set_weights(weights)
    images, targets = read_all("test")
    readings = network.predict(images, verbose=0)
    r_squared = {
        name: float(
            scene_factors.r_squared(targets[:, part], readings[:, part])
        )
        for name, part in scene_factors.PARTS.items()
    }
    checkpoints.save_model(network, out / "factors.keras")
    files.write_json(out / "metrics.json", r_squared)
    for name, value in r_squared.items():
        print(f"{name:12} R2 {value:.3f} on {len(images)} test images")
    print(f"written: {out / 'factors.keras'}")


def read_all(split):
    """Images, uint8, and encoded factors of a whole split."""
    import numpy as np

    from kinv.analysis import scene_factors
    from kinv.data import datasets

    size = scene_factors.NETWORK_IMAGE_SIZE
    source = datasets.open_dataset(f"kinv_scenes/{size}", split)
    batches = source.evaluation_batches(size, 1000, with_factors=True)
    rows = [
        (np.uint8(images), scene_factors.encode(values))
        for images, _, values in batches.as_numpy_iterator()
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


if __name__ == "__main__":
    errors.run(main)
