"""Makes reconstructions.png, the picture in the README.

From the root of the repository: .venv/bin/python docs/reconstructions.py
"""

import numpy as np

from kinv import images
from kinv.analysis import grids
from kinv.serving import pipeline

MODELS = {
    "robust": "exported/scenes32-robust",
    "standard": "exported/scenes32-standard",
}

paths, _ = images.list_images("docs/images")
originals = np.stack([images.read_image(path) for path in paths])
rows, names = [list(originals)], ["image"]
for classifier, directory in MODELS.items():
    model = pipeline.Pipeline.load(directory)
    noise = np.random.default_rng(0).standard_normal(
        (len(paths), 2, model.noise_dim), "float32"
    )
    reconstructions = model.reconstruct(originals, noise)
    for sample in range(2):
        rows.append(list(reconstructions[:, sample]))
        names.append(f"{classifier}, noise {sample + 1}")
grid = grids.captioned_grid(rows, row_captions=names, cell_size=72)
images.write_image("docs/reconstructions.png", grids.render(grid))
