"""The embedded dataset: rendered scenes of which every factor is known.

One object stands on a floor before a wall. What an image shows is decided by
seven factors; the class is shape times object hue, all else is nuisance.
`KinvScenes` is the TFDS builder, registered by importing this module as
`kinv_scenes/32`, `kinv_scenes/64` and `kinv_scenes/32-large`.
"""

import concurrent.futures
import functools
import io
import multiprocessing
import os

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kinv import errors
from kinv.data.rendering import (
    OBJECT_HUES,
    SHAPES,
    end_with_parent,
    render,
)

CLASS_NAMES = tuple(f"{hue} {shape}" for shape in SHAPES for hue in OBJECT_HUES)
SPLITS = {"train": 40_000, "validation": 4_000, "test": 4_000}

# Half-open ranges of the continuous factors. The azimuth stays within a
# quarter turn: a cube turned by 90 degrees is the same cube. The lamp turns
# with the object, so that the azimuth of round shapes shows in their shadow.
RANGES = {
    "wall_hue": (0.0, 1.0),
    "floor_hue": (0.0, 1.0),
    "size": (0.55, 1.0),
    "azimuth": (-40.0, 40.0),
    "brightness": (0.55, 1.0),
}
_CHUNK = 128


def scene_factors(split, indices):
    """Draws the factors of scenes; the same for all image sizes.

    Args:
        split: "train", "validation" or "test".
        indices: integers of at least 0, positions in the split. Each scene
            has its own random stream, keyed by split and index.

    Returns:
        Dict of arrays `(len(indices),)`: `shape`, `object_hue` (int64, index
        into `SHAPES`, `OBJECT_HUES`), `wall_hue`, `floor_hue` (float32, a
        fraction of the hue circle), `size` (float32), `azimuth` (float32,
        degrees), `brightness` (float32, factor on the pixels).

    Raises:
        errors.InputError: if there is no such split.
    """
    if split not in SPLITS:
        raise errors.InputError(
            f"Expected a split of {', '.join(SPLITS)}. Received: {split!r}."
        )
    stream = list(SPLITS).index(split)
    uniform = np.array(
        [np.random.default_rng((stream, int(i))).random(7) for i in indices]
    ).reshape(-1, 7)

    def between(column, limits):
        low, high = limits
        values = (low + (high - low) * uniform[:, column]).astype(np.float32)
        # Rounding to float32 must not reach the open end.
        return np.minimum(values, np.nextafter(np.float32(high), np.float32(0)))

    return {
        "shape": (uniform[:, 0] * len(SHAPES)).astype(np.int64),
        "object_hue": (uniform[:, 1] * len(OBJECT_HUES)).astype(np.int64),
        **{
            name: between(column, limits)
            for column, (name, limits) in enumerate(RANGES.items(), start=2)
        },
    }


def render_encoded(split, start, stop, image_size):
    """Renders scenes `start` to `stop` of a split as PNG.

    Args:
        split: "train", "validation" or "test".
        start: position of the first scene.
        stop: position after the last scene.
        image_size: side of the images in pixels.

    Returns:
        Factors as `scene_factors` returns them, and a list of PNG files
        (bytes).
    """
    factors = scene_factors(split, range(start, stop))
    files = []
    for image in render(factors, image_size):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=3)
        files.append(file.getvalue())
    return factors, files


class SceneConfig(tfds.core.BuilderConfig):
    """One image size of the dataset, and numbers of images.

    Args:
        name: of the configuration.
        image_size: side of the images in pixels.
        **num_images: by split, where other than in `SPLITS`. The first ones
            are the same in all.
    """

    def __init__(self, name, image_size, **num_images):
        super().__init__(
            name=name, description=f"{image_size} x {image_size} pixels"
        )
        self.image_size = image_size
        self.num_images = num_images


class KinvScenes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the scenes, rendered by a pool of processes."""

    name = "kinv_scenes"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        SceneConfig("32", 32),
        SceneConfig("64", 64),
        SceneConfig("32-large", 32, train=240_000),
    ]

    def _info(self):
        side = self.builder_config.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered scenes with known factors (kinv).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(side, side, 3)),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    "shape": np.int64,
                    "object_hue": np.int64,
                    **dict.fromkeys(RANGES, np.float32),
                }
            ),
            supervised_keys=("image", "label"),
            # Scenes are independent draws: their order is already random, and
            # example i of a split stays scene i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        counts = {**SPLITS, **self.builder_config.num_images}
        return {
            split: self._generate_examples(split, count)
            for split, count in counts.items()
        }

    def _generate_examples(self, split, count):
        side = self.builder_config.image_size
        for start, (factors, files) in _render_in_parallel(split, count, side):
            labels = factors["shape"] * len(OBJECT_HUES) + factors["object_hue"]
            for i, file in enumerate(files):
                example = {name: values[i] for name, values in factors.items()}
                example["image"] = io.BytesIO(file)
                example["label"] = int(labels[i])
                yield start + i, example


def _num_cores():
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _render_in_parallel(split, count, image_size):
    """Yields `(start, render_encoded(...))` over a split, in order."""
    starts = range(0, count, _CHUNK)
    stops = [min(start + _CHUNK, count) for start in starts]
    # Spawned: a fork of a process that runs TensorFlow's threads may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        _num_cores(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    )
    with pool:
        work = functools.partial(render_encoded, split, image_size=image_size)
        try:
            yield from zip(starts, pool.map(work, starts, stops), strict=True)
        except concurrent.futures.process.BrokenProcessPool:
            raise errors.InputError(
                "Expected processes that render kinv_scenes. Received: one "
                "that stopped. Put the code of your script under `if __name__ "
                '== "__main__":`, which they need, and see that memory '
                "is free."
            ) from None
