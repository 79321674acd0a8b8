"""Has other classifiers read what pipelines reconstruct.

    .venv/bin/python docs/second_opinion.py --model exported/scenes32-standard \
        --reader runs/classifier-of-another-seed/classifier.keras

A loss of logits that are read back could be met by texture that only the
inverted classifier sees. Then others would find less in the pictures.
"""

import argparse

import numpy as np

from kinv import measures
from kinv.classifiers import loading
from kinv.data import rendering, scenes
from kinv.serving import pipeline

IMAGES = 1000

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", action="append", required=True)
parser.add_argument("--reader", action="append", required=True)
options = parser.parse_args()

images = rendering.render(scenes.scene_factors("test", range(IMAGES)), 32)
images = images.astype("float32")
readers = {path: loading.load_classifier(path) for path in options.reader}


def row(model, reader, logits, again):
    """Agreement, and what beyond the class the reader finds again."""
    agreement = np.mean(logits.argmax(axis=-1) == again.argmax(axis=-1))
    shown = measures.explained_variance(
        *measures.within_class_errors(logits, again)
    )
    print(f"{model:<36} {reader:<44} {100 * agreement:5.1f} % {shown:6.2f}")


print(f"{'pictures of':<36} {'read by':<44} agreement    shown")
for directory in options.model:
    model = pipeline.Pipeline.load(directory)
    noise = np.random.default_rng(0).standard_normal(
        (IMAGES, 1, model.noise_dim), "float32"
    )
    pictures = model.reconstruct(images, noise)[:, 0]
    row(directory, "itself", model.logits(images), model.logits(pictures))
    for path, reader in readers.items():
        row(
            directory,
            path,
            reader.predict(images, verbose=0),
            reader.predict(pictures, verbose=0),
        )
