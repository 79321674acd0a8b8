"""Trains the network by which `tools/analyze.py` reads scenes.

From the root of the repository:

    .venv/bin/python docs/train_factors.py factors.keras

The trained network is part of the package, kinv/analysis/scene_factors.keras.
"""

import sys

import keras
import numpy as np

from kinv import devices
from kinv.analysis import scene_factors
from kinv.classifiers import small
from kinv.data import datasets

SIZE = scene_factors.NETWORK_IMAGE_SIZE
EPOCHS, BATCH_SIZE, LEARNING_RATE = 12, 128, 2e-3
# Channels of the first block.
WIDTH = 24


def read_all(split):
    """Images, uint8, and encoded factors of a whole split."""
    source = datasets.open_dataset(f"kinv_scenes/{SIZE}", split)
    batches = source.evaluation_batches(SIZE, 1000, with_factors=True)
    rows = [
        (np.uint8(images), scene_factors.encode(values))
        for images, _, values in batches.as_numpy_iterator()
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def main(path):
    """Trains, prints R² on the test split and writes the network."""
    images, targets = read_all("train")
    keras.utils.set_random_seed(0)
    devices.set_precision("auto")
    trained = small.build_classifier(SIZE, targets.shape[-1], WIDTH)
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    trained.compile(keras.optimizers.Adam(rate), "mse")
    held_out = read_all("validation")
    trained.fit(images, targets, BATCH_SIZE, EPOCHS, validation_data=held_out)

    # Read in float32, on every machine alike.
    devices.set_precision("float32")
    network = small.build_classifier(SIZE, targets.shape[-1], WIDTH)
    network.set_weights(trained.get_weights())
    images, targets = read_all("test")
    readings = network.predict(images, verbose=0)
    for name, part in scene_factors.PARTS.items():
        explained = scene_factors.r_squared(targets[:, part], readings[:, part])
        print(f"{name:12} R2 {explained:.3f} on {len(images)} test images")
    network.save(path)


if __name__ == "__main__":
    main(sys.argv[1])
