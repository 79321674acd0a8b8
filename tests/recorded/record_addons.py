"""Records what tensorflow-addons computes, for tests/test_pixels.py.

tensorflow-addons cannot be imported beside the TensorFlow that kinv needs. So
this ran once, in an environment of its own (Python 3.11):

    pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 "numpy<2"
    python tests/recorded/record_addons.py
"""

import math
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0)

random = np.random.default_rng(0)
images = random.integers(0, 256, (2, 12, 9, 3), dtype="uint8")
recorded = {
    f"sharpness_{factor}": tfa.image.sharpness(images, factor).numpy()
    for factor in FACTORS
}
recorded["rotation"] = tfa.image.rotate(
    tf.constant(images[:, :9]), math.pi / 2
).numpy()
np.savez_compressed(
    pathlib.Path(__file__).with_name("addons.npz"), images=images, **recorded
)
