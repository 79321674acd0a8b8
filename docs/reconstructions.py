"""Makes reconstructions.png, the picture in the README, and fashion_mnist.png.

From the root of the repository: .venv/bin/python docs/reconstructions.py
"""

import numpy as np

from kinv import images
from kinv.analysis import grids
from kinv.serving import pipeline

# By picture: its images, and how the names of the two exports begin.
PICTURES = {
    "docs/reconstructions.png": ("docs/images", "exported/scenes32"),
    "docs/fashion_mnist.png": (
        "kinv/serving/examples/fashion_mnist",
        "exported/fashion",
    ),
}

for picture, (folder, exports) in PICTURES.items():
    paths, _ = images.list_images(folder)
    originals = np.stack([images.read_image(path) for path in paths])
    rows, names = [list(originals)], ["image"]
    for classifier in ("robust", "standard"):
        model = pipeline.Pipeline.load(f"{exports}-{classifier}")
        noise = np.random.default_rng(0).standard_normal(
            (len(paths), 2, model.noise_dim), "float32"
        )
        reconstructions = model.reconstruct(originals, noise)
        for sample in range(2):
            rows.append(list(reconstructions[:, sample]))
            names.append(f"{classifier} {sample + 1}")
    grid = grids.captioned_grid(rows, row_captions=names, cell_size=72)
    images.write_image(picture, grids.render(grid))
