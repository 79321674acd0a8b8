"""Makes the pictures of shipped pipelines in README and docs.

From the root of the repository: .venv/bin/python docs/reconstructions.py
"""

import numpy as np

from kinv import images
from kinv.analysis import grids
from kinv.serving import pipeline


def of_folder(folder):
    """The images of a folder, in the order of their names."""
    paths, _ = images.list_images(folder)
    return np.stack([images.read_image(path) for path in paths])


def write_picture(path, originals, exports, samples, cell_size):
    """Draws images over reconstructions by one or more exports.

    Args:
        path: of the picture.
        originals: `(images, height, width, 3)` in [0, 255].
        exports: paths of exports, by what they are called.
        samples: reconstructions of each image by each.
        cell_size: of one, in pixels.
    """
    rows, names = [list(originals)], ["image"]
    for classifier, export in exports.items():
        model = pipeline.Pipeline.load(export)
        made = model.reconstruct(originals, samples=samples, seed=0)
        rows += list(made.swapaxes(0, 1))
        names += [f"{classifier} {i + 1}" for i in range(samples)]
    grid = grids.captioned_grid(rows, row_captions=names, cell_size=cell_size)
    images.write_image(path, grids.render(grid))


def pair(prefix):
    """The exports of a robust and of a standard classifier."""
    return {kind: f"{prefix}-{kind}" for kind in ("robust", "standard")}


write_picture(
    "docs/reconstructions.png",
    of_folder("docs/images"),
    pair("exported/scenes32"),
    samples=2,
    cell_size=72,
)
write_picture(
    "docs/fashion_mnist.png",
    of_folder("kinv/serving/examples/fashion_mnist"),
    pair("exported/fashion"),
    samples=2,
    cell_size=72,
)
write_picture(
    "docs/scenes64.png",
    # The explorer's examples, which are of 64 pixels.
    of_folder("kinv/serving/examples/kinv_scenes"),
    {"robust": "exported/scenes64-robust"},
    samples=4,
    cell_size=128,
)
