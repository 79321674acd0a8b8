"""Makes photographs.png: photographs through networks that saw only scenes.

From the root of the repository: .venv/bin/python docs/photographs.py [FOLDER]

The photographs come with scikit-image, and are in the public domain or CC0 as
its documentation states. With a FOLDER they are written there, too, as squares,
for tools/invert.py.
"""

import pathlib
import sys

import numpy as np
import skimage.data

from kinv import images, measures
from kinv.analysis import grids
from kinv.serving import pipeline

MODELS = {
    "robust": "exported/scenes32-robust",
    "standard": "exported/scenes32-standard",
}
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "hubble_deep_field",
    "camera",
    "clock",
    "brick",
    "gravel",
)
SHOWN_SIZE = 144
# Each photograph is also cut into so many squares by side, to measure more.
TILES = 4
SAMPLES = 8


def read(name):
    """A photograph as float32 `(size, size, 3)` in [0, 255]."""
    pixels = np.asarray(getattr(skimage.data, name)(), "float32")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return images.center_crop(pixels)


def tiles(pixels):
    """Squares of a square photograph, `(TILES ** 2, side, side, 3)`."""
    side = len(pixels) // TILES
    return np.stack(
        [
            pixels[top * side : (top + 1) * side, left * side :][:, :side]
            for top in range(TILES)
            for left in range(TILES)
        ]
    )


def correlation(first, second):
    """Pearson's, of any two arrays of one shape."""
    return np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]


photographs = [read(name) for name in PHOTOGRAPHS]
if len(sys.argv) > 1:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(PHOTOGRAPHS, photographs, strict=True):
        images.write_image(folder / f"{name}.png", pixels)

rows = [[images.resize_square(pixels, SHOWN_SIZE) for pixels in photographs]]
small = [images.resize(pixels[None], 32) for pixels in photographs]
rows.append([image[0] for image in small])
names, captions = ["photograph", "at 32 pixels"], [list(PHOTOGRAPHS), []]
captions[0] = [name.replace("_", " ") for name in captions[0]]
small = np.concatenate(small)
pieces = np.concatenate(
    [images.resize(tiles(pixels), 32) for pixels in photographs]
)
for name, directory in MODELS.items():
    model = pipeline.Pipeline.load(directory)
    random = np.random.default_rng(0)

    def noise(count, model=model, random=random):
        """N(0, 1), for so many images."""
        shape = (count, SAMPLES, model.noise_dim)
        return random.standard_normal(shape, "float32")

    shown = model.reconstruct(small, noise(len(small)))
    classes = model.logits(small).argmax(-1)
    for sample in range(2):
        rows.append(list(shown[:, sample]))
        names.append(f"{name}, noise {sample + 1}")
        captions.append([])
    captions[-1] = [model.class_names[index] for index in classes]

    made = model.reconstruct(pieces, noise(len(pieces)))
    means = made.mean(axis=1)
    again = model.logits(made[:, 0]).argmax(-1)
    logits = model.logits(pieces)
    colors, found = pieces.mean(axis=(1, 2)), means.mean(axis=(1, 2))
    # What is left of a colour without its brightness.
    tints, found_tints = (
        x - x.mean(axis=-1, keepdims=True) for x in (colors, found)
    )
    error = measures.pixel_mse(pieces, means).mean()
    shuffled = measures.pixel_mse(pieces, np.roll(means, 1, axis=0)).mean()
    figures = {
        "correlation of brightness": correlation(
            measures.brightness(pieces), measures.brightness(means)
        ),
        "correlation of contrast": correlation(
            measures.contrast(pieces), measures.contrast(made[:, 0])
        ),
        "correlation of tint": correlation(tints, found_tints),
        "correlation of pixels within images": np.mean(
            [
                correlation(*pair)
                for pair in zip(
                    measures.luminance(pieces),
                    measures.luminance(means),
                    strict=True,
                )
            ]
        ),
        "pixel MSE over that of a shuffled pairing": error / shuffled,
        "agreement of the class": np.mean(again == logits.argmax(-1)),
        "spread over noise": measures.noise_spread(made).mean(),
    }
    print(f"{name}, {len(pieces)} tiles of {len(photographs)} photographs")
    for label, value in figures.items():
        print(f"  {label}: {value:.2f}")
grid = grids.captioned_grid(rows, captions, row_captions=names, cell_size=84)
images.write_image("docs/photographs.png", grids.render(grid))
